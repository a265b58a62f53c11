"""One task of a multi-task Swin as plain weights: its adapters folded into linear maps.

Shared LoRA, its sine at a fixed frequency, and task kernels of size 1 are linear maps that are
added to a frozen one, so the sum is a plain kernel (T-merge). What remains is a Swin without
adapters, with one thing beside it. In the adapter model the last block of a stage has two MLPs
after the same attention:

    feature_s = y_s + mlp_task(norm2(y_s))          what the decoder reads
    next      = y_s + mlp_shared(norm2(y_s))        what goes on to the next stage

A plain Swin has one. In the last stage nothing goes on, and the task's MLP takes the place of the
shared one; in every stage before, no weights of a plain Swin give both. There the task's MLP is
kept beside the network as a branch: two more matrices a stage, under the norm that is there
already. Methods without task kernels (full fine-tuning, decoder only) have no branches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.convert.task_weights import TaskWeights
from sinewich_jax.core import trees
from sinewich_jax.nn.blocks import Maps
from sinewich_jax.nn.sinewich import MultiTaskModel
from sinewich_jax.nn.swin import Swin

_LAYERS = ("fc1", "fc2")
# For what runs once: optimising its machine code takes longer than that saves.
_once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True)
class Folded:
    """The backbone of one task without adapters.

    Attributes:
      swin: the plain network.
      params: path -> float32 array, every parameter of ``swin``; the very last MLP is the task's.
      branches: ``stage{s}/{fc1, fc2}/{kernel, bias}`` -> float32 array, the task's MLP in the last
        block of the stages before the last; empty where all tasks share one stream.
      task: its name.
      frequencies: layer -> the task's frequency there (``decoder`` too).
    """

    swin: Swin
    params: dict[str, np.ndarray]
    branches: dict[str, np.ndarray]
    task: str
    frequencies: dict[str, float]


def fold_task(model: MultiTaskModel, variables: Mapping[str, Any], task: str) -> Folded:
    """Folds the adapters of one task into the backbone.

    Args:
      model: a trained multi-task model with a Swin.
      variables: its ``params`` and, with an anchored start, ``anchor``.
      task: one of its heads.

    Returns:
      Plain weights in float32; :func:`folded_features` computes with them what the model gives the
      decoder, up to float32 rounding.

    Raises:
      ConfigError: no such task, or a backbone that is no Swin.
      CheckpointError: a parameter that is no linear map of single tokens.
    """
    flat = trees.flatten_paths(variables)
    made = TaskWeights(model, flat, flat.__getitem__, task)
    params, branches = (
        {path: made.leaf(path) for path in paths} for paths in (made.params, made.branches)
    )
    frequencies = {layer: float(w[made.index]) for layer, w in made.frequencies.items()}
    return Folded(made.swin, params, branches, task, frequencies)


def in_float32(model: MultiTaskModel) -> MultiTaskModel:
    """The same model, computing in float32, as folded weights do."""
    return model.clone(backbone=model.backbone.clone(dtype=jnp.float32), dtype=jnp.float32)


def relative_gap(golden: jax.Array, made: jax.Array) -> float:
    """The largest difference between two arrays, in units of the largest entry of the first."""
    scale = jnp.maximum(jnp.max(jnp.abs(golden)), 1e-30)
    return float(jnp.max(jnp.abs(golden - made)) / scale)


def run_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function under ``jax.jit`` as exactly as the device can.

    Args:
      function: of arrays.
      arguments: what it takes.
    """
    # Otherwise accelerators round the factors of float32 products to ten bits, and that would be
    # all the difference that a comparison sees.
    with jax.default_matmul_precision("highest"):
        return _once(function)(*arguments)


def folded_features(folded: Folded, image: jax.Array) -> list[jax.Array]:
    """The features of the task, with plain weights alone.

    Args:
      folded: what :func:`fold_task` returned.
      image: (B, H, W, 3), normalised.

    Returns:
      Four arrays (B, h, w, C), finest first, as the adapter model's for this task.
    """
    swin, branches = folded.swin, folded.branches

    def walk(model: Swin, image: jax.Array) -> list[jax.Array]:
        x, outputs = model.embed(image), []
        for stage, blocks in enumerate(model.blocks):
            for block in blocks[:-1]:
                x = block(Maps(x)).pixels
            last = blocks[-1]
            y = last.attend(Maps(x)).pixels
            x = feature = last.mlp(y)
            if f"stage{stage}/fc1/kernel" in branches:
                feature = y + _branch(branches, stage, last.norm2(y))
            if stage < len(model.merges):
                merge = model.merges[stage]
                x = merge(x)
                if model.features == "merged":
                    feature = merge(feature)
            outputs.append(feature)
        return outputs

    return swin.apply({"params": trees.unflatten_paths(folded.params)}, image, method=walk)


def difference(
    folded: Folded, model: MultiTaskModel, variables: Mapping[str, Any], image: jax.Array
) -> float:
    """The largest difference to the adapter model over the features, relative to their largest.

    Args:
      folded: what :func:`fold_task` returned for this model.
      model: the adapter model.
      variables: its variables.
      image: (B, H, W, 3), normalised.
    """
    index = [name for name, _ in model.heads].index(folded.task)
    model = in_float32(model)
    golden = run_once(lambda v, x: model.apply(v, x, method="features"), variables, image)
    made = run_once(lambda x: folded_features(folded, x), image)
    gaps = [
        relative_gap(theirs[index if theirs.shape[0] > 1 else 0], ours)
        for theirs, ours in zip(golden, made, strict=True)
    ]
    return float(np.max(gaps))  # NaN where one of them is


def _branch(branches: Mapping[str, np.ndarray], stage: int, x: jax.Array) -> jax.Array:
    k1, b1, k2, b2 = (
        jnp.asarray(branches[f"stage{stage}/{layer}/{leaf}"])
        for layer in _LAYERS
        for leaf in ("kernel", "bias")
    )
    return jax.nn.gelu(x @ k1 + b1, approximate=False) @ k2 + b2
