"""What the index of a task says of its leaves: strict JSON, checked before anything is read by it.

The row of a leaf of a switch, and that of a leaf kept in full:

    {"path": "stage0/kernel", "kind": "switch", "shape": [3, 4], "bits": 1,
     "codecs": [of the mask, "packed" | "plane"], "numbers": [count, mask bytes, crc, knob]}
    {"path": "scale", "kind": "dense", "shape": [], "dtype": "float32", "crc": crc}

What follows from that is not said, and what differs from leaf to leaf stands together: rows are
deflated (:mod:`.text`). The blobs of a leaf are its mask; its sign and ``bits - 1`` planes of
levels, both in the second codec, which a leaf without active entries does not have; and its knobs,
if the knob is ``"rows"``: float32, one for each index of the last axis. A leaf kept in full has its
entries. Blobs follow each other in the order of the rows, as :class:`Cursor` places them; ``crc``
is the CRC-32 of all those of the leaf, without padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.storage.arrays import DTYPES
from sinewich_jax.switches.leaf import plane_bytes
from sinewich_jax.switches.swb.log import ALIGNMENT

MAX_BITS = 16
_AXES = 32
_LONGEST = 1 << 62
_PAGE = 4096
_SWITCH = {"path", "kind", "shape", "bits", "codecs", "numbers"}
_DENSE = {"path", "kind", "shape", "dtype", "crc"}


class Place(NamedTuple):
    """Where a blob is.

    Attributes:
      offset: from the beginning of the payload.
      length: in bytes, at least 1.
    """

    offset: int
    length: int


class Cursor:
    """Says where each blob is, to who writes them and to who reads them.

    Attributes:
      end: where the last one ends.
    """

    def __init__(self) -> None:
        self.end = 0

    def take(self, length: int, mapped: bool = False) -> Place | None:
        """The place of the next blob.

        Args:
          length: in bytes.
          mapped: that it is used where it lies, so that it begins at a multiple of 64; of 8, if it
            is so short that padding would weigh more.

        Returns:
          None if it has no bytes.
        """
        if not length:
            return None
        step = 1 if not mapped else ALIGNMENT if length >= _PAGE else 8
        place = Place(self.end + -self.end % step, length)
        self.end = place.offset + length
        return place

    def check(self, length: int) -> None:
        """Compares all blobs that were placed with the bytes that there are.

        Raises:
          ValueError: they would take more or less.
        """
        if self.end != length:
            raise ValueError(f"its blobs would take {self.end} bytes, expected {length}")


class Part(NamedTuple):
    """A coded plane.

    Attributes:
      codec: how.
      place: where, None if it takes no bytes.
    """

    codec: str
    place: Place | None

    @property
    def length(self) -> int:
        """Bytes on the disk."""
        return 0 if self.place is None else self.place.length


class LeafEntry(NamedTuple):
    """What an index says of one leaf.

    Attributes:
      path: of the leaf in the tree.
      kind: ``"switch"`` or ``"dense"``.
      shape: of the leaf.
      count: active entries; all, of a dense leaf.
      bits: of an active entry; of every entry, of a dense leaf.
      knob: the number, or where one for each index of the last axis is (``()`` if that has none);
        None of a dense leaf.
      mask: which entries are active.
      sign: which of them go up.
      levels: by how many knobs, if ``bits`` is more than 1.
      dtype: of a dense leaf.
      delta: where a dense leaf is, None if it has no entries.
      crc: CRC-32 of all its blobs, without what is between them.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    count: int
    bits: int
    knob: float | Place | tuple[()] | None = None
    mask: Part | None = None
    sign: Part | None = None
    levels: Part | None = None
    dtype: str | None = None
    delta: Place | None = None
    crc: int = 0

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def blobs(self) -> tuple[Place, ...]:
        """Where its bytes are, in the order in which they lie there."""
        parts = [part.place for part in (self.mask, self.sign, self.levels) if part is not None]
        knob = self.knob if isinstance(self.knob, Place) else None
        return tuple(place for place in (*parts, knob, self.delta) if place is not None)


def to_json(entry: LeafEntry) -> dict[str, Any]:
    """The entry as the index has it."""
    row = {"path": entry.path, "kind": entry.kind, "shape": list(entry.shape)}
    if entry.kind == "dense":
        return row | {"dtype": entry.dtype, "crc": entry.crc}
    knob = "rows" if isinstance(entry.knob, tuple) else entry.knob
    codecs = [part.codec for part in (entry.mask, entry.sign) if part is not None]
    numbers = [entry.count, entry.mask.length, entry.crc, knob]
    return row | {"bits": entry.bits, "codecs": codecs, "numbers": numbers}


