"""Cityscapes, semantic segmentation and disparity on a Swin-T.

    python train.py --config=configs/cityscapes.py:sinewich_paper --config.rank=64 \\
        --config.data_dir=DIR --config.backbone_weights=swin_tiny.safetensors

``DIR`` holds the official folders or one of the two derived sets, see docs/data_archives.md. What
"depth" means is a key, ``--config.depth_target``: disparity in pixels of the full image (default;
the scale of the published RMSE 5.14), disparity over the width, or metres. Resolution, classes and
schedule of the published numbers are not known: 19 classes, half resolution and 200 epochs are
ours. Not run here: it needs an accelerator.

Words after a colon: configs/methods.py, and ``debug``.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import choose, make_config
from configs.methods import METHODS
from configs.pascal_context import BASE as PASCAL
from configs.pascal_context import DEBUG

EPOCH = 2975 // 8

BASE = {
    **PASCAL,
    "data": "cityscapes_mt",
    "tasks": ("semseg", "depth"),
    "channels": {"semseg": 19},
    "depth_target": "disparity_px",
    "image_size": (512, 1024),
    "batch_size": 8,
    "learning_rate": 5e-4 * 8 / 512,
    "warmup_steps": 10 * EPOCH,
    "steps": 200 * EPOCH,
    "eval_every": 10 * EPOCH,
    "checkpoint_every": 10 * EPOCH,
    "augment": {"flip": True, "scale": (0.75, 1.25)},
}

VARIANTS = {**METHODS, "debug": DEBUG}


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
