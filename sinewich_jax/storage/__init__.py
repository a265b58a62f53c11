"""Files: atomic writes, safetensors and npz leaves, fingerprints, Orbax checkpoints.

Names are looked up on first use; importing this room imports neither JAX nor Orbax.
"""

from __future__ import annotations

import importlib

_MODULES = ("arrays", "atomic", "base", "checkpoints", "fingerprint")
_HOMES = {
    "CheckpointStore": "checkpoints",
    "Restored": "checkpoints",
    "atomic_write": "atomic",
    "load_base": "base",
    "load_npz": "arrays",
    "load_safetensors": "arrays",
    "save_base": "base",
    "save_safetensors": "arrays",
    "write_bytes": "atomic",
    "write_json": "atomic",
    "write_text": "atomic",
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
