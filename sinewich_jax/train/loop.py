"""The training run, read from top to bottom: data, step, log, evaluate, save.

``train`` takes a config and a work directory and can be called again with the same two after any
interruption: it goes on from the newest whole checkpoint and, on CPU, gives the same losses bit for
bit as a run that was never stopped.  Batches are pure functions of (seed, step) and dropout keys of
(seed, step, sample), so nothing but the state has to be restored.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from sinewich_jax import data, parallel
from sinewich_jax.config import Config
from sinewich_jax.data import pipeline
from sinewich_jax.train import (
    checkpointing,
    evaluate,
    merge_item,
    monitor,
    signals,
    timing,
    writers,
)
from sinewich_jax.train import step as steps
from sinewich_jax.train import workdir as workdirs
from sinewich_jax.train.references import read_references
from sinewich_jax.train.setup import set_up


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of :func:`train` ended.

    Attributes:
      status: ``"finished"``; ``"stopped"`` on request, after saving; ``"already_finished"`` when
        there was nothing left to do.
      step: optimizer steps done.
      results: content of ``results.json``; None when stopped.
    """

    status: Literal["finished", "stopped", "already_finished"]
    step: int
    results: dict[str, Any] | None


def train(
    config: Config,
    workdir: str | Path,
    experiment: Any = None,
    devices: Sequence[jax.Device] | None = None,
    references: Sequence[str | Path] = (),
) -> Outcome:
    """Trains, evaluates and reports one experiment, or goes on where it was stopped.

    Args:
      config: the run.
      workdir: where it leaves its files; made when missing.
      experiment: the model, tasks and data; None builds what ``config`` names.
      devices: devices of the mesh; None takes all.
      references: work directories of single-task runs, for Delta m.

    Returns:
      How it ended.

    Raises:
      ConfigError: the work directory belongs to another config, or sizes do not fit the mesh.
      DataError: training or evaluation data that is absent or not what it should be.
      CheckpointError: a full disk, no checkpoint that can be read, or a reference that is none.
      TrainingError: a loss or gradient that is not finite.
    """
    # ---- Work directory ----------------------------------------------------------------------
    workdir = Path(workdir).absolute()
    workdirs.prepare(workdir, config)
    config = workdirs.as_begun(workdir, config)
    if workdirs.is_finished(workdir, config):
        again = f"sinewich evaluate {workdir}{' --reference ...' if references else ''}"
        if config.data not in data.names():  # examples that a command does not know
            again = "sinewich_jax.train.evaluate.evaluate_workdir with its experiment"
        writers.announce(
            f"{workdir} is complete: {config.steps} steps and their results are there; nothing to "
            f"do ({again} scores it again)"
        )
        return Outcome("already_finished", config.steps, workdirs.read_results(workdir))
    known = read_references(references, config)

    # ---- Devices -----------------------------------------------------------------------------
    mesh = parallel.make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    rows = parallel.local_slice(mesh, config.batch_size)

    # ---- Model, optimizer, state -------------------------------------------------------------
    setup = set_up(config, mesh, experiment, workdir)
    experiment, placed = setup.experiment, setup.placed
    state, constants = placed.state, placed.constants
    train_step = steps.make_train_step(experiment, setup.tx, placed, mesh, config.seed)
    evaluator = evaluate.Evaluator(setup, config.batch_size, config.eval_resolution)

    # ---- Data --------------------------------------------------------------------------------
    # What is wrong with the data is said now, not after hours of training.
    train_source = experiment.train_source
    for source in (train_source, evaluator.source):
        data.look_over(source)
    workdirs.claim(workdir, config)

    with checkpointing.open_store(workdir, config) as store:
        # ---- Checkpoint ----------------------------------------------------------------------
        timer, first_step = timing.Timer(), 0
        if (resumed := checkpointing.resume(store, workdir, placed)) is not None:
            state, constants = resumed.state, resumed.constants
            first_step, base = int(state.step), resumed.meta["base"]
            start = resumed.meta.get("merge", {}).get("start")
            timer = timing.Timer(**resumed.meta["timing"])
            for step, reason in resumed.skipped:
                writers.announce(
                    f"checkpoint of step {step} cannot be read and is skipped: {reason}"
                )
            writers.announce(f"going on from the checkpoint of step {first_step} in {workdir}")
        else:
            base = checkpointing.save_base(workdir, constants)
            experiment.begin(workdir)
            start = merge_item.save_start(workdir / workdirs.BASE, state.params, setup.per_task)

        def save(step: int) -> None:
            meta = checkpointing.describe(config, setup.counts, base, timer.record())
            omega = evaluator.frequencies(state, constants)
            meta["merge"] = merge_item.describe(
                config, setup.merge_base, start, omega, setup.per_task, setup.shared
            )
            checkpointing.save(store, step, state, meta)

        # ---- Training ------------------------------------------------------------------------
        stream = pipeline.batches(
            train_source,
            tuple(task.name for task in experiment.tasks),
            config.batch_size,
            config.seed,
            augment=experiment.augment,
            local=rows,
        )
        batches = stream.iterate(first_step, config.steps, threads=config.workers)

        shown = [f"eval/{task.name}/{task.primary}" for task in experiment.tasks]
        with writers.make_writers(workdir, config.steps, first_step, shown) as writer:
            guard = monitor.NanGuard(workdir, stream.source_index, parallel.is_main_process())
            collapsed = False
            with contextlib.closing(batches), signals.StopRequest() as stop:
                for step, batch in enumerate(batches, first_step + 1):
                    state, metrics = train_step(state, constants, parallel.put_batch(batch, mesh))
                    guard.add(step, metrics, batch["index"])
                    timer.step(config.batch_size)

                    if step == first_step + 1:
                        guard.check()  # waits for the compilation, which is not speed
                        timer.skip()
                    if step == 1 or step % config.log_every == 0 or step == config.steps:
                        scalars, speed = guard.check(), timer.lap()
                        left = (config.steps - step) * config.batch_size / timer.images_per_second
                        diagnostics = evaluator.diagnose(state, constants)
                        timings = {"images_per_second": speed, "eta_seconds": left}
                        writer.write(step, {**scalars, **timings, **diagnostics})
                        warning = monitor.collapse_warning(diagnostics)
                        if step > config.warmup_steps and warning and not collapsed:
                            writer.note(step, warning, kind="warning")
                        collapsed = step > config.warmup_steps and warning is not None
                        timer.skip()

                    if config.eval_every and step % config.eval_every == 0 and step < config.steps:
                        writer.write(step, evaluate.flatten(evaluator.score(state, constants)))
                        timer.skip()

                    stopping = stop.agreed(step, config.log_every)
                    due = config.checkpoint_every and step % config.checkpoint_every == 0
                    if due or stopping or step == config.steps:
                        guard.check()
                        save(step)
                        timer.skip()
                    if stopping and step < config.steps:
                        store.wait()
                        writer.note(
                            step,
                            f"stopped at step {step} of {config.steps} and saved; the same command "
                            "goes on from here",
                        )
                        return Outcome("stopped", step, None)
            store.wait()
            times = timer.summary()

            # ---- Results ---------------------------------------------------------------------
            results = evaluate.report_run(
                config, workdir, evaluator, state, constants, times, known
            )
            scores = {name: row["all"] for name, row in results["tasks"].items()}
            writer.write(config.steps, evaluate.flatten(scores))
    return Outcome("finished", config.steps, results)
