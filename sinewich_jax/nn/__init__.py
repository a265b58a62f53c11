"""Thin Linen modules: backbones, adapters, clock, decoder, and the multi-task model."""

from __future__ import annotations

import importlib

_MODULES = ("clock", "convolutions", "decoder", "layers", "masked", "mobilenet", "quantised")
_MODULES += ("sinewich", "streams", "swin", "task_kernel")

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"sinewich_jax.nn.{name}")
    raise AttributeError(f"module 'sinewich_jax.nn' has no attribute {name!r}")
