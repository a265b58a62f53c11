"""Your own images and labels: the scenes recipe on a folder.

    python train.py --config=configs/folder.py --config.data_dir=my_photos \\
        --config.tasks="('semseg','depth')" --config.channels.semseg=2 --workdir=runs/my_photos

The folder holds ``images/``, one folder a task, and lists of names in ``splits/train.txt`` and
``splits/val.txt`` (docs/data_folder.md). Every image is resized to ``--config.image_size``; all
examples of both lists are used unless ``train_size`` or ``eval_size`` says less. The backbone is
the small Swin that ships with the package, which has seen procedural scenes only: for photographs
name weights of your own (``--config.backbone=swin_t --config.backbone_weights=FILE``) where you
have them. There is no expected result: compare the table with its mean-label column.

Variants (after a colon): those of configs/scenes.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import choose, make_config
from configs.scenes import BASE as SCENES
from configs.scenes import VARIANTS as WORDS

_OF_SCENES = ("channels", "train_size", "eval_size")

BASE = {key: value for key, value in SCENES.items() if key not in _OF_SCENES} | {"data": "folder"}

VARIANTS = WORDS | {
    "debug": {key: value for key, value in WORDS["debug"].items() if key not in _OF_SCENES},
}


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
