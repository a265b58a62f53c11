"""Devices: the mesh, which leaf lies where, and which rows of a batch a process feeds.

Names are looked up on first use; importing this room does not import JAX.
"""

from __future__ import annotations

import importlib

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

__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
