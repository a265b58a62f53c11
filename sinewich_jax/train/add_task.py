"""A new task on a trained run: it learns one frequency and one head, everything else stays.

    python train.py --config=configs/scenes.py --config.add_task=edge --config.base_run=runs/five

What all tasks share (backbone, LoRA, task factors, the clock's net, the decoder's kernel) is frozen
bit for bit, so a step costs what a network of one task costs, and the old tasks cannot change. The
new task gets its token (or its scalar frequency), its projections, its bias and batch norm before
the shared convolution, and its output layer; under ``lora_task``, MTLoRA and ``adapters`` its own
update, too. Its token starts as the mean of the old ones, its frequency at the centre of the widest
gap that the old ones leave in the clock's range (:func:`free_offset`).

The work directory is an ordinary run of the new task alone; ``joined/`` in it is a run of all tasks
that ``sinewich evaluate``, ``predict`` and ``export`` read. A ``single_task`` run becomes one of
``full_ft``, whose network is the same and which has room for more tasks than one.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
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

# What the new task's model has to have in common with the run that it is added to, its method apart
# (joint_method).
MODEL_KEYS = (
    "backbone",
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
    "adapters",
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
      ConfigError: what :func:`plan` raises.
      CheckpointError: no run, or no whole checkpoint, in ``base_run``.
    """
    base, experiment = plan(config)
    outcome = loop.train(experiment.config, workdir, experiment, references=references)
    joined = Path(workdir) / JOINED
    if outcome.status != "stopped" and not (joined / workdirs.CONFIG_FILE).exists():
        # The config is written last: a folder without one is what an interrupted join left.
        shutil.rmtree(joined, ignore_errors=True)
        join(base, trained.read_trained(workdir), joined)
    return outcome


def plan(config: Config) -> tuple[trained.Trained, build.Experiment]:
    """Everything that can be wrong with an added task, found before anything is trained.

    Args:
      config: a run with ``add_task`` and ``base_run``.

    Returns:
      The run that the task is added to, and the experiment of the new task.

    Raises:
      ConfigError: a run on texts, a task that the run has already, a run whose tasks see each
        other's tokens, or one that cannot be joined with another task.
      CheckpointError: no run, or no whole checkpoint, in ``base_run``.
    """
    base = trained.read_trained(config.base_run)
    trained.check_images(base.experiment, "the config key 'add_task'")
    experiment = new_experiment(base, task_config(base, config))
    check_join(base, experiment)
    return base, experiment


def new_experiment(base: trained.Trained, own: Config) -> build.Experiment:
    """The experiment of the new task, which starts from what the old ones share."""
    experiment = build.experiment(own)
    return dataclasses.replace(experiment, start=shared_variables(base, experiment))


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
        method=joint_method(old),
        tasks=(new,),
        backbone_weights="random",  # its place is taken by that of the run
        clock_offsets=(free_offset(base),),
        **{
            key: tuple(pair for pair in getattr(config, key) if pair[0] == new)
            for key in PER_TASK_KEYS
        },
    )


def joint_method(config: Config) -> str:
    """The method of a run of more tasks than one with the same network."""
    return "full_ft" if config.method == "single_task" else config.method


def free_offset(base: trained.Trained) -> float:
    """The offset ``o`` with which the new frequency starts where none is.

    A frequency is ``s (tanh(w . relu(p) + o) + c)``, so in units of its table's learned ``s`` and
    ``c`` it lies between -1 and 1, and the old ones divide that range into gaps. With one table
    (``frequency_scope="global"``) the new frequency starts at the centre of the widest. One offset
    cannot do that for several tables at once: there it is, of all offsets that hit the centre of a
    gap of some table, the one with the largest distance to the nearest old frequency or end of the
    range, as a mean over the tables.
    """
    taken, phases = tables(base)
    if not len(taken):
        return 0.0
    ends = np.ones((len(taken), 1))
    taken = np.sort(np.concatenate([-ends, taken.clip(-1, 1), ends], axis=1))
    # Free frequencies may have left the range; a tanh comes close to its ends and no further.
    centres = ((taken[:, 1:] + taken[:, :-1]) / 2).clip(-0.99, 0.99)
    candidates = (np.arctanh(centres) - phases[:, None]).ravel()
    starts = np.tanh(phases[:, None] + candidates)
    room = np.abs(starts[:, :, None] - taken[:, None]).min(axis=-1).mean(axis=0)
    # Rounded, so that gaps of one width, and with them the config of a run that is taken up again
    # elsewhere, do not hang on the last bit.
    return round(float(candidates[np.argmax(room.round(5))]), 5)


