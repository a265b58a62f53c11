"""Devices: the mesh, which leaf lies where, and which rows of a batch a process feeds.

Names are looked up on first use; importing this room does not import JAX.
"""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = ("hlo", "mesh", "process", "rules")
_HOMES = {
    "MESH_AXES": "mesh",
    "abstract_with_shardings": "rules",
    "count_collectives": "hlo",
    "is_main_process": "process",
    "local_slice": "process",
    "make_mesh": "mesh",
    "put_batch": "process",
    "replicated": "mesh",
    "sharding_tree": "rules",
    "state_shardings": "rules",
    "unsharded_fraction": "rules",
}

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOMES)
