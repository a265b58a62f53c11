"""A router in a bank: nothing is stored that could not be read again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sinewich_jax.switches.swb import fields, text
from sinewich_jax.switches.swb.records import Blobs


def pack(router: Any, dtype: str, blobs: Blobs) -> bytes:
    """Appends the arrays of a router to ``blobs``.

    Args:
      router: to store.
      dtype: of its features, ``"float16"`` or ``"float32"``.
      blobs: takes the bytes.

    Returns:
      The JSON that says what they are.

    Raises:
      ValueError: it is no router, or could not be read again.
    """
    from sinewich_jax.switches.router import Router

    if not isinstance(router, Router):
        raise ValueError(f"it is a {type(router).__name__}, expected a Router or None")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"the dtype is {dtype!r}, expected 'float16' or 'float32'")
    try:
        values = router.to_fields()
        with np.errstate(over="ignore"):
            values["features"] = values["features"].astype(dtype)
        if not np.isfinite(values["features"]).all():
            raise ValueError(f"its features are not finite as {dtype}")
        data = text.dump(fields.pack(values, blobs))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"it has something that no router has ({error})") from error
    unpack(text.load(data), blobs.payload())
    return data


def unpack(content: Any, payload: memoryview) -> Any:
    """The router that :func:`pack` stored.

    Args:
      content: the JSON.
      payload: of its blobs.

    Raises:
      ValueError: it cannot be read.
    """
    from sinewich_jax.switches.router import Router

    found = fields.unpack(content, payload)
    for name, value in found.items():
        if name not in _FIELDS:
            raise ValueError(f"it has {name[:40]!r}, which no router has")
        what, fits = _FIELDS[name]
        if not fits(value):
            raise ValueError(f"its {name} cannot be that of a router, expected {what}")
    return Router.from_fields(found)


def _is_matrix(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f"


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


# A router checks what its fields mean, and may rely on what they are.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "features": ("a matrix", _is_matrix),
    "tasks": (
        "whole numbers",
        lambda v: isinstance(v, np.ndarray) and v.ndim == 1 and v.dtype.kind in "iu",
    ),
    "names": ("strings", lambda v: isinstance(v, list) and all(map(_is_word, v))),
    "k": ("a whole number", lambda v: type(v) is int and v < 1 << 31),
    "metric": ("a string", _is_word),
    "weighting": ("a string", _is_word),
    "projection": ("a matrix or None", lambda v: v is None or _is_matrix(v)),
    "threshold": ("a number or None", lambda v: v is None or type(v) is float),
    "extractor": ("a string", _is_word),
}
