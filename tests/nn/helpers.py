"""Variables of adapted backbones without running their random initialisation."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from tests.helpers import fake_params


def omegas(model: nn.Module, low: float = 0.6, high: float = 1.4) -> dict[str, jax.Array]:
    """The same spread frequencies for every task layer."""
    return {name: jnp.linspace(low, high, model.task.num_tasks) for name in model.task_layers}


def shapes_of(model: nn.Module, image: jax.Array) -> dict:
    keys = {"params": jax.random.key(1), "anchor": jax.random.key(2)}
    return jax.eval_shape(lambda: model.init(keys, image, omegas(model) if model.task else None))


def is_adapter(path: str) -> bool:
    return "/lora_" in path or "/task/" in path


def random_start(shapes: dict, task: Any) -> dict:
    """Variables as a pretrained backbone with fresh adapters has them, without running ``init``.

    Noise, except for what starts at a value that means something: up factors and gains at zero
    (unless the kernels are anchored), anchors at what they anchor, variances at one.

    Args:
      shapes: of all collections, from ``eval_shape``.
      task: the task part of the backbone, or None.
    """
    flat = fake_params(flatten_paths(shapes), seed=3, scale=0.3)
    anchored = getattr(task, "kind", None) == "sine" and task.start == "anchored"
    for path, value in sorted(flat.items(), reverse=True):  # parameters before their anchors
        if path.endswith("/lora_up") or (path.endswith("/task/up") and not anchored):
            flat[path] = np.zeros_like(value)
        elif path.startswith("params/") and "/task/" in path and anchored:
            flat[path] = value / 0.3  # a modulation index of order one, as anchored kernels have
        elif path.startswith("anchor/"):
            flat[path] = flat[path.replace("anchor/", "params/").replace("/factors/", "/")]
        elif path.startswith("batch_stats/") and path.endswith("/var"):
            flat[path] = np.ones_like(value)
    return unflatten_paths(flat)


def random_frozen(model: nn.Module, image: jax.Array) -> tuple[dict, dict]:
    """Variables with random frozen leaves and untouched adapters, and the frozen part alone."""
    variables = random_start(shapes_of(model, image), model.task)
    frozen = {k: v for k, v in flatten_paths(variables["params"]).items() if not is_adapter(k)}
    return variables, unflatten_paths(frozen)


def perturbed(variables: dict) -> dict:
    """Adapters moved away from their start, so that tasks differ."""
    flat = flatten_paths(variables["params"])
    noise = fake_params(flat, seed=5, scale=0.1)
    flat = {k: v + noise[k] if is_adapter(k) else v for k, v in flat.items()}
    return {**variables, "params": unflatten_paths(flat)}


def assert_untouched(run, plain, model: nn.Module, image: jax.Array) -> None:
    """Every task equals the frozen backbone bit for bit, at moderate and at high frequencies."""
    variables, frozen = random_frozen(model, image)
    golden = plain({"params": frozen}, image)
    for high in (1.4, 60.0):
        features = run(variables, image, omegas(model, high=high))
        for stage, (ours, theirs) in enumerate(zip(features, golden, strict=True)):
            assert ours.shape == (model.task.streams, *theirs.shape[1:])
            for task in range(model.task.streams):
                np.testing.assert_array_equal(ours[task], theirs[0], err_msg=f"stage {stage}")
