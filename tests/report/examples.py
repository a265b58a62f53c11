"""Examples and results as training hands them to the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sinewich_jax import tasks


def example(
    task_list: Sequence[tasks.Task], height: int = 16, width: int = 16, index: int = 0
) -> dict[str, Any]:
    """Random labels in blocks of four pixels, and predictions that are partly right."""
    rng = np.random.default_rng(index)

    def blocks(high: int) -> np.ndarray:
        small = rng.integers(0, high, (-(-height // 4), -(-width // 4)))
        return small.repeat(4, 0).repeat(4, 1)[:height, :width].astype(np.uint8)

    labels, predictions = {}, {}
    for task in task_list:
        if task.label_tail:
            label = rng.standard_normal((height, width, 3)).astype(np.float32) - (0, 0, 4)
            label = (label / np.linalg.norm(label, axis=-1, keepdims=True)).astype(np.float32)
            guess = label[:, ::-1]
        elif not hasattr(task, "positive_weight") and task.channels == 1:
            label = rng.uniform(1, 6, (height, width)).astype(np.float32)
            guess = label + np.float32(0.5)
        elif task.channels == 1:
            label = blocks(2)
            guess = (0.8 * label + 0.1).astype(np.float32)
        else:
            label = blocks(task.channels)
            guess = np.where(np.arange(width) < width // 2, label, 0).astype(np.uint8)
        labels[task.name], predictions[task.name] = label, guess
    return {
        "image": rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        "labels": labels,
        "valid": {task.name: np.ones((height, width), bool) for task in task_list},
        "predictions": predictions,
        "index": index,
    }


def results() -> dict[str, Any]:
    """A small ``results.json``: a reference is known for one task of two."""
    return {
        "tasks": {
            "semseg": {
                "metric": "miou",
                "unit": "",
                "higher_is_better": True,
                "value": 0.51234,
                "baseline": 0.2,
                "reference": None,
                "all": {"miou": 0.51234, "pixel_accuracy": 0.9, "iou/wall": 0.5, "iou/ball": None},
            },
            "depth": {
                "metric": "rmse",
                "unit": "m",
                "higher_is_better": False,
                "value": 0.6,
                "baseline": 1.5,
                "reference": 0.5,
                "all": {"rmse": 0.6, "abs_rel": None},
            },
        },
        "delta_m": None,
        "trainable": 1234,
        "total": 12340,
        "protocol": "scenes: 8 evaluation examples of 16 x 16 pixels",
        "method": "sinewich",
        "steps": 20,
        "seed": 3,
        "switching": {"update_cosine": 0.25},
        "train_seconds": 75.4,
        "images_per_second": 12.34,
    }
