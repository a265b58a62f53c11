"""From what a file or a user's array holds to (label, valid): the one place that knows sentinels.

Inside the library a label is always accompanied by a bool mask. The customs of the outside world,
255 for "ignore", 0 for "no depth", the zero vector for "no normal", end here.

| kind | tasks | outside | label | invalid where |
|---|---|---|---|---|
| class | semseg, human_parts | integers [H, W] | uint8 [H, W] | value 255 |
| binary | saliency, edge | bool or integers {0, 1, 255} [H, W] | uint8 {0, 1} [H, W] | value 255 |
| depth | depth | float, metres [H, W] | float32 [H, W] | <= 0, NaN or infinite |
| normals | normals | float [H, W, 3] | float32 [H, W, 3], unit | norm < 0.1 or NaN |

Normals are in camera axes: x right, y down, z forward. In invalid places the label is 0.
"""

from __future__ import annotations

import typing
from typing import Literal

import numpy as np

from sinewich_jax.errors import DataError, did_you_mean

Kind = Literal["class", "binary", "depth", "normals"]

KINDS: dict[str, Kind] = {
    "semseg": "class",
    "human_parts": "class",
    "saliency": "binary",
    "edge": "binary",
    "depth": "depth",
    "normals": "normals",
}
"""How the label map of each task is stored, resized and moved; see :func:`register_kind`."""

OWN_CLASSES = ("semseg",)
"""Tasks whose classes are each data set's own, so that no default count can be right."""

IGNORE = 255
"""The value that marks a pixel without a label in class and binary maps, in files and arrays."""

MIN_NORMAL = 0.1
"""Normals shorter than this are missing: 8-bit files cannot store an exact zero."""


def kind_of(task: str) -> Kind:
    """The kind of a task's label map, or an error that lists the known tasks."""
    if task not in KINDS:
        raise DataError(f"no label is known by the name {task!r}{did_you_mean(task, KINDS)}")
    return KINDS[task]


def register_kind(task: str, kind: Kind) -> None:
    """Tells how the labels of a task of your own are stored, resized and moved.

    Args:
      task: its name, as in ``tasks.register``.
      kind: one of the four kinds in the table above.
    """
    if kind not in typing.get_args(Kind):
        raise DataError(f"no label kind {kind!r}{did_you_mean(kind, typing.get_args(Kind))}")
    if KINDS.get(task, kind) != kind:
        raise DataError(f"task {task!r} already has labels of kind {KINDS[task]!r}")
    KINDS[task] = kind


def unit_normals(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes vectors unit and says which of them are long enough to have a direction.

    Args:
      vectors: float [..., 3].

    Returns:
      ``(unit, solid)``: float32 [..., 3], zero where not solid, and bool [...].
    """
    vectors = vectors.astype(np.float32, copy=False)
    squared = np.einsum("...c,...c->...", vectors, vectors)
    solid = squared >= MIN_NORMAL**2  # False for NaN
    scale = np.divide(1.0, np.sqrt(squared), where=solid, out=np.zeros_like(squared))
    return np.where(solid[..., None], vectors * scale[..., None], np.float32(0)), solid


def to_label(task: str, raw: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Converts one label map from the outside form to ``(label, valid)``.

    Args:
      task: name of the task; its kind decides what is expected (table above).
      raw: the map as stored, [H, W] or [H, W, 3] for normals; [H, W, 1] is accepted as [H, W].
      where: names the map in errors, e.g. a file or ``"example 3"``.

    Returns:
      Label and bool mask [H, W].

    Raises:
      DataError: wrong shape or dtype, or values no label of this kind can have.
    """
    kind = kind_of(task)
    raw = np.asarray(raw)
    if kind == "normals":
        return _normals(task, raw, where)
    if raw.ndim == 3 and raw.shape[-1] == 1:
        raw = raw[..., 0]
    if raw.ndim != 2:
        raise DataError(f"{task} of {where} has shape {raw.shape}, expected [H, W]")
    if kind == "depth":
        return _depth(task, raw, where)
    return _discrete(task, raw, where, binary=kind == "binary")


def _normals(task: str, raw: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    if raw.ndim != 3 or raw.shape[-1] != 3:
        raise DataError(f"{task} of {where} has shape {raw.shape}, expected [H, W, 3]")
    if not np.issubdtype(raw.dtype, np.floating):
        raise DataError(
            f"{task} of {where} is {raw.dtype}, expected float vectors in [-1, 1]; "
            "turn 8-bit maps into floats first (2 * v / 255 - 1)"
        )
    raw = np.nan_to_num(raw.astype(np.float32), nan=0.0)
    longest = np.abs(raw).max(initial=0.0)
    if longest > 1.5:
        raise DataError(
            f"{task} of {where} has a component of {longest:.3g}, expected unit vectors; "
            "scale the map to [-1, 1]"
        )
    return unit_normals(raw)


def _depth(task: str, raw: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    if not np.issubdtype(raw.dtype, np.floating):
        raise DataError(
            f"{task} of {where} is {raw.dtype}, expected float metres; "
            "convert it (millimetres: value / 1000)"
        )
    label = raw.astype(np.float32)
    valid = np.isfinite(label) & (label > 0)
    return np.where(valid, label, np.float32(0)), valid


def _discrete(
    task: str, raw: np.ndarray, where: str, binary: bool
) -> tuple[np.ndarray, np.ndarray]:
    if raw.dtype == np.bool_:
        raw = raw.astype(np.uint8)
    if not np.issubdtype(raw.dtype, np.integer):
        if np.isnan(raw).any():
            raise DataError(f"{task} of {where} contains NaN, expected whole numbers")
        raise DataError(
            f"{task} of {where} is {raw.dtype}, expected whole numbers; cast it to uint8"
        )
    if raw.size and (raw.min() < 0 or raw.max() > IGNORE):
        bad = raw.min() if raw.min() < 0 else raw.max()
        raise DataError(
            f"{task} of {where} contains {bad}, expected classes from 0, or {IGNORE} for no label"
        )
    valid = raw != IGNORE
    label = np.where(valid, raw, 0).astype(np.uint8)
    if binary and label.size and label.max() > 1:
        raise DataError(
            f"{task} of {where} contains {label.max()}, expected 0, 1 or {IGNORE} for no label"
        )
    return label, valid
