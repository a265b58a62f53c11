"""Multi-task models with noise for weights, at the smallest sizes that show everything."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from configs.scenes import get_config
from sinewich_jax import config as configs
from sinewich_jax.nn.clock import ClockSpec
from sinewich_jax.nn.decoder import DecoderSpec
from sinewich_jax.nn.sinewich import MultiTaskModel
from sinewich_jax.nn.swin import Swin
from sinewich_jax.nn.task_kernel import TaskSpec
from sinewich_jax.train import build

HEADS = (("semseg", 5), ("depth", 1), ("normals", 3))
SMALL = dict(patch_size=2, embed_dim=8, depths=(1, 2), heads=(1, 2), window=4, mlp_ratio=2.0)
KINDS: dict[str, dict[str, Any] | None] = {
    "sine": {},
    "zero": {"start": "zero"},
    "lowpass": {"lowpass": (3, 1.0)},
    "lora": {"kind": "lora"},
    "sine_lora": {"kind": "sine_lora"},
    "gain": {"kind": "gain"},
    "split": {"kind": "split"},
    "plain": None,
}


@functools.cache
def make(kind: str, features: str = "stage", base: str = "sine") -> tuple[MultiTaskModel, Any]:
    """A model and its variables; adapters are far from their start, so that tasks differ."""
    spec = KINDS[kind]
    swin = Swin(
        **SMALL,
        features=features,
        lora_rank=0 if spec is None else 3,
        lora_frequency=100.0 if kind == "sine_lora" else None,
        task=None if spec is None else TaskSpec(len(HEADS), rank=3, **spec),
    )
    model = MultiTaskModel(
        swin,
        HEADS,
        ClockSpec(len(HEADS), scope="layer"),
        DecoderSpec(channels=(4, 6), hidden=8, base=base),
    )
    return model, noise(model)


@functools.cache
def of_method(word: str) -> tuple[MultiTaskModel, Any]:
    """The model of a method word of configs/methods.py, at these sizes, and its variables."""
    config = configs.from_config_dict(get_config(f"{word},debug"))
    tasks = [name for name, _ in HEADS][: 1 if word == "single_task" else None]
    # What the config says about tasks that are not here would be refused.
    own = {
        key: tuple(pair for pair in getattr(config, key) if pair[0] in tasks)
        for key in configs.PER_TASK_KEYS
    }
    model = build.experiment(dataclasses.replace(config, tasks=tuple(tasks), **own)).model
    model = model.clone(
        backbone=model.backbone.clone(**SMALL),
        decoder=dataclasses.replace(model.decoder, channels=(4, 6)),
    )
    return model, noise(model)


def noise(model: MultiTaskModel) -> Any:
    """Variables far from their start."""
    keys = {"params": jax.random.key(0), "anchor": jax.random.key(1)}
    shapes = jax.eval_shape(lambda: model.init(keys, np.zeros((1, 32, 32, 3), np.float32)))
    rng = np.random.default_rng(0)
    made = jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), dict(shapes)
    )
    made["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + 0.5, made["batch_stats"])
    return made


def image(size: tuple[int, int] = (32, 24), batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, *size, 3)).astype(np.float32)
