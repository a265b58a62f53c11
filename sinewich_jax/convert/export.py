"""Weights for other libraries: a plain Swin, or one task of a multi-task model, as safetensors.

The keys are the whole state dict of a headless network. Official and timm models take it with
``load_state_dict(..., strict=False)`` (their buffers are remade, the head is yours); transformers
reads ``hf4`` with ``from_pretrained`` beside a ``config.json``, whose content is in the header
under ``config``. Branches of a task (:mod:`~sinewich_jax.convert.fold`) are further keys,
``...blocks.<last>.task_mlp.{fc1, fc2}``, one MLP a stage:

    feature = y + task_mlp.fc2(gelu(task_mlp.fc1(norm2(y))))    # y: the block's attention output
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinewich_jax.convert.backbone import convert_state
from sinewich_jax.convert.fold import Folded
from sinewich_jax.convert.names import FAMILIES, branch_rules, rules
from sinewich_jax.errors import CheckpointError, ConfigError, did_you_mean
from sinewich_jax.nn.swin import Swin
from sinewich_jax.storage import arrays


def foreign_state(
    swin: Swin,
    params: Mapping[str, np.ndarray],
    family: str = "official",
    branches: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Plain weights under the names, and in the layouts, of another library.

    Args:
      swin: the network; its depths matter.
      params: path -> array, every parameter of it.
      family: ``official``, ``timm``, ``hf4`` (what transformers writes and reads) or ``hf5`` (names
        of the modules of transformers 5.x).
      branches: the branches of a task, or None.

    Returns:
      name -> float32 array.

    Raises:
      ConfigError: an unknown family.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown names {family!r}{did_you_mean(family, FAMILIES)}")
    prefix, state = _prefix(family), {}
    for table, own in ((rules, params), (branch_rules, branches or {})):
        for rule in table(family, swin.depths):
            if rule.ours in own:
                pieces = rule.write(np.asarray(own[rule.ours], np.float32))
                for key, piece in zip(rule.theirs, pieces, strict=True):
                    state[prefix + key] = np.ascontiguousarray(piece)
    return state


def save_folded(
    path: str | os.PathLike[str],
    folded: Folded,
    family: str = "official",
    source: str = "",
) -> None:
    """Writes one task's backbone as safetensors.

    Args:
      path: the file.
      folded: what :func:`~sinewich_jax.convert.fold.fold_task` returned.
      family: as in :func:`foreign_state`.
      source: the run that it comes from, for the header.

    Raises:
      ConfigError: an unknown family.
      CheckpointError: a full disk.
    """
    state = foreign_state(folded.swin, folded.params, family, folded.branches)
    metadata = {
        "format": "pt",  # transformers refuses a file that does not say so
        "source": source,
        "task": folded.task,
        "frequencies": json.dumps(folded.frequencies),
        "family": family,
        "branches": json.dumps(sorted({path.split("/")[0] for path in folded.branches})),
        "config": json.dumps(_config(folded.swin)),
    }
    arrays.save_safetensors(path, state, metadata)


def read_folded(path: str | os.PathLike[str]) -> Folded:
    """Reads a task's backbone back, branches included.

    Args:
      path: what :func:`save_folded` wrote.

    Raises:
      CheckpointError: the file cannot be read, is no export of a task, or lacks some of it.
    """
    state, metadata = arrays.load_safetensors(path)
    if not {"task", "frequencies", "branches"} <= metadata.keys():
        raise CheckpointError(
            f"{path} does not say which task it is of; expected a file of 'sinewich export' (other "
            "backbones are read by 'sinewich import-backbone')"
        )
    made = convert_state(state, str(path))
    stages, branches = json.loads(metadata["branches"]), {}
    for rule in branch_rules(made.family.name, made.swin.depths):
        if rule.ours.split("/")[0] not in stages:
            continue
        keys = [made.family.prefix + key for key in rule.theirs]
        if missing := [key for key in keys if key not in state]:
            raise CheckpointError(f"{path} lacks {missing[0]!r}; export it again")
        branches[rule.ours] = np.ascontiguousarray(rule.read([state[key] for key in keys]))
    frequencies = json.loads(metadata["frequencies"])
    return Folded(made.swin, made.params, branches, metadata["task"], frequencies)


def _prefix(family: str) -> str:
    return "swin." if family.startswith("hf") else ""


def _config(swin: Swin) -> dict[str, Any]:
    """The network in the words of transformers' ``config.json``."""
    return {
        "model_type": "swin",
        "architectures": ["SwinModel"],
        "embed_dim": swin.embed_dim,
        "depths": list(swin.depths),
        "num_heads": list(swin.heads),
        "window_size": swin.window,
        "patch_size": swin.patch_size,
        "mlp_ratio": swin.mlp_ratio,
        "image_size": 8 * swin.patch_size * swin.window,  # one window in the fourth stage
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": 1e-5,
    }
