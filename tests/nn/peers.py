"""Frozen outputs of MTLoRA and TADFormer, and their parameters under our names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinewich_jax.convert.tables import centre_table
from sinewich_jax.core.trees import unflatten_paths
from sinewich_jax.nn.clock import ClockSpec
from sinewich_jax.nn.decoder import DecoderSpec
from sinewich_jax.nn.mtlora import MTLoRASpec
from sinewich_jax.nn.sinewich import MultiTaskModel
from sinewich_jax.nn.swin import Swin
from sinewich_jax.nn.tadformer import TADFormerSpec

BLOCK = r"layers\.(\d)\.blocks\.(\d)\."
MAP = r"(?:attn\.|mlp\.)(qkv|proj|fc1|fc2)\."

# Torch name -> our path; groups of the pattern fill the braces, {t} stands for a task's row.
RULES = {
    r"task_prompts": "tokens/start",
    r"layers\.(\d)\.downsample\.task_prompts_up\.weight": "tokens/lift{0}",
    r"layers\.(\d)\.prompt_gate": "backbone/stage{0}_block1/task/gate",
    r"patch_embed\.proj\.weight": "backbone/patch_embed_proj/kernel",
    r"patch_embed\.proj\.bias": "backbone/patch_embed_proj/bias",
    r"patch_embed\.norm\.weight": "backbone/patch_embed_norm/scale",
    r"patch_embed\.norm\.bias": "backbone/patch_embed_norm/bias",
    BLOCK + r"(norm[12])\.weight": "backbone/stage{0}_block{1}/{2}/scale",
    BLOCK + r"(norm[12])\.bias": "backbone/stage{0}_block{1}/{2}/bias",
    BLOCK + r"attn\.relative_position_bias_table": "backbone/stage{0}_block{1}/bias_table",
    BLOCK + r"attn\.proj\.prompt_layernorm\.weight": "backbone/stage{0}_block{1}/token_norm/scale",
    BLOCK + r"attn\.proj\.prompt_layernorm\.bias": "backbone/stage{0}_block{1}/token_norm/bias",
    BLOCK + MAP + r"linear\.weight": "backbone/stage{0}_block{1}/{2}/kernel",
    BLOCK + MAP + r"linear\.bias": "backbone/stage{0}_block{1}/{2}/bias",
    BLOCK + MAP + r"lora_shared_A": "backbone/stage{0}_block{1}/{2}/lora_down",
    BLOCK + MAP + r"lora_shared_B": "backbone/stage{0}_block{1}/{2}/lora_up",
    BLOCK + MAP + r"lora_tasks_A\.(\w+)": "backbone/stage{0}_block{1}/{2}/task/down@{3}",
    BLOCK + MAP + r"lora_tasks_B\.(\w+)": "backbone/stage{0}_block{1}/{2}/task/up@{3}",
    BLOCK + MAP + r"lora_filter\.conv\.weight": "backbone/stage{0}_block{1}/task/{2}/kernel",
    BLOCK + MAP + r"lora_filter\.conv\.bias": "backbone/stage{0}_block{1}/task/{2}/bias",
    BLOCK + MAP + r"lora_filter\.chan_FilterNorm\.(std|mean)": (
        "backbone/stage{0}_block{1}/task/{2}/{3}"
    ),
    BLOCK + MAP + r"lora_filter\.(\w+)\.conv2d\.weight": (
        "backbone/stage{0}_block{1}/task/{2}/kernel@{3}"
    ),
    BLOCK + MAP + r"lora_filter\.(\w+)\.conv2d\.bias": (
        "backbone/stage{0}_block{1}/task/{2}/bias@{3}"
    ),
    r"layers\.(\d)\.downsample\.norm\.weight": "backbone/merge{0}/norm/scale",
    r"layers\.(\d)\.downsample\.norm\.bias": "backbone/merge{0}/norm/bias",
    r"layers\.(\d)\.downsample\.reduction\.(?:linear\.)?weight": (
        "backbone/merge{0}/reduction/kernel"
    ),
    r"layers\.(\d)\.downsample\.reduction\.lora_shared_A": "backbone/merge{0}/reduction/lora_down",
    r"layers\.(\d)\.downsample\.reduction\.lora_shared_B": "backbone/merge{0}/reduction/lora_up",
    r"downsampler\.(\w+)\.downsample_(\d)\.weight": "decoder/project{1}@{0}",
    r"decoders\.decoders\.(\w+)\.last_layer\.0\.weight": "decoder/base@{0}",
    r"decoders\.decoders\.(\w+)\.last_layer\.0\.bias": "decoder/base_bias@{0}",
    r"decoders\.decoders\.(\w+)\.last_layer\.1\.weight": "decoder/norm/scale@{0}",
    r"decoders\.decoders\.(\w+)\.last_layer\.1\.bias": "decoder/norm/bias@{0}",
    r"decoders\.decoders\.(\w+)\.last_layer\.1\.running_mean": "batch_stats/decoder/norm/mean@{0}",
    r"decoders\.decoders\.(\w+)\.last_layer\.1\.running_var": "batch_stats/decoder/norm/var@{0}",
    r"decoders\.decoders\.(\w+)\.last_layer\.3\.weight": "decoder/output_{0}",
    r"decoders\.decoders\.(\w+)\.last_layer\.3\.bias": "decoder/output_{0}_bias",
}
IGNORED = r".*(relative_position_index|attn_mask|num_batches_tracked)"


def place(name: str) -> tuple[str, str | None] | None:
    """Our path of a torch parameter, and the task whose row it is (None: the whole leaf)."""
    name = name.removeprefix("param/").removeprefix("backbone.")
    if re.fullmatch(IGNORED, name):
        return None
    (found,) = [
        path.format(*match.groups())
        for rule, path in RULES.items()
        if (match := re.fullmatch(rule, name))
    ]
    path, _, task = found.partition("@")
    return path, task or None


def _layout(path: str, value: np.ndarray) -> np.ndarray:
    """From torch's layout to ours."""
    leaf = path.rsplit("/", 1)[-1]
    if path == "backbone/patch_embed_proj/kernel":
        return value.transpose(2, 3, 1, 0).reshape(-1, len(value))
    if leaf in ("std", "mean") and "/task/" in path:
        return value.reshape(-1, 9)
    if leaf == "gate":
        return value.reshape(())
    if leaf == "kernel" and "/task/" in path:  # (9r, r, 1, 1) of a generator, (r, 1, 3, 3) of taps
        return value[:, :, 0, 0].T if value.shape[2] == 1 else value.reshape(-1, 9, 1)
    if leaf in ("kernel", "lora_down", "down", "base") or re.fullmatch(
        r"lift\d|project\d|output_[a-z_]+(?<!_bias)", leaf
    ):
        return value.reshape(value.shape[:2]).T
    return value


