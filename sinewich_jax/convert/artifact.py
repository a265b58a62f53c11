"""One task of a model as a file that any JAX runs: StableHLO with its weights, any batch size.

    call = convert.load_artifact("depth.stablehlo")
    depth = call(images)  # uint8 (B, H, W, 3) -> float32 (B, H, W, channels)

The file needs neither this library nor Flax, only ``jax.export``, and runs on CPU, CUDA and TPU.
JAX promises to read it for six months of its releases, so it is for deployment and not for keeping:
keep the run, or weights (:mod:`~sinewich_jax.convert.export`). Beside it lies ``FILE.json``, which
says what goes in and what comes out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.convert import fold as folding
from sinewich_jax.convert.task_weights import obstacle
from sinewich_jax.core import trees
from sinewich_jax.errors import CheckpointError, ConfigError, did_you_mean
from sinewich_jax.nn.decoder import Decoder
from sinewich_jax.nn.resize import resize_bilinear
from sinewich_jax.nn.sinewich import MultiTaskModel
from sinewich_jax.storage import atomic

PLATFORMS = ("cpu", "cuda", "tpu")

_NO_FLATBUFFERS = (
    "artefacts are written and read with flatbuffers, which is not installed; pip install "
    "'sinewich-jax[export]'"
)

Predictor = Callable[[jax.Array], jax.Array]


def predictor(model: MultiTaskModel, variables: Mapping[str, Any], task: str) -> Predictor:
    """The function from images to one task's output.

    Where the adapters fold into a plain Swin, only this task is computed, from folded weights, at
    the cost of a plain network. Where they do not (``task_weights.obstacle`` says why), the whole
    adapter model runs, and this task is taken from it. Both in float32.

    Args:
      model: a trained multi-task model.
      variables: all of its variables.
      task: one of its heads.

    Returns:
      ``image uint8 (B, H, W, 3) -> float32 (B, H, W, channels)``: logits or values, as the model
      gives them, normalisation of the image included.

    Raises:
      ConfigError: no such task.
      CheckpointError: weights that are not this model's.
    """
    heads = dict(model.heads)
    if task not in heads:
        raise ConfigError(f"the model has no task {task!r}{did_you_mean(task, heads)}")
    mean, std = np.float32(model.backbone.image_mean), np.float32(model.backbone.image_std)

    def normalise(image: jax.Array) -> jax.Array:
        return (image.astype(jnp.float32) / 255.0 - mean) / std

    if obstacle(model):
        exact = folding.in_float32(model)

        def whole(image: jax.Array) -> jax.Array:
            return exact.apply(variables, normalise(image))[task]

        return whole

    folded = folding.fold_task(model, variables, task)
    decoder, own, omega = _one_head(model, variables, task)
    stride = model.backbone.stride

    def predict(image: jax.Array) -> jax.Array:
        features = [feature[None] for feature in folding.folded_features(folded, normalise(image))]
        output = decoder.apply(own, features, omega)[task]
        height, width = image.shape[1:3]
        full = (-(-height // stride) * stride, -(-width // stride) * stride)
        return resize_bilinear(output, *full)[:, :height, :width]

    return predict


def difference(
    function: Predictor,
    model: MultiTaskModel,
    variables: Mapping[str, Any],
    task: str,
    image: jax.Array | np.ndarray,
) -> float:
    """The largest difference to the adapter model in one task's output, relative to its largest.

    Args:
      function: what :func:`predictor` returned.
      model: the adapter model.
      variables: its variables.
      task: one of its heads.
      image: uint8 (B, H, W, 3).
    """
    exact = folding.in_float32(model)
    mean, std = np.float32(model.backbone.image_mean), np.float32(model.backbone.image_std)
    normalised = (np.asarray(image, np.float32) / 255 - mean) / std
    golden = folding.run_once(lambda v, x: exact.apply(v, x)[task], variables, normalised)
    return folding.relative_gap(golden, folding.run_once(function, image))


def save_artifact(
    path: str | os.PathLike[str],
    function: Predictor,
    size: tuple[int, int],
    facts: Mapping[str, Any] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Compiles a predictor to StableHLO for images of one size and any number of them.

    Args:
      path: gets the artefact; ``<path>.json`` gets ``facts`` with shapes and platforms.
      function: what :func:`predictor` returned.
      size: height and width of the images; windows are cut for it, so it is fixed.
      facts: JSON about the run and the task.
      platforms: where it shall run.

    Raises:
      ConfigError: ``flatbuffers`` is not installed.
      CheckpointError: a full disk.
    """
    from jax import export

    path = Path(path)
    (batch,) = export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    exported = export.export(jax.jit(function), platforms=list(platforms))(image)
    try:
        content = exported.serialize()
    except ImportError as error:
        raise ConfigError(_NO_FLATBUFFERS) from error
    (output,) = exported.out_avals
    atomic.write_bytes(path, bytes(content))
    atomic.write_json(
        Path(f"{path}.json"),
        {
            **(facts or {}),
            "input": {"shape": ["batch", *size, 3], "dtype": "uint8", "colours": "RGB"},
            "output": {"shape": ["batch", *output.shape[1:]], "dtype": str(output.dtype)},
            "platforms": list(platforms),
            "jax": jax.__version__,
        },
    )


def load_artifact(path: str | os.PathLike[str]) -> Predictor:
    """Reads an artefact back.

    Args:
      path: what :func:`save_artifact` wrote.

    Raises:
      ConfigError: ``flatbuffers`` is not installed.
      CheckpointError: the file is not there, or is no artefact that this JAX can read.
    """
    from jax import export

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"expected an artefact at {path}, found nothing; check the path")
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
    except ImportError as error:
        raise ConfigError(_NO_FLATBUFFERS) from error
    # flatbuffers reads whatever bytes it is given and fails in many ways
    except Exception as error:
        raise CheckpointError(
            f"{path} is no artefact that jax {jax.__version__} can read ({type(error).__name__}); "
            "export it again with a JAX of the last six months"
        ) from error
    return exported.call


def _one_head(
    model: MultiTaskModel, variables: Mapping[str, Any], task: str
) -> tuple[Decoder, dict[str, Any], np.ndarray | None]:
    """A decoder of one task, its variables, and its frequency (1,) where it reads one."""
    names = [name for name, _ in model.heads]
    index = names.index(task)
    decoder = Decoder(model.backbone.channels, (model.heads[index],), model.decoder)
    features = [jnp.zeros((1, 1, 1, 1, width)) for width in model.backbone.channels]
    shapes = jax.eval_shape(
        lambda: decoder.init(jax.random.key(0), features, jnp.ones(1), train=False)
    )
    own = {
        name: trees.unflatten_paths(
            {
                path: _own_part(trees.flatten_paths(variables[name]["decoder"]), path, leaf, index)
                for path, leaf in trees.flatten_paths(tree).items()
            }
        )
        for name, tree in shapes.items()
    }
    omega = model.apply(variables, method="frequencies").get("decoder")
    return decoder, own, None if omega is None else np.asarray(omega)[index : index + 1]


def _own_part(flat: Mapping[str, Any], path: str, like: Any, index: int) -> np.ndarray:
    """A leaf that tasks share, or the task's row of one that has an axis of tasks."""
    leaf = np.asarray(flat[path])
    if leaf.shape == like.shape:
        return leaf
    if leaf.shape[1:] == like.shape[1:] and like.shape[0] == 1:
        return leaf[index : index + 1]
    raise CheckpointError(
        f"the decoder parameter {path!r} has shape {leaf.shape}, expected {like.shape} or a row of "
        "it for each task"
    )
