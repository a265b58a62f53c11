"""The plane through raw deflate: for dense masks by Huffman codes alone, for patterns with matches.

A byte of the plane is eight entries, and a Huffman code of such bytes comes close to the entropy of
an i.i.d. mask of density .1 to .5 while ordinary matching, which finds repeats by chance, costs up
to 30 %. Which of zlib's strategies suits a block is tried on a sample of it.
"""

from __future__ import annotations

import zlib

import numpy as np

from sinewich_jax.switches.codecs.blocks import each, frame, slices, unframe
from sinewich_jax.switches.codecs.registry import Codec, CodecError, register
from sinewich_jax.switches.leaf import plane_bytes

_BLOCK = 1 << 18  # bytes of the plane; each block is a stream of its own
_SAMPLE, _PARTS = 1 << 11, 4  # bytes of a piece that is tried, pieces
_RAW = -zlib.MAX_WBITS  # no header, no checksum of its own
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_DEFAULT_STRATEGY)
_FAST, _LEVEL = (
    1,
    6,
)  # of zlib: to try with, to write with; matching at 6 takes twenty times Huffman's


def encode(mask: np.ndarray, n: int, count: int) -> bytes:
    """The lengths of all streams but the last, then the streams."""
    if not n:
        return b""
    streams = each(lambda at: _deflated(mask[at]), slices(len(mask), _BLOCK))
    return frame([len(stream) for stream in streams]) + b"".join(streams)


def decode(blob: memoryview, n: int, count: int) -> np.ndarray:
    """The plane; no stream is expanded beyond the bytes of its block."""
    plane = np.empty(plane_bytes(n), np.uint8)
    pieces = slices(len(plane), _BLOCK)
    if not pieces:
        if len(blob):
            raise CodecError(f"{len(blob)} bytes where a mask of no entries has none")
        return plane
    (lengths,), streams = unframe(blob, len(pieces), -1)
    ends = np.cumsum(lengths).tolist()

    def fill(number: int) -> None:
        at, end = pieces[number], ends[number]
        stream = streams[end - int(lengths[number]) : end]
        plane[at] = _inflated(stream, at.stop - at.start)

    each(fill, range(len(pieces)))
    return plane


def _deflated(block: np.ndarray) -> bytes:
    if len(block) <= _SAMPLE * _PARTS:
        return min((_stream(block, one, _LEVEL) for one in _STRATEGIES), key=len)
    starts = np.linspace(0, len(block) - _SAMPLE, _PARTS).astype(int)
    sample = np.concatenate([block[at : at + _SAMPLE] for at in starts])
    return _stream(
        block, min(_STRATEGIES, key=lambda one: len(_stream(sample, one, _FAST))), _LEVEL
    )


def _stream(data: np.ndarray, strategy: int, level: int) -> bytes:
    # Memory level 9: blocks of 32,768 symbols, so that fewer code tables are written.
    made = zlib.compressobj(level, zlib.DEFLATED, _RAW, 9, strategy)
    return made.compress(data) + made.flush()


def _inflated(stream: memoryview, size: int) -> np.ndarray:
    reader = zlib.decompressobj(_RAW)
    try:
        data = reader.decompress(stream, size)
        # Full, but its end may be yet to come; one byte more would show here.
        more = b"" if reader.eof else reader.decompress(reader.unconsumed_tail, 1)
    except zlib.error as error:
        raise CodecError(
            f"a deflate stream cannot be read ({error}); the file is damaged"
        ) from error
    if len(data) != size or more or not reader.eof or reader.unused_data:
        raise CodecError(
            f"a deflate stream does not hold exactly the {size} bytes of its block; "
            "the file is damaged"
        )
    return np.frombuffer(data, np.uint8)


CODEC = register(
    Codec("deflate", encode, decode, "RFC 1951 by zlib; strategies of zlib.h (Huffman only, RLE)")
)
