"""Weights in and out: the one room that knows the names of other libraries.

    imported = convert.read_backbone("swin_tiny_patch4_window7_224.pth")
    path = convert.save_backbone("weights", imported)

    folded = convert.fold_task(model, variables, "depth")    # one task, adapters folded
    convert.save_folded("depth.safetensors", folded, "hf4")
    convert.save_artifact("depth.stablehlo", convert.predictor(model, variables, "depth"), (64, 64))

Foreign files are read as data: no pickle of theirs can name or run code, and torch is not needed.
Names are looked up on first use.
"""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = ("artifact", "backbone", "bert", "export", "family", "files", "fold", "geometry")
_MODULES += ("names", "tables", "task_weights", "torch_pickle", "torch_zip")
_HOMES = {
    "Folded": "fold",
    "Imported": "backbone",
    "ImportedBert": "bert",
    "convert_state": "backbone",
    "fold_task": "fold",
    "folded_features": "fold",
    "foreign_state": "export",
    "load_artifact": "artifact",
    "predictor": "artifact",
    "read_backbone": "backbone",
    "read_bert": "bert",
    "read_bert_config": "bert",
    "read_folded": "export",
    "read_weights": "files",
    "resize_table": "tables",
    "save_artifact": "artifact",
    "save_backbone": "backbone",
    "save_folded": "export",
}

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOMES)
