"""Pretraining of the small Swin on pictures alone: how the backbone in the wheel was made.

    python train.py --config=configs/pretrain_scenes.py --workdir=runs/pretrain

Half of each batch loses half of its 8 x 8 blocks, and half of those pictures their colour; the
network predicts what is missing. The other half is seen a second time after the camera has moved by
a known step, and a depth that the network predicts must explain what changed. Pictures come from
seeds 3,000,000 and up, which no training or evaluation split touches, and no label map is read. The
work directory holds ``backbone.safetensors``, which is shipped as
``sinewich_jax/nn/weights/tiny.safetensors``; command, seed and score stand in its header and on
docs/results/scenes.md.

``:masked`` gives whole batches to the hidden blocks. ``:debug`` runs in seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import choose

BASE = {
    "objective": "masked_and_aside",
    "backbone": "tiny",
    "image_size": (64, 64),
    "images": 12288,
    "held_out": 512,
    "steps": 8000,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_steps": 150,
    "weight_decay": 0.05,
    "mask_ratio": 0.5,
    "reach": 0.8,
    "aside_weight": 3.0,
    "save_every": 250,
    "stop_after": 0,
    "seed": 0,
}

VARIANTS = {
    "masked": {"objective": "masked_patches"},
    "debug": {
        "image_size": (32, 32),
        "images": 16,
        "held_out": 8,
        "steps": 4,
        "batch_size": 4,
        "warmup_steps": 1,
        "save_every": 2,
    },
}


def get_config(arg: str = "") -> ConfigDict:
    return ConfigDict({**BASE, **choose(arg, VARIANTS)})
