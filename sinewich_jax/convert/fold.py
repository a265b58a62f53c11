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
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.convert.geometry import parameter_shapes
from sinewich_jax.core import trees
from sinewich_jax.errors import CheckpointError, ConfigError, did_you_mean
from sinewich_jax.nn.blocks import Maps
from sinewich_jax.nn.layers import Dense
from sinewich_jax.nn.sinewich import MultiTaskModel
from sinewich_jax.nn.swin import Swin
from sinewich_jax.nn.task_kernel import TaskSpec

_LORA = re.compile(r"(.*)/lora_(up|down)")
_TASK = re.compile(r"stage\d+_block\d+/(fc1|fc2)/task/(up|down|gain)")
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
    names = [name for name, _ in model.heads]
    if task not in names:
        raise ConfigError(f"the model has no task {task!r}{did_you_mean(task, names)}")
    backbone = model.backbone
    if reason := obstacle(model):
        raise ConfigError(
            f"{reason}, so no plain Swin computes what task {task!r} does; export the whole model "
            "as a program, FILE.stablehlo"
        )
    plain = backbone.clone(
        parent=None, lora_rank=0, lora_merging=False, task=None, dtype=jnp.float32
    )
    index = names.index(task)
    omega = {
        layer: np.asarray(values)
        for layer, values in model.apply(variables, method="frequencies").items()
    }
    params = _shared(variables["params"]["backbone"], plain, backbone)
    branches = {}
    if backbone.task is not None:
        kernels = _task_kernels(backbone, variables, omega)
        last = len(backbone.depths) - 1
        for stage, pair in enumerate(kernels):
            block = f"stage{stage}_block{backbone.depths[stage] - 1}"
            for layer, stacked in zip(_LAYERS, pair, strict=True):
                kernel = np.asarray(stacked[index if len(stacked) > 1 else 0])
                if stage == last:
                    params[f"{block}/{layer}/kernel"] = kernel
                else:
                    branches[f"stage{stage}/{layer}/kernel"] = kernel
                    branches[f"stage{stage}/{layer}/bias"] = params[f"{block}/{layer}/bias"]
    frequencies = {layer: float(values[index]) for layer, values in omega.items()}
    return Folded(plain, params, branches, task, frequencies)


def obstacle(model: MultiTaskModel) -> str | None:
    """Why the adapters of a model do not fold into a plain Swin, or None where they do.

    Args:
      model: a multi-task model.

    Returns:
      The beginning of a sentence.
    """
    backbone = model.backbone
    if not isinstance(backbone, Swin):
        return f"the backbone is a {type(backbone).__name__}, expected a Swin"
    if backbone.prompts:
        return "task tokens take part in the attention of this model"
    if backbone.task is not None and not isinstance(backbone.task, TaskSpec):
        return f"the tasks of this model part by {type(backbone.task).__name__}"
    if backbone.task is not None and backbone.task.kernel_size > 1:
        size = backbone.task.kernel_size
        return f"the task kernels of this model are {size} x {size} convolutions"
    return None


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


def _shared(params: Any, plain: Swin, backbone: Swin) -> dict[str, np.ndarray]:
    """The stream that all tasks share: the frozen kernels with whatever LoRA adds to them."""
    flat = {path: np.asarray(leaf) for path, leaf in trees.flatten_paths(params).items()}
    shapes = parameter_shapes(plain)
    for path in flat:
        if path not in shapes and not _LORA.fullmatch(path) and not _TASK.fullmatch(path):
            raise CheckpointError(
                f"the backbone parameter {path!r} cannot be folded into a plain Swin; expected "
                "shared LoRA and task kernels of size 1, which are linear maps of single tokens "
                "(kernels over neighbours and tokens in the windows are not)"
            )
    if missing := sorted(shapes.keys() - flat.keys()):
        raise CheckpointError(
            f"the backbone lacks {missing[0]!r}, which a plain Swin has; its adapters cannot be "
            "folded"
        )
    folded = {path: flat[path].astype(np.float32) for path in shapes}
    for module, update in _low_rank_updates(flat, backbone).items():
        folded[f"{module}/kernel"] = folded[f"{module}/kernel"] + update
    return folded


def _low_rank_updates(flat: Mapping[str, np.ndarray], backbone: Swin) -> dict[str, np.ndarray]:
    """What the shared LoRA adds to each linear map that has one, (in, out) by path.

    ``Dense.low_rank`` is linear in its input, plain or under a sine, so what it makes of the unit
    vectors is the update itself, and the formula stays in one place.
    """
    layers, own = {}, {}
    for path, kernel in flat.items():
        module = path.removesuffix("/kernel")
        if f"{module}/lora_down" not in flat:
            continue
        # Patch merging carries a plain LoRA whatever the blocks have.
        frequency = None if module.startswith("merge") else backbone.lora_frequency
        layers[module] = Dense(
            *kernel.shape,
            use_bias=False,
            lora_rank=flat[f"{module}/lora_down"].shape[-1],
            lora_scale=backbone.lora_scale,
            lora_frequency=frequency,
        )
        own[module] = {
            name: flat[f"{module}/{name}"] for name in ("kernel", "lora_down", "lora_up")
        }

    def updates(own: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
        return {
            module: dense.apply(
                {"params": own[module]}, jnp.eye(dense.in_features), method="low_rank"
            )
            for module, dense in layers.items()
        }

    return jax.device_get(run_once(updates, own))


def _task_kernels(
    backbone: Swin, variables: Mapping[str, Any], omega: Mapping[str, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The kernels (S, in, out) of fc1 and fc2 in each stage's last block, by the model's rule."""

    def gather(model: Swin) -> list[tuple[jax.Array, jax.Array]]:
        return [
            tuple(
                getattr(blocks[-1], layer).task_kernels(omega.get(f"stage{stage}/{layer}"))
                for layer in _LAYERS
            )
            for stage, blocks in enumerate(model.blocks)
        ]

    # Names that this version does not know were refused before, so these are all of its kernels.
    own = {name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree}
    made = backbone.clone(parent=None, dtype=jnp.float32).apply(own, method=gather)
    return jax.device_get(made)
