"""Keys to the colours, painted with each task's own pictures.

What a legend looks like follows from what the task is: names of classes, a range in a unit, unit
vectors, or a probability. A new task needs nothing here.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from sinewich_jax import tasks
from sinewich_jax.report import canvas

ROW = 18
SWATCH = 12
BAR = (168, 12)
GAP = 14


def value_legend(task: tasks.Task, height: int) -> Image.Image:
    """What the colours of predictions and labels mean.

    Args:
      task: the task.
      height: pixels to use; a list of classes flows into as many columns as it needs.
    """
    if task.label_tail == (3,):
        return _ball(task, min(height, 118))
    if getattr(task, "picture_range", None) is not None:
        near, far = task.picture_range
        values = np.linspace(near, far, BAR[0], dtype=np.float32)
        marks = [near, (near + far) / 2, far]
        return _bar(_stripe(task.picture(values[None])), [_short(m, task.unit) for m in marks])
    if task.channels > 1:
        return _classes(task, height)
    values = np.linspace(0.0, 1.0, BAR[0], dtype=np.float32)
    return _bar(_stripe(task.picture(values[None])), ["no", "probability", "yes"])


def error_legend(task: tasks.Task) -> Image.Image:
    """What the colours of the error picture mean."""
    steps = np.linspace(0.0, 1.0, BAR[0])
    if task.label_tail == (3,):
        angle = np.radians(60.0 * steps)
        turned = np.stack([np.sin(angle), np.zeros_like(angle), -np.cos(angle)], axis=-1)
        straight = np.broadcast_to(np.array([0.0, 0.0, -1.0]), turned.shape)
        colours = task.error_picture(turned[None], straight[None])
        return _bar(_stripe(colours), ["0°", "error", "60°"])
    if getattr(task, "picture_range", None) is not None:
        near, far = task.picture_range
        most = 0.25 * (far - near)
        colours = task.error_picture((near + most * steps)[None], np.full((1, BAR[0]), near))
        return _bar(_stripe(colours), ["0", "error", _short(most, task.unit)])
    if task.channels > 1:
        colours = task.error_picture(np.array([[0, 1]]), np.array([[0, 0]]))
        return _swatches([("right", colours[0, 0]), ("wrong", colours[0, 1])], 2 * ROW)
    signed = np.linspace(-1.0, 1.0, BAR[0])
    colours = task.error_picture(np.maximum(signed, 0.0)[None], np.maximum(-signed, 0.0)[None])
    return _bar(_stripe(colours), ["missed", "right", "false alarm"])


def _classes(task: tasks.Task, height: int) -> Image.Image:
    names = task.class_names or tuple(str(c) for c in range(task.channels))
    colours = task.picture(np.arange(task.channels)[None])[0]
    return _swatches(list(zip(names, colours, strict=True)), height)


def _swatches(entries: list[tuple[str, np.ndarray]], height: int) -> Image.Image:
    """Colour and name, column by column."""
    rows = max(1, height // ROW)
    columns = -(-len(entries) // rows)
    rows = -(-len(entries) // columns)
    texts = [name.replace("_", " ") for name, _ in entries]
    widths = [
        SWATCH
        + 6
        + max(canvas.text_width(t, canvas.SMALL) for t in texts[c * rows : (c + 1) * rows])
        for c in range(columns)
    ]
    image = canvas.sheet(sum(widths) + GAP * (columns - 1), rows * ROW)
    draw = ImageDraw.Draw(image)
    for i, (text, (_, colour)) in enumerate(zip(texts, entries, strict=True)):
        column, row = divmod(i, rows)
        left, top = sum(widths[:column]) + GAP * column, row * ROW
        box = (left, top + 3, left + SWATCH - 1, top + 2 + SWATCH)
        draw.rectangle(box, fill=tuple(int(c) for c in colour), outline=canvas.MUTED)
        canvas.write(image, (left + SWATCH + 6, top + ROW / 2), text, canvas.SMALL, anchor="lm")
    return image


def _stripe(colours: np.ndarray) -> Image.Image:
    """One row of colours [1, W, 3] as a bar."""
    return Image.fromarray(np.repeat(colours, BAR[1], axis=0))


def _bar(stripe: Image.Image, marks: list[str]) -> Image.Image:
    """A colour bar with a text under its left end, middle and right end."""
    image = canvas.sheet(BAR[0], BAR[1] + ROW + 2)
    image.paste(stripe, (0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, BAR[0] - 1, BAR[1] - 1), outline=canvas.MUTED)
    for x, mark, anchor in zip((0, BAR[0] / 2, BAR[0]), marks, ("la", "ma", "ra"), strict=True):
        canvas.write(image, (x, BAR[1] + 4), mark, canvas.SMALL, canvas.MUTED, anchor)
    return image


def _ball(task: tasks.Task, height: int) -> Image.Image:
    """A ball as seen by the camera: each direction in its colour."""
    side = max(24, height - 2 * ROW)
    middle = (side - 1) / 2
    y, x = (np.indices((side, side)) - middle) / (side / 2)
    inside = x**2 + y**2 <= 1.0
    z = -np.sqrt(np.clip(1.0 - x**2 - y**2, 0.0, None))
    picture = task.picture(np.stack([x, y, z], axis=-1))
    picture = np.where(inside[..., None], picture, np.array(canvas.PAPER, np.uint8))
    arms = max(canvas.text_width(text, canvas.SMALL) for text in ("left", "right")) + 6
    image = canvas.sheet(side + 2 * arms, side + 2 * ROW)
    image.paste(Image.fromarray(picture.astype(np.uint8)), (arms, ROW))
    centre, mid = image.width / 2, image.height / 2
    for at, text, anchor in (
        ((centre, ROW - 3), "facing up", "md"),
        ((centre, image.height - ROW + 2), "down", "ma"),
        ((arms - 6, mid), "left", "rm"),
        ((image.width - arms + 6, mid), "right", "lm"),
    ):
        canvas.write(image, at, text, canvas.SMALL, canvas.MUTED, anchor)
    return image


def _short(value: float, unit: str) -> str:
    return f"{value:.3g}{f' {unit}' if unit else ''}"
