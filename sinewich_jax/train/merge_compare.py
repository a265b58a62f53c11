"""``sinewich merge --compare``: which rule is best for these runs, on their own validation data.

Each expert is a run. Under every rule its shared parameters are replaced by the merged ones, its
own (decoder, clock) stay, and it is scored as ``sinewich evaluate`` would score it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sinewich_jax import merging, storage, tasks
from sinewich_jax.errors import ConfigError, SinewichError
from sinewich_jax.merging import stream
from sinewich_jax.report import compare_methods
from sinewich_jax.report.tables import markdown_table
from sinewich_jax.train import evaluate, merge_tasks, replace
from sinewich_jax.train import workdir as workdirs

EXPERTS = "the experts"
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores of every rule.

    Attributes:
      columns: ``"expert: task"`` -> the metric, its unit and direction.
      rows: rule -> column -> value; first :data:`EXPERTS`, each as it was trained.
      delta_m: rule -> mean relative change against the experts, percent; positive is better. None
        where an expert's value is not positive (a correlation may be 0), so that nothing is
        relative to it.
      left_out: rule -> why it was not tried.
    """

    columns: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, float]]
    delta_m: dict[str, float] | None
    left_out: dict[str, str]

    def table(self) -> str:
        """All of it in Markdown, the best rule first; in the order tried without Delta m."""
        delta = self.delta_m
        best = self.rows if delta is None else sorted(self.rows, key=lambda rule: -delta[rule])
        rows = [
            [
                rule,
                *(f"{self.rows[rule][c]:.4f}" for c in self.columns),
                "-" if delta is None else f"{delta[rule]:+.2f}",
            ]
            for rule in best
        ]
        titles = [
            f"{column}, {facts['metric']} {'up' if facts['higher_is_better'] else 'down'}"
            for column, facts in self.columns.items()
        ]
        table = markdown_table(["rule", *titles, "Delta m %"], rows)
        if delta is None:
            table += "\nDelta m is not known: a value of the experts is not positive.\n"
        return table


def compare(
    base: str | Path,
    experts: Mapping[str, str | Path],
    *,
    rules: Sequence[str] | None = None,
    stats: Mapping[str, str | Path] | None = None,
    keep: str | None = None,
    only: str | None = None,
    experiments: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Scores the runs under every rule, each with the rule's default options.

    Args:
      base: what all runs started from, see :func:`sinewich_jax.merging.stream.merge_files`.
      experts: work directories by name.
      rules: which rules; None takes all that need nothing which is not there.
      stats: as for ``merge_files``.
      keep: see there.
      only: see there.
      experiments: the model, tasks and data of each expert; None builds what its config names.
      progress: called with scorings done, scorings in all, and what is being scored.

    Raises:
      ConfigError: an unknown rule, or one that is named here and cannot be tried.
      SinewichError: runs that cannot be merged, or hold no checkpoint.
    """
    chosen, left_out = _rules(rules)
    with merge_tasks.opened(base, experts) as (_, models):
        if any(isinstance(model, storage.leaves.LeafSource) for model in models.values()):
            raise ConfigError(
                "rules are compared on whole runs, whose adapters are merged as factors; give one "
                "of the runs as --base, and name no task"
            )
    folders = {name: Path(path).absolute() for name, path in experts.items()}
    configs = {name: workdirs.read_config(path) for name, path in folders.items()}
    given = {"stats": stats, "keep": keep, "only": only}
    for rule in list(chosen):  # looks at shapes alone
        try:
            stream.plan_files(rule, base, experts, **given)
        except ConfigError as error:
            if rules or not merging.registry.find(rule).needs:
                raise
            chosen.remove(rule)
            left_out[rule] = str(error)
    runs = {
        name: evaluate.open_run(folders[name], config, (experiments or {}).get(name))
        for name, config in configs.items()
    }
    total, done = len(runs) * (1 + len(chosen)), 0
    columns: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, float]] = {}

    def score(rule: str, name: str, leaves: Mapping[str, Any]) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, f"{rule}: {name}")
        evaluator, resumed = runs[name]
        placed = _by_path(leaves, replace.parameters(resumed.state, resumed.constants))
        found = evaluator.score(*replace.replaced(resumed.state, resumed.constants, placed))
        for task in evaluator.tasks:
            column = f"{name}: {task.name}"
            columns[column] = {
                "metric": task.primary,
                "unit": task.unit,
                "higher_is_better": task.higher_is_better,
            }
            rows.setdefault(rule, {})[column] = found[task.name][task.primary]
        done += 1

    for name in runs:
        score(EXPERTS, name, {})
    for rule in chosen:
        plan, merged = stream.merge_leaves(rule, base, experts, **given)
        for task, name in enumerate(runs):
            leaves = merged
            if plan.rule.conditional:
                leaves = {path: leaf.select(task) for path, leaf in merged.items()}
            score(rule, name, leaves)
    directions = {column: facts["higher_is_better"] for column, facts in columns.items()}
    return Comparison(columns, rows, relative(rows, directions), left_out)


def relative(
    rows: Mapping[str, Mapping[str, float]], directions: Mapping[str, bool]
) -> dict[str, float] | None:
    """Delta m of every rule against the experts; None where one of these is not positive."""
    if any(value <= 0 for value in rows[EXPERTS].values()):
        return None
    return {rule: tasks.delta_m(row, rows[EXPERTS], directions) for rule, row in rows.items()}


def write(found: Comparison, folder: Path) -> None:
    """Writes ``compare.md``, ``compare.json`` and a picture into ``folder``."""
    storage.write_json(folder / "compare.json", dataclasses.asdict(found))
    notes = "\n".join(f"* `{rule}`: {why}" for rule, why in found.left_out.items())
    storage.write_text(
        folder / "compare.md",
        f"# Merge rules compared\n\n{found.table()}\n"
        + (f"\nNot tried:\n\n{notes}\n" if notes else ""),
    )
    compare_methods(
        {rule: {c: [value] for c, value in row.items()} for rule, row in found.rows.items()},
        folder / "compare.png",
        titles={c: f"{c}: {facts['metric']}" for c, facts in found.columns.items()},
        higher_is_better={c: facts["higher_is_better"] for c, facts in found.columns.items()},
    )


def _rules(asked: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The rules that files of weights can be merged by, and why the others cannot be tried."""
    chosen, left_out = [], {}
    for rule in map(merging.registry.find, asked) if asked else merging.rules():
        if "data" not in rule.needs:
            chosen.append(rule.name)
        elif asked:
            raise ConfigError(f"the merge rule {rule.name!r} learns from data; call it from Python")
        else:
            left_out[rule.name] = "it learns from data; call it from Python"
    return chosen, left_out


def _by_path(leaves: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Merged leaves by their paths in a run's model; it need not have all of them."""
    found = {}
    for name, leaf in leaves.items():
        path = replace.home(name, model)
        if path is None:
            continue
        if leaf.shape != model[path].shape:
            raise SinewichError(
                f"the merged leaf {path!r} has shape {leaf.shape}, and the run "
                f"{model[path].shape}; name the base that the runs started from"
            )
        found[path] = leaf
    return found
