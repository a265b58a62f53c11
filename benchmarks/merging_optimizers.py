"""Optimizers side by side: loss over a sweep of learning rates, bytes of state, time of a step.

Everyone trains the small network on scikit-learn's digits from the same start on the same batches,
without weight decay; beside our own there are AdamW, Adafactor, Muon and GaLore of optax.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import merging_digits as digits
from benchmarks.real_tasks import Trunk
from sinewich_jax import optim

Tree = Any
Make = Callable[[Any], optax.GradientTransformation]
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SWEEP = {"steps": 400, "batch": 32, "rates": RATES}
RANKS = (2, 4, 8, 16, 32)

_adam: Make = functools.partial(optax.adamw, weight_decay=0.0)
OPTIMIZERS: dict[str, Make] = {
    "AdamW": _adam,
    "AdamW with merge stats": lambda rate: optim.with_merge_stats(_adam(rate)),
    **{f"UMTAM lean, rank {rank}": functools.partial(optim.umtam, rank=rank) for rank in RANKS},
    "UMTAM faithful, rank 8": functools.partial(optim.umtam, rank=8, mode="faithful"),
    "UMTAM faithful, rank 32": functools.partial(optim.umtam, rank=32, mode="faithful"),
    "Adafactor": lambda rate: optax.adafactor(
        rate, min_dim_size_to_factor=32, multiply_by_parameter_scale=False
    ),
    "Muon": optax.contrib.muon,
    "GaLore, rank 8": functools.partial(optax.contrib.galore, rank=8),
    "GaLore, rank 32": functools.partial(optax.contrib.galore, rank=32),
}
REFERENCE = "AdamW"


# --- loss ---------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="name")
def _train(name: str, rate: jax.Array, params: Tree, data: Any, order: jax.Array) -> Tree:
    return digits.train(OPTIMIZERS[name](rate), params, data, order)[0]


def sweep(
    name: str, seed: int, steps: int, batch: int, rates: Sequence[float]
) -> dict[str, list[float | None]]:
    """Loss on the training images and accuracy on the test images by rate; None if not finite."""
    data, test = digits.examples("upright", "train"), digits.examples("upright", "test")
    start, order = digits.fresh(10, seed), digits.batches(len(data.y), steps, batch, seed)
    losses: list[float | None] = []
    scores: list[float | None] = []
    for rate in rates:
        params = _train(name, jnp.float32(rate), start, data, order)
        loss = float(digits.loss_of(params, data))
        finite = math.isfinite(loss)
        losses.append(loss if finite else None)
        scores.append(float(digits.accuracy(params, test)) if finite else None)
    return {"loss": losses, "accuracy": scores}


# --- memory -------------------------------------------------------------------------------------


def models() -> dict[str, Tree]:
    """Shapes of the parameters of networks, nothing of them in memory."""
    from sinewich_jax.nn.swin import swin

    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    small = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    key = jax.random.key(0)
    return {
        "digits": jax.eval_shape(lambda: digits.fresh(10, 0)),
        "eight tasks": jax.eval_shape(Trunk(32).init, key, small)["params"],
        "Swin-T": jax.eval_shape(swin("swin_t").init, key, image)["params"],
    }


def size(tree: Tree) -> int:
    """Bytes of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def state_bytes() -> dict[str, dict[str, int]]:
    """By network the bytes of its parameters and of every optimizer's state."""
    found = {}
    for model, params in models().items():
        states = {
            n: size(jax.eval_shape(make(1e-3).init, params)) for n, make in OPTIMIZERS.items()
        }
        found[model] = {"parameters": size(params), **states}
    return found


# --- time ---------------------------------------------------------------------------------------


def block(width: int) -> Tree:
    """The matrices and vectors of one transformer block."""
    rng = np.random.default_rng(0)
    kernels = {
        "attention": (width, 3 * width),
        "out": (width, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    shapes = {**kernels, **{f"{name}_bias": (shape[1],) for name, shape in kernels.items()}}
    return {n: jnp.asarray(rng.standard_normal(s), jnp.float32) / 30 for n, s in shapes.items()}


def interleaved(steps: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function by round; every round calls all of them, the order turning."""
    names = list(steps)
    for name in names:
        jax.block_until_ready(steps[name]())
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            begin = time.perf_counter()
            jax.block_until_ready(steps[name]())
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def step_times(width: int, rounds: int) -> dict[str, dict[str, float]]:
    """The time of an update as a ratio to AdamW's in the same round, and AdamW's in seconds."""
    params = block(width)
    grads = jax.tree.map(lambda leaf: leaf[::-1] * 0.01, params)

    def stepper(make: Make) -> Callable[[], Any]:
        tx = make(1e-3)

        @jax.jit
        def step(state: Any, params: Tree, grads: Tree) -> tuple[Any, Tree]:
            updates, state = tx.update(grads, state, params)
            return state, optax.apply_updates(params, updates)

        held = [(tx.init(params), params)]

        def call() -> Any:
            held[0] = step(*held[0], grads)
            return held[0]

        return call

    seconds = interleaved({name: stepper(make) for name, make in OPTIMIZERS.items()}, rounds)
    own = seconds[REFERENCE]
    ratios = {
        name: [a / b for a, b in zip(found, own, strict=True)] for name, found in seconds.items()
    }
    return {
        "ratio": {name: statistics.median(found) for name, found in ratios.items()},
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
    }
