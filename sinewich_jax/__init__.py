"""Multi-task learning in JAX: frequency switching, merge-ready training, task switches.

Rooms are imported on first use, so that ``import sinewich_jax`` stays light::

    import sinewich_jax as sj
    kernel = sj.core.sine.awb_kernel(up, None, down)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinewich_jax import lazy

__version__ = "0.1.0"

_ROOMS = ("config", "convert", "core", "data", "errors", "merging", "nn", "optim", "parallel")
_ROOMS += ("report", "storage", "switches", "tasks", "train")

if TYPE_CHECKING:
    from sinewich_jax import (  # noqa: F401
        config,
        convert,
        core,
        data,
        errors,
        merging,
        nn,
        optim,
        parallel,
        report,
        storage,
        switches,
        tasks,
        train,
    )

__getattr__, __dir__, _names = lazy.attach(__name__, _ROOMS)
__all__ = ["__version__", *_names]
