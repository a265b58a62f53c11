"""A new task on a trained run: it learns one frequency and one head, everything else stays.

    python train.py --config=configs/scenes.py --config.add_task=edge --config.base_run=runs/five

What all tasks share (backbone, LoRA, task factors, the clock's net, the decoder's kernel) is frozen
bit for bit, so a step costs what a network of one task costs, and the old tasks cannot change. The
new task gets its token (or its scalar frequency), its projections, its bias and batch norm before
the shared convolution, and its output layer; under ``lora_task`` and MTLoRA its own update, too.
Its frequency starts in the widest gap that the old ones leave.

The work directory is an ordinary run of the new task alone; ``joined/`` in it is a run of all tasks
that ``sinewich evaluate``, ``predict`` and ``export`` read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax import parallel
from sinewich_jax.config import PER_TASK_KEYS, Config
from sinewich_jax.core import trees
from sinewich_jax.errors import ConfigError
from sinewich_jax.train import build, checkpointing, loop, trained
from sinewich_jax.train import state as states
from sinewich_jax.train import workdir as workdirs

JOINED = "joined"

# What the new task's model has to have in common with the run that it is added to.
MODEL_KEYS = (
    "backbone",
    "method",
    "start",
    "rank",
    "task_rank",
    "filter",
    "scale",
    "modulation",
    "kernel_size",
    "conv_mode",
    "kernel_base",
    "lowpass",
    "tokens",
    "clock",
    "clock_hidden",
    "frequency_scope",
    "features",
    "decoder_channels",
    "decoder_hidden",
    "decoder_position",
    "decoder_base",
    "dtype",
    "seed",
)


def train(
    config: Config, workdir: str | Path, references: Sequence[str | Path] = ()
) -> loop.Outcome:
    """Trains the new task and joins it to the old ones.

    Args:
      config: a run with ``add_task`` and ``base_run``; what makes the model comes from that run,
        everything else (data, steps, rates, the new task's loss) from here.
      workdir: of the new run.
      references: of single-task runs, for Delta m.

    Returns:
      How the training ended.

    Raises:
      ConfigError: a task that the run has already, or a run whose tasks see each other's tokens.
      CheckpointError: no run, or no whole checkpoint, in ``base_run``.
    """
    base = trained.read_trained(config.base_run)
    own = task_config(base, config)
    experiment = build.experiment(own)
    shared = dataclasses.replace(experiment, start=shared_variables(base, experiment))
    outcome = loop.train(own, workdir, shared, references=references)
    if outcome.status != "stopped" and not (Path(workdir) / JOINED / workdirs.CONFIG_FILE).exists():
        join(base, trained.read_trained(workdir), Path(workdir) / JOINED)
    return outcome


def task_config(base: trained.Trained, config: Config) -> Config:
    """The config of the new task's own run."""
    old, new = base.config, config.add_task
    if new in old.tasks:
        raise ConfigError(f"the run {config.base_run} has task {new!r} already; add another")
    if base.experiment.model.prompts:
        raise ConfigError(
            f"the task tokens of {config.base_run} see each other in every window, so a new task "
            "would change the old ones; expected a run with tokens='condition'"
        )
    if old.method == "lora_split":
        raise ConfigError(
            f"the run {config.base_run} shares one rank between its tasks (lora_split) and has "
            "none left for another; expected lora_task, or another method"
        )
    return dataclasses.replace(
        config,
        **{key: getattr(old, key) for key in MODEL_KEYS},
        tasks=(new,),
        backbone_weights="random",  # its place is taken by that of the run
        clock_offsets=(free_offset(base),),
        **{
            key: tuple(pair for pair in getattr(config, key) if pair[0] == new)
            for key in PER_TASK_KEYS
        },
    )


def free_offset(base: trained.Trained) -> float:
    """The offset ``o`` of the frequency that lies farthest from all that are taken."""
    spec = base.experiment.model.clock
    tables = base.experiment.model.apply(base.variables, method="frequencies")
    if not tables:
        return 0.0
    taken = np.mean([np.asarray(omega) for omega in tables.values()], axis=0)
    taken = taken / spec.scale - spec.shift  # in units of the tanh
    free = np.linspace(-0.9, 0.9, 181)
    gap = np.abs(free[:, None] - taken[None]).min(axis=1)
    return float(np.arctanh(free[np.argmax(gap)]))


def shared_variables(base: trained.Trained, experiment: build.Experiment) -> dict[str, Any]:
    """What the new model takes over from the old one, by path."""
    own = re.compile("|".join((*build.own_rows(base.experiment.model), *build.OWN_RULES)))
    wanted = trees.flatten_paths(jax.eval_shape(experiment.init))
    return {
        path: leaf
        for path, leaf in trees.flatten_paths(base.variables).items()
        if path in wanted and not own.fullmatch(path.partition("/")[2])
    }


def join(base: trained.Trained, new: trained.Trained, folder: Path) -> Path:
    """Writes a run of the old tasks and the new one.

    Args:
      base: the run that the task was added to.
      new: the run of the new task.
      folder: the work directory to make.

    Returns:
      The folder.
    """
    (name,) = new.config.tasks
    tasks = (*base.config.tasks, name)
    config = dataclasses.replace(
        base.config,
        tasks=tasks,
        clock_offsets=(*offsets(base), *new.config.clock_offsets),
        **{key: (*getattr(base.config, key), *getattr(new.config, key)) for key in PER_TASK_KEYS},
    )
    experiment = build.experiment(dataclasses.replace(config, backbone_weights="random"))
    variables = joined_variables(base.variables, new.variables, experiment)
    params, _, _ = states.split_variables(variables, experiment.rules)
    tx = experiment.optimizer(config, jax.eval_shape(lambda: params))
    placed = states.place(
        variables,
        tx,
        experiment.rules,
        experiment.sharding_rules,
        parallel.make_mesh(devices=jax.local_devices()[:1]),
        weighting=experiment.weighting.init(),
    )
    workdirs.make(folder)
    mark = checkpointing.save_base(folder, placed.constants)
    counts = states.counts(variables, experiment.rules)
    with checkpointing.open_store(folder, config) as store:
        checkpointing.save(
            store, base.step, placed.state, checkpointing.describe(config, counts, mark, {})
        )
        store.wait()
    workdirs.claim(folder, config)
    return folder


def joined_variables(
    old: Mapping[str, Any], new: Mapping[str, Any], experiment: build.Experiment
) -> dict[str, Any]:
    """The variables of all tasks: rows one below the other, the rest from the old ones."""
    rows = re.compile("|".join(build.own_rows(experiment.model)))
    flat_old, flat_new = trees.flatten_paths(old), trees.flatten_paths(new)
    joined = {**flat_new, **flat_old}
    for path in flat_old.keys() & flat_new.keys():
        if rows.fullmatch(path.partition("/")[2]):
            joined[path] = jnp.concatenate([flat_old[path], flat_new[path]])
    return trees.unflatten_paths(joined)


def offsets(base: trained.Trained) -> tuple[float, ...]:
    """The offsets with which a run began."""
    return tuple(float(offset) for offset in base.experiment.model.clock.spread())
