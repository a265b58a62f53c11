"""Arrays, numbers and words by name (a router, for example) as JSON and blobs, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinewich_jax.storage.arrays import DTYPES
from sinewich_jax.switches.entries import Place, check_length, dtype_of, place_of, shape_of
from sinewich_jax.switches.records import Blobs, Fetch

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
        place = blobs.add(little.reshape(-1).view(np.uint8).data, mapped=True)
        blob = [] if place is None else list(place)
        arrays[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "blob": blob}
    return {_ARRAYS: arrays, _VALUES: values}


def places(content: Any) -> list[Place]:
    """Where the arrays are.

    Raises:
      ValueError: it is not what :func:`pack` writes.
    """
    if not isinstance(content, dict) or set(content) != {_ARRAYS, _VALUES}:
        raise ValueError("it is no object of arrays and values")
    if not all(isinstance(part, dict) for part in content.values()):
        raise ValueError("its arrays or values are no object")
    if both := set(content[_ARRAYS]) & set(content[_VALUES]):
        raise ValueError(f"its {min(both)!r} is both an array and a value")
    return [place for one in content[_ARRAYS].values() if (place := _entry(one)[2]) is not None]


def unpack(content: Any, fetch: Fetch) -> dict[str, Any]:
    """The fields that :func:`pack` wrote; arrays are read-only views of the file.

    Raises:
      ValueError: the blobs do not hold what the index says.
    """
    places(content)
    fields = dict(content[_VALUES])
    for name, one in content[_ARRAYS].items():
        dtype, shape, place = _entry(one)
        data = np.frombuffer(b"" if place is None else fetch(place), np.uint8)
        fields[name] = data.view(dtype.newbyteorder("<")).reshape(shape)
    return fields


def _entry(one: Any) -> tuple[np.dtype, tuple[int, ...], Place | None]:
    if not isinstance(one, dict) or set(one) != {"dtype", "shape", "blob"}:
        raise ValueError("an array of it is no object of dtype, shape and blob")
    if one["dtype"] not in DTYPES.values():
        raise ValueError(f"an array of it has the dtype {str(one['dtype'])[:40]!r}")
    dtype, shape = dtype_of(one["dtype"]), shape_of(one["shape"])
    place = place_of(one["blob"], "array") if one["blob"] else None
    check_length(place, math.prod(shape) * dtype.itemsize, "array")
    return dtype, shape, place
