"""Human parts from PASCAL-Part annotations: 24 names in six groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from sinewich_jax.errors import DataError

PERSON = 15
"""``class_ind`` of a person."""

PART_NAMES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
"""The seven classes."""

_GROUPS = (
    "hair head lear rear lebrow rebrow leye reye mouth nose",
    "neck torso",
    "luarm ruarm",
    "llarm rlarm lhand rhand",
    "luleg ruleg",
    "llleg rlleg lfoot rfoot",
)

GROUP_OF = {name: number for number, group in enumerate(_GROUPS, 1) for name in group.split()}
"""Class of each part name."""


def paint(anno: np.ndarray, size: tuple[int, int], where: str) -> tuple[np.ndarray, bool]:
    """Paints the parts of all persons, in file order, later ones over earlier ones.

    Args:
      anno: the variable ``anno``: a struct (imname, objects), objects a row of structs (class,
        class_ind, mask, parts), parts a row of structs (part_name, mask) or empty.
      size: (height, width) of the map when nobody is in it; otherwise the masks say it.
      where: names the file in errors.

    Returns:
      ``(map, someone)``: uint8 [H, W] of 0 to 6, and whether a person with parts is annotated;
      without one the image is not labelled for this task.

    Raises:
      DataError: the struct is another one, masks differ in size, or a part has an unknown name.
    """
    canvas: np.ndarray | None = None
    for entry in _rows(_field(_only(anno, where), "objects", where)):
        parts = _rows(_field(entry, "parts", where))
        if _number(_field(entry, "class_ind", where), where) != PERSON:
            continue
        for part in parts:
            name = _text(_field(part, "part_name", where))
            if name not in GROUP_OF:
                known = ", ".join(GROUP_OF)
                raise DataError(f"{where} names a part {name!r}, expected one of {known}")
            mask = np.asarray(_field(part, "mask", where))
            if mask.ndim != 2 or (canvas is not None and mask.shape != canvas.shape):
                expected = "[H, W]" if canvas is None else list(canvas.shape)
                raise DataError(
                    f"the mask of {name!r} in {where} has shape {list(mask.shape)}, "
                    f"expected {expected}"
                )
            if canvas is None:
                canvas = np.zeros(mask.shape, np.uint8)
            canvas[mask != 0] = GROUP_OF[name]
    if canvas is None:
        return np.zeros(size, np.uint8), False
    return canvas, True


def _only(anno: Any, where: str) -> Any:
    rows = _rows(anno)
    if not rows:
        raise DataError(f"{where} holds no struct 'anno', expected one with 'objects'")
    return rows[0]


def _rows(value: Any) -> list[Any]:
    """The structs of a row; MATLAB's empty matrix, which is no struct, has none."""
    value = np.asarray(value)
    return list(value.ravel()) if value.dtype.names else []


def _field(record: Any, name: str, where: str) -> Any:
    if name not in record.dtype.names:
        found = ", ".join(record.dtype.names)
        raise DataError(f"a struct in {where} has the fields {found}, expected {name!r} among them")
    return record[name]


def _number(value: Any, where: str) -> int:
    value = np.asarray(value)
    if value.size != 1 or value.dtype.kind not in "iuf":
        raise DataError(f"class_ind in {where} has shape {list(value.shape)}, expected one number")
    return int(value.item())


def _text(value: Any) -> str:
    value = np.asarray(value)
    return str(value.ravel()[0]) if value.size else ""
