"""From a config and a mesh to everything that a run needs before its first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from sinewich_jax.config import Config
from sinewich_jax.core import trees
from sinewich_jax.train import merge_item
from sinewich_jax.train import state as states


@dataclasses.dataclass(frozen=True)
class Setup:
    """An experiment on its mesh.

    Attributes:
      experiment: what ``build.experiment`` made.
      tx: its optimizer.
      placed: initial state and constants with their shardings.
      counts: ``{"trainable": N, "total": M}`` parameters.
      merge_base: the fingerprint of the backbone that the run starts from.
      per_task: paths of the trained parameters that are not mergeable.
      shared: paths of those that are.
      mesh: the mesh.
    """

    experiment: Any
    tx: optax.GradientTransformation
    placed: states.Placed
    counts: dict[str, int]
    merge_base: str
    per_task: tuple[str, ...]
    shared: tuple[str, ...]
    mesh: Mesh


def set_up(
    config: Config, mesh: Mesh, experiment: Any = None, workdir: Path | None = None
) -> Setup:
    """Initialises model and optimizer and places them on the mesh.

    Args:
      config: the run.
      mesh: the mesh.
      experiment: a model with its tasks and data; None builds what ``config`` names.
      workdir: of the run, which may have begun.
    """
    if experiment is None:
        # Here and not above: build knows every model and data set, and who brings an experiment
        # needs none of them.
        from sinewich_jax.train import build

        experiment = build.experiment(config, begun=workdir)
    # It runs once: optimising its machine code takes longer than that saves.
    init = jax.jit(experiment.init, compiler_options={"xla_backend_optimization_level": 0})
    variables = experiment.calibrated(init)
    params, _, _ = states.split_variables(variables, experiment.rules)
    tx = experiment.optimizer(config, jax.eval_shape(lambda: params))
    placed = states.place(
        variables,
        tx,
        experiment.rules,
        experiment.sharding_rules,
        mesh,
        weighting=experiment.weighting.init(),
    )
    counts = states.counts(variables, experiment.rules)
    paths = tuple(trees.flatten_paths(params))
    shared = tuple(filter(experiment.mergeable, paths))
    per_task = tuple(path for path in paths if path not in set(shared))
    base = merge_item.base_of(variables)
    return Setup(experiment, tx, placed, counts, base, per_task, shared, mesh)


def parameter_counts(experiment: Any) -> dict[str, int]:
    """``{"trainable": N, "total": M}`` from shapes alone: no data, no initialisation."""
    return states.counts(jax.eval_shape(experiment.init), experiment.rules)
