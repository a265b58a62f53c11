"""A photograph and what a model says about it: a tile and a legend for every task."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sinewich_jax import tasks
from sinewich_jax.report import canvas, legends

COLUMNS = 4
LEAST, MOST = 240, 420
GAP = 16
HEAD = 24
LEGEND_GAP = 8
LEGEND = 110


def write_predictions(
    path: str | os.PathLike[str],
    task_list: Sequence[tasks.Task],
    image: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    title: str,
) -> Path:
    """Writes the picture as a PNG.

    Args:
      path: the file.
      task_list: the tasks, in the order of the tiles.
      image: uint8 [H, W, 3].
      predictions: ``{task: as a label of it, [H, W] or [H, W, 3]}``.
      title: stands above.

    Returns:
      The path.
    """
    return canvas.save(draw_predictions(task_list, image, predictions, title), path)


def draw_predictions(
    task_list: Sequence[tasks.Task],
    image: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    title: str,
) -> Image.Image:
    """The photograph, then a tile a task with its legend below, four in a row.

    Args:
      task_list: the tasks.
      image: as in :func:`write_predictions`.
      predictions: as in :func:`write_predictions`.
      title: as in :func:`write_predictions`.
    """
    height, width = canvas.fit(*image.shape[:2], LEAST, MOST)
    keys = [legends.value_legend(task, LEGEND) for task in task_list]
    size = (height, width)
    cells: list[tuple[str, Image.Image, Image.Image | None]] = [
        ("input", canvas.photograph(image, size), None)
    ]
    for task, key in zip(task_list, keys, strict=True):
        picture = canvas.tile(task.picture(np.asarray(predictions[task.name])), size)
        cells.append((task.name.replace("_", " "), picture, key))
    pitch = max(width, max(key.width for key in keys)) + GAP
    columns = min(COLUMNS, len(cells))
    rows = math.ceil(len(cells) / columns)
    row_height = HEAD + height + LEGEND_GAP + max(key.height for key in keys) + GAP
    top = canvas.MARGIN + 30
    page = canvas.sheet(
        max(
            2 * canvas.MARGIN + columns * pitch - GAP,
            2 * canvas.MARGIN + canvas.text_width(title, canvas.TITLE) + 8,
        ),
        top + rows * row_height - GAP + canvas.MARGIN,
    )
    canvas.write(page, (canvas.MARGIN, canvas.MARGIN), title, canvas.TITLE, bold=True)
    for number, (name, picture, key) in enumerate(cells):
        row, column = divmod(number, columns)
        x, y = canvas.MARGIN + column * pitch, top + row * row_height
        canvas.write(page, (x, y), name, canvas.BODY, bold=True)
        page.paste(picture, (x, y + HEAD))
        if key is not None:
            page.paste(key, (x, y + HEAD + height + LEGEND_GAP))
    return page
