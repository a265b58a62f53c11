"""The dense study: baselines and ablations against single-task networks, at equal steps.

    SINEWICH_DATA=DIR python -m benchmarks.study_dense --minutes=120 --root=runs/study

Delta m is the mean relative change over the tasks against our own single-task runs: one fully
fine-tuned network a task on the same steps. On scenes each method's own rate is chosen on ``val``
with seed 0 first, as benchmarks/study_scenes.py does, whose cells are used where it has them; the
photographs run at the rates of their configs. The script can be stopped and started again;
``--page`` writes docs/results/dense.md from what is there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import study_scenes
from benchmarks.study import ROOT, Cell, diverged, is_done, make_parser, result, run
from sinewich_jax.report import compare_methods
from sinewich_jax.report.study import Page
from sinewich_jax.tasks import delta_m

SEEDS = (1, 2, 3)
PICTURE = "dense.png"
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
    "lora,independent_decoder": "shared LoRA, a decoder kernel a task",
    "lora_task": "LoRA of rank r a task",
    "sine_lora": "Sine-LoRA",
    "mtlora": "MTLoRA",
    "mtlora_plus": "MTLoRA+",
    "tadformer": "TADFormer",
    "sinewich": "Sinewich, lean",
    "sinewich,independent_decoder": "Sinewich, lean, a decoder kernel a task",
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

Overrides = tuple[tuple[str, Any], ...]


def _adapter_rates(*rates: float) -> dict[float, Overrides]:
    return {rate: (("task_lr_mult", rate), ("adapter_lr_mult", rate)) for rate in rates}


# What each method's own rate may be on scenes: that of its adapters, or that of a backbone which is
# trained whole (the decoder keeps 9e-3). What study_scenes has tuned is not tuned again, and the
# ablations of the paper's preset take the rate of what they ablate.
GRIDS: dict[str, dict[float, Overrides]] = {
    "full_ft": {
        rate: (("learning_rate", rate), ("decoder_lr_mult", decoder))
        for rate, decoder in ((3e-4, 30.0), (1e-3, 9.0), (3e-3, 3.0), (1e-2, 0.9))
    },
    **{
        method: _adapter_rates(0.3, 1.0, 3.0)
        for method in (
            "lora_task", "sine_lora", "mtlora", "mtlora_plus", "tadformer", "sinewich_paper"
        )
    },
}  # fmt: skip


def methods(name: str) -> tuple[str, ...]:
    """The methods that a data set's backbone has; the first delivery first."""
    chosen = [m for m in METHODS if name == "scenes" or m.split(",")[0] not in ON_SWIN]
    return tuple(sorted(chosen, key=lambda m: m not in FIRST))


def tuned_by(method: str) -> str:
    """The method whose grid chooses this method's rate."""
    return "full_ft" if method == SINGLE else method.partition(",")[0]


def tuning_cells(method: str) -> dict[float, Cell]:
    """The cells that choose a method's rate on scenes, by rate."""
    return {
        rate: Cell(f"configs/scenes.py:{method}", (*overrides, ("seed", study_scenes.TUNING_SEED)))
        for rate, overrides in GRIDS[method].items()
    }


def grid_cells(method: str) -> list[Cell]:
    """All cells of a method's grid, of this study or of study_scenes."""
    study = study_scenes if method in study_scenes.GRIDS else None
    return list((study.tuning_cells if study else tuning_cells)(method).values())


def tuned(method: str, root: Path) -> float | None:
    """The best rate of a grid, or None while it is not finished."""
    cells = tuning_cells(method)
    if not all(is_done(cell, root) for cell in cells.values()):
        return None
    found = {rate: result(cell, root) for rate, cell in cells.items()}
    scores = {rate: study_scenes.score(one) for rate, one in found.items() if one is not None}
    return max(scores, key=scores.get, default=None)


def own_rate(method: str, root: Path) -> tuple[float | None, Overrides]:
    """The rate of a method's row on scenes and the keys that set it; None and () if not chosen."""
    source = tuned_by(method)
    if source in study_scenes.GRIDS:
        rate, (keys, _) = study_scenes.tuned(source, root), study_scenes.GRIDS[source]
        return rate, () if rate is None else tuple((key, rate) for key in keys)
    rate = tuned(source, root)
    return rate, () if rate is None else GRIDS[source][rate]


def rate_text(name: str, method: str, root: Path) -> str:
    """The rate of a row for people to read; ``config`` where none was chosen on ``val``."""
    rate = own_rate(method, root)[0] if name == "scenes" else None
    return "config" if rate is None else f"{rate:g}"


def cells(name: str, method: str, seed: int, root: Path) -> dict[str | None, Cell]:
    """The runs behind one seed of a row: by task for single-task networks, else one under None."""
    overrides: list[tuple[str, Any]] = []
    if name == "scenes":
        overrides = [*own_rate(method, root)[1], ("eval_split", "test")]
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