def variables(fixture: Mapping[str, np.ndarray], tasks: Sequence[str]) -> dict[str, Any]:
    """The variables of our model from a fixture."""
    flat: dict[str, np.ndarray] = {}
    rows: dict[str, dict[str, np.ndarray]] = {}
    for name, value in fixture.items():
        if not name.startswith("param/") or (found := place(name)) is None:
            continue
        path, task = found
        if task is None:
            flat[path] = _layout(path, value)
        else:
            rows.setdefault(path, {})[task] = _layout(path, value)
    flat.update({path: np.stack([row[task] for task in tasks]) for path, row in rows.items()})
    window = meta(fixture)["config"]["window_size"]
    for path in [path for path in flat if path.endswith("/bias_table")]:
        # The authors shrink table and window where a map is smaller than a window.
        flat[path] = centre_table(flat[path], window)
    stats = {path: leaf for path, leaf in flat.items() if path.startswith("batch_stats/")}
    params = {f"params/{path}": leaf for path, leaf in flat.items() if path not in stats}
    return unflatten_paths({**params, **stats})


def meta(fixture: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return json.loads(str(fixture["meta_json"]))


def model(fixture: Mapping[str, np.ndarray], released: bool = False) -> MultiTaskModel:
    """Our model of a fixture's configuration."""
    facts = meta(fixture)
    config, kind = facts["config"], facts["model"]
    tasks = config["tasks"]
    if kind.startswith("mtlora"):
        (rank,) = {rank for ranks in config["rank_per_task"].values() for rank in ranks}
        task = MTLoRASpec(len(tasks), rank=rank)
    else:
        filters = "dynamic" if kind.endswith("dtf") else "static"
        task = TADFormerSpec(len(tasks), config["rank_shared"][0], filters, released=released)
    backbone = Swin(
        embed_dim=config["embed_dim"],
        depths=tuple(config["depths"]),
        heads=tuple(config["num_heads"]),
        window=config["window_size"],
        patch_size=config["patch_size"],
        features="merged",
        lora_rank=config["rank_shared"][0],
        lora_merging=config["patch_merging_lora"],
        task=task,
        prompts=kind.startswith("tadformer"),
    )
    decoder = DecoderSpec(channels=tuple(config["decoder_channels"]), base="independent")
    heads = tuple((task, config["num_outputs"][task]) for task in tasks)
    return MultiTaskModel(backbone, heads, ClockSpec(len(tasks)), decoder)