def tables(base: trained.Trained) -> tuple[np.ndarray, np.ndarray]:
    """The clock's tables as they were learned.

    Args:
      base: the run that a task is added to.

    Returns:
      ``omega / s - c`` of the old tasks in each table, (tables, T), and what the new token adds to
      the new task's offset there, ``w . relu(p)``, (tables,). Without tables both are empty.
    """
    model, spec = base.experiment.model, base.experiment.model.clock
    learned = base.variables["params"].get("clock", {})
    learned = {name: np.asarray(leaf, np.float64) for name, leaf in sorted(learned.items())}
    start = np.asarray(spec.spread(), np.float64)
    if not model.switching:
        return np.zeros((0, len(start))), np.zeros(0)
    if spec.kind == "fixed":
        return np.tanh(start)[None], np.zeros(1)
    if spec.kind == "free":  # a new scalar begins at the s and c of the config
        omega = np.stack([leaf for name, leaf in learned.items() if name.startswith("omega_")])
        return omega / spec.scale - spec.shift, np.zeros(len(omega))
    tokens = np.concatenate([learned["tokens"], new_token(base)]).clip(0)
    phases = []
    for name, weights in learned.items():
        kind, _, table = name.partition("_")
        if kind == "weights":
            phase, readout = tokens @ weights, learned.get(f"readout_{table}")
            phases.append(phase if readout is None else phase.clip(0) @ readout)
    phase = np.stack(phases)
    return np.tanh(phase[:, :-1] + start), phase[:, -1]


def new_token(base: trained.Trained) -> np.ndarray:
    """The token with which the new task starts, (1, C): the mean of the old ones.

    A token that adds nothing would have no positive entry, so ``relu`` would keep it from learning;
    a drawn one would depend on the device that draws it, and with it the offset in the config.
    """
    return np.asarray(base.variables["params"]["clock"]["tokens"]).mean(axis=0, keepdims=True)


def shared_variables(base: trained.Trained, experiment: build.Experiment) -> dict[str, Any]:
    """What the new model takes over from the old one, by path; a new token begins as their mean."""
    own = re.compile("|".join((*build.own_rows(base.experiment.model), *build.OWN_RULES)))
    wanted = trees.flatten_paths(jax.eval_shape(experiment.init))
    shared = {
        path: leaf
        for path, leaf in trees.flatten_paths(base.variables).items()
        if path in wanted and not own.fullmatch(path.partition("/")[2])
    }
    token = "params/clock/tokens"
    return {**shared, token: new_token(base)} if token in wanted else shared


def join(base: trained.Trained, new: trained.Trained, folder: Path) -> Path:
    """Writes a run of the old tasks and the new one.

    Args:
      base: the run that the task was added to.
      new: the run of the new task.
      folder: the work directory to make.

    Returns:
      The folder.
    """
    config = joined_config(base, new.config)
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


def joined_config(base: trained.Trained, own: Config) -> Config:
    """The config of the run of the old tasks and the new one, whose own run ``own`` is."""
    return dataclasses.replace(
        base.config,
        method=joint_method(base.config),
        tasks=(*base.config.tasks, *own.tasks),
        clock_offsets=(*offsets(base), *own.clock_offsets),
        **{key: (*getattr(base.config, key), *getattr(own, key)) for key in PER_TASK_KEYS},
    )


def check_join(base: trained.Trained, experiment: build.Experiment) -> None:
    """Joins shapes alone, because what does not fit is to be said before the new task is trained.

    Args:
      base: the run that the task is added to.
      experiment: that of the new task.

    Raises:
      ConfigError: the joined config is refused, or a variable would have another shape.
    """
    config = joined_config(base, experiment.config)
    joined = build.experiment(dataclasses.replace(config, backbone_weights="random"))
    found = jax.eval_shape(
        lambda old, new: joined_variables(old, new, joined),
        base.variables,
        jax.eval_shape(experiment.init),
    )
    shapes = [
        {path: leaf.shape for path, leaf in trees.flatten_paths(tree).items()}
        for tree in (found, jax.eval_shape(joined.init))
    ]
    for path in sorted(shapes[0].keys() | shapes[1].keys()):
        there, expected = (each.get(path, "none") for each in shapes)
        if there != expected:
            raise ConfigError(
                f"the run {experiment.config.base_run} has no room for another task: joined, the "
                f"shape of {path!r} would be {there}, expected {expected}; add the task to another "
                "run, or train all tasks anew"
            )


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
