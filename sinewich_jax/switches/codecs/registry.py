"""What a mask codec is, the table of them, and the error of bytes that are no mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sinewich_jax.errors import SinewichError
from sinewich_jax.switches.leaf import plane_bytes


class CodecError(SinewichError):
    """Bytes that do not hold exactly the mask or the bits that they are said to hold."""


def _nothing(mask: np.ndarray, n: int, count: int) -> int:
    return 0


class Codec(NamedTuple):
    """One way to write a mask as bytes; both sides are told n and count.

    Attributes:
      name: what a file calls it.
      encode: ``(mask, n, count) -> bytes``; ``mask`` is a plane as in
        :class:`~sinewich_jax.switches.leaf.LeafSwitch` of exactly ``count`` ones, checked already.
        The bytes depend on nothing else: not on threads, not on chance.
      decode: ``(blob, n, count) -> mask``. It expects any bytes, raises :class:`CodecError` where
        they are too short or too long or cannot be read, and never takes more memory than n, count
        and the blob allow. That bits and ones are as many as told is checked for all codecs by
        :func:`decode_mask`.
      source: paper, format or code that it comes from.
      least: ``(mask, n, count) -> bytes`` that ``encode`` does not go below, found in less time
        than encoding takes; ``"auto"`` leaves out who cannot win.
    """

    name: str
    encode: Callable[[np.ndarray, int, int], bytes]
    decode: Callable[[memoryview, int, int], np.ndarray]
    source: str
    least: Callable[[np.ndarray, int, int], int] = _nothing


CODECS: dict[str, Codec] = {}


def register(codec: Codec) -> Codec:
    """Adds a codec to the table; its module in this folder is found by itself.

    Raises:
      ValueError: the name is taken.
    """
    if codec.name in CODECS:
        raise ValueError(f"the mask codec {codec.name!r} is registered already")
    CODECS[codec.name] = codec
    return codec


def ones(plane: np.ndarray, n: int) -> int:
    """The number of ones in a plane of n entries.

    Raises:
      CodecError: it has another length, or ones behind its end.
    """
    if plane.shape != (plane_bytes(n),):
        raise CodecError(
            f"a plane of shape {plane.shape} where {n} entries take ({plane_bytes(n)},)"
        )
    if n % 8 and plane[-1] >> n % 8:
        raise CodecError(f"a plane of {n} entries has ones behind its last entry; expected zeros")
    # Eight bytes at a time: the counts of bytes would take a plane of their own.
    whole = len(plane) // 8 * 8
    words = np.bitwise_count(plane[:whole].view(np.uint64)).sum(dtype=np.int64)
    return int(words + np.bitwise_count(plane[whole:]).sum(dtype=np.int64))
