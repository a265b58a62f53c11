"""Golden arrays and random batches for the task tests."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from sinewich_jax import tasks

IGNORE = 255
PEER_NAMES = {"saliency": "sal"}


@functools.cache
def update(metric: tasks.Metric) -> Callable:
    """``metric.update`` compiled; one whole program is much faster to build than its pieces."""
    return jax.jit(metric.update)


@functools.cache
def loss(task: tasks.Task) -> Callable:
    """``task.loss`` compiled."""
    return jax.jit(task.loss)


@functools.cache
def loss_and_slope(task: tasks.Task) -> Callable:
    """Value and gradient of ``task.loss`` with respect to the logits, compiled."""
    return jax.jit(jax.value_and_grad(task.loss))


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(pathlib.Path(__file__).parent / "golden.npz", allow_pickle=False) as file:
        return dict(file)


def golden_batch(
    name: str, prefix: str | None = None, label: str = "label"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits [B, H, W, C], label, valid) of a task, channels last and with the mask split off."""
    data, prefix = golden(), prefix or PEER_NAMES.get(name, name)
    key = "logits" if f"in/{prefix}/logits" in data else "pred"
    logits = np.moveaxis(data[f"in/{prefix}/{key}"], 1, -1)
    target = np.moveaxis(data[f"in/{prefix}/{label}"], 1, -1)
    valid = np.all(target != IGNORE, axis=-1)
    return logits, (target if name == "normals" else target[..., 0]), valid


def small(name: str) -> tasks.Task:
    """A task, with five classes where it has classes."""
    return tasks.make(name, channels=5) if name in ("semseg", "human_parts") else tasks.make(name)


def random_batch(
    task: tasks.Task, seed: int, batch: int = 3, height: int = 6, width: int = 7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plausible logits and labels with about a fifth of the pixels invalid."""
    rng = np.random.default_rng(seed)
    shape = (batch, height, width)
    logits = rng.normal(size=(*shape, task.channels)).astype(np.float32)
    if task.class_names is not None or task.name in ("semseg", "human_parts"):
        label = rng.integers(0, task.channels, shape).astype(np.uint8)
    elif task.name == "depth":
        label = rng.uniform(0.5, 5.0, shape).astype(np.float32)
        logits = logits + 3.0
    elif task.name == "normals":
        label = rng.normal(size=(*shape, 3)).astype(np.float32)
        label /= np.linalg.norm(label, axis=-1, keepdims=True)
    else:
        label = (rng.uniform(size=shape) < 0.3).astype(np.uint8)
    return logits, label, rng.uniform(size=shape) < 0.8
