"""Four tasks on street photographs: semseg (16 classes), human parts, saliency, edges.

    SINEWICH_DATA=DIR python train.py --config=configs/ccp.py

``DIR`` holds ``dense/ccp_mtl_192x128_{train,test}.npz`` and
``weights/mobilenet_v2_imagenet_int8.npz`` (or say ``--config.data_dir=DIR``). A frozen MobileNetV2
with ImageNet weights carries the adapters. Numbers, seeds and spread: docs/results/photographs.md.

Words after a colon: ``debug``, and the methods of configs/methods.py that are not defined on a Swin
alone.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import choose, make_config
from configs.methods import METHODS

BASE = {
    "data": "ccp",
    "tasks": ("semseg", "human_parts", "saliency", "edge"),
    "channels": {"semseg": 16},
    "backbone": "mobilenet_v2",
    "decoder_channels": (24, 32, 48, 64),
    "decoder_hidden": 96,
    "decoder_position": True,
    "learning_rate": 2e-3,
    "task_lr_mult": 4.0,
    "weight_decay": 0.01,
    "warmup_steps": 30,
    "steps": 400,
    "batch_size": 8,
    "checkpoint_every": 200,
    "augment": {"flip": True, "scale": (0.8, 1.5), "crop": (192, 128)},
}

VARIANTS = {
    **METHODS,
    "debug": {
        "train_size": 4,
        "eval_size": 2,
        "image_size": (64, 64),
        "backbone_weights": "random",
        "rank": 4,
        "decoder_channels": (4, 4, 4, 4),
        "decoder_hidden": 8,
        "steps": 2,
        "batch_size": 2,
        "warmup_steps": 1,
        "log_every": 1,
        "checkpoint_every": 2,
        "augment": {"flip": True, "scale": (0.8, 1.5), "crop": (64, 64)},
    },
}


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
