"""Relative position tables for another window than the one they were trained with.

A table has a row for each offset between two tokens of a window, ``(2 w - 1)^2`` of them, and a
column a head: an image of the attention's preference, which can be resized like one. That is what
the Swin authors do when they fine-tune at another window, bicubically with a = -0.75.
"""

from __future__ import annotations

import numpy as np

from sinewich_jax.core.interpolate import taps
from sinewich_jax.errors import CheckpointError


def window_of(table: np.ndarray) -> int:
    """The side of the window that a table belongs to.

    Args:
      table: ((2 w - 1)^2, heads).

    Raises:
      CheckpointError: no window has so many offsets.
    """
    side = round(len(table) ** 0.5) if table.ndim == 2 else 0
    if side * side != len(table) or side % 2 == 0:
        raise CheckpointError(
            f"a relative position table has shape {table.shape}, expected ((2 * window - 1) ** 2, "
            "heads)"
        )
    return (side + 1) // 2


def resize_table(table: np.ndarray, window: int) -> np.ndarray:
    """The table as an image of offsets, resized bicubically (a = -0.75, half-pixel centres).

    Args:
      table: ((2 w - 1)^2, heads) float32.
      window: the side of the window wanted.

    Returns:
      ((2 * window - 1)^2, heads), the same dtype; the same array when the window is the same.

    Raises:
      CheckpointError: the array is no table.
    """
    small, side = 2 * window_of(table) - 1, 2 * window - 1
    if small == side:
        return table
    index, weight = taps(small, side, "cubic")
    matrix = np.zeros((side, small))
    np.add.at(matrix, (np.arange(side)[:, None], index), weight)
    square = table.reshape(small, small, -1).astype(np.float64)
    image = np.einsum("yi,xj,ijh->yxh", matrix, matrix, square, optimize=True)
    return image.reshape(side * side, -1).astype(table.dtype)


def centre_table(table: np.ndarray, window: int) -> np.ndarray:
    """The table in the middle of a larger one: exact for maps of the small window, zero elsewhere.

    The original code shrinks a window that is larger than the map and makes a table of that size;
    ours keeps the table of the full window and reads its centre.

    Args:
      table: ((2 w - 1)^2, heads).
      window: the side of the larger window.

    Returns:
      ((2 * window - 1)^2, heads); what a smaller map does not read is zero.

    Raises:
      CheckpointError: the array is no table, or one of a larger window.
    """
    small, side = 2 * window_of(table) - 1, 2 * window - 1
    if small > side:
        raise CheckpointError(
            f"a relative position table of window {(small + 1) // 2} does not fit into the middle "
            f"of one of window {window}; resize it"
        )
    margin = (side - small) // 2
    square = table.reshape(small, small, -1)
    return np.pad(square, [(margin, margin)] * 2 + [(0, 0)]).reshape(side * side, -1)
