"""Timings: one module a part of the library, each writing JSON with what it was measured on."""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = (
    "merge",
    "optim",
    "optimizers",
    "pairs",
    "process",
    "switch",
    "switch_runs",
    "verb",
)

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES)
