"""The dense study: baselines and ablations against single-task networks, at equal steps.

    SINEWICH_DATA=DIR python -m benchmarks.study_dense --minutes=120 --root=runs/study

Delta m is the mean relative change over the tasks against our own single-task runs: one fully
fine-tuned network a task on the same steps. The rate of a fully trained backbone is chosen on
``val`` first; every other method runs at the rate of its config (docs/results/scenes.md tunes some
of them). The script can be stopped and started again; ``--page`` writes docs/results/dense.md from
what is there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.study import ROOT, Cell, is_done, make_parser, result, run
from benchmarks.study_scenes import score
from sinewich_jax.report.study import Page
from sinewich_jax.tasks import delta_m

SEEDS = (1, 2, 3)
SETS = {
    "scenes": ("semseg", "human_parts", "saliency", "normals", "depth", "edge"),
    "ccp": ("semseg", "human_parts", "saliency", "edge"),
    "kitchen": ("semseg", "normals", "depth", "edge"),
}
SINGLE = "single_task"
METHODS = {
    SINGLE: "single task, full fine-tuning",
    "full_ft": "multi-task, full fine-tuning",
    "decoder_only": "decoder only",
    "lora": "shared LoRA",
    "lora_task": "LoRA of rank r a task",
    "sine_lora": "Sine-LoRA",
    "mtlora": "MTLoRA",
    "mtlora_plus": "MTLoRA+",
    "tadformer": "TADFormer",
    "sinewich": "Sinewich, lean",
    "sinewich_paper": "Sinewich, as published",
    "sinewich_paper,no_clock": "... without clock net",
    "sinewich_paper,no_lowpass": "... without low-pass",
    "sinewich_paper,no_sine": "... without sine",
    "sinewich_paper,independent_base": "... a base kernel a task",
    "sinewich_paper,independent_decoder": "... a decoder kernel a task",
}
# What the first delivery has to show, then the rest.
FIRST = ("sinewich", "lora", "mtlora", "full_ft", "decoder_only", SINGLE)
ON_SWIN = ("mtlora", "mtlora_plus", "tadformer", "sinewich_paper")

# The backbone's rate in methods that train all of it; the decoder keeps 9e-3.
FULL_RATES = {3e-4: 30.0, 1e-3: 9.0, 3e-3: 3.0}


def methods(name: str) -> tuple[str, ...]:
    """The methods that a data set's backbone has; the first delivery first."""
    chosen = [m for m in METHODS if name == "scenes" or m.split(",")[0] not in ON_SWIN]
    return tuple(sorted(chosen, key=lambda m: m not in FIRST))


def full_rate_cells() -> dict[float, Cell]:
    """The cells that choose the rate of a fully trained backbone, by rate."""
    return {
        rate: Cell(
            "configs/scenes.py:full_ft",
            (("learning_rate", rate), ("decoder_lr_mult", decoder), ("seed", 0)),
        )
        for rate, decoder in FULL_RATES.items()
    }


def full_rate(root: Path) -> float | None:
    """The best of them, or None while the grid is not finished."""
    found = {rate: result(cell, root) for rate, cell in full_rate_cells().items()}
    if not all(is_done(cell, root) for cell in full_rate_cells().values()):
        return None
    scores = {rate: score(results) for rate, results in found.items() if results is not None}
    return max(scores, key=scores.get, default=None)


def cells(name: str, method: str, seed: int, root: Path) -> dict[str | None, Cell]:
    """The runs behind one seed of a row: by task for single-task networks, else one under None."""
    overrides: list[tuple[str, Any]] = []
    if name == "scenes":
        overrides.append(("eval_split", "test"))
        if method in (SINGLE, "full_ft") and (rate := full_rate(root)) is not None:
            overrides += [("learning_rate", rate), ("decoder_lr_mult", FULL_RATES[rate])]
    overrides.append(("seed", seed))
    config = f"configs/{name}.py:{method}"
    if method != SINGLE:
        return {None: Cell(config, tuple(overrides))}
    return {task: Cell(config, (("tasks", (task,)), *overrides)) for task in SETS[name]}


