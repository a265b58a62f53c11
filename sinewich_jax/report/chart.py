"""A small line chart: axes with round ticks, smooth lines, names at the lines' ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sinewich_jax.report import canvas

FINE = 4
"""Lines are drawn this much larger and averaged down, which makes their edges smooth."""

HEAD, FOOT = 34, 26
TICK = 6


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
      name: shown at its end; empty for none.
      x: positions, ascending.
      y: values; what is not finite leaves a gap.
      colour: RGB.
      width: in pixels.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: canvas.Colour
    width: float = 2.0

    def faint(self) -> Line:
        """The same curve, thin, pale and without a name."""
        return dataclasses.replace(self, name="", colour=canvas.pale(self.colour, 0.3), width=1.0)

    def smooth(self, share: float = 0.05) -> Line:
        """The running mean over a window of ``share`` of the points, shorter at both ends."""
        reach = max(1, round(share * len(self.y) / 2))
        padded = np.cumsum(np.concatenate([[0.0], self.y]))
        low = np.maximum(np.arange(len(self.y)) - reach, 0)
        high = np.minimum(np.arange(len(self.y)) + reach + 1, len(self.y))
        return dataclasses.replace(self, y=(padded[high] - padded[low]) / (high - low))


def draw_chart(
    title: str,
    lines: Sequence[Line],
    size: tuple[int, int] = (440, 270),
    log: bool = False,
    include: Sequence[float] = (),
) -> Image.Image:
    """Draws lines over a common axis that begins at 0.

    Args:
      title: above the chart.
      lines: at least one finite point among them.
      size: (width, height) in pixels.
      log: logarithmic y axis; values of 0 and less are left out.
      include: values that the y axis must reach.

    Returns:
      RGB image.
    """
    width, height = size
    points = [_finite(line, log) for line in lines]
    y_values = np.concatenate([y for _, y in points] + [np.asarray(include, np.float64)])
    x_values = np.concatenate([x for x, _ in points])
    low, high = padded_range(y_values, log)
    start, end = _span(min(0.0, float(x_values.min())), float(x_values.max()))
    marks = ticks(low, high, log)
    left = max(canvas.text_width(text, canvas.SMALL) for _, text in marks) + 10
    names = max([0] + [canvas.text_width(line.name, canvas.SMALL) for line in lines if line.name])
    box = (left, HEAD, width - names - 14, height - FOOT)

    def column(x: np.ndarray | float) -> np.ndarray | float:
        return box[0] + (x - start) / (end - start) * (box[2] - box[0])

    def row(y: np.ndarray | float) -> np.ndarray | float:
        y, bottom, top = (np.log10(v) if log else v for v in (y, low, high))
        return box[3] - (y - bottom) / (top - bottom) * (box[3] - box[1])

    fine = canvas.sheet(width * FINE, height * FINE)
    draw = ImageDraw.Draw(fine)
    for value, _ in marks:
        y = round(float(row(value))) * FINE
        draw.rectangle((box[0] * FINE, y, box[2] * FINE, y + FINE - 1), fill=canvas.RULE)
    for line, (x, y) in zip(lines, points, strict=True):
        _draw_line(draw, line, np.asarray(column(x)), np.asarray(row(y)))
    image = fine.resize(size, Image.Resampling.BOX)

    canvas.write(image, (0, 2), title, canvas.BODY, bold=True)
    for value, text in marks:
        at = (box[0] - TICK, float(row(value)))
        canvas.write(image, at, text, canvas.SMALL, canvas.MUTED, "rm")
    for value, text in ticks(start, end, False):
        at = (float(column(value)), box[3] + TICK)
        canvas.write(image, at, text, canvas.SMALL, canvas.MUTED, "ma")
    ends = [
        (float(row(y[-1])), line)
        for line, (_, y) in zip(lines, points, strict=True)
        if line.name and len(y)
    ]
    for y, line in _apart(ends, box[1], box[3]):
        canvas.write(image, (box[2] + 6, y), line.name, canvas.SMALL, line.colour, "lm")
    return image


def ticks(low: float, high: float, log: bool) -> list[tuple[float, str]]:
    """Round values inside a range, with their texts; three to eight of them.

    Args:
      low: begin of the range.
      high: end of the range.
      log: choose from round steps times powers of ten (powers of ten alone over many decades).
    """
    if log:
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            values = [s * 10.0**d for d in decades for s in steps]
            inside = [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
            if len(inside) >= 3:
                every = -(-len(inside) // 7)
                return [(v, f"{v:g}") for v in inside[::every]]
    power = 10.0 ** math.floor(math.log10(high - low))
    for step in (s * power for s in (5, 2, 1, 0.5, 0.2)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first >= 2:
            break
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(k * step, f"{k * step:,.{digits}f}") for k in range(first, last + 1)]


def _finite(line: Line, log: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    keep = np.isfinite(y) & ((y > 0) if log else True)
    return x[keep], y[keep]


def padded_range(values: Sequence[float] | np.ndarray, log: bool = False) -> tuple[float, float]:
    """Lowest and highest value with a little air.

    Args:
      values: at least one, all finite (and positive for ``log``).
      log: leave air by factors.
    """
    low, high = float(np.min(values)), float(np.max(values))
    if log:
        air = max((high / low) ** 0.06, 1.05)
        return low / air, high * air
    low, high = _span(low, high)
    air = 0.06 * (high - low)
    return low - air, high + air


def _span(low: float, high: float) -> tuple[float, float]:
    """The two, or a span around them where they are equal."""
    if high > low:
        return low, high
    half = max(abs(low), 1.0) * 0.5
    return low - half, high + half


def _draw_line(draw: ImageDraw.ImageDraw, line: Line, x: np.ndarray, y: np.ndarray) -> None:
    points = [(float(a) * FINE, float(b) * FINE) for a, b in zip(x, y, strict=True)]
    if len(points) > 1:
        draw.line(points, fill=line.colour, width=round(line.width * FINE), joint="curve")
    elif points:
        (a, b), r = points[0], 3 * FINE
        draw.ellipse((a - r, b - r, a + r, b + r), fill=line.colour)


def _apart(ends: list[tuple[float, Line]], top: float, bottom: float) -> list[tuple[float, Line]]:
    """Moves names so that they do not cover each other, keeping their order."""
    pitch = canvas.SMALL + 3
    ends = sorted(ends, key=lambda end: end[0])
    placed: list[tuple[float, Line]] = []
    for y, line in ends:
        placed.append((max(y, placed[-1][0] + pitch) if placed else max(y, top), line))
    limit = bottom
    for i in range(len(placed) - 1, -1, -1):
        y, line = placed[i]
        placed[i] = (min(y, limit), line)
        limit = placed[i][0] - pitch
    return placed