def section(page: Page, name: str, root: Path) -> dict[str, list[float]]:
    """Adds the table of one data set; returns Delta m by method, a number a seed."""
    tasks = SETS[name]
    rows = {method: found(name, method, root) for method in methods(name)}
    single = rows[SINGLE]
    reference = {
        task: sum(one["tasks"][task]["value"] for one in single) / len(single)
        for task in tasks
        if single
    }
    seconds = sum(one["seconds"] for one in single) / len(single) if single else None
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
        row["time"] = [one["seconds"] / seconds for one in results] if seconds else None
        row["rate"] = rate_text(name, method, root)
        body[METHODS[method]] = row
    (command, *_) = (cell.command for cell in cells(name, "sinewich", SEEDS[0], root).values())
    page.table(
        name,
        body,
        (*tasks, "Delta m %", "trainable", "time", "rate", "seeds"),
        command=command if name == "scenes" else f"SINEWICH_DATA=DIR {command}",
        digits={task: 3 for task in tasks}
        | {"Delta m %": 2, "trainable": 0, "time": 2, "rate": 0, "seeds": 0},
    )
    gains = {title: row["Delta m %"] for title, row in body.items() if row["Delta m %"]}
    if len(gains) > 1:
        best_first = sorted(gains, key=lambda title: -statistics.fmean(gains[title]))
        ranked = (
            f"{title} ({round(statistics.fmean(gains[title]), 2) + 0.0:+.2f} with "
            f"{body[title]['trainable']})"
            for title in best_first
        )
        page.text(f"Best first, mean Delta m with trainable parameters: {'; '.join(ranked)}.")
    return gains


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


def tried(method: str, rate: float, root: Path) -> str | None:
    """One cell of the table of grids; empty where the rate is not in the grid, None if not run."""
    if rate not in GRIDS[method]:
        return ""
    cell = tuning_cells(method)[rate]
    if (found := result(cell, root)) is not None:
        chosen = " (chosen)" if rate == tuned(method, root) else ""
        return f"{study_scenes.score(found):.2f}{chosen}"
    step = diverged(cell, root)
    return None if step is None else f"diverged at step {step}"


def tuning(page: Page, root: Path) -> None:
    """The table of the grids: gain over the mean label map on ``val`` by rate."""
    rates = dict.fromkeys(rate for grid in GRIDS.values() for rate in sorted(grid))
    body = {
        METHODS[method]: {f"{rate:g}": tried(method, rate, root) for rate in rates}
        for method in GRIDS
    }
    command = next(iter(tuning_cells("full_ft").values())).command
    page.table("Rates on scenes", body, tuple(f"{rate:g}" for rate in rates), command=command)
    page.text(
        f"Gain over the mean label map on `val`, percent, seed {study_scenes.TUNING_SEED}; the "
        "other rows of scenes were tuned in [scenes](scenes.md)."
    )


def page(root: Path) -> tuple[Page, dict[str, dict[str, list[float]]]]:
    """docs/results/dense.md from what has run, and Delta m by data set and method."""
    made = Page("Methods against single-task networks").text(
        "Made by `python -m benchmarks.study_dense`; every number is read from the runs' "
        f"`results.json`. Mean and sample standard deviation over {len(SEEDS)} seeds, equal steps "
        "for every method, on the test splits; the last checkpoint is scored, none is selected.",
        "Delta m is the mean relative change over the tasks against our own single-task networks "
        "(first row: one fully fine-tuned network a task, whose parameters and time are those of "
        "all of them together); positive is better. `time` is the wall time of training relative "
        "to theirs, on a machine that ran two cells at a time and other work beside them: no more "
        "than a rough measure. On ccp and kitchen the backbone is "
        "a MobileNetV2, for which MTLoRA, TADFormer and the paper's preset are not defined.",
    )
    made.text(
        "`rate` is the one that a grid on the `val` split of scenes chose with another seed: for a "
        "backbone trained whole and for decoder only the learning rate, for the rest the factor on "
        "it for the adapters (Sinewich: for the sine factors). Single-task networks take the rate "
        "that is best for full fine-tuning on all tasks, ablations that of what they ablate. "
        "`config` is the config's own, not tuned.",
        "Full fine-tuning, single-task networks, MTLoRA and TADFormer have the literature's "
        "decoder, one kernel a task; the other methods share one decoder kernel that each task's "
        "frequency modulates (docs/methods.md), unless the row says otherwise.",
    )
    made.picture(PICTURE, "Delta m of every method against single-task networks, by data set")
    gains = {name: section(made, name, root) for name in SETS}
    tuning(made, root)
    return made, gains


def write(made: Page, gains: Mapping[str, Mapping[str, list[float]]], folder: Path) -> None:
    """Writes dense.md and, as far as there is something to compare, dense.png beside it."""
    known = {name: by_method for name, by_method in gains.items() if len(by_method) > 1}
    if known:
        titles = dict.fromkeys(title for rows in known.values() for title in rows)
        compare_methods(
            {title: {name: rows.get(title) for name, rows in known.items()} for title in titles},
            folder / PICTURE,
            titles={name: f"{name}: Delta m, %" for name in known},
            higher_is_better=dict.fromkeys(known, True),
            baselines=dict.fromkeys(known, 0.0),
            digits=2,
        )
    made.write(folder / "dense.md")


def main() -> None:
    """Runs what is missing, then writes the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    root = arguments.root
    if not arguments.page:
        end = time.monotonic() + 60 * arguments.minutes
        for late in (False, True):
            chosen = [m for m in arguments.methods if (m not in FIRST) == late]
            left = (end - time.monotonic()) / 60
            if "scenes" in arguments.sets:
                grids = [grid_cells(source) for source in dict.fromkeys(map(tuned_by, chosen))]
                run([cell for grid in grids for cell in grid], root, left, arguments.jobs)
            wanted = [
                cell
                for seed in SEEDS
                for name in arguments.sets
                for method in methods(name)
                if method in chosen
                for cell in cells(name, method, seed, root).values()
            ]
            run(wanted, root, (end - time.monotonic()) / 60, arguments.jobs)
    made, gains = page(root)
    write(made, gains, ROOT / "docs" / "results")


if __name__ == "__main__":
    main()
