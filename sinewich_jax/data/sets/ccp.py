"""ccp: 700 + 104 street photographs of clothed people, 192 x 128, four label types.

From clothing-co-parsing. ``semseg``: 16 classes grouped from 59 human-made pixel labels;
``human_parts``: 7 classes in the PASCAL grouping, pseudo-labels of a network inside the human mask;
``saliency``: person and belongings; ``edge``: boundaries of the 16-class map. Every pixel is
labelled.
"""

from __future__ import annotations

import os

from sinewich_jax.data.packed import load_packed, packed_source
from sinewich_jax.data.registry import register
from sinewich_jax.data.source import ArraySource


@register("ccp", eval_split="test")
def ccp(split: str, data_dir: str | os.PathLike[str] | None = None) -> ArraySource:
    """Opens a split, ``"train"`` or ``"test"``; tasks semseg, human_parts, saliency, edge.

    Args:
      split: which one.
      data_dir: folder that holds ``dense/``.
    """
    arrays = load_packed("ccp", "ccp_mtl_192x128", split, data_dir)
    raw = {
        "semseg": arrays["semseg"],
        "human_parts": arrays["parts"],
        "saliency": arrays["saliency"],
        "edge": arrays["edges"],
    }
    names = {
        "semseg": [str(name) for name in arrays["semseg_classes"]],
        "human_parts": [str(name) for name in arrays["parts_classes"]],
    }
    return packed_source(arrays["image"], raw, names, f"ccp {split}")
