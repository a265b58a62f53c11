"""From a leaf and its cuts to planes and a knob, and back to numbers a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from sinewich_jax.core.arrays import namespace
from sinewich_jax.core.ternary import pack_bits, unpack_bits
from sinewich_jax.switches.leaf import LeafSwitch, plane_bytes
from sinewich_jax.switches.selection import Cut, reached

Array = Any
Knob = Literal["l2_kept", "l1", "l2_full"]

KNOBS = ("l2_kept", "l1", "l2_full")

_BLOCK = 1 << 17  # entries: few calls, and temporaries that stay in the cache


def pieces(size: int, rows: int = 1) -> Iterator[slice]:
    """Slices of a flat leaf, each of whole bytes of a plane and of whole rows of knobs."""
    unit = 8 * rows // math.gcd(8, rows)
    step = max(_BLOCK // unit, 1) * unit
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def encode(
    values: Array, scores: Array | None, cuts: Sequence[Cut], knob: Knob, by_row: bool
) -> LeafSwitch:
    """The planes of the entries that the cuts keep, and how far these move.

    Args:
      values: float32, finite, the task vector's leaf.
      scores: float32 of that shape, what the cuts speak of; None for the magnitudes.
      cuts: see :mod:`sinewich_jax.switches.selection`.
      knob: with k kept entries: ``"l2_kept"`` is ``||kept|| / sqrt(k)``, ``"l1"`` the mean of
        ``|kept|`` (least squares), ``"l2_full"`` is ``||values|| / sqrt(k)``.
      by_row: one knob for each index of the last axis.
    """
    rows = values.shape[-1] if by_row else 1
    xp = namespace(values)
    if values.size == 0:
        mask = sign = xp.zeros(0, np.uint8)
        knobs = xp.zeros(rows, np.float32)
    elif xp is np:
        mask, sign, knobs = _encode_host(values.ravel(), scores, cuts, knob, rows)
    else:
        mask, sign, knobs = _encode_traced(values, scores, cuts, knob, rows)
    knobs = knobs if by_row else knobs.reshape(())
    levels = xp.zeros((0, mask.shape[-1]), np.uint8)
    return LeafSwitch(mask, sign, knobs, levels, tuple(values.shape))


def _encode_host(
    flat: np.ndarray, scores: Array | None, cuts: Sequence[Cut], knob: Knob, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    planes = np.empty((2, plane_bytes(flat.size)), np.uint8)
    counts, totals = np.zeros(rows, np.int64), np.zeros(rows)
    decisive = None if scores is None else np.asarray(scores).ravel()
    for part in pieces(flat.size, rows):
        piece = flat[part]
        sizes = np.abs(piece)
        active, cuts = reached(piece, sizes if decisive is None else decisive[part], cuts)
        target = slice(part.start >> 3, plane_bytes(part.stop))
        planes[0, target] = pack_bits(active)
        planes[1, target] = pack_bits(active & (piece > 0))
        if knob != "l2_full":
            sizes *= active
        # Double precision: squares of tiny numbers vanish in float32, and sums lose digits.
        weighed = sizes.astype(np.float64)
        if rows > 1:
            counts += active.reshape(-1, rows).sum(0)
            weighed = weighed.reshape(-1, rows)
            totals += (weighed if knob == "l1" else np.square(weighed)).sum(0)
        else:
            counts += np.count_nonzero(active)
            totals += (weighed if knob == "l1" else np.square(weighed)).sum()
    means = totals / np.maximum(counts, 1)
    means = np.where(counts > 0, means if knob == "l1" else np.sqrt(means), 0)
    return planes[0], planes[1], means.astype(np.float32)


def _encode_traced(
    values: Array, scores: Array | None, cuts: Sequence[Cut], knob: Knob, rows: int
) -> tuple[Array, Array, Array]:
    import jax.numpy as jnp

    sizes = jnp.abs(values)
    active, _ = reached(values, sizes if scores is None else scores, cuts)
    mask = pack_bits(active.ravel())
    sign = pack_bits((active & (values > 0)).ravel())
    axes = tuple(range(values.ndim - 1)) if rows > 1 else None
    counts = active.sum(axes)
    peak = sizes.max()
    unit = jnp.where(peak > 0, peak, 1)  # squares of tiny numbers vanish in float32
    weighed = (sizes if knob == "l2_full" else jnp.where(active, sizes, 0)) / unit
    means = (weighed if knob == "l1" else jnp.square(weighed)).sum(axes) / jnp.maximum(counts, 1)
    means = (means if knob == "l1" else jnp.sqrt(means)) * unit
    return mask, sign, jnp.where(counts > 0, means, 0).astype(jnp.float32).reshape(rows)


def decode(leaf: LeafSwitch, part: slice | None = None) -> Array:
    """The steps of a leaf in units of its knob: 0, +-1, or with levels other whole numbers.

    Args:
      leaf: without leading axes.
      part: the entries that are asked for, starting with a byte; None for all of them.

    Returns:
      int8 (n,), int32 if the leaf has levels; of the same library.
    """
    start, stop = (0, leaf.size) if part is None else (part.start, part.stop)
    place = slice(start >> 3, plane_bytes(stop))

    def bits(plane: Array) -> Array:
        return unpack_bits(plane[..., place], stop - start)

    steps = bits(leaf.sign).view(np.int8)
    steps = steps + steps
    steps -= bits(leaf.mask).view(np.int8)  # 2 - 1, 0 - 1 or 0 - 0
    if leaf.bits == 1:
        return steps
    xp = namespace(leaf.levels)
    weights = (1 << xp.arange(leaf.bits - 1, dtype=np.int32))[:, None]
    return steps * (bits(leaf.levels).astype(np.int32) * weights).sum(0, dtype=np.int32)
