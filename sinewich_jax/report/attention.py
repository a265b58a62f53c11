"""What a fusion of adapters attends to, as a picture: a row a layer, a column an adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sinewich_jax.report import canvas

BLUE = canvas.LINE_COLOURS[0]
CELL = (56, 30)
"""Width and height of a cell."""


def write_attention(path: str | os.PathLike[str], found: Mapping[str, Any]) -> Path:
    """Writes the picture of one fusion, see :func:`draw_attention`."""
    return canvas.save(draw_attention(found), path)


def draw_attention(found: Mapping[str, Any]) -> Image.Image:
    """Shares of attention in cells, darker for more, with the mean of all layers below.

    Args:
      found: ``{"target": task, "adapters": [N names], "places": {"layer0_output": [N shares]}}``,
        places from the first layer to the last.
    """
    names, places = list(found["adapters"]), list(found["places"])
    shares = np.array([found["places"][place] for place in places], np.float64)
    rows = [*(place.replace("_", " ") for place in places), "mean"]
    cells = np.concatenate([shares, shares.mean(axis=0, keepdims=True)])
    title = f"{found['target'].replace('_', ' ')}: attention over adapters"
    left = canvas.MARGIN + max(canvas.text_width(row, canvas.SMALL) for row in rows) + 12
    wide, high = CELL[0], CELL[1]
    wide = max(wide, max(canvas.text_width(name, canvas.SMALL) for name in names) + 12)
    top = canvas.MARGIN + 58
    width = max(left + wide * len(names), canvas.MARGIN + canvas.text_width(title, canvas.TITLE))
    page = canvas.sheet(width + canvas.MARGIN + 8, top + high * len(rows) + 8 + canvas.MARGIN)
    draw = ImageDraw.Draw(page)
    canvas.write(page, (canvas.MARGIN, canvas.MARGIN), title, canvas.TITLE, bold=True)
    for column, name in enumerate(names):
        middle = left + wide * (column + 0.5)
        own = name == found["target"]
        canvas.write(page, (middle, top - 8), name, canvas.SMALL, anchor="md", bold=own)
    for row, label in enumerate(rows):
        y = top + high * row + (8 if row == len(places) else 0)
        canvas.write(page, (left - 10, y + high / 2), label, canvas.SMALL, canvas.MUTED, "rm")
        for column, share in enumerate(cells[row]):
            x = left + wide * column
            # Not quite to the full colour, so that ink is read on every cell but the darkest.
            fill = canvas.pale(BLUE, 0.06 + 0.94 * float(share))
            draw.rectangle((x, y, x + wide - 2, y + high - 2), fill=fill)
            ink = canvas.PAPER if share > 0.8 else canvas.INK
            middle = (x + wide / 2 - 1, y + high / 2 - 1)
            number = f"{share:.2f}".removeprefix("0")
            canvas.write(page, middle, number, canvas.SMALL, ink, "mm")
    return page
