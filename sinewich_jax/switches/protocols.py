"""How good a router is: the honest protocol and the published ones side by side.

Published evaluations of Auto-Switch route a batch that holds one task only, and judge it with the
head of the true task. Whoever serves single samples has neither. Every protocol is therefore
measured twice, with the true task's head and with the head of the task that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.trees import map_paths
from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.switches.columns import aligned
from sinewich_jax.switches.dispatch import LEVELS, Dispatched
from sinewich_jax.switches.router import Router
from sinewich_jax.switches.traffic import PROTOCOLS, Traffic, check_protocols, send

Array = Any


class Examples(NamedTuple):
    """Labelled samples of one task.

    Attributes:
      inputs: of the model, arrays or a tree of them with N rows.
      features: (N, e), of the router.
      labels: N rows, for the function that scores.
    """

    inputs: Any
    features: Array
    labels: Any


class Protocol(NamedTuple):
    """One row of the comparison. Accuracies are means over tasks, each of which counts the same.

    Attributes:
      accuracy: with the head of the true task.
      routed_accuracy: with the head of the chosen task, sample by sample.
      by_task: (T,), ``accuracy`` of each task.
      routed_by_task: (T,), ``routed_accuracy`` of each task.
      task_accuracy: how often the chosen task is the true one.
      confusion: int (T, T), true task by chosen task; samples that abstained are in none.
      unknown: the fraction of samples beyond the router's threshold; those that went to the base
        if samples may abstain, and would have gone there otherwise.
      trees: distinct merged trees, the base among them.
      multiplier: forward passes a sample, that of the router's features and padding included.
    """

    accuracy: float
    routed_accuracy: float
    by_task: np.ndarray
    routed_by_task: np.ndarray
    task_accuracy: float
    confusion: np.ndarray
    unknown: float
    trees: int
    multiplier: float


class Protocols(NamedTuple):
    """The comparison.

    Attributes:
      names: of the tasks.
      rows: by protocol.
    """

    names: tuple[str, ...]
    rows: dict[str, Protocol]

    def table(self) -> str:
        """Protocols as lines of text, then for each sample alone who was taken for whom."""
        head = (
            "protocol",
            "true head",
            "chosen head",
            "task found",
            "unknown",
            "trees",
            "passes",
        )
        body = [
            (
                name,
                *(f"{100 * value:.2f} %" for value in (row.accuracy, row.routed_accuracy)),
                *(f"{100 * value:.1f} %" for value in (row.task_accuracy, row.unknown)),
                str(row.trees),
                f"{row.multiplier:.2f}",
            )
            for name, row in self.rows.items()
        ]
        text = "\n".join(aligned([head, *body]))
        shown = next((name for name in ("per_sample", "top1") if name in self.rows), None)
        if shown is None:
            return text
        confusion = self.rows[shown].confusion
        lines = [("true \\ chosen", *self.names)]
        lines += [
            (name, *map(str, row)) for name, row in zip(self.names, confusion.tolist(), strict=True)
        ]
        return "\n".join([text, "", f"{shown}:", *aligned(lines)])


def evaluate_protocols(
    run: Callable[[Any, np.ndarray], Any],
    score: Callable[[Any, np.ndarray, Any], Array],
    router: Router,
    tasks: Mapping[str, Examples],
    *,
    protocols: str | Sequence[str] = PROTOCOLS,
    batch: int = 256,
    abstain: bool = False,
    levels: int = LEVELS,
) -> Protocols:
    """Measures protocols on batches of one task each, as the published ones are.

    Args:
      run: ``run(inputs, weights (B, T))`` to what heads read, a row a sample: a
        :class:`~sinewich_jax.switches.dispatch.Dispatcher`, whose outputs are read, for example.
      score: ``score(outputs, heads (B,), labels)`` to (B,): whether (or how well) the head of task
        ``heads[i]`` answers sample i. A model with one head for all tasks ignores ``heads``.
      router: its names are the tasks.
      tasks: examples of every task of the router.
      protocols: of :data:`PROTOCOLS`, one or many.
      batch: samples a batch; it is part of what the batch protocols are.
      abstain: sends unknown samples to the base, in every protocol but the oracle's. Their chosen
        head is that of the best guess. Published evaluations do not abstain.
      levels: how routes are told apart, see :func:`~sinewich_jax.switches.dispatch.group_routes`.

    Raises:
      ConfigError: an unknown protocol, tasks that are not the router's, or a batch below 1.
      DataError: a task whose rows do not agree, or scores that are not one a sample.
    """
    protocols = (protocols,) if isinstance(protocols, str) else protocols
    check_protocols(protocols)
    if set(tasks) != set(router.names):
        raise ConfigError(
            f"there are examples of {sorted(tasks)}, and the router knows {sorted(router.names)}; "
            "give examples of each of its tasks"
        )
    if batch < 1:
        raise ConfigError(f"batch is {batch}; expected at least 1")
    for name in router.names:
        if len(tasks[name].features) != len(tasks[name].labels) or not len(tasks[name].labels):
            raise DataError(
                f"the task {name!r} has {len(tasks[name].features)} features and "
                f"{len(tasks[name].labels)} labels; expected as many, and at least one"
            )
    ordered = {name: tasks[name] for name in router.names}
    rows = {
        protocol: _measure(run, score, router, ordered, protocol, batch, abstain, levels)
        for protocol in protocols
    }
    return Protocols(router.names, rows)


def _measure(
    run: Callable[..., Any],
    score: Callable[..., Array],
    router: Router,
    tasks: Mapping[str, Examples],
    protocol: str,
    batch: int,
    abstain: bool,
    levels: int,
) -> Protocol:
    """One protocol over all tasks."""
    count = len(tasks)
    traffic = Traffic(count, levels)
    by_task, routed_by_task = np.zeros(count), np.zeros(count)
    for task, (name, examples) in enumerate(tasks.items()):
        for start in range(0, len(examples.labels), batch):
            rows = slice(start, start + batch)
            part = map_paths(lambda _, leaf, rows=rows: leaf[rows], examples)
            sent = send(router, part.features, task, protocol, abstain=abstain)
            traffic.add(task, sent)
            outputs = run(part.inputs, sent.weights)
            if isinstance(outputs, Dispatched):
                outputs = outputs.outputs
            size = len(part.labels)
            for heads, into in ((np.full(size, task), by_task), (sent.chosen, routed_by_task)):
                scores = np.asarray(score(outputs, heads, part.labels))
                if scores.shape != (size,):
                    raise DataError(
                        f"scores of the task {name!r} have shape {scores.shape}; expected ({size},)"
                    )
                into[task] += scores.sum()
    by_task, routed_by_task = by_task / traffic.seen, routed_by_task / traffic.seen
    return Protocol(
        accuracy=float(by_task.mean()),
        routed_accuracy=float(routed_by_task.mean()),
        by_task=by_task,
        routed_by_task=routed_by_task,
        task_accuracy=traffic.task_accuracy,
        confusion=traffic.confusion,
        unknown=traffic.unknown,
        trees=traffic.trees,
        multiplier=traffic.multiplier,
    )
