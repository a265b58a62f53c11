"""The mathematics: pure functions, each with its shapes and its equation; no state, no framework.

``sine`` and ``clock`` are frequency switching as the paper writes it (``lowpass`` and ``spectrum``
are the filter and the diagnostics of ``sine``), ``trees`` names and splits the leaves of parameter
trees, ``random`` gives every sample a key of its own. Submodules are imported on first use, so that
``trees`` can be had without JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__all__ = ["clock", "lowpass", "random", "sine", "spectrum", "trees"]

if TYPE_CHECKING:
    from sinewich_jax.core import clock, lowpass, random, sine, spectrum, trees


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"sinewich_jax.core.{name}")
    raise AttributeError(f"module 'sinewich_jax.core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
