"""The mathematics: pure functions, each with its shapes and its equation; no state, no framework.

``sine`` and ``clock`` are frequency switching as the paper writes it (``lowpass`` and ``spectrum``
are the filter and the diagnostics of ``sine``), ``weighting`` turns T losses into one step
(``surgery`` is its part that looks at gradients), ``trees`` names and splits the leaves of
parameter trees, ``curvature`` is what optimizers keep of squared gradients and merging reads,
``select`` finds thresholds and masks, ``ternary`` packs what moves up, down or not at all and
counts its bits, ``quantise`` is that with more bits and gradients, ``neighbours`` finds the nearest
of a few examples, ``adapters`` are bottlenecks and their fusion by attention, ``arrays`` lets NumPy
and JAX share a formula, ``random`` gives every sample a key of its own, ``interpolate`` has the
kernels by which images and tables are resized. Submodules are imported on first use, so that
``trees`` can be had without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinewich_jax import lazy

_MODULES = ("adapters", "arrays", "clock", "curvature", "interpolate", "lowpass", "neighbours")
_MODULES += ("quantise", "random", "select", "sine", "spectrum", "surgery", "ternary", "trees")
_MODULES += ("weighting",)

if TYPE_CHECKING:
    from sinewich_jax.core import (  # noqa: F401
        adapters,
        arrays,
        clock,
        curvature,
        interpolate,
        lowpass,
        neighbours,
        quantise,
        random,
        select,
        sine,
        spectrum,
        surgery,
        ternary,
        trees,
        weighting,
    )

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES)
