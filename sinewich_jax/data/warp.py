"""Seeing a source map through a moved window: one inverse affine map, shared by every label.

A :class:`Window` says where an output pixel comes from; a :class:`Sampler` turns that into indices
and weights once and then reads any number of maps with them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from sinewich_jax.core.interpolate import Method, cubic_weight


@dataclasses.dataclass(frozen=True)
class Window:
    """How the output sees the source: mirrored first, then zoomed and turned about the centre.

    Pixel (x, y) of the output, measured from the output's centre and shifted by ``offset``, is

    ``(u, v) = zoom * R (p, q)``,  ``R = [[cos a, sin a], [-sin a, cos a]]``

    where (p, q) is the position in the (mirrored) source measured from its centre. With y pointing
    down, positive ``degrees`` turn the picture counter-clockwise.

    Attributes:
      size: output (height, width).
      flip: mirror left to right.
      zoom: above 1 things get larger.
      degrees: angle a.
      offset: (rows, columns) from the centre of the zoomed source to the centre of the window.
    """

    size: tuple[int, int]
    flip: bool = False
    zoom: float = 1.0
    degrees: float = 0.0
    offset: tuple[float, float] = (0.0, 0.0)

    @property
    def rigid(self) -> bool:
        """Whether every output pixel is exactly one source pixel (flips and whole-pixel crops)."""
        return self.zoom == 1.0 and self.degrees == 0.0

    def rotation(self) -> np.ndarray:
        """R, float32 [2, 2]: how a direction (x, y) of the mirrored source turns."""
        angle = math.radians(self.degrees)
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[c, s], [-s, c]], np.float32)

    def turn_normals(self, normals: np.ndarray) -> np.ndarray:
        """Moves unit normals with the picture: x negated by a flip, then (x, y) turned by R.

        Args:
          normals: float32 [..., 3] in camera axes (x right, y down, z forward).

        Returns:
          float32 [..., 3], same lengths.
        """
        matrix = np.eye(3, dtype=np.float32)
        if self.degrees:
            matrix[:2, :2] = self.rotation()
        if self.flip:
            matrix[:, 0] *= -1
        if np.array_equal(matrix, np.eye(3)):
            return normals
        return normals @ matrix.T


class Sampler:
    """Reads maps of one source size through a window.

    Attributes:
      inside: bool [h, w], which output pixels lie in the source.
      full: whether all do.
    """

    def __init__(self, window: Window, source: tuple[int, int]):
        """Computes the nearest source pixel of every output pixel.

        Args:
          window: the window.
          source: (height, width) of the maps that will be read.
        """
        self.window, self.source = window, source
        height, width = window.size
        x = np.arange(width, dtype=np.float32) + np.float32(window.offset[1] - (width - 1) / 2)
        y = np.arange(height, dtype=np.float32) + np.float32(window.offset[0] - (height - 1) / 2)
        inverse = window.rotation().T / np.float32(window.zoom)
        if window.flip:
            inverse[0] *= -1
        self._x = inverse[0, 0] * x + (inverse[0, 1] * y + np.float32((source[1] - 1) / 2))[:, None]
        self._y = inverse[1, 0] * x + (inverse[1, 1] * y + np.float32((source[0] - 1) / 2))[:, None]
        column = np.floor(self._x + np.float32(0.5)).astype(np.intp)
        row = np.floor(self._y + np.float32(0.5)).astype(np.intp)
        self.inside = (column >= 0) & (column < source[1]) & (row >= 0) & (row < source[0])
        self.full = bool(self.inside.all())
        if not self.full:
            np.clip(column, 0, source[1] - 1, out=column)
            np.clip(row, 0, source[0] - 1, out=row)
        self._index = row * source[1] + column

    def nearest(self, array: np.ndarray) -> np.ndarray:
        """The nearest source pixel of every output pixel, 0 outside; any dtype, [H, W(, C)]."""
        flat = array.reshape(self.source[0] * self.source[1], *array.shape[2:])
        out = flat.take(self._index, axis=0)
        if not self.full:
            out[~self.inside] = 0
        return out

    @functools.cached_property
    def _linear_taps(self) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
        """Flat index of the upper left neighbour, then (step from it, weight) of all four."""
        (height, width), one = self.source, np.float32(1)
        x0 = np.clip(np.floor(self._x), 0, max(width - 2, 0))
        y0 = np.clip(np.floor(self._y), 0, max(height - 2, 0))
        # Clipping the fraction, not the neighbours, clamps to the border as well.
        fx, fy = np.clip(self._x - x0, 0, one), np.clip(self._y - y0, 0, one)
        right, down = int(width > 1), width * int(height > 1)
        base = y0.astype(np.intp) * width + x0.astype(np.intp)
        steps = [
            (0, (one - fx) * (one - fy)),
            (right, fx * (one - fy)),
            (down, (one - fx) * fy),
            (down + right, fx * fy),
        ]
        return base, steps

    @functools.cached_property
    def _cubic_taps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Flat index and weight of all sixteen neighbours."""
        height, width = self.source
        x0, y0 = np.floor(self._x), np.floor(self._y)
        columns, rows = [], []
        for k in range(-1, 3):
            column = np.clip(x0.astype(np.intp) + k, 0, width - 1)
            row = np.clip(y0.astype(np.intp) + k, 0, height - 1) * width
            columns.append((column, cubic_weight(self._x - x0 - np.float32(k))))
            rows.append((row, cubic_weight(self._y - y0 - np.float32(k))))
        return [(row + column, wy * wx) for row, wy in rows for column, wx in columns]

    def smooth(self, array: np.ndarray, method: Method) -> np.ndarray:
        """Interpolates a map, neighbours clamped to the border, 0 outside.

        Args:
          array: [H, W, C], any real dtype.
          method: ``"linear"`` or ``"cubic"`` (a = -0.75; may overshoot).

        Returns:
          float32 [h, w, C]: a view of channel planes, so channels are not the contiguous axis.
        """
        # One channel plane at a time: contiguous gathers and products are several times faster
        # than rows of three, and the scratch arrays stay small.
        planes = np.moveaxis(array, -1, 0).astype(np.float32, order="C")
        planes = planes.reshape(array.shape[-1], -1)
        out = np.zeros((len(planes), *self.window.size), np.float32)
        term = np.empty(self.window.size, np.float32)
        for plane, total in zip(planes, out, strict=True):
            for source, index, weight in self._terms(plane, method):
                source.take(index, out=term, mode="clip")  # in range; "raise" would copy
                np.multiply(term, weight, out=term)
                np.add(total, term, out=total)
        if not self.full:
            out *= self.inside
        return np.moveaxis(out, 0, -1)

    def _terms(
        self, plane: np.ndarray, method: Method
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        if method == "cubic":
            for index, weight in self._cubic_taps:
                yield plane, index, weight
        else:
            base, steps = self._linear_taps
            for step, weight in steps:
                yield plane[step:], base, weight
