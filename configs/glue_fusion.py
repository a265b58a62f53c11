"""AdapterFusion, stage two: the adapters of trained runs are composed for one target task.

    python train.py --config=configs/glue_fusion.py:rte \\
      --config.adapters.sources="('runs/glue_adapters',)"

Encoder and adapters are frozen bit for bit; the attention over the adapters and the target's head
are trained. ``sources`` are the work directories of runs of configs/glue_adapters.py; the target's
own adapter is among them or not. The run leaves what it attends to in ``attention.json`` and
``diagnostics/attention.png``. Numbers, seeds and spread: docs/results/language.md.

Words after a colon: the target task; ``debug`` (expects the adapters of
``configs/glue_adapters.py:debug``).
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import glue_adapters
from configs.common import choose, make_config

BASE: dict[str, Any] = {
    **glue_adapters.BASE,
    "method": "fusion",
    "tasks": ("rte",),
    "adapters": {"sources": ("runs/glue_adapters",)},
    "learning_rate": 3e-4,
    "decoder_lr_mult": 3.0,
    "steps": 300,
}

VARIANTS: dict[str, dict[str, Any]] = {
    **{task: {"tasks": (task,)} for task in glue_adapters.TASKS},
    "debug": {
        **glue_adapters.VARIANTS["debug"],
        "tasks": ("cola",),
        "adapters": {"sources": ("runs/glue_adapters_debug",)},
    },
}


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
