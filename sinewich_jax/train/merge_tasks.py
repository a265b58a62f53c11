"""Tasks of runs with adapters as experts of a merge: the kernels that they make, not the factors.

    with merge_tasks.opened("swin_t.safetensors", {"depth": "runs/a", "edge": "runs/b@edge"}) as (
        base,
        experts,
    ):
        stream.merge_files("ties", base, experts, "merged")

A kernel is the sine of its factors' product at the task's own frequency, so a mean of factors is
something else than a mean of kernels, and means nothing between other frequencies. Kernels are
ordinary weights of the plain backbone; they are made leaf by leaf as the merge reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sinewich_jax.errors import CheckpointError, ConfigError
from sinewich_jax.merging.plan import Model, open_base
from sinewich_jax.storage.fingerprint import Fingerprint
from sinewich_jax.storage.leaves import BACKBONE, CHECKPOINTS, LeafSource, LeafSpec, Shards
from sinewich_jax.storage.opening import open_leaves

if TYPE_CHECKING:
    from sinewich_jax.convert.task_weights import TaskWeights

_NO_CURVATURE = "a run keeps the curvature of its factors, and kernels have another"


@contextlib.contextmanager
def opened(
    base: str | os.PathLike[str], experts: Mapping[str, str | os.PathLike[str]]
) -> Iterator[tuple[Model, dict[str, Model]]]:
    """What :func:`sinewich_jax.merging.stream.merge_files` takes for ``base`` and ``experts``.

    Runs with adapters become kernels where the base is a plain backbone, or a task is named;
    otherwise, with a run as base, everything stays as it is and factors are merged.

    Args:
      base: what all experts started from: a backbone, or a run.
      experts: by name a model, or ``WORKDIR@TASK``. Without a task a run's only one is meant, or
        that which is called as the expert.

    Raises:
      ConfigError: a task that the run does not have, or must be chosen; adapters that make no
        kernels of a plain backbone.
      CheckpointError: a base or run that cannot be read.
    """
    chosen = {name: _split(path) for name, path in experts.items()}
    models: dict[str, Model] = {name: path for name, (path, _) in chosen.items()}
    with contextlib.ExitStack() as stack:
        if any(map(_is_run, models.values())):
            origin = stack.enter_context(open_base(base))
            kernels = any(task for _, task in chosen.values()) or not _has_adapters(origin)
            for name, (path, task) in chosen.items():
                if kernels and (task or (_is_run(path) and _run_has_adapters(path))):
                    models[name] = stack.enter_context(open_task(path, task, name))
                    base = _plain(origin)
        yield base, models


def open_task(
    workdir: str | os.PathLike[str], task: str | None = None, name: str | None = None
) -> LeafSource:
    """A task of a run as plain weights, under the names of the backbone that the run started from.

    What belongs to the task besides (decoder, clock, the MLPs for which a plain backbone has no
    place) comes along and stays with the task in a merge. In memory is one leaf at a time.

    Args:
      workdir: the work directory of a run with adapters.
      task: which; None for the only one, or the one called ``name``.
      name: what the expert is called.

    Raises:
      ConfigError: no such task, or adapters that make no kernels of a plain backbone.
      CheckpointError: no run, or one that cannot be read.
    """
    from sinewich_jax.convert import task_weights
    from sinewich_jax.train import build
    from sinewich_jax.train import workdir as workdirs

    workdir = Path(workdir)
    config = workdirs.read_config(workdir)
    task = _task(workdir, config.tasks, task, name)
    if not _run_has_adapters(workdir):
        raise ConfigError(
            f"the run {workdir} has no adapters, so that its tasks share one backbone and none can "
            f"be chosen; leave out '@{task}'"
        )
    model = build.experiment(build.for_shapes(config)).model
    if reason := task_weights.obstacle(model):
        raise ConfigError(
            f"{reason}, so that task {task!r} of {workdir} makes no kernels of a plain backbone; "
            "to merge factors give a run as --base and name no task"
        )
    with contextlib.ExitStack() as stack:
        params = stack.enter_context(open_leaves(workdir))
        frozen = stack.enter_context(open_leaves(workdir, "frozen"))
        homes = {f"params/{name}": (params, name) for name in params.names}
        homes |= {name: (frozen, name) for name in frozen.names if name not in homes}
        source = Shards(params.path, homes, params.metadata, params.notes)
        weights = task_weights.TaskWeights(model, source.names, source.read, task)
        made = TaskLeaves(Path(f"{workdir}@{task}"), weights, source, _start_of(workdir))
        stack.pop_all()
    return made


class TaskLeaves(LeafSource):
    """The leaves of :func:`open_task`."""

    def __init__(self, path: Path, weights: TaskWeights, source: LeafSource, start: str) -> None:
        """Takes the source over: closing this closes it.

        Args:
          path: what messages call it.
          weights: made of the source.
          source: the run's variables, ``params/...`` and the like.
          start: fingerprint of the plain backbone that the run started from.
        """
        made = weights.params | weights.branches
        specs = {name: LeafSpec(shape, np.dtype(np.float32)) for name, shape in made.items()}
        self._homes = {
            name.removeprefix("params/"): name
            for name in source.names
            if name.startswith("params/") and not name.startswith(f"params/{BACKBONE}")
        }
        specs |= {name: source.spec(home) for name, home in self._homes.items()}
        metadata = {
            "step": source.metadata["step"],
            "task": weights.task,
            "base_fingerprint": start,
            "per_task": json.dumps([*weights.branches, *self._homes]),
            "no_curvature": _NO_CURVATURE,
        }
        note = f"{path}: adapters are merged as the kernels that they make"
        super().__init__(path, specs, metadata, (*source.notes, note))
        self._weights, self._source = weights, source

    def read(self, name: str) -> np.ndarray:
        """See :meth:`LeafSource.read`."""
        self.spec(name)
        if name in self._homes:
            return self._source.read(self._homes[name])
        return self._weights.leaf(name)

    def close(self) -> None:
        """Closes the run's files."""
        self._source.close()


