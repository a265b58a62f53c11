"""Nothing at all, for masks that their count tells: none active, or all."""

from __future__ import annotations

import numpy as np

from sinewich_jax.switches.codecs.registry import Codec, CodecError, register
from sinewich_jax.switches.leaf import plane_bytes


def encode(mask: np.ndarray, n: int, count: int) -> bytes:
    """No bytes.

    Raises:
      CodecError: some entries are active and some are not.
    """
    _check(n, count)
    return b""


def decode(blob: memoryview, n: int, count: int) -> np.ndarray:
    """All zeros, or all ones with pad bits 0."""
    _check(n, count)
    if len(blob):
        raise CodecError(f"{len(blob)} bytes where the codec 'empty' has none; the file is damaged")
    plane = np.zeros(plane_bytes(n), np.uint8)
    if count:
        plane[:] = 255
        plane[-1] >>= -n % 8
    return plane


def least(mask: np.ndarray, n: int, count: int) -> int:
    """Nothing where it can be used, more than any other codec where it cannot."""
    return 0 if count in (0, n) else 2 * plane_bytes(n) + 1


def _check(n: int, count: int) -> None:
    if count not in (0, n):
        raise CodecError(
            f"{count} of {n} entries are active; the codec 'empty' tells only none or all"
        )


CODEC = register(Codec("empty", encode, decode, "the count of active entries alone", least))
