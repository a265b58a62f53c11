"""Task switches: a task as mask, sign and knob, banks of them in files, and a router among them.

Names are looked up on first use; importing this room imports neither JAX nor a file library.
"""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = ("leaf",)
_HOMES = {"DenseLeaf": "leaf", "LeafSwitch": "leaf", "Switch": "leaf"}

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOMES)
