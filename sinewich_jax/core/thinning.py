"""Thinning of masks to lines one pixel wide; NumPy alone.

The algorithm is that of Guo and Hall, "Parallel thinning with two-subiteration algorithms" (1989),
in the form that Lam, Lee and Suen give it in "Thinning methodologies: a comprehensive survey"
(1992): it peels a layer in two passes until nothing changes, keeps 8-connected pieces connected and
never removes the last pixel of one.
"""

from __future__ import annotations

import functools

import numpy as np

_EAST_COUNTERCLOCKWISE = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""Offsets (row, column) of the neighbours x1 to x8."""


@functools.cache
def _removable() -> tuple[np.ndarray, np.ndarray]:
    """For each of the two passes, bool [256]: whether a pixel with these neighbours goes.

    Bit i of an index is neighbour x_{i+1}. With x9 = x1, a pixel goes when G1: exactly one i of
    1..4 has x_{2i-1} = 0 and (x_{2i} or x_{2i+1}); G2: 2 <= min(n1, n2) <= 3, where n1 counts the
    pairs (x_{2i-1} or x_{2i}) and n2 the pairs (x_{2i} or x_{2i+1}); and G3: not ((x2 or x3 or
    not x8) and x1), in the second pass not ((x6 or x7 or not x4) and x5).
    """
    codes = np.arange(256)
    x = [None, *((codes >> i & 1).astype(bool) for i in range(8))]
    x.append(x[1])
    pairs = range(1, 5)
    crossings = sum((~x[2 * i - 1] & (x[2 * i] | x[2 * i + 1])).astype(int) for i in pairs)
    n1 = sum((x[2 * i - 1] | x[2 * i]).astype(int) for i in pairs)
    n2 = sum((x[2 * i] | x[2 * i + 1]).astype(int) for i in pairs)
    fewer = np.minimum(n1, n2)
    simple = (crossings == 1) & (fewer >= 2) & (fewer <= 3)
    first = simple & ~((x[2] | x[3] | ~x[8]) & x[1])
    second = simple & ~((x[6] | x[7] | ~x[4]) & x[5])
    return first, second


def thin(mask: np.ndarray) -> np.ndarray:
    """Thins a mask to lines one pixel wide.

    Args:
      mask: bool [H, W]; outside of it is background.

    Returns:
      bool [H, W], a subset of ``mask``.
    """
    height, width = mask.shape
    padded = np.pad(mask.astype(np.uint8), 1)
    inner = padded[1:-1, 1:-1]
    while True:
        changed = False
        for removable in _removable():
            code = np.zeros((height, width), np.uint8)
            for bit, (row, column) in enumerate(_EAST_COUNTERCLOCKWISE):
                shifted = padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]
                code |= shifted << np.uint8(bit)
            gone = removable[code] & (inner != 0)
            if gone.any():
                inner[gone] = 0
                changed = True
        if not changed:
            return inner != 0
