"""Methods side by side: every seed a dot, the mean a bar, the spread a line."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from sinewich_jax.errors import SinewichError
from sinewich_jax.report import canvas, chart, tables

Results = Mapping[str, Mapping[str, Sequence[float] | None]]
FINE = chart.FINE
ROW = 26
HEAD, FOOT = 34, 40
PLOT = 240
GAP = 26
COLUMNS = 3


def compare_methods(
    results: Results,
    path: str | os.PathLike[str],
    titles: Mapping[str, str] | None = None,
    higher_is_better: Mapping[str, bool] | None = None,
    baselines: Mapping[str, float] | None = None,
    digits: int = 3,
) -> Path:
    """Draws one small chart a task: methods down, values across.

    Args:
      results: ``{method: {task: values over seeds}}``; None, nothing or a missing task is "not
        run".
      path: the PNG file.
      titles: per task its heading, such as ``"depth: RMSE [m]"``; the task's name by default.
      higher_is_better: per task the direction; with it the heading says so and the best mean is
        set in bold.
      baselines: per task a value to mark with a dashed line.
      digits: decimals of the printed means.

    Returns:
      The path.

    Raises:
      SinewichError: there is nothing to draw.
    """
    tasks = list(dict.fromkeys(task for row in results.values() for task in row))
    if not tasks:
        raise SinewichError("compare_methods got no method or no task; give at least one of each")
    names = max(canvas.text_width(method) for method in results) + 12
    columns = min(COLUMNS, len(tasks))
    facets = [
        _facet(
            task,
            {method: [float(v) for v in row.get(task) or ()] for method, row in results.items()},
            (titles or {}).get(task, task.replace("_", " ")),
            (higher_is_better or {}).get(task),
            (baselines or {}).get(task),
            digits,
        )
        for task in tasks
    ]
    width, height = max(facet.width for facet in facets), facets[0].height
    rows = -(-len(facets) // columns)
    page = canvas.sheet(
        2 * canvas.MARGIN + names + columns * width + (columns - 1) * GAP,
        2 * canvas.MARGIN + rows * height + 8,
    )
    for i, facet in enumerate(facets):
        row, column = divmod(i, columns)
        top = canvas.MARGIN + row * height
        page.paste(facet, (canvas.MARGIN + names + column * (width + GAP), top))
        if column == 0:
            for j, method in enumerate(results):
                y = top + HEAD + (j + 0.5) * ROW
                canvas.write(page, (canvas.MARGIN, y), method.replace("_", " "), anchor="lm")
    note = "dots: seeds; bar: mean; line: one sample standard deviation" + (
        "; dashed: baseline" if baselines else ""
    )
    at = (canvas.MARGIN, page.height - 14)
    canvas.write(page, at, note, canvas.SMALL, canvas.MUTED, anchor="ls")
    return canvas.save(page, path)


def _facet(
    task: str,
    values: Mapping[str, list[float]],
    title: str,
    higher: bool | None,
    baseline: float | None,
    digits: int,
) -> Image.Image:
    """The chart of one task, with the printed means at its right."""
    texts = {method: tables.mean_spread(v, digits) for method, v in values.items()}
    means = {method: statistics.fmean(v) for method, v in values.items() if _whole(v)}
    best = None
    if higher is not None and means:
        best = (max if higher else min)(means, key=lambda method: means[method])
        title += "  (more is better)" if higher else "  (less is better)"
    known = [] if baseline is None else [baseline]
    for method, mean in means.items():
        spread = _spread(values[method])
        known += [*values[method], mean - spread, mean + spread]
    low, high = chart.padded_range(known or [0.0, 1.0])
    text_room = max(canvas.text_width(text, canvas.SMALL) for text in texts.values()) + 14
    size = (max(PLOT + text_room, canvas.text_width(title) + 6), HEAD + len(values) * ROW + FOOT)
    bottom = size[1] - FOOT

    def column(value: float) -> float:
        return 8 + (value - low) / (high - low) * (PLOT - 16)

    fine = canvas.sheet(size[0] * FINE, size[1] * FINE)
    draw = ImageDraw.Draw(fine)
    marks = chart.ticks(low, high, False)
    for value, _ in marks:
        _rule(draw, column(value), HEAD, bottom, canvas.RULE, 1)
    if baseline is not None:
        for y in range(HEAD, bottom, 8):
            _rule(draw, column(baseline), y, min(y + 4, bottom), canvas.MUTED, 1)
    for j, (method, seeds) in enumerate(values.items()):
        if method in means:
            colour = canvas.LINE_COLOURS[j % len(canvas.LINE_COLOURS)]
            _mark(draw, [column(v) for v in seeds], HEAD + (j + 0.5) * ROW, colour)
    image = fine.resize(size, Image.Resampling.BOX)

    canvas.write(image, (4, 4), title, bold=True)
    every = max(1, -(-len(marks) * 44 // PLOT))
    for value, text in marks[::every]:
        at = (column(value), bottom + 5)
        canvas.write(image, at, text, canvas.SMALL, canvas.MUTED, "ma")
    for j, (method, text) in enumerate(texts.items()):
        at = (PLOT + 8, HEAD + (j + 0.5) * ROW)
        colour = canvas.INK if method in means else canvas.MUTED
        canvas.write(image, at, text, canvas.SMALL, colour, "lm", bold=method == best)
    return image


def _whole(values: list[float]) -> bool:
    return bool(values) and all(abs(v) < float("inf") for v in values)


def _spread(values: list[float]) -> float:
    """Sample standard deviation, 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _rule(
    draw: ImageDraw.ImageDraw,
    x: float,
    top: float,
    bottom: float,
    colour: canvas.Colour,
    width: int,
) -> None:
    left = round(x) * FINE
    draw.rectangle((left, top * FINE, left + width * FINE - 1, bottom * FINE - 1), fill=colour)


def _mark(draw: ImageDraw.ImageDraw, xs: list[float], y: float, colour: canvas.Colour) -> None:
    """The spread, the seeds and the mean of one row, at pixel positions."""
    mean = statistics.fmean(xs)
    if spread := _spread(xs):
        ends = ((mean - spread) * FINE, (y - 0.75) * FINE, (mean + spread) * FINE)
        draw.rectangle((*ends, (y + 0.75) * FINE), fill=colour)
    for x in xs:
        r = 3.5
        draw.ellipse(
            ((x - r) * FINE, (y - r) * FINE, (x + r) * FINE, (y + r) * FINE),
            fill=canvas.pale(colour, 0.45),
            outline=colour,
            width=FINE,
        )
    box = ((mean - 1.5) * FINE, (y - 8) * FINE, (mean + 1.5) * FINE, (y + 8) * FINE)
    draw.rectangle(box, fill=colour)
