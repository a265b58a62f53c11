"""What the pages of studies share: tables, differences seed by seed, pictures in a row."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.cells import Cell, result
from sinewich_jax.report import canvas, chart
from sinewich_jax.report.study import Page
from sinewich_jax.report.tables import mean_spread


def found(cells: Iterable[Cell], root: Path) -> list[dict[str, Any]]:
    """The results of the cells that have run."""
    return [one for cell in cells if (one := result(cell, root)) is not None]


def mean(values: Iterable[float]) -> float:
    """The mean of at least one number."""
    return statistics.fmean(values)


def paired(first: Sequence[float], second: Sequence[float]) -> str:
    """Differences seed by seed and their mean, in points of a hundred."""
    gaps = [100 * (a - b) for a, b in zip(first, second, strict=True)]
    return f"{mean_spread(gaps, 2)} ({', '.join(f'{gap:+.2f}' for gap in gaps)})"


def listed(values: Iterable[Any]) -> str:
    """Values with commas between them."""
    return ", ".join(map(str, values))


def table(page: Page, title: str, cells: Mapping[str, Any], *given: Any, **options: Any) -> None:
    """A table below a heading of the third level; the rest is that of ``Page.table``."""
    if title:
        page.text(f"### {title}")
    page.table("", cells, *given, **options)


def beside(path: Path, pictures: Sequence[Image.Image], note: str) -> None:
    """Pictures in one row, with a line of text below."""
    gap, margin = 28, canvas.MARGIN
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1) + 2 * margin
    page = canvas.sheet(width, max(p.height for p in pictures) + 2 * margin + 16)
    left = margin
    for picture in pictures:
        page.paste(picture, (left, margin))
        left += picture.width + gap
    canvas.write(page, (margin, page.height - 12), note, canvas.SMALL, canvas.MUTED, "ls")
    canvas.save(page, path)


def lines(curves: Mapping[str, Sequence[float]], x: Sequence[float]) -> list[chart.Line]:
    """Curves over common positions, each in a colour of its own."""
    colours = canvas.LINE_COLOURS
    return [
        chart.Line(name, np.array(x), np.array(y), colours[i % len(colours)])
        for i, (name, y) in enumerate(curves.items())
    ]
