"""One bit for each active entry: signs and levels without the zeros between them."""

from __future__ import annotations

import numpy as np

from sinewich_jax.core.ternary import pack_bits
from sinewich_jax.switches.codecs.bits import CHUNK, flags
from sinewich_jax.switches.codecs.blocks import each, slices
from sinewich_jax.switches.codecs.registry import CodecError, ones
from sinewich_jax.switches.leaf import plane_bytes


def gather(plane: np.ndarray, mask: np.ndarray, n: int) -> bytes:
    """What a plane says of active entries, in their order, eight a byte.

    Args:
      plane: uint8 (ceil(n / 8),); its bits elsewhere are not looked at.
      mask: uint8 (ceil(n / 8),), the active entries; pad bits 0.
      n: entries.

    Returns:
      ``ceil(count / 8)`` bytes, lowest bit first, pad bits 0.

    Raises:
      CodecError: a plane is not one of n entries.
    """
    ones(mask, n)
    if plane.shape != mask.shape:
        raise CodecError(f"a plane of shape {plane.shape} beside a mask of shape {mask.shape}")

    def taken(at: slice) -> np.ndarray:
        # Taking by place: taking by flags is ten times slower in NumPy where these alternate.
        return flags(plane[at])[np.flatnonzero(flags(mask[at]))]

    found = each(taken, slices(len(mask), CHUNK))
    return pack_bits(np.concatenate(found)).tobytes() if found else b""


def scatter(
    blob: bytes | bytearray | memoryview | np.ndarray, mask: np.ndarray, n: int, count: int
) -> np.ndarray:
    """The plane whose bits :func:`gather` took; 0 where the mask is 0.

    Args:
      blob: the bytes, and none besides.
      mask: uint8 (ceil(n / 8),), the active entries; pad bits 0.
      n: entries.
      count: how many are active.

    Returns:
      uint8 (ceil(n / 8),).

    Raises:
      CodecError: the bytes are not exactly ``count`` bits with pad bits 0, or the mask has not
        ``count`` active entries.
    """
    if ones(mask, n) != count:
        raise CodecError(f"a mask of {ones(mask, n)} active entries; expected {count}")
    data = np.frombuffer(blob, np.uint8)
    if len(data) != plane_bytes(count) or (count % 8 and data[-1] >> count % 8):
        raise CodecError(
            f"{len(data)} bytes do not hold exactly one bit for each of {count} active entries; "
            "the file is damaged"
        )
    pieces = slices(len(mask), CHUNK)
    plane = np.empty(len(mask), np.uint8)
    begins = np.cumsum([0] + [int(np.bitwise_count(mask[at]).sum()) for at in pieces]).tolist()

    def fill(number: int) -> None:
        at, begin, end = pieces[number], begins[number], begins[number + 1]
        values = flags(data[begin >> 3 : plane_bytes(end)])[begin & 7 : (begin & 7) + end - begin]
        spread = np.zeros(8 * (at.stop - at.start), bool)
        spread[np.flatnonzero(flags(mask[at]))] = values
        plane[at] = pack_bits(spread)

    each(fill, range(len(pieces)))
    return plane
