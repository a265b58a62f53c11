"""PASCAL-Context, four tasks, as the multi-task literature runs it: Swin-T at 448 pixels.

    python train.py --config=configs/pascal_context.py:sinewich_paper --config.rank=64 \\
        --config.data_dir=DIR --config.backbone_weights=swin_tiny.safetensors

``DIR`` holds ``PASCAL_MT`` or its tar, see docs/data_archives.md; the weights come from
``sinewich import-backbone`` (docs/weights.md). The recipe is MTLoRA's, which its followers share:
batch 32, 300 epochs (46,800 steps), AdamW at 5e-4 * 32 / 512 after 20 epochs of warm-up, cosine to
a hundredth, weight decay .05, clipping at 5, drop path .2, dropout .05 on the inputs of adapters,
fixed loss weights. Two things differ: what tasks own does not decay, and dropout leaves task tokens
and the task kernels of ``sinewich`` alone. Scores are at 448 pixels;
``--config.eval_resolution=original`` resizes predictions to the labels instead.
Published: docs/claims.md. Not run here: it needs an accelerator for days.

Words after a colon: configs/methods.py, and ``debug``. ``--dry_run`` prints the parameter counts
without the data: 6,510,428 trainable for ``sinewich_paper`` at rank 64, 4,016,732 at rank 32.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import choose, make_config
from configs.methods import METHODS

EPOCH = 4998 // 32

BASE = {
    "data": "pascal_mt",
    "tasks": ("semseg", "human_parts", "saliency", "normals"),
    "image_size": (448, 448),
    "backbone": "swin_t",
    "features": "merged",
    "rank": 64,
    "drop_path": 0.2,
    "adapter_dropout": 0.05,
    "learning_rate": 5e-4 * 32 / 512,
    "task_lr_mult": 4.0,
    "warmup_steps": 20 * EPOCH,
    "weight_decay": 0.05,
    "steps": 300 * EPOCH,
    "batch_size": 32,
    "log_every": 20,
    "eval_every": 5 * EPOCH,
    "checkpoint_every": 5 * EPOCH,
    "output_bias": "zero",
    "augment": {"flip": True, "scale": (0.75, 1.25), "rotate": 20.0, "method": "cubic"},
}

# Tiny in every respect, on the data set's own examples.
DEBUG = {
    "image_size": (64, 64),
    "train_size": 2,
    "eval_size": 1,
    "backbone": "tiny",
    "backbone_weights": "random",
    "rank": 4,
    "decoder_channels": (4, 4, 4, 4),
    "decoder_hidden": 8,
    "steps": 2,
    "batch_size": 2,
    "warmup_steps": 1,
    "log_every": 1,
    "eval_every": 0,
    "checkpoint_every": 2,
}

VARIANTS = {**METHODS, "debug": DEBUG}


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
