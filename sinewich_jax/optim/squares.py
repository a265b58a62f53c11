"""Means of squared gradients of single examples or micro-batches: ``merge_sq``.

What merging wants is the Fisher information, a mean of squares ``E[g g]`` over examples. An
optimizer sees the square of a mean, about 1/B of it for a batch of B, noisier and with the mean
gradient in it. These functions pay one backward pass an example or micro-batch for the real thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sinewich_jax.core.trees import Tree
from sinewich_jax.errors import ConfigError
from sinewich_jax.optim import checks

Array = jax.Array
Loss = Callable[[Tree, Any], Array]


def per_example_squares(
    loss_fn: Loss, params: Tree, batch: Tree, *, chunk: int | None = None
) -> Tree:
    """``1/B sum_b (d loss_b / d params)^2``: the empirical Fisher information's diagonal.

    With labels drawn from the model in place of the data's it is the Fisher information itself.

    Args:
      loss_fn: ``(params, example) -> ()``, the loss of one example, which has no batch axis.
      params: real leaves.
      batch: a tree of arrays [B, ...].
      chunk: gradients held at a time, a divisor of B; None holds B of them.

    Returns:
      A tree like ``params``, float32: ``merge_sq`` of an optimizer with merge statistics.

    Raises:
      ConfigError: arrays of different length, none, or a chunk that does not divide B.

    Examples:
      >>> per_example_squares(lambda w, x: w * x, 1.0, jnp.array([1.0, 3.0])).item()
      5.0
    """
    size = _length(batch)
    return _mean_of_squares(loss_fn, params, batch, size, size if chunk is None else chunk)


def micro_batch_squares(
    loss_fn: Loss, params: Tree, batch: Tree, size: int, *, chunk: int | None = None
) -> Tree:
    """The same over micro-batches of ``size`` examples, one backward pass each.

    Times ``size`` it is on the scale of :func:`per_example_squares`.

    Args:
      loss_fn: ``(params, micro_batch) -> ()``, a mean over its examples.
      params: real leaves.
      batch: a tree of arrays [B, ...]; examples that follow each other go together.
      size: a divisor of B.
      chunk: micro-batches at a time, a divisor of B / size; None takes one after another.

    Returns:
      A tree like ``params``, float32.

    Raises:
      ConfigError: sizes that do not divide.
    """
    count = _divided("size", size, _length(batch), "examples")
    groups = jax.tree.map(lambda x: jnp.reshape(x, (count, size, *jnp.shape(x)[1:])), batch)
    return _mean_of_squares(loss_fn, params, groups, count, 1 if chunk is None else chunk)


def _mean_of_squares(loss_fn: Loss, params: Tree, groups: Tree, count: int, chunk: int) -> Tree:
    """Mean over the first axis of ``groups``, ``chunk`` gradients at a time."""
    steps = _divided("chunk", chunk, count, "gradients")
    chunks = jax.tree.map(lambda x: jnp.reshape(x, (steps, chunk, *jnp.shape(x)[1:])), groups)
    gradients = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))

    def add(total: Tree, part: Tree) -> tuple[Tree, None]:
        squares = jax.tree.map(
            lambda g: jnp.square(g.astype(jnp.float32)).sum(axis=0), gradients(params, part)
        )
        return jax.tree.map(jnp.add, total, squares), None

    zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), params)
    total, _ = jax.lax.scan(add, zeros, chunks)
    return jax.tree.map(lambda x: x / count, total)


def _length(batch: Tree) -> int:
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or 0 in lengths:
        raise ConfigError(
            "the arrays of a batch need one common first axis of at least one example, found "
            f"lengths {sorted(lengths)}"
        )
    return lengths.pop()


def _divided(name: str, part: Any, count: int, what: str) -> int:
    part = checks.whole(name, part, 1)
    if count % part:
        raise ConfigError(f"{name} is {part} and does not divide the {count} {what}")
    return count // part
