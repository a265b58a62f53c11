"""What the index of a task says of its leaves: strict JSON, checked before anything is read by it.

A leaf of a switch, blobs as ``[offset, length, crc32]`` in the payload of the blobs record:

    {"path": "stage0/kernel", "kind": "switch", "shape": [3, 4], "count": 5, "bits": 1,
     "knob": 0.25 | blob of float32, one for each index of the last axis,
     "mask": ["rice", offset, length, crc32], "sign": ["packed" | "plane", offset, length, crc32],
     "levels": as sign, bits - 1 planes one behind the other}

Blobs of no bytes are left out: ``"mask": ["empty"]``. A leaf kept in full is

    {"path": "scale", "kind": "dense", "shape": [], "dtype": "float32", "delta": blob}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.storage.arrays import DTYPES
from sinewich_jax.switches.leaf import plane_bytes

MAX_BITS = 16
_AXES = 32
_LONGEST = 1 << 62
_SWITCH = {"path", "kind", "shape", "count", "bits", "knob", "mask", "sign", "levels"}
_DENSE = {"path", "kind", "shape", "dtype", "delta"}


class Place(NamedTuple):
    """Where a blob is.

    Attributes:
      offset: from the beginning of the payload.
      length: in bytes, at least 1.
      crc: CRC-32 of the blob.
    """

    offset: int
    length: int
    crc: int


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

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def blobs(self) -> tuple[Place, ...]:
        """Where its bytes are."""
        parts = [part.place for part in (self.mask, self.sign, self.levels) if part is not None]
        knob = self.knob if isinstance(self.knob, Place) else None
        return tuple(place for place in (*parts, knob, self.delta) if place is not None)


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


def load(data: bytes | memoryview) -> Any:
    """JSON in which no name occurs twice and every number is finite.

    Raises:
      ValueError: it is none.
    """
    try:
        return json.loads(
            bytes(data), object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def to_json(entry: LeafEntry) -> dict[str, Any]:
    """The entry as the index has it."""
    head = {"path": entry.path, "kind": entry.kind, "shape": list(entry.shape)}
    if entry.kind == "dense":
        return head | {"dtype": entry.dtype} | _optional("delta", entry.delta)
    knob = list(entry.knob) if isinstance(entry.knob, tuple) else entry.knob
    parts = {"mask": entry.mask, "sign": entry.sign, "levels": entry.levels}
    coded = {
        name: [part.codec, *(part.place or ())] for name, part in parts.items() if part is not None
    }
    return head | {"count": entry.count, "bits": entry.bits, "knob": knob} | coded


def from_json(content: Any) -> LeafEntry:
    """The entry that an index has.

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
    return (_dense if kind == "dense" else _switch)(content, path, shape)


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


def place_of(content: Any, name: str) -> Place:
    """Where a blob is said to be; whether that is in the file is for the reader to see.

    Raises:
      ValueError: it is not three whole numbers.
    """
    if not isinstance(content, list) or len(content) != 3:
        raise ValueError(f"its {name} is {_short(content)}, expected [offset, length, crc32]")
    place = Place(*(whole(number, name, _LONGEST) for number in content))
    if place.length == 0:
        raise ValueError(f"its {name} has a blob of no bytes")
    return place


def check_length(place: Place | None, expected: int, name: str) -> None:
    """Compares a blob with what it has to hold.

    Raises:
      ValueError: it is longer or shorter.
    """
    found = 0 if place is None else place.length
    if found != expected:
        raise ValueError(f"its {name} takes {found} bytes, expected {expected}")


def _switch(content: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> LeafEntry:
    size = math.prod(shape)
    count = whole(_member(content, "count"), "count", size)
    bits = whole(_member(content, "bits"), "bits", MAX_BITS)
    if bits < 1:
        raise ValueError("its bits are 0, expected at least 1")
    knob = _member(content, "knob")
    if isinstance(knob, list):
        knob = place_of(knob, "knob") if knob else ()
        check_length(knob or None, 4 * shape[-1] if shape else -1, "knob")
    elif type(knob) not in (int, float) or not abs(knob) <= float(np.finfo(np.float32).max):
        raise ValueError(f"its knob is {_short(knob)}, expected a float32 number")
    mask = _part(content, "mask")
    if mask is None:
        raise ValueError("it has no mask")
    sign = _plane(content, "sign", size, count, 1)
    levels = _plane(content, "levels", size, count, bits - 1)
    return LeafEntry(path, "switch", shape, count, bits, knob, mask, sign, levels)


def _dense(content: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> LeafEntry:
    dtype = _member(content, "dtype")
    if dtype not in DTYPES.values():
        raise ValueError(
            f"its dtype is {_short(dtype)}; known: {', '.join(sorted(DTYPES.values()))}"
        )
    delta = place_of(content["delta"], "delta") if "delta" in content else None
    size, width = math.prod(shape), dtype_of(dtype).itemsize
    check_length(delta, size * width, "delta")
    return LeafEntry(path, "dense", shape, size, 8 * width, dtype=dtype, delta=delta)


def dtype_of(name: str) -> np.dtype:
    """A dtype by the name that safetensors files and banks share."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _plane(
    content: Mapping[str, Any], name: str, size: int, count: int, planes: int
) -> Part | None:
    """Planes of one bit for each active entry, or for every entry."""
    part = _part(content, name)
    if part is None:
        check_length(None, planes * plane_bytes(count), name)
        return None
    widths = {"packed": plane_bytes(count), "plane": plane_bytes(size)}
    if part.codec not in widths:
        raise ValueError(f"its {name} has the codec {_short(part.codec)}, expected packed or plane")
    check_length(part.place, planes * widths[part.codec], name)
    return part


def _part(content: Mapping[str, Any], name: str) -> Part | None:
    if name not in content:
        return None
    value = content[name]
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise ValueError(f"its {name} is {_short(value)}, expected [codec, offset, length, crc32]")
    return Part(value[0], place_of(value[1:], name) if value[1:] else None)


def _member(content: Any, name: str) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"it is {_short(content)}, expected an object with {name!r}")
    return content[name]


def _optional(name: str, place: Place | None) -> dict[str, list[int]]:
    return {} if place is None else {name: list(place)}


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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
