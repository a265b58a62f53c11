"""The picture for the front page: a few examples, all tasks, prediction above truth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sinewich_jax import tasks
from sinewich_jax.report import canvas

EXAMPLES = 3
LEAST, MOST = 112, 160
GAP = 4
BETWEEN = 18
LABELS = 22


def write_overview(
    path: str | os.PathLike[str],
    task_list: Sequence[tasks.Task],
    examples: Sequence[Mapping[str, Any]],
    count: int = EXAMPLES,
) -> Path:
    """Writes the overview as a PNG.

    Args:
      path: the file.
      task_list: the tasks, in the order of the columns.
      examples: as for ``write_panels``.
      count: how many of them to show.

    Returns:
      The path.
    """
    return canvas.save(draw_overview(task_list, examples[:count]), path)


def draw_overview(
    task_list: Sequence[tasks.Task], examples: Sequence[Mapping[str, Any]]
) -> Image.Image:
    """One band an example: the input at double size, then prediction above truth a task.

    Args:
      task_list: the tasks.
      examples: as for ``write_panels``; all of the size of the first, or resized to it.
    """
    height, width = canvas.fit(*np.asarray(examples[0]["image"]).shape[:2], LEAST, MOST)
    tall, wide = 2 * height + GAP, 2 * width + GAP
    top = canvas.MARGIN + 26
    first = canvas.MARGIN + wide + GAP + LABELS
    names = [task.name.replace("_", " ") for task in task_list]
    # A tall image makes tiles narrower than the names above them.
    pitch = GAP + max(width, *(canvas.text_width(name) + 4 for name in names))
    page = canvas.sheet(
        first + len(task_list) * pitch - GAP + canvas.MARGIN,
        top + len(examples) * (tall + BETWEEN) - BETWEEN + canvas.MARGIN,
    )
    titles = [("input", canvas.MARGIN + wide / 2)]
    titles += [(name, first + i * pitch + (pitch - GAP) / 2) for i, name in enumerate(names)]
    for text, x in titles:
        canvas.write(page, (x, top - 8), text, canvas.BODY, anchor="ms", bold=True)
    for example in examples:
        page.paste(
            canvas.photograph(np.asarray(example["image"]), (tall, wide)), (canvas.MARGIN, top)
        )
        for row, text in enumerate(("prediction", "truth")):
            centre = top + row * (height + GAP) + height // 2
            canvas.write_upwards(page, (first - LABELS // 2 - 1, centre), text, canvas.SMALL)
        for column, task in enumerate(task_list):
            valid = np.asarray(example["valid"][task.name])
            rows = (
                task.picture(np.asarray(example["predictions"][task.name])),
                task.picture(canvas.shown(np.asarray(example["labels"][task.name]), valid), valid),
            )
            for row, picture in enumerate(rows):
                left = first + column * pitch + (pitch - GAP - width) // 2
                at = (left, top + row * (height + GAP))
                page.paste(canvas.tile(picture, (height, width)), at)
        top += tall + BETWEEN
    return page
