"""Scoring a model: metrics of every task, the mean-label baseline, ``results.json``, panels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sinewich_jax import data, parallel, storage, tasks
from sinewich_jax.config import Config, from_dict
from sinewich_jax.data import pipeline
from sinewich_jax.data.views import Subset
from sinewich_jax.errors import CheckpointError, ConfigError
from sinewich_jax.tasks import boundary
from sinewich_jax.tasks.edge import Edge
from sinewich_jax.train import checkpointing, monitor, timing, writers
from sinewich_jax.train import state as states
from sinewich_jax.train import step as steps
from sinewich_jax.train import workdir as workdirs
from sinewich_jax.train.progress import progress_bar
from sinewich_jax.train.references import read_references, scored_on
from sinewich_jax.train.setup import Setup, set_up

Scores = dict[str, dict[str, float]]
BASELINE_FILE = "baseline.json"
PANEL_EXAMPLES = 4
HELD_BYTES = 2**30


class Evaluator:
    """Scores states of one experiment; compiled once.

    Args:
      setup: the experiment on its mesh.
      batch_size: examples a batch; a multiple of the mesh's ``data`` axis.
      resolution: of the labels, ``"train"`` or ``"original"``.
    """

    def __init__(self, setup: Setup, batch_size: int, resolution: str = "train") -> None:
        experiment, placed, mesh = setup.experiment, setup.placed, setup.mesh
        self.setup = setup
        self._experiment, self._mesh, self._batch_size = experiment, mesh, batch_size
        self._resolution = resolution
        self._forward = steps.make_forward(experiment, placed, mesh)
        self._measure = steps.make_metric_step(experiment.tasks, mesh)
        self._diagnose = jax.jit(
            lambda params, model_state, constants: experiment.model.apply(
                states.join_variables(params, model_state, constants), method="diagnostics"
            ),
            out_shardings=parallel.replicated(mesh),
        )

    @functools.cached_property
    def source(self) -> Any:
        """The evaluation examples at the size that the network sees; opened once."""
        return self._experiment.eval_source

    @functools.cached_property
    def scored(self) -> Any:
        """The same examples with labels of the size at which they are scored."""
        if self._resolution == "train":
            return self.source
        return self._experiment.original_source

    @property
    def is_dense(self) -> bool:
        """Whether labels are maps, which can be shown as pictures."""
        return all(isinstance(task, tasks.DenseTask) for task in self._experiment.tasks)

    @functools.cached_property
    def tasks(self) -> tuple[tasks.Task, ...]:
        """The tasks with the class names of the data set, for people to read."""
        return tasks.with_class_names(self._experiment.tasks, self.source.class_names)

    @property
    def seen(self) -> str:
        """What is scored and at which size, for people to read."""
        count = len(self.source)
        if not self.is_dense:
            limit = f"of at most {self.source.max_tokens} tokens"
            return f"at most {count} evaluation texts of each task, {limit}"
        height, width = self.source[0]["image"].shape[:2]
        seen = f"{count} evaluation examples of {height} x {width} pixels"
        scored = "" if self._resolution == "train" else ", scored at their original size"
        return f"{seen}{scored}, single scale, no test-time augmentation"

    def score(self, state: states.TrainState, constants: Any) -> Scores:
        """Every metric of every task on the whole evaluation set: ``{task: {metric: value}}``."""
        return compute_scores(self.tasks, self.measure(state, constants))

    def measure(
        self,
        state: states.TrainState,
        constants: Any,
        rows: Sequence[int] | None = None,
        by: Evaluator | None = None,
    ) -> dict[str, Any]:
        """The metrics' states over the evaluation set, by task.

        Args:
          state: the trained state.
          constants: the frozen tree.
          rows: some examples only, by their places in :attr:`source`.
          by: the evaluator of another model for the same tasks, whose state and constants these
            are; it answers, and its answers are measured on this evaluator's examples.
        """
        answers = self if by is None else by
        return merge_states(
            self.tasks,
            (
                self._measure(answers._logits(state, constants, batch), batch)
                for batch in self.batches(rows)
            ),
        )

    def boundaries(self, state: states.TrainState, constants: Any, data_name: str) -> Scores:
        """odsF and its kin of every edge task, on the host: ``{task: {metric: value}}``.

        Args:
          state: the trained state.
          constants: the frozen tree.
          data_name: data set, which has its own matching distance.

        Raises:
          ConfigError: no edge task, or several processes, whose images it could not gather.
        """
        edges = [task for task in self.tasks if isinstance(task, Edge)]
        if not edges or jax.process_count() > 1:
            found = "no edge task" if not edges else f"{jax.process_count()} processes"
            raise ConfigError(f"the boundary benchmark needs an edge task on one process; {found}")
        reach = boundary.MAX_DISTANCE.get(data_name, boundary.BoundaryScore.max_distance)
        scores = {task.name: boundary.BoundaryScore(reach) for task in edges}
        with progress_bar("boundaries", len(self.source)) as advance:
            for batch in self._host_batches(self.scored):
                placed = parallel.put_batch(batch, self._mesh)
                logits = steps.at_label_size(self._logits(state, constants, placed), placed)
                frame = batch["valid"][edges[0].name].shape[1:]
                sizes = batch.get("size", [frame] * len(batch["image"]))
                for task in edges:
                    claims = np.asarray(task.predict(_local_rows(logits[task.name])))
                    labels, valid = batch["labels"][task.name], batch["valid"][task.name]
                    for (height, width), *maps in zip(sizes, claims, labels, valid, strict=True):
                        claim, label, mask = (array[:height, :width] for array in maps)
                        if mask.any():  # a padded example has no valid pixel
                            scores[task.name].add(claim, label, mask)
                advance(min(len(self.source), int(batch["index"].max()) + 1))
        return {name: score.compute() for name, score in scores.items()}

    def frequencies(self, state: states.TrainState, constants: Any) -> dict[str, Any]:
        """``{layer: (T,)}``, ``{}`` where nothing reads frequencies."""
        diagnostics = self._diagnose(state.params, state.model_state, constants)
        return jax.device_get(diagnostics["omega"])

    def diagnose(self, state: states.TrainState, constants: Any) -> dict[str, float]:
        """Frequencies, modulation index and update cosine as flat scalars."""
        diagnostics = jax.device_get(self._diagnose(state.params, state.model_state, constants))
        return monitor.flatten_diagnostics(
            diagnostics, [task.name for task in self._experiment.tasks]
        )

    def baseline(self, config: Config, workdir: Path) -> Scores:
        """Scores of the mean label map of the training set; kept in ``baseline.json``.

        Made anew when the run looks for its data elsewhere, or finds another number of examples.
        """
        path = workdir / BASELINE_FILE
        origin = {
            "data": config.data,
            "data_dir": config.data_dir,
            "train_examples": len(self._experiment.train_source),
            "eval_examples": len(self.source),
            "eval_resolution": self._resolution,
        }
        known = _kept_baseline(path)
        if known.get("origin") == origin:
            return _from_json(known["scores"])
        maps = mean_labels(self._experiment.tasks, self._experiment.train_source)
        rows = parallel.local_slice(self._mesh, self._batch_size)
        logits = parallel.put_batch(
            {
                name: np.broadcast_to(value, (rows.stop - rows.start, *value.shape))
                for name, value in maps.items()
            },
            self._mesh,
        )
        batches = (self._measure(logits, batch) for batch in self.batches())
        scores = compute_scores(self.tasks, merge_states(self.tasks, batches))
        if parallel.is_main_process():
            storage.write_json(path, {"origin": origin, "scores": finite(scores)})
        return scores

    def examples(
        self, state: states.TrainState, constants: Any, count: int = PANEL_EXAMPLES
    ) -> list[dict[str, Any]]:
        """The first evaluation examples with their predictions, as NumPy.

        Only of the rows that this process feeds; the main process holds the first ones.
        """
        host = next(self._host_batches(self.source))
        logits = self._logits(state, constants, parallel.put_batch(host, self._mesh))
        predictions = {
            task.name: np.asarray(task.predict(_local_rows(logits[task.name])))
            for task in self._experiment.tasks
        }
        count = min(count, len(self.source), len(host["index"]))
        return [
            {
                **self._experiment.shown(self.source, int(host["index"][row])),
                "labels": {name: value[row] for name, value in host["labels"].items()},
                "valid": {name: value[row] for name, value in host["valid"].items()},
                "predictions": {name: value[row] for name, value in predictions.items()},
                "index": int(host["index"][row]),
            }
            for row in range(count)
        ]

    def _logits(self, state: states.TrainState, constants: Any, batch: Any) -> Any:
        inputs = batch[self._experiment.inputs]
        return self._forward(state.params, state.model_state, constants, inputs)

    def _host_batches(self, source: Any) -> Iterator[Any]:
        return pipeline.eval_batches(
            source,
            self._batch_size,
            tuple(task.name for task in self._experiment.tasks),
            local=parallel.local_slice(self._mesh, self._batch_size),
        ).iterate()

    def batches(self, rows: Sequence[int] | None = None) -> Iterator[Any]:
        """The evaluation batches on the mesh; of some examples only, by their places."""
        source = self.scored if rows is None else Subset(self.scored, rows)
        batches = self._host_batches(source)
        return (parallel.put_batch(batch, self._mesh) for batch in batches)


def mean_labels(task_list: Sequence[tasks.Task], source: Any) -> dict[str, np.ndarray]:
    """Each task's best constant prediction over ``source``: ``{task: float32 [H, W, C]}``.

    Labels are read once and held when they fit into :data:`HELD_BYTES`, else once a task.
    """

    def maps() -> Iterator[tuple[Any, Any]]:
        for i in range(len(source)):
            example = source[i]
            yield example["labels"], example["valid"]

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(next(maps())))
    held = list(maps()) if size * len(source) <= HELD_BYTES else None
    means = {}
    for task in task_list:
        labels, valids = itertools.tee(maps() if held is None else held)
        means[task.name] = task.mean_label(
            (label[task.name] for label, _ in labels), (valid[task.name] for _, valid in valids)
        )
    return means


def make_results(
    task_list: Sequence[tasks.Task],
    scores: Scores,
    baseline: Scores,
    references: Mapping[str, float],
    **facts: Any,
) -> dict[str, Any]:
    """The content of ``results.json``.

    Args:
      task_list: the tasks.
      scores: metrics of the model.
      baseline: metrics of the mean label map.
      references: primary metric of single-task runs, for the tasks where it is known.
      **facts: further entries (parameters, protocol, times), taken as they are.

    Returns:
      ``{"tasks": {name: {"metric", "unit", "higher_is_better", "value", "baseline", "reference",
      "all"}}, "delta_m": percent or None, ...}``; numbers that are not finite become None.
      Delta m needs a reference for every task.
    """
    rows = {}
    for task in task_list:
        rows[task.name] = {
            "metric": task.primary,
            "unit": task.unit,
            "higher_is_better": task.higher_is_better,
            "value": scores[task.name][task.primary],
            "baseline": baseline[task.name][task.primary],
            "reference": references.get(task.name),
            "all": scores[task.name],
        }
    delta = None
    if all(task.name in references for task in task_list):
        delta = tasks.delta_m(
            {task.name: scores[task.name][task.primary] for task in task_list},
            references,
            {task.name: task.higher_is_better for task in task_list},
        )
    return finite({"tasks": rows, "delta_m": delta, **facts})


def _kept_baseline(path: Path) -> dict[str, Any]:
    """What ``baseline.json`` holds; ``{}`` where it is missing or damaged, for it can be remade."""
    try:
        content = workdirs.read_json(path)
    except CheckpointError:
        return {}
    return content if isinstance(content, dict) and "scores" in content else {}


def report_run(
    config: Config,
    workdir: Path,
    evaluator: Evaluator,
    state: states.TrainState,
    constants: Any,
    times: Mapping[str, float],
    references: Mapping[str, float],
    boundaries: bool = False,
) -> dict[str, Any]:
    """Scores a trained state and writes panels, ``results.md`` and ``results.json``.

    ``results.json`` comes last: its presence marks the run as complete.

    Args:
      config: the run.
      workdir: gets the files.
      evaluator: scores the experiment.
      state: the trained state.
      constants: the frozen tree.
      times: ``train_seconds`` and ``images_per_second`` of the training.
      references: what :func:`~sinewich_jax.train.references.read_references` returns.
      boundaries: run the boundary benchmark on edge tasks, too.

    Returns:
      The content of ``results.json``.
    """
    setup = evaluator.setup
    source, task_list = evaluator.source, evaluator.tasks
    measured = evaluator.measure(state, constants)
    scores = compute_scores(task_list, measured)
    if boundaries:
        matched = evaluator.boundaries(state, constants, config.data)
        scores = {name: {**row, **matched.get(name, {})} for name, row in scores.items()}
    results = make_results(
        task_list,
        scores,
        evaluator.baseline(config, workdir),
        references,
        **setup.counts,
        protocol=f"{_origin(config)}: {evaluator.seen}",
        inputs=setup.experiment.inputs,
        method=config.method,
        steps=int(state.step),
        seed=config.seed,
        scored_on=scored_on(config),
        notes=dict(getattr(source, "notes", {})),
        switching=_summary(evaluator.diagnose(state, constants)),
        **times,
    )
    examples = evaluator.examples(state, constants)
    setup.experiment.leave(workdir, evaluator, state, constants)
    if parallel.is_main_process():
        from sinewich_jax import report  # Pillow, which nothing before needs

        write = report.write_panels if evaluator.is_dense else report.write_answers
        write(workdir / workdirs.PANELS, task_list, examples)
        shown = {task.name: task.metric().chart(measured[task.name]) for task in task_list}
        report.write_diagnostics(
            workdir / workdirs.DIAGNOSTICS,
            {name: chart for name, chart in shown.items() if chart is not None},
        )
        report.write_results(workdir, results)
        storage.write_json(workdir / workdirs.RESULTS_FILE, results)
    return results


def evaluate_workdir(
    workdir: str | Path,
    references: Iterable[str | Path] = (),
    experiment: Any = None,
    devices: Sequence[jax.Device] | None = None,
    boundaries: bool = False,
    resolution: str | None = None,
) -> dict[str, Any]:
    """Scores the newest whole checkpoint of a run and rewrites its results.

    Args:
      workdir: the work directory of a run that has saved at least once.
      references: work directories of single-task runs, for Delta m.
      experiment: the model, tasks and data; None builds what the run's config names.
      devices: devices of the mesh; None takes all.
      boundaries: run the boundary benchmark (odsF) on edge tasks, too.
      resolution: ``"train"`` or ``"original"`` in place of the config's ``eval_resolution``.

    Returns:
      The content of ``results.json``; its ``steps`` are those of the checkpoint, so that a run that
      has not trained all of them stays open.

    Raises:
      CheckpointError: no run, or no whole checkpoint, in ``workdir``.
    """
    workdir = Path(workdir).absolute()
    config = workdirs.read_config(workdir)
    if resolution is not None:
        config = with_resolution(config, resolution)
    known = read_references(references, config)
    evaluator, resumed = open_run(workdir, config, experiment, devices)
    times = timing.Timer(**resumed.meta["timing"]).summary()
    return report_run(
        config, workdir, evaluator, resumed.state, resumed.constants, times, known, boundaries
    )


def with_resolution(config: Config, resolution: str) -> Config:
    """The config with another ``eval_resolution``."""
    return from_dict({**dataclasses.asdict(config), "eval_resolution": resolution})


def open_run(
    workdir: Path,
    config: Config,
    experiment: Any = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Evaluator, checkpointing.Resumed]:
    """The newest whole checkpoint of a run, and what scores it.

    Args:
      workdir: the work directory.
      config: the run's, perhaps with another ``eval_resolution`` or ``eval_split``.
      experiment: the model, tasks and data; None builds what ``config`` names.
      devices: devices of the mesh; None takes all.

    Raises:
      CheckpointError: no whole checkpoint.
    """
    mesh = parallel.make_mesh(devices=devices)
    setup = set_up(config, mesh, experiment, workdir)
    with checkpointing.open_store(workdir, config) as store:
        resumed = checkpointing.resume(store, workdir, setup.placed)
    if resumed is None:
        raise CheckpointError(f"{workdir} holds no checkpoint; train it first")
    for step, reason in resumed.skipped:
        writers.announce(f"checkpoint of step {step} cannot be read and is skipped: {reason}")
    # Padding counts nowhere, so any multiple of the devices scores the same.
    shards = mesh.shape["data"]
    batch_size = -(-config.batch_size // shards) * shards
    return Evaluator(setup, batch_size, config.eval_resolution), resumed


def flatten(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Scores as scalars for the metric writers: ``eval/<task>/<metric>``."""
    return {
        f"eval/{name}/{key}": value for name, row in scores.items() for key, value in row.items()
    }


