"""Four tasks on Kinect frames of one room: semseg (6 classes), normals, depth, edges.

    SINEWICH_DATA=DIR python train.py --config=configs/kitchen.py

``DIR`` holds ``dense/kitchen_rgbd_mtl_128x192_{train,test}.npz`` and
``weights/mobilenet_v2_imagenet_int8.npz`` (or say ``--config.data_dir=DIR``). The room is static
and split by trajectory: the test measures new viewpoints, not new scenes. Numbers, seeds and
spread: docs/results/photographs.md.

Words after a colon: ``debug``, and the methods of configs/methods.py that are not defined on a Swin
alone.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.ccp import BASE as CCP
from configs.ccp import VARIANTS as CCP_VARIANTS
from configs.common import choose, make_config

BASE = {
    **CCP,
    "data": "kitchen",
    "tasks": ("semseg", "normals", "depth", "edge"),
    "channels": {"semseg": 6},
    "augment": {"flip": True, "scale": (0.8, 1.5), "crop": (128, 192)},
}

VARIANTS = CCP_VARIANTS


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
