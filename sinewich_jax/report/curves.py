"""``curves.png``: how a run went, from its ``metrics.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sinewich_jax.errors import DataError
from sinewich_jax.report import canvas, chart

METRICS_FILE = "metrics.jsonl"
PICTURE = "curves.png"
COLUMNS = 3
GAP = 28


def write_curves(workdir: str | os.PathLike[str]) -> Path | None:
    """Draws what ``metrics.jsonl`` holds: losses, speed, switching, frequencies.

    Args:
      workdir: the work directory.

    Returns:
      The path of the picture; None when there is no ``metrics.jsonl`` or no training step in it.

    Raises:
      DataError: a line of the file is no record.
    """
    workdir = Path(workdir)
    if not (workdir / METRICS_FILE).exists():
        return None
    image = draw_curves(read_metrics(workdir / METRICS_FILE))
    return None if image is None else canvas.save(image, workdir / PICTURE)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, messages included.

    Raises:
      DataError: a line is no JSON object with a step.
    """
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "step" not in record:
            raise DataError(
                f"{path}, line {number} is {line[:60]!r}, expected a JSON object with a step; "
                "remove the line"
            )
        records.append(record)
    return records


def draw_curves(records: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """The charts of a run, three in a row; None without any training step.

    Args:
      records: lines of ``metrics.jsonl``: ``{"step": 10, "loss": 1.5, "loss/depth": 0.2, ...}``.
    """
    drawn = [
        picture
        for picture in (
            _chart("loss", _pick(records, "loss"), log=True, smooth=True),
            _chart("loss of each task", _by_task(records, "loss"), log=True, smooth=True),
            _chart("examples a second", _pick(records, "images_per_second"), include=(0.0,)),
            _chart("frequency (mean over layers)", _by_task(records, "omega"), log=True),
            _chart(
                "modulation index (mean over layers)",
                _by_task(records, "modulation_index"),
                include=(0.0,),
            ),
            _chart("cosine between task updates", _cosines(records), include=(0.0, 1.0)),
        )
        if picture is not None
    ]
    if not drawn:
        return None
    columns = min(COLUMNS, len(drawn))
    width, height = drawn[0].size
    rows = -(-len(drawn) // columns)
    page = canvas.sheet(
        2 * canvas.MARGIN + columns * width + (columns - 1) * GAP,
        2 * canvas.MARGIN + rows * height + (rows - 1) * GAP + 16,
    )
    for i, picture in enumerate(drawn):
        row, column = divmod(i, columns)
        at = (canvas.MARGIN + column * (width + GAP), canvas.MARGIN + row * (height + GAP))
        page.paste(picture, at)
    note = "across: optimizer steps; losses: thin as logged, thick running mean"
    canvas.write(
        page, (canvas.MARGIN, page.height - 12), note, canvas.SMALL, canvas.MUTED, anchor="ls"
    )
    return page


Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one key."""
    pairs = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, np.float64), np.array(values, np.float64)


def _pick(records: Sequence[Mapping[str, Any]], key: str) -> Curves:
    return {"": _series(records, key)}


def _by_task(records: Sequence[Mapping[str, Any]], prefix: str) -> Curves:
    """Curves of ``prefix/<task>`` or ``prefix/<layer>/<task>``, the mean over layers."""
    keys = dict.fromkeys(k for r in records for k in r if k.startswith(f"{prefix}/"))
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.rsplit("/", 1)[1], []).append(key)
    curves = {}
    for task, members in groups.items():
        whole = [r for r in records if all(r.get(k) is not None for k in members)]
        steps = np.array([r["step"] for r in whole], np.float64)
        curves[task.replace("_", " ")] = (
            steps,
            np.array([np.mean([r[k] for k in members]) for r in whole], np.float64),
        )
    return curves


def _cosines(records: Sequence[Mapping[str, Any]]) -> Curves:
    """The mean over layers as the named curve after those of the layers."""
    prefix = "update_cosine/"
    keys = dict.fromkeys(k for r in records for k in r if k.startswith(prefix))
    layers = {f"{_FAINT}{key}": _series(records, key) for key in keys}
    return {**layers, "mean" if len(keys) > 1 else "": _series(records, "update_cosine")}


_FAINT = "\0"


def _chart(
    title: str,
    curves: Curves,
    log: bool = False,
    smooth: bool = False,
    include: Sequence[float] = (),
) -> Image.Image | None:
    """A chart of the curves that have points; None when none has any."""
    lines: list[chart.Line] = []
    named = [name for name in curves if not name.startswith(_FAINT)]
    for name, (x, y) in curves.items():
        if not len(y) or (log and not (y > 0).any()):
            continue
        if name.startswith(_FAINT):
            lines.append(chart.Line("", x, y, canvas.LINE_COLOURS[0]).faint())
            continue
        colour = canvas.LINE_COLOURS[named.index(name) % len(canvas.LINE_COLOURS)]
        line = chart.Line(name, x, y, colour)
        if smooth and len(y) > 4:
            lines.extend((line.faint(), line.smooth()))
        else:
            lines.append(line)
    lines.sort(key=lambda line: line.width)  # pale ones below
    return chart.draw_chart(title, lines, log=log, include=include) if lines else None