def _split(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """``WORKDIR@TASK`` in two; a path that is there is no such thing."""
    workdir, at, task = os.fspath(path).rpartition("@")
    if not at or Path(path).exists():
        return Path(path), None
    if not task or not _is_run(Path(workdir)):
        raise CheckpointError(
            f"expected weights at {path}, or WORKDIR@TASK for a task of a run; found neither"
        )
    return Path(workdir), task


def _is_run(path: Path) -> bool:
    return (path / CHECKPOINTS).is_dir()


def _run_has_adapters(workdir: Path) -> bool:
    with open_leaves(workdir) as source:
        return _has_adapters(source)


def _task(workdir: Path, tasks: tuple[str, ...], task: str | None, name: str | None) -> str:
    if task is None and len(tasks) == 1:
        return tasks[0]
    wanted = name if task is None else task
    if wanted in tasks:
        return wanted
    raise ConfigError(
        f"the run {workdir} has no task {wanted!r}, only {', '.join(tasks)}; choose by --expert "
        f"NAME={workdir}@TASK"
    )


def _backbone(source: LeafSource) -> dict[str, str]:
    """The name that each leaf of a backbone has in a file of it alone -> its name here."""
    inside = [name for name in source.names if name.startswith(BACKBONE)]
    return {name.removeprefix(BACKBONE): name for name in inside or source.names}


def _has_adapters(source: LeafSource) -> bool:
    from sinewich_jax.nn.sinewich import is_adapter

    return any(is_adapter(f"{BACKBONE}{name}") for name in _backbone(source))


def _plain(source: LeafSource) -> Shards:
    """The leaves of a backbone without its adapters, as in a file of it alone."""
    from sinewich_jax.nn.sinewich import is_adapter

    names = _backbone(source)
    homes = {n: (source, name) for n, name in names.items() if not is_adapter(f"{BACKBONE}{n}")}
    return Shards(source.path, homes, source.metadata, source.notes)


def _start_of(workdir: Path) -> str:
    """The fingerprint of the plain backbone that a run started from."""
    digest = Fingerprint()
    with open_leaves(workdir, "start") as source:
        plain = _plain(source)
        for name in plain.names:
            digest.add(name, plain.read(name))
    return str(digest)
