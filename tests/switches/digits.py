"""Six tasks on scikit-learn's digits and an expert for each: seconds a seed, nothing downloaded.

A task changes the images and never the labels: as they are, turned by 90 degrees, mirrored, with
light and dark exchanged, with pixels permuted, with noise. All parameters of a network
64-512-512-10, its head included, belong to the expert.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

Tree = Any
TASKS = ("identity", "turned", "mirrored", "inverted", "permuted", "noisy")
WIDTHS = (64, 512, 512, 10)
TRAINING_IMAGES = 1200
"""Of 1797; the other 597 are for measuring."""

BASE = {"images": 100, "steps": 150, "rate": 3e-4, "batch": 64}
"""The base sees a small mix of all tasks."""

EXPERT = {"steps": 400, "rate": 3e-4, "batch": 64}


class Split(NamedTuple):
    """Images (T, N, 64) in the order of :data:`TASKS` and their labels (N,), the same for all."""

    images: np.ndarray
    labels: np.ndarray


class Family(NamedTuple):
    """A base, an expert for each task, and the images they have not seen."""

    base: Tree
    experts: dict[str, Tree]
    train: Split
    test: Split


@functools.cache
def splits() -> tuple[Split, Split]:
    """Training and test images of all tasks, the same for all seeds."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    images = (pixels[order] / 16).reshape(-1, 8, 8)
    flat = images.reshape(-1, 64)
    changed = np.stack(
        [
            flat,
            np.rot90(images, axes=(1, 2)).reshape(-1, 64),
            images[:, :, ::-1].reshape(-1, 64),
            1 - flat,
            flat[:, rng.permutation(64)],
            np.clip(flat + 0.3 * rng.standard_normal(flat.shape), 0, 1),
        ]
    ).astype(np.float32)
    labels, cut = labels[order].astype(np.int32), TRAINING_IMAGES
    return Split(changed[:, :cut], labels[:cut]), Split(changed[:, cut:], labels[cut:])


def fresh(seed: int) -> Tree:
    """He's initial weights."""
    rng = np.random.default_rng(seed)
    return {
        f"layer{i}": {
            "kernel": (rng.standard_normal((m, n)) * np.sqrt(2 / m)).astype(np.float32),
            "bias": np.zeros(n, np.float32),
        }
        for i, (m, n) in enumerate(itertools.pairwise(WIDTHS))
    }


def features(params: Tree, images: Any) -> jax.Array:
    """What the last layer reads: (B, 512)."""
    for name in ("layer0", "layer1"):
        images = jax.nn.relu(images @ params[name]["kernel"] + params[name]["bias"])
    return images


def logits(params: Tree, images: Any) -> jax.Array:
    """Scores of the ten digits: (B, 10)."""
    return features(params, images) @ params["layer2"]["kernel"] + params["layer2"]["bias"]


@functools.partial(jax.jit, static_argnames="rate")
def train(params: Tree, images: Any, labels: Any, order: Any, rate: float) -> Tree:
    """Adam over batches of indices ``order`` (steps, batch)."""
    optimizer = optax.adam(rate)

    def loss(params: Tree, rows: Any) -> jax.Array:
        scores = logits(params, images[rows])
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels[rows]).mean()

    def step(carry: Any, rows: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), order)[0][0]


def batches(seed: int, count: int, steps: int, batch: int) -> np.ndarray:
    """Indices (steps, batch): whole passes in random order."""
    rng = np.random.default_rng((seed, count, steps))
    passes = -(-steps * batch // count)
    order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return order[: steps * batch].reshape(steps, batch)


def family(seed: int) -> Family:
    """Trains the base, then all experts from it at once."""
    seen, unseen = splits()
    some = BASE["images"]
    images = seen.images[:, :some].reshape(-1, 64)
    labels = np.tile(seen.labels[:some], len(TASKS))
    order = batches(seed, len(labels), BASE["steps"], BASE["batch"])
    base = train(fresh(seed), images, labels, order, BASE["rate"])
    order = batches(seed, TRAINING_IMAGES, EXPERT["steps"], EXPERT["batch"])
    each = jax.vmap(lambda images: train(base, images, seen.labels, order, EXPERT["rate"]))
    found = jax.device_get(jax.jit(each)(seen.images))
    experts = {name: jax.tree.map(lambda leaf, i=i: leaf[i], found) for i, name in enumerate(TASKS)}
    return Family(jax.device_get(base), experts, seen, unseen)


@jax.jit
def correct(params: Tree, images: Any, labels: Any) -> jax.Array:
    """Whether each image is recognised: bool (B,)."""
    return logits(params, images).argmax(-1) == labels


def accuracy(models: Mapping[str, Tree], test: Split) -> float:
    """The mean over tasks, each with its own model."""
    found = [
        np.asarray(correct(models[name], images, test.labels)).mean()
        for name, images in zip(TASKS, test.images, strict=True)
    ]
    return float(np.mean(found))
