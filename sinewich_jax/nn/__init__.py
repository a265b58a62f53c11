"""Thin Linen modules: backbones, adapters, clock, decoder, and the multi-task model."""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = ("clock", "convolutions", "decoder", "layers", "masked", "mobilenet", "quantised")
_MODULES += ("sinewich", "streams", "swin", "task_kernel")

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES)
