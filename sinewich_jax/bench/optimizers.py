"""Optimizers on the tree of a Swin: bytes of state from shapes, steps timed against AdamW's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from sinewich_jax import optim
from sinewich_jax.bench.pairs import Pairs, interleaved
from sinewich_jax.nn.swin import Swin, swin

REFERENCE = "adamw"
TRACKER = "adamw_tracker"
_RATE = 1e-4
_ADAMW = optax.adamw(_RATE)  # one object: the compiler's cache knows it again


def optimizers(rank: int, stats_every: int) -> dict[str, optax.GradientTransformation]:
    """What is compared, by name, AdamW first.

    Args:
      rank: of the momentum of UMTAM and of the projection of GaLore.
      stats_every: steps between two recordings of the tracker.
    """
    return {
        REFERENCE: _ADAMW,
        TRACKER: optim.with_merge_stats(_ADAMW, stats_every=stats_every),
        "umtam_lean": optim.umtam(_RATE, rank=rank),
        "umtam_faithful": optim.umtam(_RATE, rank=rank, mode="faithful"),
        "adafactor": optax.adafactor(_RATE),
        "muon": optax.contrib.muon(_RATE),
        "galore": optax.contrib.galore(_RATE, rank=rank),
    }


def abstract_params(backbone: str, image: int = 32) -> Any:
    """The parameters of a Swin by preset name, as shapes."""
    model = swin(backbone)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), _images(image, 1))["params"])


def size_of(tree: Any) -> int:
    """Bytes of all arrays of a tree of arrays or shapes."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)


def state_bytes(tx: optax.GradientTransformation, params: Any) -> int:
    """Bytes of an optimizer's state for parameters that are only shapes."""
    return size_of(jax.eval_shape(tx.init, params))


def update_pairs(
    tx: optax.GradientTransformation, params: Any, *, steps: int, pairs: int, seconds: float
) -> Pairs:
    """AdamW's update and another optimizer's in turn, on one noise gradient.

    Args:
      tx: the other optimizer.
      params: shapes.
      steps: updates in one run.
      pairs: runs of each, at most.
      seconds: no pair is begun after so long.
    """
    weights, grads = _noise(params, 0), _noise(params, 1)

    def runner(tx: optax.GradientTransformation) -> Callable[[], object]:
        return _repeated(functools.partial(_update, tx), weights, tx, steps, grads)

    return interleaved(runner(_ADAMW), runner(tx), pairs, seconds)


def training_pairs(backbone: str, *, image: int, batch: int, stats_every: int, pairs: int) -> Pairs:
    """Training steps with AdamW, without and with the tracker in turn.

    A run is ``stats_every`` steps: exactly one recording. The loss is the mean square of the four
    features, which reaches every parameter.
    """
    model, images = swin(backbone), _images(image, batch)
    weights = _noise(abstract_params(backbone, image), 0)

    def runner(tx: optax.GradientTransformation) -> Callable[[], object]:
        @functools.partial(jax.jit, donate_argnums=0)
        def step(carry: Any, images: jax.Array) -> Any:
            return _moved(tx, carry, jax.grad(_loss)(carry[0], model, images))

        return _repeated(step, weights, tx, stats_every, images)

    tracked = optim.with_merge_stats(_ADAMW, stats_every=stats_every)
    return interleaved(runner(_ADAMW), runner(tracked), pairs)


def _loss(params: Any, model: Swin, images: jax.Array) -> jax.Array:
    features = model.apply({"params": params}, images)
    return sum(jnp.square(feature).mean() for feature in features)


def _moved(tx: optax.GradientTransformation, carry: Any, grads: Any) -> Any:
    params, state = carry
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


_update = jax.jit(_moved, static_argnums=0, donate_argnums=1)


def _repeated(
    step: Callable[[Any, Any], Any],
    weights: Any,
    tx: optax.GradientTransformation,
    steps: int,
    given: Any,
) -> Callable[[], object]:
    """A warm run of ``steps`` steps that goes on where the last one stopped."""
    start = jax.tree.map(jnp.copy, weights)  # a step frees what it is given
    carry = [(start, jax.jit(tx.init)(start))]

    def run() -> None:
        for _ in range(steps):
            carry[0] = step(carry[0], given)
        jax.block_until_ready(carry[0])

    run()
    return run


def _noise(params: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, leaf.dtype)), params
    )


def _images(size: int, batch: int) -> jax.Array:
    return jax.random.normal(jax.random.key(2), (batch, size, size, 3))
