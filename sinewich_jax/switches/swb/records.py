"""A leaf of a switch as blobs and an index entry, and back."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinewich_jax.core.arrays import content
from sinewich_jax.storage.arrays import DTYPES
from sinewich_jax.switches import codecs
from sinewich_jax.switches.codecs.registry import ones
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, plane_bytes
from sinewich_jax.switches.swb.entries import MAX_BITS, Cursor, LeafEntry, Part, Place, dtype_of
from sinewich_jax.switches.swb.log import crc_of


class Blobs:
    """Blobs one behind the other, as a record's payload.

    Attributes:
      chunks: the pieces, padding included.
      crc: CRC-32 of the blobs since it was set to 0, without padding.
    """

    def __init__(self) -> None:
        self.chunks: list[bytes | memoryview] = []
        self.crc = 0
        self._cursor = Cursor()

    def add(self, data: bytes | memoryview, mapped: bool = False) -> Place | None:
        """Puts a blob behind the others.

        Args:
          data: the bytes; they must not change until they are written.
          mapped: that it is used where it lies.

        Returns:
          Where it is, None if it has no bytes.
        """
        end = self._cursor.end
        place = self._cursor.take(len(data), mapped)
        if place is not None:
            if place.offset > end:
                self.chunks.append(bytes(place.offset - end))
            self.chunks.append(data)
            self.crc = zlib.crc32(data, self.crc)
        return place

    def payload(self) -> memoryview:
        """All of it, as it would come from the disk."""
        return memoryview(b"".join(self.chunks))


def fetch(payload: memoryview, places: Sequence[Place], crc: int) -> list[memoryview]:
    """The bytes of some blobs.

    Args:
      payload: of all blobs.
      places: where they are.
      crc: CRC-32 of their bytes.

    Raises:
      ValueError: it is another.
    """
    found = [payload[place.offset : place.offset + place.length] for place in places]
    if crc_of(found) != crc:
        at = f" at byte {places[0].offset} of its blobs" if places else ""
        raise ValueError(f"a checksum differs from the content{at}")
    return found


def pack(path: str, leaf: LeafSwitch | DenseLeaf, blobs: Blobs, codec: str = "auto") -> LeafEntry:
    """Appends what a leaf holds to ``blobs``.

    Args:
      path: of the leaf.
      leaf: of NumPy or JAX arrays, without leading axes.
      blobs: takes the bytes.
      codec: of the mask; with ``"plane"`` signs and levels lie there as planes too, to be used
        without decoding.

    Returns:
      What the index says of the leaf.

    Raises:
      ValueError: the planes contradict each other, or a number is not finite.
    """
    blobs.crc = 0
    if isinstance(leaf, DenseLeaf):
        return _pack_dense(path, leaf, blobs)
    if not isinstance(leaf, LeafSwitch):
        raise ValueError(f"it is a {type(leaf).__name__}, expected a LeafSwitch or a DenseLeaf")
    shape = tuple(map(int, leaf.shape))
    size = math.prod(shape)
    mask, sign, levels, knob = checked(leaf)
    count = ones(mask, size)
    name, blob = codecs.encode_mask(mask, size, codec)
    whole = codec == "plane"
    mapped = name == "plane" and (whole or not count)
    at = Part(name, blobs.add(blob, mapped))

    def add(planes: np.ndarray) -> Part | None:
        if not planes.size or not count:
            return None
        if whole:
            return Part("plane", blobs.add(planes.reshape(-1).data, mapped=True))
        return Part("packed", blobs.add(b"".join(codecs.gather(p, mask, size) for p in planes)))

    sign_at, levels_at = add(sign[None]), add(levels)
    if knob.ndim:
        dial = blobs.add(knob.astype("<f4").view(np.uint8).data) or ()
    else:
        dial = _shortest(knob)
    bits = 1 + levels.shape[0]
    return LeafEntry(
        path, "switch", shape, count, bits, dial, at, sign_at, levels_at, crc=blobs.crc
    )


def unpack(entry: LeafEntry, payload: memoryview, zeros: np.ndarray) -> LeafSwitch | DenseLeaf:
    """The leaf that :func:`pack` wrote, of read-only NumPy arrays.

    What was written with ``codec="plane"`` is not copied. Nothing is allocated before the blobs
    that it is made of have been checked.

    Args:
      entry: what the index says of it.
      payload: of all blobs.
      zeros: uint8, at least as many as a plane has bytes; leaves that do not change share them.

    Raises:
      ValueError: the blobs do not hold what the entry says (CodecError is one).
    """
    blobs = dict(zip(entry.blobs, fetch(payload, entry.blobs, entry.crc), strict=True))
    if entry.kind == "dense":
        data = np.frombuffer(blobs.get(entry.delta, b""), np.uint8)
        dtype = dtype_of(entry.dtype).newbyteorder("<")
        return DenseLeaf(_frozen(data.view(dtype).reshape(entry.shape)))
    if entry.mask.codec not in codecs.CODECS:
        known = ", ".join(sorted(codecs.CODECS))
        raise ValueError(f"its mask has the codec {entry.mask.codec!r}; known: {known}")
    mask_blob, sign_blob, levels_blob = (
        blobs.get(part and part.place, memoryview(b""))
        for part in (entry.mask, entry.sign, entry.levels)
    )
    knob = _knob(entry, blobs)
    size, count = entry.size, entry.count
    if is_bare(entry):
        mask = _frozen(zeros[: plane_bytes(size)])
        return LeafSwitch(mask, mask, knob, np.zeros((0, len(mask)), np.uint8), entry.shape)
    mask = codecs.decode_mask(entry.mask.codec, mask_blob, size, count)

    def planes(part: Part | None, blob: memoryview, number: int) -> np.ndarray:
        if not number or part is None:
            return np.zeros((number, plane_bytes(size)), np.uint8)
        if part.codec == "plane":
            return np.frombuffer(blob, np.uint8).reshape(number, -1)
        width = plane_bytes(count)
        return np.stack(
            [
                codecs.scatter(blob[at : at + width], mask, size, count)
                for at in range(0, number * width, width)
            ]
        )

    sign = planes(entry.sign, sign_blob, 1)[0]
    levels = planes(entry.levels, levels_blob, entry.bits - 1)
    leaf = LeafSwitch(*map(_frozen, (mask, sign, knob, levels)), entry.shape)
    checked(leaf)
    return leaf


def is_bare(entry: LeafEntry) -> bool:
    """Whether a leaf of a switch does not change and has no bytes that say so."""
    return entry.kind == "switch" and not entry.count and not entry.blobs and entry.bits == 1


def checked(leaf: LeafSwitch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mask, sign, levels and knob of a leaf on the host, if they are those of one leaf.

    Raises:
      ValueError: saying which is not.
    """
    width = plane_bytes(leaf.size)
    mask, sign, levels, knob = map(_host, (leaf.mask, leaf.sign, leaf.levels, leaf.knob))
    for name, plane in (("mask", mask), ("sign", sign), ("levels", levels)):
        rows = plane.shape[:-1]
        fits = rows == () if name != "levels" else len(rows) == 1 and rows[0] < MAX_BITS
        if plane.dtype != np.uint8 or plane.shape[-1:] != (width,) or not fits:
            raise ValueError(
                f"its {name} is {plane.dtype}{plane.shape}, expected uint8"
                f"{(width,) if name != 'levels' else f'(at most {MAX_BITS - 1}, {width})'}; a "
                "stack of switches is added one by one"
            )
    if leaf.size % 8 and mask[-1] >> leaf.size % 8:
        raise ValueError("its mask is set behind the last entry; expected zeros there")
    if _outside(sign, mask):
        raise ValueError("its sign is set where its mask is not")
    if any(_outside(level, mask) for level in levels):
        raise ValueError("its levels are set where its mask is not")
    if len(levels) and _outside(mask, np.bitwise_or.reduce(levels, axis=0)):
        raise ValueError("an active entry of it has the level 0; expected at least 1")
    if knob.dtype != np.float32 or knob.shape not in ((), leaf.shape[-1:]):
        raise ValueError(
            f"its knob is {knob.dtype}{knob.shape}, expected float32() or one for each index of "
            f"the last axis of {tuple(leaf.shape)}"
        )
    if not np.isfinite(knob).all():
        raise ValueError("its knob is not finite")
    return mask, sign, levels, knob


