"""The score of one picture, from the task's own metric."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from sinewich_jax import tasks
from sinewich_jax.report import metric_names

# A class that an image does not show should not pull its score down.
_ONE_IMAGE = {"miou": "miou_present"}
_SURE = 20.0
_CLIP = 1e-7


def image_score(
    task: tasks.Task, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray
) -> tuple[str, float] | None:
    """The primary metric on one example.

    Args:
      task: the task.
      prediction: [H, W] or [H, W, 3], as from ``task.predict``.
      label: the same shape.
      valid: bool [H, W].

    Returns:
      Key and value of the metric; the mean IoU is that of the classes present. None when there is
      nothing to score, or when the task's predictions cannot be turned back into logits.
    """
    logits = _logits_of(task, np.asarray(prediction))
    if logits is None:
        return None
    metric = task.metric()
    state = jax.device_get(_update(task)(logits[None], label[None], valid[None]))
    values = metric.compute(metric.merge(metric.empty(), state))
    key = _ONE_IMAGE.get(task.primary, task.primary)
    key = key if key in values else task.primary
    return (key, values[key]) if math.isfinite(values[key]) else None


def caption(task: tasks.Task, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray) -> str:
    """The score as a short text with its unit, "nothing to score" where there is none."""
    score = image_score(task, prediction, label, valid)
    if score is None:
        return "nothing to score"
    key, value = score
    name = metric_names.label({new: old for old, new in _ONE_IMAGE.items()}.get(key, key))
    if task.unit == "deg":
        return f"{name} {value:.1f}°"
    return f"{name} {value:.2f}{f' {task.unit}' if task.unit else ''}"


@functools.cache
def _update(task: tasks.Task) -> Callable:
    return jax.jit(task.metric().update)


def _logits_of(task: tasks.Task, prediction: np.ndarray) -> np.ndarray | None:
    """Logits [H, W, C] that ``task.predict`` maps to the prediction; None if none is found."""
    for logits in _candidates(task, prediction):
        again = np.asarray(task.predict(logits))
        if again.shape == prediction.shape and np.allclose(again, prediction, atol=1e-3):
            return logits
    return None


def _candidates(task: tasks.Task, prediction: np.ndarray) -> Iterator[np.ndarray]:
    if prediction.dtype.kind in "iu":
        chosen = prediction[..., None] == np.arange(task.channels)
        yield np.where(chosen, _SURE, -_SURE).astype(np.float32)
        return
    channels = prediction if prediction.ndim == 3 else prediction[..., None]
    if channels.shape[-1] != task.channels:
        return
    yield channels.astype(np.float32)
    probability = np.clip(channels.astype(np.float64), _CLIP, 1.0 - _CLIP)
    yield np.log(probability / (1.0 - probability)).astype(np.float32)
