"""Bits, positions of ones, and small numbers as bit planes; all in little bit order."""

from __future__ import annotations

import numpy as np

from sinewich_jax.core.ternary import pack_bits, unpack_bits
from sinewich_jax.switches.codecs.blocks import slices
from sinewich_jax.switches.codecs.registry import CodecError

CHUNK = 1 << 15  # bytes of a plane at a time: what becomes of them stays in the cache


def flags(plane: np.ndarray, n: int | None = None) -> np.ndarray:
    """A plane as booleans, the first n of them."""
    return unpack_bits(plane, 8 * len(plane) if n is None else n).view(bool)


def positions(plane: np.ndarray) -> np.ndarray:
    """Where a plane has ones, int64, ascending."""
    found = [np.flatnonzero(flags(plane[at])) + 8 * at.start for at in slices(len(plane), CHUNK)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def plane_of(where: np.ndarray, size: int) -> np.ndarray:
    """The plane of ``size`` bytes with ones at ascending, distinct positions."""
    plane = np.empty(size, np.uint8)
    pieces = slices(size, CHUNK)
    ends = np.searchsorted(where, [8 * at.stop for at in pieces]).tolist()
    for at, begin, end in zip(pieces, [0, *ends], ends, strict=False):
        ones = np.zeros(8 * (at.stop - at.start), bool)
        ones[where[begin:end] - 8 * at.start] = True
        plane[at] = pack_bits(ones)
    return plane


def split(values: np.ndarray, width: int) -> bytes:
    """Numbers below ``2**width`` as ``width`` bit planes, the lowest bits first."""
    values = values.astype(_number(width))
    planes = (pack_bits(values & (1 << bit)) for bit in range(width))
    return b"".join(plane.tobytes() for plane in planes)


def join(blob: memoryview, width: int, count: int) -> np.ndarray:
    """The numbers that :func:`split` wrote, of the narrowest unsigned type that holds them.

    Args:
      blob: ``width * ceil(count / 8)`` bytes; checked by the caller.
      width: bits of a number.
      count: numbers.

    Raises:
      CodecError: there are ones behind the last number.
    """
    values = np.zeros(count, _number(width))
    planes = np.frombuffer(blob, np.uint8).reshape(width, (count + 7) // 8)
    if width and count % 8 and (planes[:, -1] >> count % 8).any():
        raise CodecError("there are ones behind the last number of a block; the file is damaged")
    for bit, plane in enumerate(planes):
        values |= unpack_bits(plane, count).astype(values.dtype) << bit
    return values


def _number(width: int) -> np.dtype:
    return np.min_scalar_type((1 << width) - 1)
