"""The base of the eight real tasks, trained without labels, and their experts.

Each expert starts from the base and a linear probe of it, and leaves beside its weights what
merging reads: curvature of training, Fisher information, Gram matrices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cells import load_arrays, save_arrays
from benchmarks.merging_agreement import dense, joined, rank_correlation
from benchmarks.real_tasks import (
    CHUNK,
    TASKS,
    Images,
    Tree,
    Trunk,
    class_count,
    features,
    linear,
    load,
    maps,
    pooled,
    score,
    zeros,
)
from sinewich_jax import merging, optim
from sinewich_jax.core.trees import flatten_paths, unflatten_paths

TUNING_TASKS = ("mnist", "gtsrb", "cifar10")
RATES = (3e-4, 1e-3, 3e-3)
BASE = {"width": 32, "steps": 2500, "batch": 64, "rate": 2e-3}
EXPERT = {"steps": 400, "batch": 64, "probe_steps": 300, "fisher": 256}
SHIFT = 3

# --- the base -----------------------------------------------------------------------------------


def pooled_images(split: str) -> np.ndarray:
    """The images of all tasks, without labels."""
    return np.concatenate([load(task, split).x for task in TASKS])


def puzzles(x: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Turned images, the same with noise and a hole, and by how many quarters they are turned."""
    rows, quarters = rng.integers(len(x), size=batch), rng.integers(4, size=batch)
    clean = x[rows]
    for k in (1, 2, 3):
        clean[quarters == k] = np.rot90(clean[quarters == k], k, axes=(1, 2))
    noisy = clean + rng.normal(0, 25, clean.shape)
    for image, (top, left) in zip(noisy, rng.integers(0, 24, size=(batch, 2)), strict=True):
        image[top : top + 8, left : left + 8] = 127.5
    return clean, np.clip(noisy, 0, 255).astype(np.uint8), quarters


def restored(params: Tree, found: jax.Array) -> jax.Array:
    """Images [N, 32, 32, 3] in -1 to 1 out of the map of features."""
    cells = linear(params["restore"], found).reshape(-1, 4, 4, 8, 8, 3)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 32, 32, 3)


def base_losses(params: Tree, batch: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple]:
    """Cross entropy of the turn plus the squared error of the restored image; both apart."""
    clean, noisy, quarters = batch
    found = maps(params["trunk"], noisy)
    turns = linear(params["turn"], found.mean(axis=(1, 2)))
    entropy = optax.softmax_cross_entropy_with_integer_labels(turns, quarters).mean()
    error = jnp.square(restored(params, found) - (clean / 127.5 - 1)).mean()
    return entropy + error, ((turns.argmax(-1) == quarters).mean(), error)


def pretrain(path: Path, seed: int, width: int, steps: int, batch: int, rate: float) -> dict:
    """Trains the base on the pooled training images of all tasks; writes the trunk to ``path``."""
    rng = np.random.default_rng(seed)
    images = pooled_images("train")
    trunk = Trunk(width).init(jax.random.key(seed), images[:1])["params"]
    params = {"trunk": trunk, "turn": zeros(4 * width, 4), "restore": zeros(4 * width, 192)}
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 20), steps)
    tx = optax.adamw(schedule)
    state = tx.init(params)

    @jax.jit
    def step(params: Tree, state: Any, batch: Any) -> tuple[Tree, Any]:
        grads, _ = jax.grad(base_losses, has_aux=True)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    begin = time.monotonic()
    for _ in range(steps):
        params, state = step(params, state, puzzles(images, batch, rng))
    jax.block_until_ready(params)
    seconds = time.monotonic() - begin
    save_arrays(path, params["trunk"])
    unseen = pooled_images("val")
    clean, noisy, quarters = puzzles(unseen, min(1024, len(unseen)), np.random.default_rng(0))
    _, (turns, error) = jax.jit(base_losses)(params, (clean, noisy, quarters))
    return {
        "turn": float(turns),
        "error": float(error),
        "variance": float(np.var(clean / 127.5 - 1)),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trunk)),
        "seconds": seconds,
    }


# --- experts ------------------------------------------------------------------------------------


def probe(trunk: Tree, data: Images, classes: int, steps: int) -> Tree:
    """A linear head on frozen features: full batches on standardised features, folded back."""
    x = features(trunk, data.x)
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    standard, y = jnp.asarray((x - mean) / spread), jnp.asarray(data.y)
    tx = optax.adamw(1e-2, weight_decay=1e-3)

    def loss(head: Tree) -> jax.Array:
        scores = linear(head, standard)
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    def step(_: int, carry: tuple[Tree, Any]) -> tuple[Tree, Any]:
        head, state = carry
        updates, state = tx.update(jax.grad(loss)(head), state, head)
        return optax.apply_updates(head, updates), state

    head = zeros(x.shape[1], classes)
    head, _ = jax.jit(lambda h: jax.lax.fori_loop(0, steps, step, (h, tx.init(h))))(head)
    kernel = head["kernel"] / spread[:, None]
    return {"kernel": kernel, "bias": head["bias"] - mean @ kernel}


