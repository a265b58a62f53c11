"""A run's model with other weights in it, scored on the run's data: a merge, or a switched task.

The work directory stays as it is: no results are rewritten, nothing is kept there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from sinewich_jax import storage
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.storage.leaves import LeafSource
from sinewich_jax.train import evaluate, replace
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
        model = replace.parameters(resumed.state, resumed.constants)
        leaves = {path: source.read(name) for path, name in replace.homes(source, model).items()}
    found = evaluator.score(*replace.replaced(resumed.state, resumed.constants, leaves))
    known = own_scores(workdir)
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


def own_scores(workdir: Path) -> dict[str, float | None]:
    """The primary metric of each task as the run's results have it, ``{}`` before the first."""
    path = workdir / workdirs.RESULTS_FILE
    if not path.is_file():
        return {}
    rows = workdirs.read_json(path)["tasks"]
    return {name: row["value"] for name, row in rows.items()}
