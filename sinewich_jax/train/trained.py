"""A finished or stopped run as a model with its weights: no data, no optimizer, one device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sinewich_jax import storage
from sinewich_jax.config import Config
from sinewich_jax.errors import CheckpointError, ConfigError, did_you_mean
from sinewich_jax.train import checkpointing
from sinewich_jax.train import state as states
from sinewich_jax.train import workdir as workdirs

_READ = ("params", "model_state")


class Trained(NamedTuple):
    """A run's model.

    Attributes:
      experiment: what ``build.experiment`` made; its sources are not opened.
      variables: everything that ``experiment.model.apply`` takes.
      step: optimizer steps behind the weights.
      config: the run.
      skipped: newer checkpoints that could not be read, as (step, reason).
    """

    experiment: Any
    variables: dict[str, Any]
    step: int
    config: Config
    skipped: list[tuple[int, str]]


def check_images(experiment: Any, who: str) -> None:
    """Refuses a run on texts; see :func:`check_inputs`."""
    check_inputs(experiment, "image", who)


def check_inputs(experiment: Any, inputs: str, who: str) -> None:
    """Refuses a run whose tasks read something else.

    Args:
      experiment: of the run.
      inputs: ``"image"`` or ``"text"``.
      who: what knows these only, as a sentence begins with it.

    Raises:
      ConfigError: the tasks of the run read the other.
    """
    if experiment.inputs != inputs:
        raise ConfigError(
            f"{who} takes runs on {inputs}s, and the tasks of this one "
            f"({', '.join(task.name for task in experiment.tasks)}) read {experiment.inputs}s; "
            "expected the work directory of another run"
        )


def tasks_of(experiment: Any, names: Sequence[str] | None) -> tuple[Any, ...]:
    """The tasks of a run that are asked for, all where ``names`` is None.

    Raises:
      ConfigError: one bare name, or a task that the run does not have (the nearest is offered).
    """
    known = {task.name: task for task in experiment.tasks}
    if isinstance(names, str):
        raise ConfigError(f"the tasks are the one name {names!r}, expected a list of names")
    for name in names or ():
        if name not in known:
            raise ConfigError(f"the run has no task {name!r}{did_you_mean(name, known)}")
    return tuple(known[name] for name in names or known)


def read_trained(workdir: str | Path, experiment: Any = None) -> Trained:
    """Reads the newest whole checkpoint of a run.

    Args:
      workdir: the work directory of a run that has saved at least once.
      experiment: the model and its rules; None builds what the run's config names.

    Raises:
      CheckpointError: no run, or no whole checkpoint, in ``workdir``.
    """
    workdir = Path(workdir).absolute()
    config = workdirs.read_config(workdir)
    if experiment is None:
        from sinewich_jax.train import build

        # The weights that it started from are in the run's own base, and may be gone elsewhere.
        experiment = build.experiment(build.for_shapes(config), begun=workdir)
    params, model_state, _ = states.split_variables(
        jax.eval_shape(experiment.init), experiment.rules
    )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        dict(zip(_READ, (params, model_state), strict=True)),
    )
    with checkpointing.open_store(workdir, config) as store:
        restored = store.restore_latest(target)
    if restored is None:
        raise CheckpointError(f"{workdir} holds no checkpoint; train it first")
    base = restored.meta["base"]
    constants = {} if base is None else storage.load_base(workdir / workdirs.BASE, base)
    # Arrays of NumPy would be constants of whatever is traced around them.
    constants = jax.device_put({"params": {}, **constants}, here)
    variables = states.join_variables(*(restored.items[name] for name in _READ), constants)
    return Trained(experiment, variables, restored.step, config, restored.skipped)
