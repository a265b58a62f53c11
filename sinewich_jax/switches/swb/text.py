"""The JSON of a bank: strict, the same bytes for the same content, and deflated on the disk.

Every JSON behind the header is deflated with the header's as preset dictionary, so that paths and
shapes take few bytes again; the words of most rows (:mod:`.entries`) are in the dictionary of all.
The streams are raw (RFC 1951): the record that holds one has its checksum. What nobody vouches for
is not inflated without bound.
"""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

_RAW = -zlib.MAX_WBITS
# Part of the format, whatever rows look like: what was deflated with it is inflated with it.
_WORDS = b'{"leaves":[{"bits":1,"codecs":["deflate","packed"],"kind":"switch","numbers":['
_MEMORY = 9  # what zlib has at most
_ALWAYS, _EXPANSION = 64 << 10, 64


def dump(content: Any) -> bytes:
    """JSON, the same bytes for the same content.

    Raises:
      ValueError: NaN or infinity, or nested too deeply.
      TypeError: something that JSON has no form for.
    """
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return text.encode("ascii")


def load(data: bytes) -> Any:
    """JSON in which no name occurs twice and every number is finite.

    Raises:
      ValueError: it is none.
    """
    try:
        return json.loads(
            data, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def limit(deflated: int) -> int:
    """How many bytes may come of so many that are deflated."""
    return _ALWAYS + _EXPANSION * deflated


def deflate(data: bytes, dictionary: bytes = b"") -> bytes:
    """The bytes as they lie on the disk.

    Args:
      data: any bytes.
      dictionary: bytes that :func:`inflate` is told too; what is in it costs little.
    """
    small = _deflated(data, dictionary, zlib.Z_BEST_COMPRESSION)
    # What is too regular is stored as it is: nothing is written that could not be read.
    return small if len(data) <= limit(len(small)) else _deflated(data, dictionary, 0)


def inflate(data: bytes | memoryview, dictionary: bytes = b"") -> bytes:
    """What :func:`deflate` was given; takes memory in proportion to ``data`` only.

    Raises:
      ValueError: it is no whole stream, has bytes behind it, or would become too large.
    """
    reader, most = zlib.decompressobj(_RAW, zdict=dictionary + _WORDS), limit(len(data))
    try:
        found = reader.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(f"its JSON cannot be inflated ({error})") from error
    if len(found) > most:
        raise ValueError(f"its JSON of {len(data)} bytes inflates to more than {most}")
    if not reader.eof or reader.unused_data:
        what = "has bytes behind its end" if reader.eof else "ends too early"
        raise ValueError(f"its deflated JSON {what}")
    return found


def _deflated(data: bytes, dictionary: bytes, level: int) -> bytes:
    # Most of it are digits: matches of three of them would cost more than they save.
    made = zlib.compressobj(
        level, zlib.DEFLATED, _RAW, _MEMORY, zlib.Z_FILTERED, zdict=dictionary + _WORDS
    )
    return made.compress(data) + made.flush()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number
