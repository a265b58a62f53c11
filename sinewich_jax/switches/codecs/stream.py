"""The stream of the official T-Switch compressor, bit for bit, for files of that code.

``lfy-123/Binary-Task-Switch`` (commit 68bfda8), ``compress_util.py``: a leaf in groups of
g = min(4, size); a marker bit for each group; then for each group that is not empty g mask bits and
a sign bit for each active entry, 1 for positive. Bits fill bytes from the highest down. The code
behind arXiv 2412.00054 has no header: sizes and g have to be known. At density p that is
``1/g + 1 - (1 - p)**g + p`` bits an entry.
"""

from __future__ import annotations

import numpy as np

from sinewich_jax.core.ternary import pack_bits
from sinewich_jax.switches.codecs.bits import flags
from sinewich_jax.switches.codecs.registry import CodecError, ones
from sinewich_jax.switches.leaf import plane_bytes

_WINDOW = 1 << 18  # bits of the stream that are walked through at a time
_DOUBLINGS = 6


def official_stream(mask: np.ndarray, sign: np.ndarray, n: int, group: int = 4) -> bytes:
    """A ternary leaf as the official code writes it.

    Args:
      mask: uint8 (ceil(n / 8),) in this library's bit order, pad bits 0.
      sign: likewise; positive entries.
      n: entries.
      group: entries of a group; the whole leaf if it has fewer.

    Raises:
      CodecError: n is not divisible by the group, or a plane is not one of n entries.
    """
    ones(mask, n), ones(sign, n)
    group = _group(n, group)
    if not n:
        return b""
    active = flags(mask, n)
    groups = active.reshape(-1, group)
    marked = groups.any(axis=1)
    kept = groups[marked]
    counts = kept.sum(axis=1)
    steps = group + counts
    starts = len(marked) + np.cumsum(steps) - steps
    stream = np.zeros(len(marked) + int(steps.sum()), bool)
    stream[: len(marked)] = marked
    stream[starts[:, None] + np.arange(group)] = kept
    stream[_sign_places(starts + group, counts)] = flags(sign, n)[active]
    return np.packbits(stream).tobytes()


def from_official_stream(
    blob: bytes | bytearray | memoryview | np.ndarray, n: int, group: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """The ternary leaf in a stream of the official code; see :func:`official_stream`.

    Returns:
      ``mask`` and ``sign``, uint8 (ceil(n / 8),) each, in this library's bit order.

    Raises:
      CodecError: the stream does not hold exactly n entries.
    """
    data = np.frombuffer(blob, np.uint8)
    group = _group(n, group)
    size = n // group if n else 0
    if not plane_bytes(size) <= len(data) <= plane_bytes(size + 2 * n):
        raise CodecError(f"a stream of {len(data)} bytes cannot hold {n} entries")
    stream = np.unpackbits(data)
    marked = np.flatnonzero(stream[:size])
    # Zeros behind the end, for a group that is cut off; its end is then beyond the stream.
    padded = np.append(stream, np.zeros(2 * group, np.uint8))
    starts = _starts(padded, size, len(marked), group)
    kept = padded[starts[:, None] + np.arange(group)].view(bool)
    counts = kept.sum(axis=1)
    end = int(starts[-1] + group + counts[-1]) if len(starts) else size
    if not counts.all() or end > len(stream) or plane_bytes(end) != len(data) or stream[end:].any():
        raise CodecError(
            f"a stream of {len(data)} bytes does not hold exactly {n} entries in groups of "
            f"{group}; it is damaged or of another leaf"
        )
    active = np.zeros((size, group), bool)
    active[marked] = kept
    positive = np.zeros(n, bool)
    positive[active.ravel()] = stream[_sign_places(starts + group, counts)]
    return pack_bits(active.ravel()), pack_bits(positive)


def _group(n: int, group: int) -> int:
    if group < 1:
        raise CodecError(f"groups of {group} entries; expected 1 or more")
    group = min(group, n)
    if n and n % group:
        raise CodecError(
            f"{n} entries are not divisible by {group}; the official stream has no such leaves"
        )
    return group


def _sign_places(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``begins[i] + 0 .. counts[i] - 1`` for all groups, one behind the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(begins - before, counts) + np.arange(int(counts.sum()))


def _starts(stream: np.ndarray, at: int, count: int, group: int) -> np.ndarray:
    """Where the marked groups begin, int64 (count,); each one tells only where the next is.

    From every place of a window the step to the next group is doubled to one over 2, 4, ... 64
    groups, so that only one of 64 groups is walked to.
    """
    found: list[np.ndarray] = []
    left = count
    while left and at < len(stream) - 2 * group:
        window = stream[at : at + _WINDOW + group]
        size = max(1, len(window) - group)  # a place at or beyond it is for the next window
        sums = np.append(0, np.cumsum(window, dtype=np.int64))
        jump = np.arange(size + 2 * group)
        jump[:size] += group + sums[group : group + size] - sums[:size]
        jumps = [jump]
        for _ in range(_DOUBLINGS):
            jumps.append(jumps[-1][jumps[-1]])
        walked, place = [], 0
        while place < size:
            walked.append(place)
            place = int(jumps[-1][place])
        places = np.array(walked)
        for jump in reversed(jumps[:-1]):
            places = np.stack([places, jump[places]], axis=1).ravel()
        places = places[places < size][:left]
        found.append(at + places)
        left -= len(places)
        at += place
    starts = np.concatenate(found) if found else np.zeros(0, np.int64)
    if len(starts) < count:
        raise CodecError(f"a stream ends before its {count} groups; it is cut off")
    return starts
