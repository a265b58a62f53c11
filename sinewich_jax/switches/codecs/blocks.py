"""Work on pieces of a leaf in threads: NumPy and zlib let go of the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from sinewich_jax.switches.codecs.registry import CodecError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_LENGTH = np.dtype("<u4")


def each(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """``function`` of each piece, in order, however many threads find it."""
    # With fewer than two pieces each, starting threads takes longer than what they save.
    workers = min(len(pieces) // 2, cores())
    if workers < 2:
        return [function(piece) for piece in pieces]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, pieces))


def cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slices(size: int, step: int) -> list[slice]:
    """``range(size)`` in pieces of ``step``, the last one shorter."""
    return [slice(at, min(at + step, size)) for at in range(0, size, step)]


def frame(*columns: Sequence[int]) -> bytes:
    """Numbers of each piece but the last, whose numbers follow from the totals; u32."""
    return b"".join(np.asarray(column[:-1], _LENGTH).tobytes() for column in columns)


def unframe(blob: memoryview, pieces: int, *totals: int) -> tuple[list[np.ndarray], memoryview]:
    """What :func:`frame` wrote, checked against what the numbers of all pieces must come to.

    Args:
      blob: begins with the frame.
      pieces: at least one.
      totals: of each column; a negative one is that of the bytes behind the frame.

    Returns:
      One int64 array (pieces,) a column, and the bytes behind the frame.

    Raises:
      CodecError: the blob is shorter than its frame, or a column does not come to its total.
    """
    width = _LENGTH.itemsize * (pieces - 1)
    rest = blob[width * len(totals) :]
    if len(blob) < width * len(totals):
        raise CodecError(
            f"{len(blob)} bytes where the sizes of {pieces} blocks alone take "
            f"{width * len(totals)}; the file is damaged"
        )
    columns = []
    for number, total in enumerate(totals):
        total = len(rest) if total < 0 else total
        part = np.frombuffer(blob[number * width : (number + 1) * width], _LENGTH)
        last = total - int(part.sum(dtype=np.int64))
        if last < 0:
            raise CodecError(f"blocks of {total - last} in all, expected {total}; damaged file")
        columns.append(np.append(part.astype(np.int64), last))
    return columns, rest
