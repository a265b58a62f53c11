"""Which array library a leaf belongs to, what it holds, and in which precision it is merged."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Literal

import numpy as np


def namespace(*leaves: Any) -> ModuleType:
    """``jax.numpy`` if any leaf is a JAX array (so the program has imported it), else ``numpy``."""
    jax = sys.modules.get("jax")
    if jax is not None and any(isinstance(leaf, jax.Array) for leaf in leaves):
        return jax.numpy
    return np


def is_traced(leaf: Any) -> bool:
    """Whether the values of ``leaf`` are unknown because JAX is tracing."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(leaf, jax.core.Tracer)


def fails(condition: Any) -> bool:
    """Whether a condition is known not to hold; while JAX traces, nothing is known.

    Asked of the result and not of the arrays that went in: under ``jit`` the result of an operation
    is traced even where these are not.
    """
    return not is_traced(condition) and not bool(condition)


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array, or the one NumPy would give to a Python scalar."""
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def content(leaf: Any) -> Literal["real", "discrete", "other"]:
    """What a leaf holds: reals (which have a mean), integers and booleans, or neither.

    By name, because NumPy files bfloat16, float8 and int4 all under "void".
    """
    name = dtype_of(leaf).name
    if name.startswith(("float", "bfloat", "complex")):
        return "real"
    return "discrete" if name.startswith(("int", "uint", "bool")) else "other"


def widen(leaf: Any, xp: ModuleType) -> Any:
    """The array in float32, or as it is if that is wider; nothing is lost on the way."""
    array = xp.asarray(leaf)
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array
