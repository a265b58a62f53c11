"""Six tasks on procedural scenes, one frozen backbone: the main job.

    python train.py --config=configs/scenes.py

The small Swin that ships with the package stays frozen; shared LoRA, frequency-switched task
kernels, the clock and one decoder are trained. Scenes are rendered once into a cache (about twenty
seconds), nothing is downloaded. Numbers, seeds and spread: docs/results/scenes.md.

Words after a colon, joined by commas (``--config=configs/scenes.py:lora_gain,debug``): the methods
of configs/methods.py, and

    debug            tiny sizes, a few steps, random backbone; a CPU mostly compiles it
    random_backbone  a frozen random backbone
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import choose, make_config
from configs.methods import METHODS

BASE = {
    "data": "scenes",
    "channels": {"semseg": 8},
    "loss_kinds": {"depth": "l2"},
    "loss_weights": {"depth": 3.0},
    "image_size": (64, 64),
    "train_size": 2048,
    "eval_size": 256,
    "decoder_channels": (16, 24, 32, 48),
    "decoder_hidden": 64,
    "decoder_position": True,
    "learning_rate": 3e-3,
    "task_lr_mult": 10.0,
    "decoder_lr_mult": 3.0,
    "weight_decay": 0.01,
    "warmup_steps": 50,
    "steps": 1200,
    "batch_size": 8,
    "log_every": 20,
    "checkpoint_every": 300,
    "augment": {"flip": True},
}

VARIANTS = {
    **METHODS,
    "random_backbone": {"backbone_weights": "random"},
    "debug": {
        "image_size": (32, 32),
        "train_size": 8,
        "eval_size": 4,
        "backbone_weights": "random",
        "rank": 6,
        "decoder_channels": (4, 4, 4, 4),
        "decoder_hidden": 8,
        "steps": 4,
        "batch_size": 2,
        "warmup_steps": 1,
        "log_every": 1,
        "checkpoint_every": 2,
    },
}


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