def shifted(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by up to :data:`SHIFT` pixels, its edges repeated."""
    padded = np.pad(x, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    moves = rng.integers(0, 2 * SHIFT + 1, size=(len(x), 2))
    size = x.shape[1]
    return np.stack(
        [image[i : i + size, j : j + size] for image, (i, j) in zip(padded, moves, strict=True)]
    )


def expert_loss(params: Tree, batch: Images) -> jax.Array:
    """Mean cross entropy."""
    scores = linear(params["head"], pooled(params["trunk"], batch.x))
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch.y).mean()


def example_loss(params: Tree, example: Images) -> jax.Array:
    """The loss of one image."""
    return expert_loss(params, Images(example.x[None], example.y[None]))


def rounds(data: Images, steps: int, batch: int, seed: int) -> Iterator[Images]:
    """``steps`` batches: whole passes over the images, each image moved a little."""
    rng = np.random.default_rng((seed, 1))
    order = np.concatenate(
        [rng.permutation(len(data.y)) for _ in range(-(-steps * batch // len(data.y)))]
    )
    for rows in order[: steps * batch].reshape(steps, batch):
        yield Images(shifted(data.x[rows], rng), data.y[rows])


def pulled(start: Tree, strength: float) -> optax.GradientTransformation:
    """Adds ``strength (W - W_0)`` for the trunk: decoupled weight decay, but towards the base.

    To stand between Adam and the learning rate. No entry can then end farther than about
    ``1 / strength`` from the base.
    """

    def update(updates: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        trunk = jax.tree.map(
            lambda u, w, w0: u + strength * (w - w0), updates["trunk"], params["trunk"], start
        )
        return {**updates, "trunk": trunk}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def train_expert(
    params: Tree,
    data: Images,
    rate: float,
    steps: int,
    batch: int,
    seed: int,
    pull: float = 0.0,
) -> tuple[Tree, Any, float]:
    """Fine-tunes trunk and head; gives them, the optimizer's state and the seconds it took.

    By AdamW, and by AdamW that decays towards the base where there is a ``pull``.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    adamw = optax.adamw(schedule)
    if pull:
        towards = pulled(params["trunk"], pull)
        adamw = optax.chain(optax.scale_by_adam(), towards, optax.scale_by_learning_rate(schedule))
    tx = optim.with_merge_stats(adamw)
    state = tx.init(params)

    @jax.jit
    def step(params: Tree, state: Any, batch: Images) -> tuple[Tree, Any]:
        updates, state = tx.update(jax.grad(expert_loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    begin = time.monotonic()
    for one in rounds(data, steps, batch, seed):
        params, state = step(params, state, one)
    jax.block_until_ready(params)
    return params, state, time.monotonic() - begin


def fine_tune(
    path: Path,
    base: Path,
    task: str,
    seed: int,
    rate: float,
    steps: int,
    batch: int,
    probe_steps: int,
    fisher: int,
    pull: float = 0.0,
) -> dict[str, Any]:
    """One expert, with what merging reads of it; ``fisher`` of 0 leaves the statistics out."""
    data, trunk = load(task, "train"), load_arrays(base)
    head = probe(trunk, data, class_count(task), probe_steps)
    start = {"trunk": trunk, "head": head}
    params, state, seconds = train_expert(start, data, rate, steps, batch, seed, pull)
    found = {
        "probe": {split: score(trunk, head, load(task, split)) for split in ("val", "test")},
        "expert": {
            split: score(params["trunk"], params["head"], load(task, split))
            for split in ("val", "test")
        },
        "seconds": seconds,
    }
    if not fisher:
        return found
    few = Images(data.x[:fisher], data.y[:fisher])
    begin = time.monotonic()
    exact = jax.block_until_ready(_fisher(params, few))["trunk"]
    found["fisher_seconds"] = time.monotonic() - begin
    curvature = optim.export_stats(state)["trunk"]
    saved = {**params, "curvature": curvature, "fisher": exact, "gram": grams(params["trunk"], few)}
    save_arrays(path, saved)
    return found | compared(trunk, params["trunk"], curvature, exact)


@jax.jit
def _fisher(params: Tree, data: Images) -> Tree:
    # One image at a time: the gradients of kernels of many images at once are slow on a CPU.
    return optim.per_example_squares(example_loss, params, data, chunk=1)


def compared(base: Tree, trunk: Tree, curvature: Tree, exact: Tree) -> dict[str, float]:
    """How well the curvature of training agrees with the Fisher information, and their sizes."""
    delta = {
        p: np.asarray(d, np.float64)
        for p, d in flatten_paths(merging.task_vector(trunk, base)).items()
    }
    ours, truth = (dense(stats, trunk) for stats in (curvature, exact))
    return {
        "saliency": rank_correlation(
            joined({p: delta[p] ** 2 * ours[p] for p in ours}),
            joined({p: delta[p] ** 2 * truth[p] for p in truth}),
        ),
        "curvature": rank_correlation(joined(ours), joined(truth)),
        "curvature_mean": float(joined(ours).mean()),
        "fisher_mean": float(joined(truth).mean()),
        "distance": float(np.linalg.norm(joined(delta))),
    }


def grams(trunk: Tree, data: Images) -> Tree:
    """``X^T X / rows`` of the inputs of every convolution, seen as a linear layer on patches."""

    @jax.jit
    def collect(x: jax.Array) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}

        def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            layer = context.module
            if isinstance(layer, nn.Conv):
                inputs = patches(args[0], layer.kernel_size, layer.strides or 1)
                found["/".join((*layer.path, "kernel"))] = inputs.T @ inputs / len(inputs)
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            maps(trunk, x)
        return found

    parts = [collect(data.x[i : i + CHUNK]) for i in range(0, len(data.x), CHUNK)]
    return unflatten_paths({p: sum(part[p] for part in parts) / len(parts) for p in parts[0]})


def patches(x: jax.Array, size: tuple[int, int], strides: int | tuple[int, int]) -> jax.Array:
    """What a convolution multiplies its kernel with: rows (kernel height, width, channels)."""
    strides = (strides,) * len(size) if isinstance(strides, int) else tuple(strides)
    numbers = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated_patches(
        x, size, strides, "SAME", dimension_numbers=numbers
    )
    channels = x.shape[-1]
    apart = found.reshape(-1, channels, size[0] * size[1])  # JAX has the channel first
    return apart.transpose(0, 2, 1).reshape(len(apart), -1)