def _origin(config: Config) -> str:
    """What was scored: ``"scenes, split val"``; sources of one's own have no split."""
    split = config.eval_split
    if split is None and config.data in data.names():
        split = data.default_eval_split(config.data)
    return f"{config.data}, split {split}" if split else config.data


def _summary(diagnostics: Mapping[str, float]) -> dict[str, float]:
    kept = ("update_cosine", "modulation_index")
    return {key: diagnostics[key] for key in kept if key in diagnostics}


def merge_states(
    task_list: Sequence[tasks.Task], states_of_batches: Iterable[Any]
) -> dict[str, Any]:
    """The metrics' states of a set, from those of its batches or parts, by task."""
    metrics = {task.name: task.metric() for task in task_list}
    totals = {name: metric.empty() for name, metric in metrics.items()}
    for batch_states in states_of_batches:
        host = jax.device_get(batch_states)
        totals = {name: metrics[name].merge(totals[name], host[name]) for name in metrics}
    return totals


def compute_scores(task_list: Sequence[tasks.Task], measured: Mapping[str, Any]) -> Scores:
    """Metric values, from their states: ``{task: {metric: value}}``."""
    return {task.name: task.metric().compute(measured[task.name]) for task in task_list}


def _local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array cut along its first axis that this process holds, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def finite(value: Any) -> Any:
    """Nested mappings for JSON: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def _from_json(scores: dict[str, dict[str, float | None]]) -> Scores:
    return {
        name: {key: math.nan if value is None else value for key, value in row.items()}
        for name, row in scores.items()
    }
