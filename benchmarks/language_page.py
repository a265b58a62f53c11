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
    ATTENDED,
    ATTENTION_TEXTS,
    DENSITIES,
    FISHER_TEXTS,
    FUSION,
    FUSION_OF_JOINT,
    GRIDS,
    JOINT,
    JOINT_STEPS,
    LENGTHS,
    LONGER,
    ROWS,
    SEEDS,
    SIZES,
    STEPS,
    TARGETS,
    TASKS,
    TUNED_ON,
    TUNING_SEED,
    Plan,
    common,
)
from benchmarks.pages import listed, mean, paired
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
        f"tasks, test splits. Whoever learns one task at a time sees as many texts of it: "
        f"{listed(f'{n} steps ({task})' for task, n in STEPS.items())} of 16; runs of several "
        f"tasks have {JOINT_STEPS} steps of 16 texts of each, for cola a third of that. Texts "
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
    _pruned_fusion(page, plan)
    _merging(page, plan)
    _switching(page, plan)
    _pruning(page, plan)
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
    equal = [task for task in TARGETS if STEPS[task] == JOINT_STEPS]
    means = {"mean of four": TARGETS, "mean of three": equal}
    for method, title in ROWS.items():
        found = {task: plan.values(method, task) for task in TASKS}
        row: dict[str, Any] = {task: list(values.values()) for task, values in found.items()}
        if method in (*JOINT, FUSION_OF_JOINT):
            row.update({task: "not in it" for task in TASKS if task not in TARGETS})
        for name, tasks in means.items():
            row[name] = list(map(mean, zip(*common(*(found[t] for t in tasks)), strict=True)))
        row["trained"] = _trained(plan, method)
        cells[title] = row
    page.table("", cells, [*TASKS, *means, "trained"], command=_command("adapters,rte"))
    page.text(
        f"*Mean of four*: {listed(TARGETS)}; *of three*: {listed(equal)}, of which runs of several "
        "tasks see as many texts as all others do, so that it is the mean to compare those with. "
        "*Trained*: parameters that are trained for "
        f"{TARGETS[0]}, or for the {len(TARGETS)} tasks of a run of several. "
        "*Twice the steps* is the control of fusion, which uses the target's texts in both stages. "
        "AdapterFusion attends to the adapters of all six tasks of its seed, its target's own "
        "among them; that of multi-task adapters to the four of their run, beside the encoder of "
        "that run, which stays as it is. Its rate is that of the other."
    )


def _fusion(page: Page, plan: Plan) -> None:
    page.heading("Where fusion helps")
    page.text(
        "Fusion less the target's single adapter, in points, seed by seed; and less the control, "
        "which has seen the target's texts as often as adapter and fusion together. *Of MT-A*: the "
        "fusion of multi-task adapters less the run that trained them."
    )
    less, control, joint = "less single adapter", "less twice the steps", "of MT-A, less MT-A"
    rows, all_gaps = {}, []
    for task in TASKS:
        fused, single = common(plan.values(FUSION, task), plan.values(ADAPTERS, task))
        longer = common(plan.values(FUSION, task), plan.values(LONGER, task))
        rows[task] = {less: paired(fused, single) if fused else None}
        rows[task][control] = paired(*longer) if longer[0] else None
        of_joint = common(plan.values(FUSION_OF_JOINT, task), plan.values("multi_adapters", task))
        missing = None if task in TARGETS else "not in it"
        rows[task][joint] = paired(*of_joint) if of_joint[0] else missing
        if fused:
            all_gaps.append([100 * (a - b) for a, b in zip(fused, single, strict=True)])
    page.table("", rows, [less, control, joint], first="target")
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
            found = [plan.values(method, task, size) for method in (ADAPTERS, FUSION)]
            single, fused = common(*found)
            cells[f"{task}, {size}"] = {
                ROWS[ADAPTERS]: list(found[0].values()),
                ROWS[FUSION]: list(found[1].values()),
                "difference, points": paired(fused, single) if fused else None,
            }
    columns = [ROWS[ADAPTERS], ROWS[FUSION], "difference, points"]
    page.table("", cells, columns, first="target, texts")


def _attention(page: Page, plan: Plan, folder: Path) -> None:
    page.heading("What fusion attends to")
    pictures = []
    for task in TARGETS:
        cell = plan.composed(task, TUNING_SEED)
        path = None if cell is None else cell.directory(plan.root) / "attention.json"
        if path is None or plan.result(cell) is None or not path.is_file():
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


