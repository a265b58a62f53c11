"""Arrays, numbers and words by name (a router, for example) as JSON and blobs, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinewich_jax.storage.arrays import DTYPES
from sinewich_jax.switches.swb.entries import Cursor, Place, dtype_of, shape_of, whole_crc
from sinewich_jax.switches.swb.records import Blobs, fetch

_ARRAYS, _VALUES = "arrays", "values"


def pack(fields: Mapping[str, Any], blobs: Blobs) -> dict[str, Any]:
    """Appends the arrays to ``blobs``.

    Args:
      fields: name -> array, or a value for JSON; tuples come back as lists.
      blobs: takes the bytes.

    Returns:
      What the index says of them.

    Raises:
      ValueError: an array of something else than numbers.
    """
    values = {name: value for name, value in fields.items() if not hasattr(value, "dtype")}
    arrays = {}
    for name in sorted(set(fields) - set(values)):
        array = np.asarray(fields[name], order="C")
        if array.dtype.name not in DTYPES.values():
            raise ValueError(f"its {name} has the dtype {array.dtype}, which cannot be stored")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        blobs.crc = 0
        blobs.add(little.reshape(-1).view(np.uint8).data, mapped=True)
        arrays[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "crc": blobs.crc}
    return {_ARRAYS: arrays, _VALUES: values}


def unpack(content: Any, payload: memoryview) -> dict[str, Any]:
    """The fields that :func:`pack` wrote; arrays are read-only views of the file.

    Args:
      content: what the index says of them.
      payload: of all blobs; they follow each other in the order of the names.

    Raises:
      ValueError: the blobs do not hold what the index says.
    """
    if not isinstance(content, dict) or set(content) != {_ARRAYS, _VALUES}:
        raise ValueError("it is no object of arrays and values")
    arrays, values = content[_ARRAYS], content[_VALUES]
    if not isinstance(arrays, dict) or not isinstance(values, dict):
        raise ValueError("its arrays or values are no object")
    if both := set(arrays) & set(values):
        raise ValueError(f"its {min(both)!r} is both an array and a value")
    cursor = Cursor()
    found = {name: _entry(arrays[name], cursor) for name in sorted(arrays)}
    cursor.check(len(payload))
    fields = dict(values)
    for name, (dtype, shape, places, crc) in found.items():
        blob = fetch(payload, places, crc)
        data = np.frombuffer(blob[0] if blob else b"", np.uint8)
        fields[name] = data.view(dtype.newbyteorder("<")).reshape(shape)
    return fields


def _entry(one: Any, cursor: Cursor) -> tuple[np.dtype, tuple[int, ...], list[Place], int]:
    if not isinstance(one, dict) or set(one) != {"dtype", "shape", "crc"}:
        raise ValueError("an array of it is no object of dtype, shape and crc")
    if one["dtype"] not in DTYPES.values():
        raise ValueError(f"an array of it has the dtype {str(one['dtype'])[:40]!r}")
    dtype, shape = dtype_of(one["dtype"]), shape_of(one["shape"])
    place = cursor.take(math.prod(shape) * dtype.itemsize, mapped=True)
    return dtype, shape, [] if place is None else [place], whole_crc(one["crc"])
