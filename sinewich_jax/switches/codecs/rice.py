"""Gaps between active entries in Rice codes, for sparse masks.

A gap of g inactive entries is ``g >> k`` zeros and a one, and the k lowest bits of g; with k near
``log2(mean gap * ln 2)`` it is within a few percent of the entropy of geometric gaps. All quotients
come first, as one plane, then the k bits as k planes, so that both sides are array operations.
"""

from __future__ import annotations

import numpy as np

from sinewich_jax.switches.codecs import bits
from sinewich_jax.switches.codecs.blocks import each, frame, slices, unframe
from sinewich_jax.switches.codecs.registry import Codec, CodecError, register
from sinewich_jax.switches.leaf import plane_bytes

_ACTIVE = 1 << 17  # entries that a block is to have active on average
_SMALLEST = 19  # log2 of the fewest entries of a block


def encode(mask: np.ndarray, n: int, count: int) -> bytes:
    """Counts and lengths of all blocks but the last, then the blocks, each led by its k."""
    if not count:
        return b""
    blocks = each(lambda at: _encoded(mask[at]), _blocks(n, count))
    counts, data = zip(*blocks, strict=True)
    return frame(counts, [len(block) for block in data]) + b"".join(data)


def decode(blob: memoryview, n: int, count: int) -> np.ndarray:
    """The plane; what is taken on the way is a few numbers for each active entry."""
    plane = np.zeros(plane_bytes(n), np.uint8)
    if not count:
        if len(blob):
            raise CodecError(f"{len(blob)} bytes where a mask without active entries has none")
        return plane
    pieces = _blocks(n, count)
    (counts, lengths), data = unframe(blob, len(pieces), count, -1)
    ends = np.cumsum(lengths).tolist()

    def fill(number: int) -> None:
        at, end = pieces[number], ends[number]
        block = data[end - int(lengths[number]) : end]
        plane[at] = _decoded(block, at.stop - at.start, int(counts[number]))

    each(fill, range(len(pieces)))
    return plane


def least(mask: np.ndarray, n: int, count: int) -> int:
    """Exactly its bytes for dense masks; a bit for each gap where coding takes hardly longer."""
    if 8 * count <= n:
        return count // 8
    pieces = _blocks(n, count)
    sizes = each(lambda at: _parameter(_gaps(mask[at])[1])[1], pieces)
    return 8 * (len(pieces) - 1) + sum(sizes)


def _blocks(n: int, count: int) -> list[slice]:
    entries = 1 << max(_SMALLEST, (_ACTIVE * n // count - 1).bit_length())
    return slices(plane_bytes(n), entries // 8)


def _gaps(block: np.ndarray) -> tuple[int, np.ndarray]:
    where = bits.positions(block)
    return len(where), np.diff(where, prepend=-1) - 1


def _parameter(gaps: np.ndarray) -> tuple[int, int]:
    """The k of the fewest bytes, and how many these are."""
    count = len(gaps)
    if not count:
        return 0, 0

    def size(k: int) -> int:
        unary = count + int((gaps >> k).sum())
        return 1 + (unary + 7) // 8 + k * ((count + 7) // 8)

    k = max(0, int(np.log2(max(1.0, np.log(2) * float(gaps.mean())))))
    best = size(k)
    for step in (1, -1):  # the size has one valley
        while k + step >= 0 and (other := size(k + step)) < best:
            k, best = k + step, other
    return k, best


def _encoded(block: np.ndarray) -> tuple[int, bytes]:
    count, gaps = _gaps(block)
    if not count:
        return 0, b""
    k, _ = _parameter(gaps)
    ends = np.cumsum((gaps >> k) + 1) - 1
    unary = bits.plane_of(ends, (int(ends[-1]) >> 3) + 1)
    return count, bytes([k]) + unary.tobytes() + bits.split(gaps & ((1 << k) - 1), k)


def _decoded(block: memoryview, size: int, count: int) -> np.ndarray:
    """The plane of ``size`` bytes of one block."""
    if not count:
        if len(block):
            raise CodecError("a block without active entries has bytes; the file is damaged")
        return np.zeros(size, np.uint8)
    k = block[0] if len(block) else 0
    planes = k * ((count + 7) // 8)
    unary = np.frombuffer(block[1 : max(1, len(block) - planes)], np.uint8)
    zeros = 8 * size >> k  # no quotient, and not all together, may say more
    wide = k > (8 * size).bit_length()
    if wide or not len(unary) or 8 * (len(unary) - 1) >= count + zeros or not unary[-1]:
        raise CodecError(
            f"a block of {len(block)} bytes cannot hold {count} gaps with k={k}; "
            "the file is damaged"
        )
    if int(np.bitwise_count(unary).sum(dtype=np.int64)) != count:
        raise CodecError(f"a block does not hold exactly {count} gaps; the file is damaged")
    ends = bits.positions(unary)
    # The i-th one has i ones and the quotients of i + 1 gaps before it.
    where = ends - np.arange(count)
    where <<= k
    where += np.cumsum(bits.join(block[len(block) - planes :], k, count), dtype=np.int64)
    where += np.arange(count)
    if where[-1] >= 8 * size:
        raise CodecError(
            f"the last active entry of a block of {8 * size} is its {where[-1]}th; "
            "the file is damaged"
        )
    return bits.plane_of(where, size)


CODEC = register(
    Codec(
        "rice",
        encode,
        decode,
        "Golomb, Run-length encodings, IEEE Trans. Inf. Theory 12 (1966); Rice and Plaunt (1971)",
        least,
    )
)
