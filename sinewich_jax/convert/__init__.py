"""Weights in and out: the one room that knows the names of other libraries.

    imported = convert.read_backbone("swin_tiny_patch4_window7_224.pth")
    path = convert.save_backbone("weights", imported)

Foreign files are read as data: no pickle of theirs can name or run code, and torch is not needed.
Names are looked up on first use.
"""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = ("backbone", "family", "files", "names", "tables", "torch_pickle", "torch_zip")
_HOMES = {
    "Imported": "backbone",
    "convert_state": "backbone",
    "read_backbone": "backbone",
    "read_weights": "files",
    "resize_table": "tables",
    "save_backbone": "backbone",
}

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOMES)
