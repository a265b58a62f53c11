"""The official compressor's idea for a mask alone: groups of four, of which only those not empty.

A marker bit for each group, then four bits for each group with an active entry. The signs stand
apart here; the stream as the official code writes it is
:func:`~sinewich_jax.switches.codecs.stream.official_stream`.
"""

from __future__ import annotations

import numpy as np

from sinewich_jax.core.ternary import pack_bits
from sinewich_jax.switches.codecs import bits
from sinewich_jax.switches.codecs.registry import Codec, CodecError, register
from sinewich_jax.switches.leaf import plane_bytes


def encode(mask: np.ndarray, n: int, count: int) -> bytes:
    """One plane of markers, then the marked groups two a byte, the earlier in the lower half."""
    groups = _groups(mask, n)
    kept = groups[groups != 0]
    pairs = np.append(kept, np.zeros(len(kept) % 2, np.uint8)).reshape(-1, 2)
    pairs = pairs[:, 0] | pairs[:, 1] << 4
    return pack_bits(groups != 0).tobytes() + pairs.tobytes()


def decode(blob: memoryview, n: int, count: int) -> np.ndarray:
    """The plane."""
    groups = np.zeros(2 * plane_bytes(n), np.uint8)
    size = (n + 3) // 4
    data = np.frombuffer(blob, np.uint8)
    head = plane_bytes(size)
    if len(data) < head or (size % 8 and data[head - 1] >> size % 8):
        raise CodecError(f"{len(data)} bytes do not begin with {size} markers; the file is damaged")
    marked = np.flatnonzero(bits.flags(data[:head], size))
    pairs = data[head:]
    if len(pairs) != (len(marked) + 1) // 2:
        raise CodecError(
            f"{len(pairs)} bytes where {len(marked)} groups take {(len(marked) + 1) // 2}; "
            "the file is damaged"
        )
    kept = np.stack([pairs & 15, pairs >> 4], axis=1).ravel()
    if not kept[: len(marked)].all() or kept[len(marked) :].any():
        raise CodecError("a marked group is empty; the file is damaged")
    groups[marked] = kept[: len(marked)]
    return groups[0::2] | groups[1::2] << 4


def least(mask: np.ndarray, n: int, count: int) -> int:
    """Exactly its bytes."""
    full = np.count_nonzero(mask & 15) + np.count_nonzero(mask >> 4)
    return plane_bytes((n + 3) // 4) + (full + 1) // 2


def _groups(mask: np.ndarray, n: int) -> np.ndarray:
    return np.stack([mask & 15, mask >> 4], axis=1).ravel()[: (n + 3) // 4]


CODEC = register(
    Codec(
        "group",
        encode,
        decode,
        "lfy-123/Binary-Task-Switch, compress_util.py: groups of 4 with a marker bit",
        least,
    )
)
