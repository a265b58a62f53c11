"""What a new task costs on a trained run, against training all tasks anew.

    python -m benchmarks.study_add_task --minutes=60 --root=runs/study

For each of some tasks of the scenes job: a run of the other five, the task added to it, and the run
of all six, whose cells are those of benchmarks/study_scenes.py. Equal steps everywhere. The script
can be stopped and started again; ``--page`` writes docs/results/add_task.md from what is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import study_scenes
from benchmarks.study import ROOT, Cell, make_parser, result, run
from sinewich_jax.report.study import Page

CONFIG = "configs/scenes.py:sinewich"
SEEDS = (1, 2, 3)
ADDED = ("edge", "semseg", "normals")
"""Tasks that are left out and added, one at a time: of details, of classes, of shape."""


def base_cell(task: str, seed: int) -> Cell:
    """The run of all tasks but one."""
    others = tuple(name for name in study_scenes.TASKS if name != task)
    return Cell(CONFIG, (("tasks", others), ("eval_split", "test"), ("seed", seed)))


def added_cell(task: str, seed: int, root: Path) -> Cell:
    """The run that adds it."""
    base = str(base_cell(task, seed).directory(root).absolute())
    keys = (("add_task", task), ("base_run", base), ("eval_split", "test"), ("seed", seed))
    return Cell(CONFIG, keys)


def added_result(task: str, seed: int, root: Path) -> dict[str, Any] | None:
    """What the run that adds a task reached; its config is its base's, so only its steps count."""
    path = added_cell(task, seed, root).directory(root) / "results.json"
    base = result(base_cell(task, seed), root)
    if base is None or not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if found["steps"] == base["steps"] else None


def page(root: Path) -> Page:
    """docs/results/add_task.md, from what has run."""
    made = Page("A new task on a trained run").text(
        "Made by `python -m benchmarks.study_add_task`; every number is read from the runs' "
        f"`results.json`. Mean and sample standard deviation over up to {len(SEEDS)} seeds, test "
        "split of the scenes, the same steps in every run.",
        "`joint`: one run of all six tasks. `added`: a run of the other five, frozen, to which the "
        "task was added; it learns its frequency and its head alone, and the five do not change by "
        "a bit. Trainable parameters and minutes of `added` are those of the adding alone. The "
        "machine ran two cells at a time and other work beside them, so that minutes are upper "
        "bounds; where they spread, the lowest is the most telling.",
    )
    joint = [r for c in study_scenes.final_cells("sinewich", root) if (r := result(c, root))]
    alone = [r for c in study_scenes.final_cells("decoder_only", root) if (r := result(c, root))]
    body: dict[str, Mapping[str, Any]] = {}
    for task in ADDED:
        added = [r for s in SEEDS if (r := added_result(task, s, root)) is not None]
        named = {"decoder only, all six": alone, "joint": joint, "added": added}
        for name, results in named.items():
            facts = next((r["tasks"][task] for r in results), None)
            arrow = "" if facts is None else ("up" if facts["higher_is_better"] else "down")
            body[f"{task}: {name}"] = {
                "metric": f"{facts['metric']} {arrow}" if facts else None,
                "value": [r["tasks"][task]["value"] for r in results] or None,
                "trainable": f"{results[0]['trainable']:,}" if results else None,
                "minutes": [r["train_seconds"] / 60 for r in results] or None,
                "seeds": str(len(results)),
            }
    made.table(
        "Cost and gain",
        body,
        ("metric", "value", "trainable", "minutes", "seeds"),
        command=f"python train.py --config={CONFIG} --config.add_task={ADDED[0]} "
        "--config.base_run=RUN --config.eval_split=test --config.seed=1",
        digits={"metric": 0, "value": 3, "trainable": 0, "minutes": 1, "seeds": 0},
    )
    return made


def main() -> None:
    """Runs what is missing, then writes the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(ADDED), choices=list(ADDED))
    arguments = parser.parse_args()
    root = arguments.root
    if not arguments.page:
        pairs = [(task, seed) for seed in SEEDS for task in arguments.tasks]
        run([base_cell(*pair) for pair in pairs], root, arguments.minutes, arguments.jobs)
        ready = [pair for pair in pairs if result(base_cell(*pair), root) is not None]
        missing = [pair for pair in ready if added_result(*pair, root) is None]
        run([added_cell(*p, root) for p in missing], root, arguments.minutes, arguments.jobs)
    page(root).write(ROOT / "docs" / "results" / "add_task.md")


if __name__ == "__main__":
    main()
