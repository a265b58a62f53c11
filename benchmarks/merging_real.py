"""Merging the experts of eight real tasks: every rule, its options chosen on ``val``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cells import load_arrays
from benchmarks.merging_agreement import margins
from benchmarks.real_tasks import Images, Tree, linear, load, pooled, score
from sinewich_jax import merging

MERGE = {"val": 256, "adamerging_steps": 100}


class Row(NamedTuple):
    """A row of the table of rules.

    Attributes:
      rule: the merge rule.
      source: which statistic it is given: ``"curvature"`` of training, ``"fisher"`` exact,
        ``"margins"`` of it, ``"gram"``, or None; ``normalised`` ones divide by their mean.
      grid: options among which the validation split chooses; one of them is not tuned.
    """

    rule: str
    source: str | None = None
    grid: tuple[dict[str, Any], ...] = ({},)

    @property
    def tuned(self) -> bool:
        """Whether anything was chosen."""
        return len(self.grid) > 1

    @property
    def needs_task(self) -> bool:
        """Whether the merged model has to be told the task."""
        return any(rule.conditional for rule in merging.rules() if rule.name == self.rule)


def grid(**options: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    """All combinations."""
    found: list[dict[str, Any]] = [{}]
    for name, values in options.items():
        found = [{**one, name: value} for one in found for value in values]
    return tuple(found)


SUMS = (0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4)
MEANS = (0.5, 1.0, 1.5, 2.0)
DENSITIES = (0.2, 0.5, 0.8)
ENTROPY = {"learning_rate": (1e-3, 1e-2), "init": (0.03, 0.1, 0.3)}
ROWS: dict[str, Row] = {
    "average": Row("average"),
    "task_arithmetic": Row("task_arithmetic", grid=grid(scale=SUMS)),
    "ties, default": Row("ties"),
    "ties": Row("ties", grid=grid(density=(*DENSITIES, 1.0), scale=MEANS)),
    "dare": Row("dare", grid=grid(density=(0.1, 0.5, 0.9), scale=(0.05, 0.1, 0.2))),
    "dare_ties": Row("dare_ties", grid=grid(density=(0.1, 0.5, 0.9), scale=(0.5, 1.0, 2.0))),
    "breadcrumbs": Row("breadcrumbs", grid=grid(scale=SUMS)),
    "magnitude_weighted": Row("magnitude_weighted"),
    "consensus": Row("consensus", grid=grid(scale=SUMS)),
    "ota": Row("ota", "curvature", grid(density=(*DENSITIES, 1.0))),
    "umtam, default": Row("umtam", "curvature"),
    "umtam": Row("umtam", "curvature", grid(density=(*DENSITIES, 1.0), scale=MEANS)),
    "curvature_average": Row("curvature_average", "curvature"),
    "curvature_average, normalised": Row("curvature_average", "curvature normalised"),
    "curvature_average, tuned": Row(
        "curvature_average", "curvature", grid(power=(0.25, 0.5, 1.0, 2.0), scale=MEANS)
    ),
    "curvature_average of Fisher margins": Row("curvature_average", "margins"),
    "fisher": Row("fisher", "fisher"),
    "fisher, normalised": Row("fisher", "fisher", ({"normalize": "global"},)),
    "regmean": Row("regmean", "gram", grid(ratio=(0.5, 0.9, 1.0))),
    "adamerging by task": Row("adamerging", grid=grid(granularity=("task",), **ENTROPY)),
    "adamerging by leaf": Row("adamerging", grid=grid(granularity=("leaf",), **ENTROPY)),
    "emr": Row("emr"),
    "tall": Row("tall", grid=grid(lam=(0.2, 0.4, 0.6, 0.8, 1.0))),
}
"""Every registered rule; those of a grid are chosen by the mean relative accuracy on ``val``."""


class Experts(NamedTuple):
    """What the rules are given.

    Attributes:
      base: the trunk of all.
      trunks: by task.
      heads: by task.
      stats: by source and task.
    """

    base: Tree
    trunks: dict[str, Tree]
    heads: dict[str, Tree]
    stats: dict[str, dict[str, Tree]]


def read_experts(base: Path, files: Mapping[str, Path]) -> Experts:
    """Opens the experts of a seed."""
    trees = {task: load_arrays(path) for task, path in files.items()}
    stats = {
        source: {task: tree[source] for task, tree in trees.items()}
        for source in ("curvature", "fisher", "gram")
    }
    stats["margins"] = {
        task: margins(jax.tree.map(jnp.asarray, tree["fisher"])) for task, tree in trees.items()
    }
    stats["curvature normalised"] = {
        task: merging.normalize_curvature(tree["curvature"], "global")
        for task, tree in trees.items()
    }
    trunks, heads = ({t: tree[key] for t, tree in trees.items()} for key in ("trunk", "head"))
    return Experts(load_arrays(base), trunks, heads, stats)


def merged(row: Row, experts: Experts, options: Mapping[str, Any], steps: int) -> Any:
    """The merged trunk, or a conditional one."""
    if row.rule == "adamerging":
        options = {**options, **entropy_options(experts, steps)}
    stats = None if row.source is None else experts.stats[row.source]
    return merging.merge(row.rule, experts.base, experts.trunks, stats=stats, **options)


def entropy_options(experts: Experts, steps: int) -> dict[str, Any]:
    """What AdaMerging learns from: validation images without their labels."""
    rng = np.random.default_rng(0)
    images = {task: load(task, "val").x for task in experts.heads}
    batches = [
        {task: x[rng.integers(len(x), size=16)] for task, x in images.items()} for _ in range(16)
    ]

    def predict(trunk: Tree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        x = pooled(trunk, jnp.concatenate(list(batch.values())))
        parts = jnp.split(x, len(batch))
        return {t: linear(experts.heads[t], part) for t, part in zip(batch, parts, strict=True)}

    return {"predict": predict, "batches": batches, "steps": steps}


def accuracies(
    model: Any, experts: Experts, split: str, limit: int | None = None
) -> dict[str, float]:
    """Accuracy of every task under its own head."""

    def one(task: str, head: Tree) -> float:
        trunk = model.select(task) if isinstance(model, merging.TaskConditional) else model
        return score(trunk, head, Images(*(array[:limit] for array in load(task, split))))

    return {task: one(task, head) for task, head in experts.heads.items()}


def relative(found: Mapping[str, float], individual: Mapping[str, float]) -> float:
    """Mean over tasks of the accuracy as a part of the expert's own."""
    return float(np.mean([found[task] / individual[task] for task in found]))


def merge_all(
    base: Path,
    files: Mapping[str, Path],
    individual: Mapping[str, Mapping[str, float]],
    val: int,
    adamerging_steps: int,
    names: Sequence[str] = tuple(ROWS),
) -> dict[str, Any]:
    """The named rows: options chosen on ``val``, then the test accuracy of the chosen."""
    experts = read_experts(base, files)
    own = {task: scores["val"] for task, scores in individual.items()}
    rows = {}
    for name in names:
        row = ROWS[name]
        begin = time.monotonic()
        models = [merged(row, experts, options, adamerging_steps) for options in row.grid]
        scores = [relative(accuracies(m, experts, "val", val), own) for m in models if row.tuned]
        best = int(np.argmax(scores)) if scores else 0
        rows[name] = {
            "options": row.grid[best],
            "val": scores,
            "test": accuracies(models[best], experts, "test"),
            "seconds": time.monotonic() - begin,
        }
        print(name, rows[name], flush=True)
    return rows
