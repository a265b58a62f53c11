"""What the metrics have to show: confusion matrices, error histograms, precision and recall."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sinewich_jax.report import canvas, chart
from sinewich_jax.tasks import charts

BLUE = canvas.LINE_COLOURS[0]
PLOT = (560, 330)
CELL, SMALL_CELL = 34, 18
NUMBERED = 12
"""Matrices of at most so many classes have a number in each cell."""
CONFUSIONS = 6


def write_diagnostics(
    directory: str | os.PathLike[str], shown: Mapping[str, charts.Chart]
) -> list[Path]:
    """Writes ``<task>.png`` for every chart.

    Args:
      directory: where to; made when there is a chart.
      shown: charts by task.

    Returns:
      The paths.
    """
    directory = Path(directory)
    return [
        canvas.save(draw_diagnostic(task, one), directory / f"{task}.png")
        for task, one in shown.items()
    ]


def draw_diagnostic(task: str, shown: charts.Chart) -> Image.Image:
    """One chart as a picture.

    Args:
      task: its name, for the title.
      shown: what a metric's ``chart`` returned.
    """
    title = f"{task.replace('_', ' ')}: {shown.title}"
    if isinstance(shown, charts.Matrix):
        return _matrix(title, shown)
    if isinstance(shown, charts.Bars):
        return _bars(title, shown)
    return _curve(title, shown)


# --- confusion ----------------------------------------------------------------------------------


def _matrix(title: str, shown: charts.Matrix) -> Image.Image:
    counts = np.asarray(shown.counts, np.float64)
    classes = len(counts)
    names = shown.names or tuple(map(str, range(classes)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = CELL if classes <= NUMBERED else SMALL_CELL
    margin = max(canvas.text_width(name, canvas.SMALL) for name in names) + 10
    left, top = canvas.MARGIN + 20 + margin, canvas.MARGIN + 40
    lines = _confusions(shares, names)
    beside = left + classes * cell + 30
    width = beside + max(canvas.text_width(line, canvas.SMALL) for line in lines)
    wide = max(width, canvas.MARGIN + canvas.text_width(title, canvas.TITLE) + 8)
    high = max(top + classes * cell + margin + 26, top + 22 * len(lines) + 20)
    page = canvas.sheet(wide + canvas.MARGIN, high + canvas.MARGIN)
    draw = ImageDraw.Draw(page)
    canvas.write(page, (canvas.MARGIN, canvas.MARGIN), title, canvas.TITLE, bold=True)
    for i, j in np.ndindex(classes, classes):
        x, y = left + j * cell, top + i * cell
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=_shade(shares[i, j]))
        if classes <= NUMBERED and counts[i].any():
            ink = canvas.PAPER if shares[i, j] > 0.55 else canvas.INK
            text = f"{100 * shares[i, j]:.0f}"
            centre = (x + (cell - 2) / 2, y + (cell - 2) / 2)
            canvas.write(page, centre, text, canvas.SMALL, ink, "mm")
    for i, name in enumerate(names):
        middle = i * cell + (cell - 2) / 2
        canvas.write(page, (left - 6, top + middle), name, canvas.SMALL, canvas.MUTED, "rm")
        size = canvas.text_width(name, canvas.SMALL)
        centre = (round(left + middle), round(top + classes * cell + 6 + size / 2))
        canvas.write_upwards(page, centre, name, canvas.SMALL)
    middle = top + classes * cell // 2
    canvas.write_upwards(page, (canvas.MARGIN + 6, middle), "label", canvas.BODY)
    at = (left + classes * cell / 2, top + classes * cell + margin + 12)
    canvas.write(page, at, "prediction, % of the label's pixels", canvas.BODY, canvas.MUTED, "mm")
    for number, line in enumerate(lines):
        ink = canvas.INK if number else canvas.MUTED
        canvas.write(page, (beside, top + 22 * number), line, canvas.SMALL, ink)
    return page


def _confusions(shares: np.ndarray, names: Sequence[str]) -> list[str]:
    """A heading and the most frequent mistakes in words."""
    wrong = shares * (1 - np.eye(len(shares)))
    order = np.argsort(wrong, axis=None)[::-1][:CONFUSIONS]
    pairs = [np.unravel_index(index, wrong.shape) for index in order]
    return ["most often mistaken:"] + [
        f"{names[i]} for {names[j]}, {100 * wrong[i, j]:.0f} %" for i, j in pairs if wrong[i, j] > 0
    ]


def _shade(share: float) -> canvas.Colour:
    """From paper to blue; the root makes small shares visible."""
    weight = math.sqrt(min(max(share, 0.0), 1.0))
    mixed = [
        round(paper + weight * (blue - paper))
        for paper, blue in zip(canvas.PAPER, BLUE, strict=True)
    ]
    return mixed[0], mixed[1], mixed[2]


# --- bars and curves ----------------------------------------------------------------------------


def _frame(title: str) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """An empty plot with its title, and the box of its axes."""
    width, height = PLOT
    page = canvas.sheet(width + 2 * canvas.MARGIN, height + 2 * canvas.MARGIN)
    canvas.write(page, (canvas.MARGIN, canvas.MARGIN), title, canvas.TITLE, bold=True)
    left, top = canvas.MARGIN + 46, canvas.MARGIN + 40
    return page, (left, top, canvas.MARGIN + width, canvas.MARGIN + height - 44)


def _bars(title: str, shown: charts.Bars) -> Image.Image:
    page, (left, top, right, bottom) = _frame(title)
    draw = ImageDraw.Draw(page)
    heights = np.asarray(shown.heights, np.float64)
    edges = np.log2(shown.edges) if shown.log else np.asarray(shown.edges, np.float64)
    _, high = chart.padded_range([0.0, float(np.nanmax(heights))])

    def column(value: float) -> float:
        return left + (value - edges[0]) / (edges[-1] - edges[0]) * (right - left)

    for value, text in chart.ticks(0.0, high, False):
        y = bottom - value / high * (bottom - top)
        draw.line((left, y, right, y), fill=canvas.RULE)
        canvas.write(page, (left - 6, y), text, canvas.SMALL, canvas.MUTED, "rm")
    for start, end, height in zip(edges, edges[1:], heights, strict=False):
        if np.isfinite(height) and height > 0:
            y = bottom - height / high * (bottom - top)
            # Whole pixels, so that all gaps are of one.
            draw.rectangle((round(column(start)), y, round(column(end)) - 2, bottom), fill=BLUE)
    if shown.log:
        powers = range(math.ceil(edges[0]), math.floor(edges[-1]) + 1)
        steps = [(float(power), f"{2.0**power:g}") for power in powers]
    else:
        steps = chart.ticks(float(edges[0]), float(edges[-1]), False)
    for value, text in steps:
        canvas.write(page, (column(value), bottom + 6), text, canvas.SMALL, canvas.MUTED, "ma")
    papers = []
    for number, (value, text) in enumerate(shown.marks):
        x = column(np.log2(value) if shown.log else value)
        draw.line((x, top, x, bottom), fill=canvas.INK)
        at = (x + 4, top + 4 + 15 * number)
        # On paper of its own, because the next mark's line may run through it.
        wide = canvas.text_width(text, canvas.SMALL)
        papers.append(((at[0] - 1, at[1], at[0] + wide, at[1] + 14), at, text))
    for paper, at, text in papers:
        draw.rectangle(paper, fill=canvas.PAPER)
        canvas.write(page, at, text, canvas.SMALL, canvas.INK)
    canvas.write(
        page, ((left + right) / 2, bottom + 34), shown.axis, canvas.BODY, canvas.MUTED, "mm"
    )
    return page


def _curve(title: str, shown: charts.Curve) -> Image.Image:
    page, (left, top, right, bottom) = _frame(title)
    fine = chart.FINE
    plot = canvas.sheet((right - left) * fine, (bottom - top) * fine)
    draw = ImageDraw.Draw(plot)
    for step in range(6):
        y = round((1 - step / 5) * (plot.height - 1))
        x = round(step / 5 * (plot.width - 1))
        draw.line((0, y, plot.width, y), fill=canvas.RULE, width=fine)
        draw.line((x, 0, x, plot.height), fill=canvas.RULE, width=fine)
    points = [
        (float(r) * (plot.width - 1), (1 - float(p)) * (plot.height - 1))
        for r, p in zip(shown.recall, shown.precision, strict=True)
    ]
    draw.line(points, fill=BLUE, width=2 * fine, joint="curve")
    x, y = points[shown.best]
    radius = 5 * fine
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=BLUE)
    page.paste(plot.resize((right - left, bottom - top), Image.Resampling.BOX), (left, top))
    for step in range(6):
        text, share = f"{step / 5:.1f}", step / 5
        height = bottom - share * (bottom - top)
        canvas.write(page, (left - 6, height), text, canvas.SMALL, canvas.MUTED, "rm")
        across = left + share * (right - left)
        canvas.write(page, (across, bottom + 6), text, canvas.SMALL, canvas.MUTED, "ma")
    at = (left + x / fine, top + y / fine + 14)
    anchor = "ra" if x > plot.width / 2 else "la"
    canvas.write(page, at, shown.text, canvas.SMALL, canvas.INK, anchor, bold=True)
    canvas.write(page, ((left + right) / 2, bottom + 34), "recall", canvas.BODY, canvas.MUTED, "mm")
    canvas.write_upwards(page, (canvas.MARGIN + 6, (top + bottom) // 2), "precision", canvas.BODY)
    return page
