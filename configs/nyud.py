"""NYU-Depth v2, four tasks, as the multi-task literature runs it: Swin-T at 448 pixels.

    python train.py --config=configs/nyud.py:sinewich_paper --config.rank=64 \\
        --config.data_dir=DIR --config.backbone_weights=swin_tiny.safetensors

``DIR`` holds one of the three releases of ``NYUD_MT`` or its tar, see docs/data_archives.md. The
recipe is that of configs/pascal_context.py on 795 images: no rotation, and a zoom of 1, 1.2 or 1.5
by which depth is divided. There is no agreed single-task reference: train your own with the word
``single_task``. Not run here: it needs an accelerator.

Words after a colon: configs/methods.py, and ``debug``.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import choose, make_config
from configs.methods import METHODS
from configs.pascal_context import BASE as PASCAL
from configs.pascal_context import DEBUG

EPOCH = 795 // 32

BASE = {
    **PASCAL,
    "data": "nyud_mt",
    "tasks": ("semseg", "normals", "depth", "edge"),
    "channels": {"semseg": 40},
    "warmup_steps": 20 * EPOCH,
    "steps": 300 * EPOCH,
    "eval_every": 20 * EPOCH,
    "checkpoint_every": 20 * EPOCH,
    "augment": {"flip": True, "zooms": (1.0, 1.2, 1.5), "method": "cubic"},
}

VARIANTS = {**METHODS, "debug": DEBUG}


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
