"""Variables of adapted backbones without running their random initialisation."""

from __future__ import annotations

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


def random_frozen(model: nn.Module, image: jax.Array) -> tuple[dict, dict]:
    """Variables with random frozen leaves and untouched adapters, and the frozen part alone."""
    flat = fake_params(flatten_paths(shapes_of(model, image)), seed=3, scale=0.3)
    anchored = model.task.kind == "sine" and model.task.start == "anchored"
    for path, value in flat.items():
        if path.endswith("/lora_up") or (path.endswith("/task/up") and not anchored):
            flat[path] = np.zeros_like(value)
        elif path.startswith("anchor/"):
            # as at initialisation: what is trained starts at its frozen copy
            flat[path] = flat[path.replace("anchor/", "params/").replace("/factors/", "/")]
    variables = unflatten_paths(flat)
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
