"""Grouped coordinates in the manner of FlexSwitch's SASS: how many of a group, and which.

The paper's format is not published in detail; this is the reading whose sizes agree with what it
reports: ``ceil(log2(g + 1)) / g + p log2 g`` bits an entry, with the g that makes it least. Rice
codes are smaller at every density; the codec is here to be compared with.
"""

from __future__ import annotations

import numpy as np

from sinewich_jax.switches.codecs import bits
from sinewich_jax.switches.codecs.registry import Codec, CodecError, register
from sinewich_jax.switches.leaf import plane_bytes

_WIDEST = 16  # log2 of the largest group


def encode(mask: np.ndarray, n: int, count: int) -> bytes:
    """log2 g, the counts of groups and the places in them; numbers are split into bit planes."""
    if not count:
        return b""
    _, width = _best(n, count)
    where = bits.positions(mask)
    counts = np.bincount(where >> width, minlength=_group_count(n, width))
    local = where & ((1 << width) - 1)
    return bytes([width]) + bits.split(counts, width + 1) + bits.split(local, width)


def decode(blob: memoryview, n: int, count: int) -> np.ndarray:
    """The plane."""
    if not count:
        if len(blob):
            raise CodecError(f"{len(blob)} bytes where a mask without active entries has none")
        return np.zeros(plane_bytes(n), np.uint8)
    width = blob[0] if len(blob) else _WIDEST + 1
    if width > _WIDEST or len(blob) != _size(n, count, width):
        raise CodecError(
            f"{len(blob)} bytes do not hold {count} of {n} entries as grouped coordinates; "
            "the file is damaged"
        )
    groups = _group_count(n, width)
    middle = 1 + (width + 1) * plane_bytes(groups)
    counts = bits.join(blob[1:middle], width + 1, groups)
    if int(counts.sum(dtype=np.int64)) != count:
        raise CodecError(f"the counts of groups do not come to {count}; the file is damaged")
    where = np.repeat(np.arange(groups) << width, counts)
    where += bits.join(blob[middle:], width, count)
    # Ascending in each group also says that no group has more than g.
    if where[-1] >= n or (np.diff(where) <= 0).any():
        raise CodecError("places in a group are not in order; the file is damaged")
    return bits.plane_of(where, plane_bytes(n))


def least(mask: np.ndarray, n: int, count: int) -> int:
    """Exactly its bytes."""
    return _best(n, count)[0] if count else 0


def _best(n: int, count: int) -> tuple[int, int]:
    return min((_size(n, count, width), width) for width in range(_WIDEST + 1))


def _group_count(n: int, width: int) -> int:
    return -(-n >> width)


def _size(n: int, count: int, width: int) -> int:
    groups = plane_bytes(_group_count(n, width))
    return 1 + (width + 1) * groups + width * plane_bytes(count)


CODEC = register(
    Codec("grouped_coo", encode, decode, "after SASS of FlexSwitch, arXiv 2604.28109", least)
)