def _shortest(knob: np.ndarray) -> float:
    """The number with the fewest digits that is read as this float32."""
    short = float(str(np.float32(knob)))
    # Rounded to few digits, the largest one would be too large.
    fits = abs(short) <= float(np.finfo(np.float32).max) and np.float32(short) == knob
    return short if fits else float(knob)


def _knob(entry: LeafEntry, blobs: Mapping[Place, memoryview]) -> np.ndarray:
    if isinstance(entry.knob, Place):
        return _frozen(np.frombuffer(blobs[entry.knob], "<f4"))
    return _frozen(np.asarray(entry.knob, np.float32))


def _pack_dense(path: str, leaf: DenseLeaf, blobs: Blobs) -> LeafEntry:
    delta = _host(leaf.delta)
    if delta.dtype.name not in DTYPES.values():
        raise ValueError(
            f"it has the dtype {delta.dtype}, expected one of {', '.join(sorted(DTYPES.values()))}"
        )
    if content(delta) == "real" and not np.isfinite(delta).all():
        raise ValueError("it holds NaN or infinity, expected finite numbers")
    little = delta.astype(delta.dtype.newbyteorder("<"), copy=False)
    place = blobs.add(little.reshape(-1).view(np.uint8).data, mapped=True)
    bits = 8 * delta.dtype.itemsize
    name = delta.dtype.name
    return LeafEntry(
        path, "dense", delta.shape, delta.size, bits, dtype=name, delta=place, crc=blobs.crc
    )


def _outside(plane: np.ndarray, mask: np.ndarray) -> bool:
    """Whether a bit is set that is not in the mask."""
    at_once = 1 << 20
    return any(
        np.any(plane[at : at + at_once] & ~mask[at : at + at_once])
        for at in range(0, len(plane), at_once)
    )


def _host(array: Any) -> np.ndarray:
    return np.asarray(array, order="C")


def _frozen(array: np.ndarray) -> np.ndarray:
    array = array.view()
    array.flags.writeable = False
    return array
