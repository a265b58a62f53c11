"""One stream a task: the same function of the same input under the kernels of each task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sinewich_jax.errors import ConfigError, did_you_mean

Array = jax.Array

TASK_AXES = ("vmap", "map")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def repeat(x: Array, times: int) -> Array:
    """``times`` copies of ``x`` along a new leading axis, with a gradient that adds them in place.

    Broadcasting does the same, but its gradient is a reduction over the leading axis, for which XLA
    on CPU makes a slow loop of its own: a tenth of a training step of the scenes job. A written-out
    sum melts into whatever computed its terms.
    """
    return jnp.broadcast_to(x, (times, *x.shape))


def _repeat_forward(x: Array, times: int) -> tuple[Array, None]:
    return repeat(x, times), None


def _repeat_backward(times: int, _: None, gradients: Array) -> tuple[Array]:
    return (functools.reduce(jnp.add, [gradients[i] for i in range(times)]),)


repeat.defvjp(_repeat_forward, _repeat_backward)


def each_task(
    stream: Callable[[Array, Any], Array], shared: Array, kernels: Any, task_axis: str
) -> Array:
    """Stacks ``stream(shared, kernels[t])`` over the tasks t.

    Args:
      stream: the part of a block in which tasks differ; it must use ``shared`` as its argument.
      shared: the input that all tasks have in common, (...).
      kernels: pytree of arrays with a leading axis S, one entry a task.
      task_axis: ``vmap`` computes all tasks at once, ``map`` one after another (less memory).

    Returns:
      (S, ...): equal to a loop over the tasks, on CPU bit for bit with either axis.

    Raises:
      ConfigError: for another word.
    """
    if task_axis == "map":
        return jax.lax.map(lambda kernel: stream(shared, kernel), kernels)
    if task_axis != "vmap":
        raise ConfigError(f"unknown task_axis {task_axis!r}{did_you_mean(task_axis, TASK_AXES)}")
    # The input is repeated rather than closed over. With it un-batched, vmap would turn S products
    # of (n, in) with (in, out) into a single one with (in, S * out), and a product of another
    # shape sums in another order: an untouched task would then differ from the frozen backbone in
    # the last bit. With both sides batched each task keeps the shape that the backbone itself has.
    streams = jax.tree.leaves(kernels)[0].shape[0]
    return jax.vmap(stream)(repeat(shared, streams), kernels)