def from_json(content: Any, cursor: Cursor) -> LeafEntry:
    """The entry that an index has.

    Args:
      content: the row.
      cursor: of the rows before it.

    Raises:
      ValueError: it is not what :func:`to_json` writes, or contradicts itself.
    """
    kind = _member(content, "kind")
    if kind not in ("switch", "dense"):
        raise ValueError(f"its kind is {_short(kind)}, expected 'switch' or 'dense'")
    if unknown := set(content) - (_DENSE if kind == "dense" else _SWITCH):
        raise ValueError(f"it says {_short(min(unknown))}, which is not known")
    path = _member(content, "path")
    if not isinstance(path, str):
        raise ValueError(f"its path is {_short(path)}, expected a string")
    shape = shape_of(_member(content, "shape"))
    return (_dense if kind == "dense" else _switch)(content, path, shape, cursor)


def shape_of(content: Any) -> tuple[int, ...]:
    """A shape.

    Raises:
      ValueError: it is none that an array could have.
    """
    if not isinstance(content, list) or len(content) > _AXES:
        raise ValueError(f"its shape is {_short(content)}, expected at most {_AXES} whole numbers")
    return tuple(whole(number, "shape", _LONGEST) for number in content)


def whole(content: Any, name: str, most: int) -> int:
    """A whole number from 0.

    Raises:
      ValueError: it is none, or larger than ``most``.
    """
    if type(content) is not int or not 0 <= content <= most:
        raise ValueError(
            f"its {name} has {_short(content)}, expected a whole number from 0 to {most}"
        )
    return content


def whole_crc(content: Any) -> int:
    """A CRC-32.

    Raises:
      ValueError: it is none.
    """
    return whole(content, "crc", (1 << 32) - 1)


def _switch(
    content: Mapping[str, Any], path: str, shape: tuple[int, ...], cursor: Cursor
) -> LeafEntry:
    bits, codecs, numbers = (_member(content, name) for name in ("bits", "codecs", "numbers"))
    if whole(bits, "bits", MAX_BITS) < 1:
        raise ValueError("its bits are 0, expected at least 1")
    if not isinstance(numbers, list) or len(numbers) != 4:
        raise ValueError(f"its numbers are {_short(numbers)}, expected count, bytes, crc and knob")
    size, knob = math.prod(shape), numbers[3]
    count = whole(numbers[0], "count", size)
    length, crc = whole(numbers[1], "mask", _LONGEST), whole_crc(numbers[2])
    if (
        not isinstance(codecs, list)
        or len(codecs) != (2 if count else 1)
        or not isinstance(codecs[0], str)
        or codecs[1:] not in ([], ["packed"], ["plane"])
    ):
        raise ValueError(
            f"its codecs are {_short(codecs)}, expected that of the mask, and packed or plane if "
            "entries are active"
        )
    mapped = codecs[-1] == "plane"
    mask = Part(codecs[0], cursor.take(length, mapped))
    sign = levels = None
    for name in codecs[1:]:
        width = plane_bytes(size if mapped else count)
        sign = Part(name, cursor.take(width, mapped))
        levels = Part(name, cursor.take((bits - 1) * width, mapped)) if bits > 1 else None
    if knob == "rows":
        if not shape:
            raise ValueError("its knob is 'rows', expected a number: it has no axis")
        knob = cursor.take(4 * shape[-1]) or ()
    elif type(knob) not in (int, float) or not abs(knob) <= float(np.finfo(np.float32).max):
        raise ValueError(f"its knob is {_short(knob)}, expected a float32 number or 'rows'")
    return LeafEntry(path, "switch", shape, count, bits, knob, mask, sign, levels, crc=crc)


def _dense(
    content: Mapping[str, Any], path: str, shape: tuple[int, ...], cursor: Cursor
) -> LeafEntry:
    dtype = _member(content, "dtype")
    if dtype not in DTYPES.values():
        raise ValueError(
            f"its dtype is {_short(dtype)}; known: {', '.join(sorted(DTYPES.values()))}"
        )
    size, width = math.prod(shape), dtype_of(dtype).itemsize
    delta = cursor.take(size * width, mapped=True)
    crc = whole_crc(_member(content, "crc"))
    return LeafEntry(path, "dense", shape, size, 8 * width, dtype=dtype, delta=delta, crc=crc)


def dtype_of(name: str) -> np.dtype:
    """A dtype by the name that safetensors files and banks share."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _member(content: Any, name: str) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"it is {_short(content)}, expected an object with {name!r}")
    return content[name]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
