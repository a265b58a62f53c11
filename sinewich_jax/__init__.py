"""Multi-task learning in JAX: frequency switching, merge-ready training, task switches.

Rooms are imported on first use, so that ``import sinewich_jax`` stays light::

    import sinewich_jax as sj
    kernel = sj.core.sine.awb_kernel(up, None, down)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_ROOMS = ("core", "data", "errors", "merging", "nn", "parallel", "report", "storage")
_ROOMS += ("tasks", "train")

__all__ = ["__version__", *_ROOMS]

if TYPE_CHECKING:
    from sinewich_jax import (  # noqa: F401
        core,
        data,
        errors,
        merging,
        nn,
        parallel,
        report,
        storage,
        tasks,
        train,
    )


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"sinewich_jax.{name}")
    raise AttributeError(f"module 'sinewich_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
