"""Eight real classification tasks: their images, the network, the score of a task.

The trunk is a small convolutional network without batch statistics, so that an average of weights
is an average of all there is. Every task keeps a head of its own, which is never merged. Images
are read from ``cls/`` in the folder that the environment variable SINEWICH_DATA names.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import DataError

Tree = Any
TASKS = (
    "mnist", "notmnist", "omniglot_alphabet", "signdigits",
    "clothing", "eurosat", "gtsrb", "cifar10",
)  # fmt: skip
CHUNK = 128


class Images(NamedTuple):
    """Images [N, 32, 32, 3] as bytes and labels [N]."""

    x: np.ndarray
    y: np.ndarray


def folder() -> Path | None:
    """Where the tasks lie, or None where the environment does not say."""
    root = os.environ.get("SINEWICH_DATA")
    return Path(root) / "cls" if root else None


@functools.cache
def load(task: str, split: str) -> Images:
    """One split of a task; gray images get three equal channels."""
    where = folder()
    if where is None or not (where / f"{task}.npz").is_file():
        raise DataError(
            f"there is no cls/{task}.npz in the folder that SINEWICH_DATA names, which is "
            f"{os.environ.get('SINEWICH_DATA')!r}; set it to the folder of the real data sets"
        )
    with np.load(where / f"{task}.npz") as file:
        x, y = file[f"{split}_x"], file[f"{split}_y"]
    return Images(np.repeat(x, 3 // x.shape[-1], axis=-1), y.astype(np.int32))


def class_count(task: str) -> int:
    """How many classes a task has."""
    return int(load(task, "train").y.max()) + 1


# --- network ------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block: norm, relu and convolution, twice."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, width] to the same."""
        y = x
        for i in range(2):
            y = nn.relu(nn.GroupNorm(num_groups=8, name=f"norm{i}")(y))
            y = nn.Conv(self.width, (3, 3), name=f"conv{i}")(y)
        return x + y


class Trunk(nn.Module):
    """Bytes [N, 32, 32, 3] to a map of features [N, 4, 4, 4 width]."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The map."""
        x = x.astype(jnp.float32) / 127.5 - 1
        for i, factor in enumerate((1, 2)):
            x = nn.Conv(factor * self.width, (3, 3), strides=2, name=f"down{i}")(x)
            x = Block(factor * self.width, name=f"block{i}")(x)
        for name, stride in (("down2", 2), ("last", 1)):
            x = nn.Conv(4 * self.width, (3, 3), strides=stride, name=name)(x)
            x = nn.relu(nn.GroupNorm(num_groups=8, name=f"{name}_norm")(x))
        return x


def maps(trunk: Tree, x: jax.Array) -> jax.Array:
    """The trunk; its width is that of its first kernel."""
    return Trunk(trunk["down0"]["kernel"].shape[-1]).apply({"params": trunk}, x)


def pooled(trunk: Tree, x: jax.Array) -> jax.Array:
    """Features [N, 4 width]."""
    return maps(trunk, x).mean(axis=(1, 2))


def linear(head: Tree, x: jax.Array) -> jax.Array:
    """A linear layer."""
    return x @ head["kernel"] + head["bias"]


def zeros(inputs: int, outputs: int) -> Tree:
    """A linear layer that knows nothing."""
    return {"kernel": jnp.zeros((inputs, outputs)), "bias": jnp.zeros(outputs)}


@jax.jit
def _chunk(trunk: Tree, x: jax.Array) -> jax.Array:
    return pooled(trunk, x)


def features(trunk: Tree, x: np.ndarray) -> np.ndarray:
    """:func:`pooled` of any number of images, compiled once."""
    found = []
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        padded = np.pad(part, ((0, CHUNK - len(part)), (0, 0), (0, 0), (0, 0)))
        found.append(np.asarray(_chunk(trunk, padded))[: len(part)])
    return np.concatenate(found)


def score(trunk: Tree, head: Tree, data: Images) -> float:
    """Accuracy."""
    scores = linear(jax.tree.map(np.asarray, head), features(trunk, data.x))
    return float((scores.argmax(-1) == data.y).mean())