def found(name: str, method: str, root: Path) -> list[dict[str, Any]]:
    """The finished seeds of a row: scores by task, parameters, minutes."""
    rows = []
    for seed in SEEDS:
        results = [result(cell, root) for cell in cells(name, method, seed, root).values()]
        if any(one is None for one in results):
            continue
        rows.append(
            {
                "tasks": {task: row for one in results for task, row in one["tasks"].items()},
                "trainable": sum(one["trainable"] for one in results),
                "seconds": sum(one["train_seconds"] for one in results),
            }
        )
    return rows


def section(page: Page, name: str, root: Path) -> None:
    """The table of one data set."""
    tasks = SETS[name]
    rows = {method: found(name, method, root) for method in methods(name)}
    single = rows[SINGLE]
    reference = {
        task: sum(one["tasks"][task]["value"] for one in single) / len(single)
        for task in tasks
        if single
    }
    minutes = sum(one["seconds"] for one in single) / len(single) if single else None
    body: dict[str, Mapping[str, Any]] = {}
    for method in METHODS:
        if method not in rows:
            continue
        results = rows[method]
        row: dict[str, Any] = {
            task: [one["tasks"][task]["value"] for one in results] or None for task in tasks
        }
        row["seeds"] = str(len(results))
        row["trainable"] = f"{results[0]['trainable']:,}" if results else None
        row["Delta m %"] = _gains(results, reference, tasks)
        row["time"] = [one["seconds"] / minutes for one in results] if minutes else None
        body[METHODS[method]] = row
    (command, *_) = (cell.command for cell in cells(name, "sinewich", SEEDS[0], root).values())
    page.table(
        name,
        body,
        (*tasks, "Delta m %", "trainable", "time", "seeds"),
        command=command if name == "scenes" else f"SINEWICH_DATA=DIR {command}",
        digits={task: 3 for task in tasks}
        | {"Delta m %": 2, "trainable": 0, "time": 2, "seeds": 0},
    )


def _gains(
    results: list[dict[str, Any]], reference: Mapping[str, float], tasks: tuple[str, ...]
) -> list[float] | None:
    if not results or not reference:
        return None
    return [
        delta_m(
            {task: one["tasks"][task]["value"] for task in tasks},
            reference,
            {task: one["tasks"][task]["higher_is_better"] for task in tasks},
        )
        for one in results
    ]


def page(root: Path) -> Page:
    """docs/results/dense.md, from what has run."""
    made = Page("Methods against single-task networks").text(
        "Made by `python -m benchmarks.study_dense`; every number is read from the runs' "
        f"`results.json`. Mean and sample standard deviation over {len(SEEDS)} seeds, equal steps "
        "for every method, on the test splits; the last checkpoint is scored, none is selected.",
        "Delta m is the mean relative change over the tasks against our own single-task networks "
        "(first row: one fully fine-tuned network a task, whose parameters and time are those of "
        "all of them together); positive is better. `time` is the wall time of training relative "
        "to theirs, on a machine that ran two cells at a time. On ccp and kitchen the backbone is "
        "a MobileNetV2, for which MTLoRA, TADFormer and the paper's preset are not defined.",
    )
    rate = full_rate(root)
    made.text(
        "Rate of a fully trained backbone on scenes: "
        + (
            f"{rate:g}, the best of {', '.join(f'{r:g}' for r in FULL_RATES)} on `val`."
            if rate is not None
            else "not run; the rows are at the config's."
        )
    )
    for name in SETS:
        section(made, name, root)
    return made


def main() -> None:
    """Runs what is missing, then writes the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    root = arguments.root
    if not arguments.page:
        end = time.monotonic() + 60 * arguments.minutes
        if "scenes" in arguments.sets and {SINGLE, "full_ft"} & {*arguments.methods}:
            run(list(full_rate_cells().values()), root, arguments.minutes, arguments.jobs)
        wanted = [
            cell
            for late in (False, True)
            for seed in SEEDS
            for name in arguments.sets
            for method in methods(name)
            if method in arguments.methods and (method not in FIRST) == late
            for cell in cells(name, method, seed, root).values()
        ]
        run(wanted, root, (end - time.monotonic()) / 60, arguments.jobs)
    page(root).write(ROOT / "docs" / "results" / "dense.md")


if __name__ == "__main__":
    main()