def _pruned_fusion(page: Page, plan: Plan) -> None:
    page.heading("Fewer adapters")
    page.text(
        "Adapters are taken out of a trained fusion, which is not trained again: those that stay "
        f"are most attended to over {ATTENTION_TEXTS} training texts (of the control, least). "
        "Test scores, mean over the targets; spread over seeds."
    )
    counts = [str(n) for n in range(len(TASKS), 0, -1)]
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for cell, one in plan.measured_cells(ATTENDED):
        by_seed.setdefault(cell.settings["seed"], []).append(one)
    whole = [rows for rows in by_seed.values() if len(rows) == len(TARGETS)]
    cells = {
        title: {n: [mean(one[key][n] for one in rows) for rows in whole] for n in counts}
        for title, key in (("most attended stay", "most"), ("least attended stay", "least"))
    }
    page.table("", cells, counts, first="adapters")


def _merging(page: Page, plan: Plan) -> None:
    page.heading("Experts merged")
    page.text(
        f"The fully fine-tuned models of {listed(TARGETS)}, merged; every task keeps its own head. "
        "Rules have the options that their papers recommend and are not tuned. Curvature "
        "(`curvature_average`, `umtam`) is what training kept; `fisher` weighs as the former does, "
        f"by the exact Fisher information over {FISHER_TEXTS} training texts of each expert. A "
        "head belongs to its own encoder, so that the base under it says how much a merge keeps."
    )
    rows: dict[str, dict[str, Any]] = {}
    for one in plan.measured("merging"):
        for rule, scores in one.items():
            row = rows.setdefault(rule, {})
            for task, score in scores.items():
                row.setdefault(task, []).append(score)
            row.setdefault("mean", []).append(mean(scores.values()))
    page.table("", rows or {"merging": {}}, [*TARGETS, "mean"], first="rule")


def _switching(page: Page, plan: Plan) -> None:
    page.heading("Experts as switches")
    page.text(
        "T-Switch of the same experts, as it is published (knob `l2_kept`, heads untouched): bits "
        "a parameter on disk, everything counted, and the mean over tasks less that of the experts."
    )
    experts = {
        cell.settings["seed"]: mean(one["experts"].values())
        for cell, one in plan.measured_cells("merging")
    }
    rows: dict[str, dict[str, Any]] = {}
    for cell, one in plan.measured_cells("switching"):
        for alpha, found in one.items():
            row = rows.setdefault(alpha, {})
            for task, score in found["test"].items():
                row.setdefault(task, []).append(score)
            score = mean(found["test"].values())
            row.setdefault("mean", []).append(score)
            row.setdefault("bits", []).append(found["bits"])
            if (seed := cell.settings["seed"]) in experts:
                row.setdefault("points", []).append(100 * (score - experts[seed]))
    columns = [*TARGETS, "mean", "points", "bits"]
    digits = {**dict.fromkeys(columns, 3), "points": 2}
    page.table("", rows or {"T-Switch": {}}, columns, digits=digits, first="alpha")


def _pruning(page: Page, plan: Plan) -> None:
    page.heading("Curvature of training against the exact Fisher information")
    found = plan.measured("pruning")
    page.text(
        f"The diagonal of the empirical Fisher information over {FISHER_TEXTS} training texts of "
        "each expert, one gradient a text. *Ranks*: Spearman's correlation of the saliency "
        "`delta^2 F`, over entries where it is not zero; *top fifth*: how many of its largest "
        "entries an estimate finds. Means over experts, spread over them and seeds."
    )
    rows: dict[str, dict[str, Any]] = {}
    for one in found:
        for estimate, scores in one["agreement"].items():
            row = rows.setdefault(estimate, {})
            row.setdefault("ranks", []).append(scores["live"])
            row.setdefault("top fifth", []).append(scores["overlap"])
    page.table("", rows or {"estimate": {}}, ["ranks", "top fifth"], first="estimate")
    page.text(
        "Pruning: the share of the task vector's entries that is kept, by a global threshold. What "
        "is left of the expert's gain over the base under its head, in percent: mean over experts "
        "and seeds whose gain is above ten points, as parts of a smaller one are noise."
    )
    rows = {}
    for one in found:
        gain = one["expert"] - one["base"]
        for source, scores in one["pruning"].items() if gain > 0.1 else ():
            row = rows.setdefault(source, {})
            for density, score in zip(DENSITIES, scores, strict=True):
                kept = 100 * (score - one["base"]) / gain
                row.setdefault(f"{density:.0%}", []).append(kept)
    columns = [f"{density:.0%}" for density in DENSITIES]
    page.table("", rows or {"pruning": {}}, columns, digits=1, first="entries chosen by")


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
        found = None if cell is None else plan.result(cell)
        if found is not None:
            return f"{found['trainable']:,}"
    return None


def _mean_of(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [mean(known)] if values and len(known) == len(values) else None


def _command(words: str) -> str:
    return (
        f"SINEWICH_DATA=DIR python train.py --config=configs/glue_adapters.py:{words} "
        f"--config.steps={STEPS[TARGETS[0]]} --config.eval_split=test --config.seed=0"
    )
