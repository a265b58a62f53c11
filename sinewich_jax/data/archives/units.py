"""Metres or millimetres: releases of one data set differ, and no file says which it is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sinewich_jax.errors import DataError

DEPTH_UNITS = ("auto", "m", "mm")
"""What the option ``depth_unit`` may be."""

FILES = 16
"""So many files are looked at to tell the unit."""

METRES_BELOW, MILLIMETRES_ABOVE = 20.0, 50.0


def check_unit(unit: str) -> str:
    """The option as it is, when it is one."""
    if unit not in DEPTH_UNITS:
        raise DataError(f"depth_unit is {unit!r}, expected one of {', '.join(DEPTH_UNITS)}")
    return unit


def decide(maps: Iterable[np.ndarray], where: str) -> str:
    """The unit of indoor depth maps, from the median of their valid values.

    Rooms are a few metres deep: a median below 20 can only be metres and one above 50 only
    millimetres; in between it is not guessed.

    Args:
      maps: raw depth maps; 0, negative and NaN are invalid.
      where: names the folder in errors.

    Returns:
      ``"m"`` or ``"mm"``.

    Raises:
      DataError: the median is between 20 and 50, or nothing is valid.
    """
    values = [depth[np.isfinite(depth) & (depth > 0)] for depth in maps]
    together = np.concatenate([v.ravel() for v in values]) if values else np.empty(0)
    if not together.size:
        raise DataError(
            f"{where} has no valid depth in its first {FILES} files, so its unit cannot be told; "
            "say depth_unit='m' or 'mm'"
        )
    median = float(np.median(together))
    if METRES_BELOW <= median <= MILLIMETRES_ABOVE:
        raise DataError(
            f"{where} has a median depth of {median:.4g}, which may be metres (expected below "
            f"{METRES_BELOW:g}) or millimetres (above {MILLIMETRES_ABOVE:g}); say depth_unit='m' "
            "or 'mm'"
        )
    return "m" if median < METRES_BELOW else "mm"


def to_metres(raw: np.ndarray, unit: str) -> np.ndarray:
    """Depth in metres, float32, from values in ``"m"`` or ``"mm"``."""
    return (raw / 1000 if unit == "mm" else raw).astype(np.float32)
