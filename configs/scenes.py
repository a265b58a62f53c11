"""Six tasks on procedural scenes, one frozen backbone: the main job.

    python train.py --config=configs/scenes.py

The small Swin that ships with the package stays frozen; shared LoRA, frequency-switched task
kernels, the clock and one decoder are trained. Scenes are rendered once into a cache (about half a
minute), nothing is downloaded. Numbers, seeds and spread: docs/results/scenes.md.

Variants, joined by commas after a colon (``--config=configs/scenes.py:lora_gain,debug``):

    sinewich         the default, by name
    debug            seconds on a CPU: tiny sizes, a few steps, random backbone
    zero             the published start: up factor zero, frequencies around one hundred
    decoder_only     no adapters: heads on frozen features
    lora             one LoRA that all tasks share
    lora_gain        that LoRA times a learned scalar a task
    lora_split       a LoRA of rank r / T for each task
    random_backbone  the same job on a frozen random backbone
    scratch          everything trained from a random start
    full_ft          everything trained from the shipped backbone
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import choose, make_config

BASE = {
    "data": "scenes",
    "channels": {"semseg": 8},
    "image_size": (64, 64),
    "train_size": 2048,
    "eval_size": 256,
    "decoder_channels": (16, 16, 16, 16),
    "decoder_hidden": 64,
    "learning_rate": 3e-3,
    "task_lr_mult": 4.0,
    "weight_decay": 0.01,
    "warmup_steps": 20,
    "steps": 300,
    "batch_size": 16,
    "checkpoint_every": 100,
    "augment": {"flip": True},
}

VARIANTS = {
    "sinewich": {},
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
    "zero": {"start": "zero"},
    "decoder_only": {"method": "decoder_only"},
    "lora": {"method": "lora"},
    "lora_gain": {"method": "lora_gain"},
    "lora_split": {"method": "lora_split"},
    "random_backbone": {"backbone_weights": "random"},
    "scratch": {"method": "scratch"},
    "full_ft": {"method": "full_ft"},
}


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
