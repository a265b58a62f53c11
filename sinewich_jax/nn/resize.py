"""Bilinear resizing on the device, half-pixel centres and neighbours clamped to the border."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def resize_bilinear(x: Array, height: int, width: int) -> Array:
    """Bilinear resize of (..., h, w, C) with half-pixel centres and no antialiasing."""
    if x.shape[-3:-1] == (height, width):
        return x
    shape = (*x.shape[:-3], height, width, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def resize_in_frame(x: Array, sizes: Array, frame: tuple[int, int]) -> Array:
    """:func:`resize_bilinear` of each map to a size of its own, top left in a frame.

    Sizes are data here and not shapes, so one compiled program serves images of every size.

    Args:
      x: (B, h, w, C).
      sizes: (B, 2) int, height and width of each map inside the frame.
      frame: height and width of all.

    Returns:
      (B, *frame, C); what lies to the right of and below a map's own size means nothing.
    """
    rows = jax.vmap(_lines, (0, 0, None))(x, sizes[:, 0], frame[0])
    columns = jax.vmap(_lines, (0, 0, None))(rows.swapaxes(1, 2), sizes[:, 1], frame[1])
    return columns.swapaxes(1, 2)


def _lines(x: Array, size: Array, length: int) -> Array:
    """(n, ...) to (length, ...), of which the first ``size`` lines are ``x`` resized."""
    last = x.shape[0] - 1
    centre = (jnp.arange(length) + 0.5) * (x.shape[0] / size) - 0.5
    centre = jnp.clip(centre, 0.0, last)
    before = jnp.floor(centre).astype(jnp.int32)
    part = (centre - before).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    return x[before] * (1 - part) + x[jnp.minimum(before + 1, last)] * part
