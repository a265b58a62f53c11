"""The page of the language study: docs/results/language.md and its pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.language_plan import (
    ADAPTERS,
    FUSION,
    GRIDS,
    JOINT,
    LENGTHS,
    ROWS,
    SEEDS,
    SIZES,
    STEPS,
    TARGETS,
    TASKS,
    TUNED_ON,
    TUNING_SEED,
    Plan,
)
from benchmarks.pages import listed, mean, paired
from benchmarks.study import result
from sinewich_jax.report import canvas
from sinewich_jax.report.attention import draw_attention
from sinewich_jax.report.study import Page
from sinewich_jax.report.tables import NOT_RUN, mean_spread

PICTURE = "language_attention.png"

# Pfeiffer et al. (EACL 2021), table 1: accuracy of BERT-base on development sets.
PUBLISHED = {
    "full fine-tuning": {"rte": 65.41, "mrpc": 85.14, "sick": 87.30, "mean of 16 tasks": 75.51},
    "single adapters": {"rte": 71.04, "mrpc": 85.16, "sick": 86.20, "mean of 16 tasks": 76.05},
    "multi-task adapters": {"rte": 77.61, "mrpc": 81.86, "sick": 88.61, "mean of 16 tasks": 75.80},
    "AdapterFusion": {"rte": 76.82, "mrpc": 90.29, "sick": 87.28, "mean of 16 tasks": 77.33},
}


def write(plan: Plan, folder: Path) -> None:
    """Writes the page from whatever has run."""
    page = Page("Language: adapters and their fusion")
    page.text(
        "Made by `python -m benchmarks.study_language`; every number is read from the runs' "
        "`results.json`. all-MiniLM-L6-v2 (6 layers, 384 wide, 22.6 M parameters) on public text "
        f"tasks, test splits. Every run sees as many texts of its task: {STEPS} steps of 16. Texts "
        f"are cut at {listed(f'{n} tokens ({task})' for task, n in LENGTHS.items())}; runs of "
        f"several tasks at {max(LENGTHS.values())}. Mean and sample standard deviation over seeds. "
        "cola is scored by Matthews correlation, all others by accuracy. A run is short, so these "
        "numbers compare methods with each other and are not the best that the encoder can do."
    )
    _rates(page, plan)
    _methods(page, plan)
    _fusion(page, plan)
    _small(page, plan)
    _attention(page, plan, folder)
    _published(page)
    page.write(folder / "language.md")


def _rates(page: Page, plan: Plan) -> None:
    page.heading("Rates")
    page.text(
        f"Chosen on the `val` splits of {listed(TUNED_ON)} with seed {TUNING_SEED}, one for all "
        "tasks of a method: the mean of the two primary metrics. The methods that learn several "
        "tasks at once run at the rates of their config and were not tuned."
    )
    cells = {}
    for method in GRIDS:
        grid = plan.grid(method)
        cells[ROWS[method]] = {
            f"{rate:g}": _mean_of([plan.primary(cell) for cell in grid.get(rate, ())])
            for rate in GRIDS[method]
        }
    columns = sorted({column for row in cells.values() for column in row}, key=float)
    for row in cells.values():
        row.update({column: "not tried" for column in columns if column not in row})
    page.table("", cells, columns)


def _methods(page: Page, plan: Plan) -> None:
    page.heading("Methods")
    cells: dict[str, dict[str, Any]] = {}
    for method, title in ROWS.items():
        row: dict[str, Any] = {task: plan.values(method, task) for task in TASKS}
        if method in JOINT:
            row.update({task: "not in it" for task in TASKS if task not in TARGETS})
        each = [plan.values(method, task) for task in TARGETS]
        whole = min(map(len, each))
        row["mean of four"] = [mean(values[i] for values in each) for i in range(whole)]
        row["trained"] = _trained(plan, method)
        cells[title] = row
    page.table("", cells, [*TASKS, "mean of four", "trained"], command=_command("adapters,rte"))
    page.text(
        f"*Mean of four*: {listed(TARGETS)}. *Trained*: parameters that are trained for "
        f"{TARGETS[0]}, or for the {len(TARGETS)} tasks of a run of several. "
        "*Twice the steps* is the control of fusion, which uses the target's texts in both stages. "
        "AdapterFusion attends to the adapters of all six tasks of its seed, its target's own "
        "among them."
    )


def _fusion(page: Page, plan: Plan) -> None:
    page.heading("Where fusion helps")
    rows, all_gaps = {}, []
    for task in TASKS:
        first, second = plan.values(FUSION, task), plan.values(ADAPTERS, task)
        count = min(len(first), len(second))
        if not count:
            rows[task] = {"fusion less single adapter, points": None}
            continue
        gaps = [100 * (a - b) for a, b in zip(first[:count], second[:count], strict=True)]
        all_gaps.append(gaps)
        rows[task] = {"fusion less single adapter, points": paired(first[:count], second[:count])}
    page.table("", rows, ["fusion less single adapter, points"], first="target")
    whole = [gaps for gaps in all_gaps if len(gaps) == len(SEEDS)]
    if not whole:
        page.text(f"The mean over targets: {NOT_RUN} with all seeds.")
        return
    by_seed = [mean(gaps[i] for gaps in whole) for i in range(len(SEEDS))]
    verdict = "no worse than" if mean(by_seed) >= 0 else "worse than"
    page.text(
        f"Over the {len(whole)} targets with {len(SEEDS)} seeds each the mean difference is "
        f"{mean_spread(by_seed, 2)} points: fusion is {verdict} the target's single adapter on the "
        f"mean. It is better on {_names(all_gaps, rows, 1)}, worse on {_names(all_gaps, rows, -1)}."
    )


def _names(all_gaps: Sequence[Sequence[float]], rows: dict[str, Any], sign: int) -> str:
    ran = [task for task in rows if next(iter(rows[task].values())) is not None]
    chosen = [t for t, gaps in zip(ran, all_gaps, strict=True) if sign * statistics.fmean(gaps) > 0]
    return listed(chosen) or "none"


def _small(page: Page, plan: Plan) -> None:
    page.heading("Small targets")
    page.text(
        "The target has so many training texts, drawn by the seed; its own adapter is trained on "
        "them alone, as many steps as ever, and fused with the adapters of the other tasks, which "
        "have all of theirs. Published gains of fusion are of targets with few texts."
    )
    cells = {}
    for task in TARGETS:
        for size in SIZES:
            single, fused = (plan.values(method, task, size) for method in (ADAPTERS, FUSION))
            count = min(len(single), len(fused))
            gap = paired(fused[:count], single[:count]) if count else None
            cells[f"{task}, {size}"] = {
                ROWS[ADAPTERS]: single,
                ROWS[FUSION]: fused,
                "difference, points": gap,
            }
    columns = [ROWS[ADAPTERS], ROWS[FUSION], "difference, points"]
    page.table("", cells, columns, first="target, texts")


def _attention(page: Page, plan: Plan, folder: Path) -> None:
    page.heading("What fusion attends to")
    pictures = []
    for task in TARGETS:
        cell = plan.composed(task, TUNING_SEED)
        path = None if cell is None else cell.directory(plan.root) / "attention.json"
        if path is None or result(cell, plan.root) is None or not path.is_file():
            continue
        pictures.append(draw_attention(json.loads(path.read_text(encoding="utf-8"))))
    if not pictures:
        page.text(f"Not drawn: {NOT_RUN}.")
        return
    _grid(pictures, folder / PICTURE)
    page.picture(PICTURE, f"Attention over adapters by layer and target, seed {TUNING_SEED}")
    page.text(
        "Mean over the tokens of the test texts; a row a layer, a column an adapter, the target's "
        "own in bold. Equal attention would be "
        f"{1 / len(TASKS):.2f}."
    )


def _grid(pictures: Sequence[Image.Image], path: Path) -> None:
    """Pictures two in a row."""
    wide, high = (max(side) for side in zip(*(p.size for p in pictures), strict=True))
    rows = -(-len(pictures) // 2)
    sheet = canvas.sheet(wide * min(2, len(pictures)), high * rows)
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (wide * (number % 2), high * (number // 2)))
    canvas.save(sheet, path)


def _published(page: Page) -> None:
    page.heading("The paper's numbers")
    page.text(
        "Pfeiffer et al. (EACL 2021, table 1), accuracy in percent of BERT-base on development "
        "sets, trained up to 30 epochs: another encoder and budget than ours, so that differences "
        "between rows compare and levels do not. The text gives other gains for rte and mrpc (6.5 "
        "and 5.64 points) than the table (5.78 and 5.13)."
    )
    columns = list(PUBLISHED["AdapterFusion"])
    rows = {
        method: {column: f"{value:.2f}" for column, value in row.items()}
        for method, row in PUBLISHED.items()
    }
    page.table("", rows, columns)


def _trained(plan: Plan, method: str) -> str | None:
    for seed in SEEDS:
        cell = plan.cell(method, TARGETS[0], seed)
        found = None if cell is None else result(cell, plan.root)
        if found is not None:
            return f"{found['trainable']:,}"
    return None


def _mean_of(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [mean(known)] if values and len(known) == len(values) else None


def _command(words: str) -> str:
    return (
        f"SINEWICH_DATA=DIR python train.py --config=configs/glue_adapters.py:{words} "
        f"--config.steps={STEPS} --config.eval_split=test --config.seed=0"
    )
