"""What the page of the switching study reads of its runs, and pictures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import beside, lines, mean
from benchmarks.switching import VALUES, Alpha
from sinewich_jax.report import canvas, chart

INDIVIDUAL = "each expert alone"
Run = dict[str, Any]
"""One seed: ``test`` by row and task; ``fronts`` by way and alpha; ``router``."""


def over(runs: Sequence[Run], pick: Callable[[Run], float | None]) -> list[float] | None:
    """A number of every seed that has it; None if no seed has."""
    return [value for run in runs if (value := pick(run)) is not None] or None


def accuracy(run: Run, way: str, alpha: Alpha) -> float | None:
    """Mean over tasks of a switch's test accuracy, if that was run."""
    at = run["fronts"].get(way, {}).get(str(alpha))
    return None if at is None else mean(at["test"].values())


def row_accuracy(run: Run, name: str) -> float | None:
    """Mean over tasks of a row that is no switch, if that was run."""
    return mean(run["test"][name].values()) if name in run["test"] else None


def weight(run: Run, way: str, alpha: Alpha, key: str) -> float | None:
    """Bits, bound or density of a point, if that was run."""
    return run["fronts"].get(way, {}).get(str(alpha), {}).get(key)


# --- pictures ------------------------------------------------------------------------------------


def pulse(
    runs: Sequence[Run], ways: Mapping[str, str], alphas: Sequence[Alpha], path: Path
) -> bool:
    """Two charts side by side: accuracy by alpha, and accuracy by bits on disk.

    Args:
      runs: of the seeds.
      ways: name in the picture by way.
      alphas: those that are numbers are drawn.
      path: the PNG.

    Returns:
      Whether there was anything to draw.
    """
    numbers = [alpha for alpha in alphas if isinstance(alpha, float)]
    by_alpha: dict[str, list[float]] = {}
    for way, name in ways.items():
        values = [over(runs, lambda run, a=a, way=way: accuracy(run, way, a)) for a in numbers]
        if any(values):
            by_alpha[name] = [mean(v) if v else np.nan for v in values]
    alone = over(runs, lambda run: row_accuracy(run, INDIVIDUAL))
    if not by_alpha or alone is None:
        return False
    drawn = lines(by_alpha, numbers)
    flat = chart.Line(
        INDIVIDUAL, np.array([0.0, 1.0]), np.full(2, mean(alone)), canvas.MUTED, width=1.0
    )
    pictures = [chart.draw_chart("accuracy by alpha", [*drawn, flat], size=(520, 300))]
    found = []
    for line, way in zip(drawn, [w for w in ways if ways[w] in by_alpha], strict=True):
        weights = [over(runs, lambda run, a=a, w=way: weight(run, w, a, "bits")) for a in numbers]
        if way == VALUES or not all(weights):
            continue
        x = np.array([mean(values) for values in weights if values])
        falling = slice(int(x.argmax()), None)  # with less dropped a mask takes less again
        x, y = x[falling][::-1], line.y[falling][::-1]
        found.append(chart.Line(line.name, x, y, line.colour))
    if found:
        most = max(float(line.x.max()) for line in found)
        flat = chart.Line(
            INDIVIDUAL, np.array([0.0, most]), np.full(2, mean(alone)), canvas.MUTED, width=1.0
        )
        title = "accuracy by bits a parameter on disk"
        pictures.append(chart.draw_chart(title, [*found, flat], size=(520, 300)))
    beside(path, pictures, "left, across: alpha, the part dropped; right, across: bits")
    return True


def confusion(path: Path, counts: Any, names: Sequence[str]) -> None:
    """A matrix of per cents: a row a task, a column where its samples went."""
    shares = np.asarray(counts) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)
    cell, margin = 40, max(canvas.text_width(name, canvas.SMALL) for name in names) + 10
    left, top, count = canvas.MARGIN + margin, canvas.MARGIN + 28, len(names)
    page = canvas.sheet(
        max(left + count * cell, 430) + canvas.MARGIN, top + count * cell + margin + 40
    )
    title = "router: % of a task's samples, by the task they go to"
    canvas.write(page, (canvas.MARGIN, canvas.MARGIN - 6), title, bold=True)
    for i, name in enumerate(names):
        middle = i * cell + cell / 2
        canvas.write(page, (left - 6, top + middle), name, canvas.SMALL, canvas.MUTED, "rm")
        size = canvas.text_width(name, canvas.SMALL)
        at = (round(left + middle), round(top + count * cell + 8 + size / 2))
        canvas.write_upwards(page, at, name, canvas.SMALL)
        for j, share in enumerate(shares[i]):
            x, y = left + j * cell, top + i * cell
            shade = canvas.pale(canvas.LINE_COLOURS[0], float(np.sqrt(share)))
            page.paste(shade, (x, y, x + cell - 2, y + cell - 2))
            ink = canvas.PAPER if share > 0.4 else canvas.INK
            at = (x + cell / 2 - 1, y + cell / 2 - 1)
            canvas.write(page, at, f"{100 * share:.0f}", canvas.SMALL, ink, "mm")
    canvas.save(page, path)
