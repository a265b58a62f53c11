"""The mask as it is: one bit an entry, ready to be mapped into memory."""

from __future__ import annotations

import numpy as np

from sinewich_jax.switches.codecs.registry import Codec, CodecError, register
from sinewich_jax.switches.leaf import plane_bytes


def encode(mask: np.ndarray, n: int, count: int) -> bytes:
    """The bytes of the plane."""
    return mask.tobytes()


def decode(blob: memoryview, n: int, count: int) -> np.ndarray:
    """The plane, a read-only view of the blob."""
    if len(blob) != plane_bytes(n):
        raise CodecError(
            f"a plane of {len(blob)} bytes where {n} entries take {plane_bytes(n)}; "
            "the file is damaged"
        )
    return np.frombuffer(blob, np.uint8)


def least(mask: np.ndarray, n: int, count: int) -> int:
    """Exactly its bytes."""
    return plane_bytes(n)


CODEC = register(Codec("plane", encode, decode, "arXiv 2412.00054: one bit an entry", least))
