"""Pictures of evaluation examples: input, prediction, ground truth and error for every task."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sinewich_jax import tasks
from sinewich_jax.errors import SinewichError
from sinewich_jax.report import canvas, legends, overview, scores

COLUMNS = ("input", "prediction", "ground truth", "error")
LEAST, MOST = 160, 384
GAP = 10
HEAD = 26
LEGEND_GAP = 22


def write_panels(
    directory: str | os.PathLike[str],
    task_list: Sequence[tasks.Task],
    examples: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Writes ``example_<index>.png`` for every example, and ``overview.png`` of the first three.

    Args:
      directory: where to; made when missing.
      task_list: the tasks, in the order of the rows.
      examples: ``{"image": uint8 [H, W, 3], "labels": {task: [H, W] or [H, W, 3]}, "valid":
        {task: bool [H, W]}, "predictions": {task: as the label}, "index": int}`` each.

    Returns:
      The paths of the examples' pictures, then that of the overview.

    Raises:
      SinewichError: no example or no task, or an example that lacks something of a task.
    """
    directory = Path(directory)
    paths = [
        canvas.save(
            draw_panel(task_list, example), directory / f"example_{example['index']:04d}.png"
        )
        for example in _checked(task_list, examples)
    ]
    return [*paths, overview.write_overview(directory / "overview.png", task_list, examples)]


def draw_panel(task_list: Sequence[tasks.Task], example: Mapping[str, Any]) -> Image.Image:
    """One example: a row a task, columns input, prediction, ground truth, error, legend.

    Args:
      task_list: the tasks.
      example: as in :func:`write_panels`.
    """
    image = np.asarray(example["image"])
    height, width = canvas.fit(*image.shape[:2], LEAST, MOST)
    keys = [_legend(task, height) for task in task_list]
    row_heights = [HEAD + max(height, key.height) + GAP for key in keys]
    left = canvas.MARGIN
    legend_left = left + 4 * width + 3 * GAP + LEGEND_GAP
    top = canvas.MARGIN + 48
    titles = [
        f"{task.name.replace('_', ' ')}: "
        + scores.caption(task, *(example[k][task.name] for k in ("predictions", "labels", "valid")))
        for task in task_list
    ]
    page = canvas.sheet(
        max(
            legend_left + max(key.width for key in keys),
            left + max(canvas.text_width(title, canvas.BODY) + 8 for title in titles),
        )
        + canvas.MARGIN,
        top + sum(row_heights) - GAP + canvas.MARGIN,
    )
    canvas.write(
        page, (left, canvas.MARGIN - 4), f"example {example['index']}", canvas.TITLE, bold=True
    )
    for column, title in enumerate(COLUMNS):
        x = left + column * (width + GAP) + width / 2
        canvas.write(page, (x, top - 8), title, canvas.BODY, canvas.MUTED, "ms")
    for task, key, title, row_height in zip(task_list, keys, titles, row_heights, strict=True):
        canvas.write(page, (left, top + 5), title, canvas.BODY, bold=True)
        pictures = _pictures(task, example)
        for column, picture in enumerate(pictures):
            at = (left + column * (width + GAP), top + HEAD)
            page.paste(canvas.tile(picture, (height, width)), at)
        page.paste(key, (legend_left, top + HEAD))
        top += row_height
    return page


def _pictures(task: tasks.Task, example: Mapping[str, Any]) -> list[np.ndarray]:
    prediction, label, valid = (
        np.asarray(example[k][task.name]) for k in ("predictions", "labels", "valid")
    )
    return [
        np.asarray(example["image"]),
        task.picture(prediction),
        task.picture(canvas.shown(label, valid), valid),
        task.error_picture(prediction, canvas.shown(label, valid), valid),
    ]


def _legend(task: tasks.Task, height: int) -> Image.Image:
    """The legend of the values above that of the errors."""
    error = legends.error_legend(task)
    value = legends.value_legend(task, max(100, height - error.height - LEGEND_GAP))
    both = max(height, value.height + LEGEND_GAP + error.height)
    image = canvas.sheet(max(value.width, error.width), both)
    image.paste(value, (0, 0))
    image.paste(error, (0, both - error.height))
    return image


def _checked(
    task_list: Sequence[tasks.Task], examples: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    if not examples or not task_list:
        raise SinewichError(
            f"panels need at least one example and one task, got {len(examples)} examples and "
            f"{len(task_list)} tasks"
        )
    for example in examples:
        size = np.asarray(example["image"]).shape[:2]
        for task in task_list:
            for kind in ("predictions", "labels", "valid"):
                found = example[kind].get(task.name)
                if found is None or np.asarray(found).shape[:2] != size:
                    shape = "none" if found is None else f"one of shape {np.asarray(found).shape}"
                    raise SinewichError(
                        f"example {example['index']}: {kind!r} of {task.name} should be an array "
                        f"of the image's size {size[0]} x {size[1]}, found {shape}"
                    )
    return examples
