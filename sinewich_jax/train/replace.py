"""A run's model with other weights in it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import jax
import numpy as np

from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.errors import CheckpointError
from sinewich_jax.nn.sinewich import is_adapter
from sinewich_jax.storage.leaves import BACKBONE, LeafSource
from sinewich_jax.train.state import TrainState


def parameters(state: TrainState, constants: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a model by path, trained and frozen."""
    return {**flatten_paths(constants["params"]), **flatten_paths(state.params)}


def replaced(
    state: TrainState, constants: Mapping[str, Any], leaves: Mapping[str, Any]
) -> tuple[TrainState, dict[str, Any]]:
    """State and constants with some parameters exchanged, each where the old one lay.

    Args:
      state: of a run.
      constants: of it.
      leaves: arrays by path, of the shapes that are there.
    """

    def choose(path: str, leaf: Any) -> Any:
        if path not in leaves:
            return leaf
        return jax.device_put(np.asarray(leaves[path]).astype(leaf.dtype), leaf.sharding)

    frozen = map_paths(choose, constants["params"])
    return state._replace(params=map_paths(choose, state.params)), {**constants, "params": frozen}


def home(name: str, model: Container[str]) -> str | None:
    """The path in a model of a leaf, which may be named as in a file of its backbone alone."""
    return next((path for path in (name, f"{BACKBONE}{name}") if path in model), None)


def homes(source: LeafSource, model: Mapping[str, Any]) -> dict[str, str]:
    """Each parameter of a model that a source has -> its name there.

    Args:
      source: weights.
      model: the model's parameters by path.

    Raises:
      CheckpointError: a leaf that the model does not have or has in another shape, or kernels that
        already hold what the run's adapters would add once more.
    """
    found: dict[str, str] = {}
    for name in source.names:
        path = home(name, model)
        if path is None:
            raise CheckpointError(
                f"{source.path} has a leaf {name!r}, which the model of the run does not have; "
                "score it on a run of the model that it belongs to"
            )
        if source.spec(name).shape != model[path].shape:
            raise CheckpointError(
                f"the leaf {name!r} of {source.path} has shape {source.spec(name).shape}, expected "
                f"{model[path].shape} as in the run; score it on a run of its model"
            )
        found[path] = name
    adapters = [path for path in model if is_adapter(path) and path not in found]
    if adapters and any(path.startswith(BACKBONE) for path in found):
        raise CheckpointError(
            f"{source.path} holds a plain backbone, and the run has adapters such as "
            f"{adapters[0]!r} that would be added to it; score it on a run without adapters, or "
            "make weights that hold the factors (a run as --base)"
        )
    return found
