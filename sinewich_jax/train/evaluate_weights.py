"""A run's model with other weights in it, scored on the run's data: a merge, or a switched task.

The work directory stays as it is: no results are rewritten, nothing is kept there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sinewich_jax import storage
from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.errors import CheckpointError, ConfigError, did_you_mean
from sinewich_jax.nn.sinewich import is_adapter
from sinewich_jax.storage.leaves import BACKBONE, LeafSource
from sinewich_jax.train import evaluate
from sinewich_jax.train import workdir as workdirs


def evaluate_weights(
    workdir: str | Path,
    weights: str | Path,
    task: str | None = None,
    *,
    resolution: str | None = None,
    experiment: Any = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Scores a run's model with weights from elsewhere.

    Leaves of the run that the weights do not have, such as a decoder after a merge of backbones,
    stay those of the run; so do the statistics of its batch norms.

    Args:
      workdir: the work directory of a run that has saved at least once.
      weights: anything that :func:`sinewich_jax.storage.open_leaves` opens, or ``FILE.swb@TASK``
        for a task of a bank that was packed with what the run started from.
      task: score only this one.
      resolution: ``"train"`` or ``"original"`` in place of the config's ``eval_resolution``.
      experiment: the model, tasks and data; None builds what the run's config names.
      devices: devices of the mesh; None takes all.

    Returns:
      ``{"weights", "workdir", "steps", "replaced", "kept", "tasks"}``: numbers of leaves, and for
      each task ``metric``, ``unit``, ``higher_is_better``, ``value``, ``own`` (what the run itself
      scored when it was last evaluated, or None) and ``all``.

    Raises:
      ConfigError: a task that the run does not have.
      CheckpointError: no run, or weights that are not those of its model; the leaf is named.
    """
    workdir = Path(workdir).absolute()
    config = workdirs.read_config(workdir)
    if task is not None and task not in config.tasks:
        raise ConfigError(f"the run has no task {task!r}{did_you_mean(task, config.tasks)}")
    if resolution is not None:
        config = evaluate.with_resolution(config, resolution)
    evaluator, resumed = evaluate.open_run(workdir, config, experiment, devices)
    with _opened(workdir, weights) as source:
        frozen = resumed.constants["params"]
        model = {**flatten_paths(frozen), **flatten_paths(resumed.state.params)}
        homes = _homes(source, model)
        leaves = {path: source.read(name) for path, name in homes.items()}
    state = resumed.state._replace(params=_placed(resumed.state.params, leaves))
    constants = {**resumed.constants, "params": _placed(frozen, leaves)}
    found = evaluator.score(state, constants)
    known = _own_scores(workdir)
    rows = {
        one.name: {
            "metric": one.primary,
            "unit": one.unit,
            "higher_is_better": one.higher_is_better,
            "value": found[one.name][one.primary],
            "own": known.get(one.name),
            "all": found[one.name],
        }
        for one in evaluator.tasks
        if task in (None, one.name)
    }
    facts = {"replaced": len(leaves), "kept": len(model) - len(leaves), "tasks": rows}
    facts |= {"weights": os.fspath(weights), "workdir": os.fspath(workdir)}
    return evaluate.finite(facts | {"steps": int(resumed.state.step)})


@contextlib.contextmanager
def _opened(workdir: Path, weights: str | Path) -> Iterator[LeafSource]:
    """A file of weights, or a task of a bank on what the run started from."""
    bank, at, task = os.fspath(weights).rpartition("@")
    if at and not Path(weights).exists() and Path(bank).is_file():
        from sinewich_jax.train.switch_leaves import opened_bank

        with opened_bank(bank, {task: 1.0}, workdir) as source:
            yield source
        return
    if Path(weights).suffix == ".swb":
        raise ConfigError(f"{weights} holds switches of tasks; name one, as in {weights}@TASK")
    with storage.open_leaves(weights) as source:
        yield source


def _homes(source: LeafSource, model: Mapping[str, Any]) -> dict[str, str]:
    """Each parameter of the model that the weights have -> its name there.

    Raises:
      CheckpointError: a leaf that the model does not have or has in another shape, or kernels that
        already hold what the run's adapters would add once more.
    """
    homes: dict[str, str] = {}
    for name in source.names:
        path = name if name in model else f"{BACKBONE}{name}"
        if path not in model:
            raise CheckpointError(
                f"{source.path} has a leaf {name!r}, which the model of the run does not have; "
                "score it on a run of the model that it belongs to"
            )
        if source.spec(name).shape != model[path].shape:
            raise CheckpointError(
                f"the leaf {name!r} of {source.path} has shape {source.spec(name).shape}, expected "
                f"{model[path].shape} as in the run; score it on a run of its model"
            )
        homes[path] = name
    adapters = [path for path in model if is_adapter(path) and path not in homes]
    if adapters and any(path.startswith(BACKBONE) for path in homes):
        raise CheckpointError(
            f"{source.path} holds a plain backbone, and the run has adapters such as "
            f"{adapters[0]!r} that would be added to it; score it on a run without adapters, or "
            "make weights that hold the factors (a run as --base)"
        )
    return homes


def _placed(params: Any, leaves: Mapping[str, np.ndarray]) -> Any:
    """The parameters with other leaves in place, where they lay."""

    def choose(path: str, leaf: Any) -> Any:
        if path not in leaves:
            return leaf
        return jax.device_put(np.asarray(leaves[path]).astype(leaf.dtype), leaf.sharding)

    return map_paths(choose, params)


def _own_scores(workdir: Path) -> dict[str, float | None]:
    """The primary metric of each task as the run's results have it, ``{}`` before the first."""
    path = workdir / workdirs.RESULTS_FILE
    if not path.is_file():
        return {}
    rows = workdirs.read_json(path)["tasks"]
    return {name: row["value"] for name, row in rows.items()}
