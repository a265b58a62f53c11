"""Files: atomic writes, safetensors and npz leaves, fingerprints, Orbax checkpoints.

Names are looked up on first use; importing this room imports neither JAX nor Orbax.
"""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = ("arrays", "atomic", "base", "checkpoints", "composition", "fingerprint")
_MODULES += ("leaf_writer", "leaves", "opening")
_HOMES = {
    "CheckpointStore": "checkpoints",
    "Composition": "composition",
    "LeafSource": "leaves",
    "LeafSpec": "leaves",
    "LeafWriter": "leaf_writer",
    "Restored": "checkpoints",
    "atomic_write": "atomic",
    "composition_facts": "composition",
    "load_base": "base",
    "load_composition": "composition",
    "load_npz": "arrays",
    "load_safetensors": "arrays",
    "open_leaves": "opening",
    "rewrite_composition": "composition",
    "save_base": "base",
    "save_composition": "composition",
    "save_safetensors": "arrays",
    "write_bytes": "atomic",
    "write_json": "atomic",
    "write_text": "atomic",
}

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOMES)
