"""The report of ``sinewich data check`` as text and as a picture of a few samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sinewich_jax.data.archives.check import Report, TaskReport
from sinewich_jax.data.archives.reader import Sample
from sinewich_jax.report import canvas

LEAST, MOST = 112, 160
GAP = 6
BAR = 30
_MOST_CLASSES = 12


def lines(report: Report, class_names: Mapping[str, Sequence[str]]) -> list[str]:
    """The report as lines of text.

    Args:
      report: from ``check.examine``.
      class_names: names of the classes by task, where known.
    """
    out = [f"{report.name} in {report.root}", f"layout     {report.layout}"]
    out += [f"{name}: {value}" for name, value in report.notes.items()]
    for split, found in report.splits.items():
        out.append(f"{split:<11}{found.images} images" + (", at fault" if found.fault else ""))
        for task, files in found.missing.items():
            out.append(f"           {files['count']} {task} files missing, first {files['first']}")
    if report.sizes is not None:
        small, large = (f"{height} x {width}" for height, width in report.sizes)
        sizes = small if small == large else f"{small} to {large}"
        out.append(f"looked at  {report.looked_at} examples of {sizes} (height x width)")
    for task, found in report.tasks.items():
        out += ["", *_task(task, found, class_names.get(task), report.notes)]
    if report.faults:
        out += ["", f"faults     {len(report.faults)}", *(f"  {fault}" for fault in report.faults)]
    return out


def _task(
    task: str, found: TaskReport, names: Sequence[str] | None, notes: Mapping[str, str]
) -> list[str]:
    head = f"{task}: {found.labels} labels, {_percent(found.valid)} of their pixels labelled"
    if found.resized:
        head += f", {found.resized} not of their image's size (they are resized)"
    if not found.labels:
        return [head]
    if found.kind == "normals":
        facing = _percent(found.towards_viewer)
        return [head, f"  {facing} face the viewer (z < 0)"]
    if found.kind == "binary":
        return [head, *_bars([("no", found.shares[0]), ("yes", found.shares[1])])]
    if found.kind == "class":
        names = names or [str(number) for number in range(len(found.shares))]
        order = sorted(range(len(found.shares)), key=lambda c: (-found.shares[c], c))
        occur = [c for c in order if found.shares[c] > 0]
        rest, never = occur[_MOST_CLASSES:], len(order) - len(occur)
        rows = _bars([(names[c], found.shares[c]) for c in occur[:_MOST_CLASSES]])
        if rest:
            rows.append(f"  {len(rest)} others: {_percent(sum(found.shares[c] for c in rest))}")
        return [head, *rows, *([f"  {never} classes do not occur"] if never else [])]
    if not found.histogram:
        return [head]
    unit = unit_of(notes)
    bins = [
        (f"{low:.3g} to {high:.3g}{unit}", share)
        for low, high, share in zip(found.edges, found.edges[1:], found.histogram, strict=False)
    ]
    numbers = f"{found.lowest:.4g}{unit}, {found.median:.4g}{unit}, {found.highest:.4g}{unit}"
    return [head, f"  least, median, greatest: {numbers}", *_bars(bins)]


def unit_of(notes: Mapping[str, str]) -> str:
    """The unit of what is called depth, with a space before it."""
    return {"disparity_px": " px", "disparity_norm": ""}.get(notes.get("depth means", ""), " m")


def _bars(rows: Sequence[tuple[str, float]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    longest = max((share for _, share in rows), default=0.0) or 1.0
    return [
        f"  {name:<{width}}  {_percent(share):>7}  {'#' * round(BAR * share / longest)}".rstrip()
        for name, share in rows
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def draw(samples: Sequence[Sample], tasks: Mapping[str, Any], notes: Mapping[str, str]):
    """A row for each sample: the image, then the label of each task, hatched where there is none.

    Args:
      samples: at least one.
      tasks: the tasks by name.
      notes: of the reader, for the unit of depth.

    Returns:
      The page.
    """
    names = [name for name in tasks if any(name in sample.labels for sample in samples)]
    drawn = {name: _drawing(tasks[name], samples) for name in names}
    columns = ["image", *(_title(name, drawn[name], notes) for name in names)]
    pitch = GAP + max(MOST, *(canvas.text_width(text) + 4 for text in columns))
    tiles = [canvas.fit(*sample.image.shape[:2], LEAST, MOST) for sample in samples]
    top = canvas.MARGIN + 24
    page = canvas.sheet(
        2 * canvas.MARGIN + pitch * len(columns) - GAP,
        top + sum(height + 24 for height, _ in tiles) + canvas.MARGIN,
    )
    for column, text in enumerate(columns):
        canvas.write(page, (canvas.MARGIN + column * pitch, top - 8), text, anchor="ls", bold=True)
    for sample, size in zip(samples, tiles, strict=True):
        canvas.write(page, (canvas.MARGIN, top), sample.id, canvas.SMALL, canvas.MUTED)
        pictures: list[np.ndarray | None] = [sample.image]
        for name in names:
            if name not in sample.labels:
                pictures.append(None)  # Its file is at fault.
                continue
            label, valid = sample.labels[name], sample.valid[name]
            pictures.append(drawn[name].picture(canvas.shown(label, valid), valid))
        for column, picture in enumerate(pictures):
            if picture is not None:
                at = (canvas.MARGIN + column * pitch, top + 16)
                page.paste(_tile(picture, size, smooth=column == 0), at)
        top += size[0] + 24
    return page


def _drawing(task: Any, samples: Sequence[Sample]) -> Any:
    """The task; what has a range of values takes that of the samples."""
    if not hasattr(task, "fit_range"):
        return task
    held = [s for s in samples if task.name in s.labels and s.valid[task.name].any()]
    if not held:
        return task
    return task.fit_range([s.labels[task.name] for s in held], [s.valid[task.name] for s in held])


def _title(name: str, task: Any, notes: Mapping[str, str]) -> str:
    text = name.replace("_", " ")
    if not hasattr(task, "picture_range"):
        return text
    near, far = task.picture_range
    return f"{text} {near:.2g} to {far:.2g}{unit_of(notes)}"


def _tile(picture: np.ndarray, size: tuple[int, int], smooth: bool) -> Image.Image:
    if not smooth:
        return canvas.tile(picture, size)
    image = Image.fromarray(np.ascontiguousarray(picture))
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def as_json(report: Report) -> dict[str, Any]:
    """The report without its samples, as JSON has it."""
    found = dataclasses.asdict(dataclasses.replace(report, samples=[]))
    del found["samples"]
    return found
