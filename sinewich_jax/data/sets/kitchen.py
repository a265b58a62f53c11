"""kitchen: 234 + 47 Kinect frames of one static room, 128 x 192, four label types.

From 7-Scenes RedKitchen. ``depth`` (z-depth) and ``normals`` come from one fused surface model, so
both are missing in the same pixels (5.8 % of train); ``semseg``: 6 classes annotated once on the
model and projected, 255 elsewhere; ``edge``: occlusions and creases. The splits are stretches of
one camera path: test measures new viewpoints, not new scenes.

The normals are stored as int8 x 127 in camera axes (x right, y down, z forward) and face the
viewer, as everywhere in this library: z < 0 in 98.9 % of the labelled training pixels, the rest
being grazing ones. So nothing is flipped on reading; the vectors are made unit again after the
rounding.
"""

from __future__ import annotations

import os

import numpy as np

from sinewich_jax.data.packed import load_packed, packed_source
from sinewich_jax.data.registry import register
from sinewich_jax.data.source import ArraySource


@register("kitchen", eval_split="test")
def kitchen(split: str, data_dir: str | os.PathLike[str] | None = None) -> ArraySource:
    """Opens a split, ``"train"`` or ``"test"``; tasks semseg, normals, depth, edge.

    Args:
      split: which one.
      data_dir: folder that holds ``dense/``.
    """
    arrays = load_packed("kitchen", "kitchen_rgbd_mtl_128x192", split, data_dir)
    raw = {
        "semseg": arrays["semseg"],
        "normals": arrays["normals_i8"] * np.float32(1 / 127),
        "depth": arrays["depth_mm"] * np.float32(1e-3),
        "edge": arrays["edges"],
    }
    names = {"semseg": [str(name) for name in arrays["semseg_classes"]]}
    return packed_source(arrays["image"], raw, names, f"kitchen {split}")
