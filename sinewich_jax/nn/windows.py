"""Windows of a feature map: partition, shift mask and relative positions of Swin (pure functions).

Source: Liu et al. 2021 (arXiv 2103.14030), section 3.2 and figure 4.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def pad_to_multiple(x: Array, multiple: int) -> Array:
    """Zero-pads (B, H, W, C) on the right and bottom until H and W are multiples."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if not (bottom or right):
        return x
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def window_partition(x: Array, window: int) -> Array:
    """(B, H, W, C) to (B, windows, window * window, C); H and W are multiples of ``window``."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, window * window, c)


def window_reverse(x: Array, window: int, height: int, width: int) -> Array:
    """The inverse of :func:`window_partition`."""
    b, c = x.shape[0], x.shape[-1]
    x = x.reshape(b, height // window, width // window, window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, c)


class Frame(NamedTuple):
    """How a map is cut into windows.

    Attributes:
      height: of the map.
      width: of the map.
      window: side of a window.
      shift: how far the map is rolled up and to the left before it is cut.
    """

    height: int
    width: int
    window: int
    shift: int

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width after padding to a multiple of the window."""
        return -(-self.height // self.window) * self.window, -(
            -self.width // self.window
        ) * self.window

    def cut(self, x: Array) -> Array:
        """(B, H, W, C) to windows (B, W, N, C), padded and rolled."""
        x = pad_to_multiple(x, self.window)
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        return window_partition(x, self.window)

    def join(self, x: Array) -> Array:
        """The inverse of :meth:`cut`: windows (B, W, N, C) to (B, H, W, C)."""
        x = window_reverse(x, self.window, *self.padded)
        if self.shift:
            x = jnp.roll(x, (self.shift, self.shift), axis=(1, 2))
        return x[:, : self.height, : self.width]

    def mask(self) -> np.ndarray | None:
        """Additive mask (W, N, N) of shifted windows, None without a shift."""
        return shift_mask(*self.padded, self.window, self.shift) if self.shift else None


@functools.lru_cache
def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Additive mask (windows, N, N): 0 within a region of the rolled map, -100 across."""
    region = np.zeros((height, width), np.int32)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            region[rows, columns] = 3 * i + j
    region = region.reshape(height // window, window, width // window, window)
    region = region.transpose(0, 2, 1, 3).reshape(-1, window * window)
    differs = region[:, :, None] != region[:, None, :]
    return np.where(differs, np.float32(-100.0), np.float32(0.0))


@functools.lru_cache
def relative_position_index(window: int, table_window: int) -> np.ndarray:
    """Row of the bias table for each pair of positions, (N, N) with N = window^2.

    The table belongs to ``table_window``; a smaller window reads its centre.
    """
    y, x = np.divmod(np.arange(window * window), window)
    side = 2 * table_window - 1
    rows = y[:, None] - y[None, :] + table_window - 1
    columns = x[:, None] - x[None, :] + table_window - 1
    return rows * side + columns
