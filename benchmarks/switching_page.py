"""docs/results/switches.md and its pictures, from the cells that have run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import real_experts, real_tasks, switching_digits, switching_real
from benchmarks import switching_tables as tables
from benchmarks.cells import result
from benchmarks.merging_plan import TUNING_SEED
from benchmarks.pages import found, listed, mean, table
from benchmarks.switching import PULSE, RANDOM, T_SWITCH, VALUES, WAYS
from benchmarks.switching_pictures import (
    INDIVIDUAL,
    Run,
    accuracy,
    over,
    pulse,
    row_accuracy,
    weight,
)
from benchmarks.switching_plan import Study
from sinewich_jax.core.ternary import entropy_bits
from sinewich_jax.report.study import Page

COMMAND = "python -m benchmarks.study_switches --parts {}"
REAL = "SINEWICH_DATA=DIR " + COMMAND
BASE, PROBE = "base, no expert", "base with linear probes"
PULSES = {
    T_SWITCH: "T-Switch",
    "T-Switch, knob l2_full": "knob l2_full",
    VALUES: "float32 values",
    RANDOM: "random mask",
}
CORRECTIONS = (switching_real.CORRECTED, switching_real.CORRECTED_FULL)
CORRECTIONS += (switching_real.REFIT, switching_real.REFIT_FULL)
DRAWN = (T_SWITCH, VALUES, RANDOM)
DRAWN += (switching_real.REFIT, switching_real.REFIT_FULL, switching_real.REFIT_RANDOM)
"""The ways in the picture of the eight tasks."""

LINE = ((PULSE, 1.4), ("auto", 1.585))
"""What was asked of the eight tasks: at most so many bits a parameter on disk; 1.585 is log2 3."""

POINTS = 1.0
"""And by how many points of a hundred the mean may lie below the experts' own."""


def write(study: Study, folder: Path) -> None:
    """Writes the page and the pictures for which there is something to draw."""
    page = Page("Task switches: a task in one and a half bits").text(
        "Made by `python -m benchmarks.study_switches`; every number is read from the files of its "
        f"cells. Mean and sample standard deviation over seeds ({listed(study.seeds)}); where "
        "fewer have run, the cell says so. `alpha` is the part of a task vector's entries that is "
        "dropped; what is left is a sign an entry and one number a weight tensor, the knob.",
    )
    digits(page, study, folder)
    eight_tasks(page, study, folder)
    storage(page)
    page.write(folder / "switches.md")


# --- digits ---------------------------------------------------------------------------------------


def digits(page: Page, study: Study, folder: Path) -> None:
    """(a)."""
    training = study.digits
    page.text(
        "## (a) Digits",
        "Six tasks on scikit-learn's digits (as they are, turned, mirrored, inverted, with pixels "
        "shuffled, noisy), a network 64-512-512-10 with one head for all, which is switched as a "
        f"whole. The base: {training['base_steps']} steps of Adam on {training['base_images']} "
        f"images of every task; each expert: {training['steps']} more at a rate of "
        f"{training['rate']:g} on all {switching_digits.TRAINING_IMAGES} images of its own.",
    )
    runs = [_digits_run(one) for one in found(study.digits_cells(), study.root)]
    command = COMMAND.format("a")
    tables.every_alpha(page, runs, dict.fromkeys(WAYS, study.alphas), study.alphas, command)
    page.text(
        "`knob`: the root mean square of the kept values (the official code) unless said, "
        "`l1` their mean, `l2_full` so that the tensor's norm is kept. Controls: the same entries "
        "with their float32 values, and as many entries at random."
    )
    if pulse(runs, PULSES, study.alphas, folder / "switches_digits.png"):
        page.picture("switches_digits.png", "Accuracy by alpha, and by bits on disk")
    tables.bits(page, runs, study.alphas, command)
    tables.methods(
        page,
        runs,
        (INDIVIDUAL, BASE, "average", "task_arithmetic", "emr"),
        ((T_SWITCH, PULSE), (T_SWITCH, "auto"), (VALUES, PULSE), (RANDOM, PULSE)),
        switching_digits.TASKS,
        command,
        folder / "switches_digits_methods.png",
    )
    page.text("Of task arithmetic the scale that is best on the test images, in its favour.")
    tables.routes(page, runs, command, False, folder / "switches_digits_router.png")
    tables.gaps(page, "Differences seed by seed", runs, tables.usual_pairs(list(WAYS)), command)
    late = {p: found(cells, study.root) for p, cells in study.digits_flex_cells().items()}
    tables.learned(page, late, runs, study.flex["examples"], COMMAND.format("l"))


def _digits_run(one: Mapping[str, Any]) -> Run:
    test = {name: row["test"] for name, row in one["rules"].items()}
    return {
        "test": {INDIVIDUAL: one["individual"], BASE: one["base"], **test},
        "fronts": one["fronts"],
        "router": one["router"],
    }


# --- eight tasks ----------------------------------------------------------------------------------


def eight_tasks(page: Page, study: Study, folder: Path) -> None:
    """(b)."""
    page.text(
        "## (b) Eight real tasks",
        "The base and, at plain rates, the experts of [the merging study](merging.md): one trunk "
        "that was trained without labels, eight experts, heads of their own that are not switched.",
    )
    recipes(page, study)
    chosen = [*study.chosen(), None, None][:2]
    titles = (
        "## (b1) The recipe whose plain switch is best",
        "## (b2) The recipe that is best alone",
    )
    for title, recipe, word in zip(titles, chosen, ("switched", "alone"), strict=True):
        if recipe is None and len(study.chosen()) == 1:
            page.text(f"{title}: the same")
            continue
        page.text(title if recipe is None else f"{title}: {recipe}")
        one_recipe(page, study, recipe, folder, word)


def recipes(page: Page, study: Study) -> None:
    """How experts can be trained, and what switching costs each; all on ``val``."""
    tried, chosen = study.recipe_results(), study.chosen()
    points = [f"{way}, {alpha}" for way in switching_real.TRIED for alpha in switching_real.ALPHAS]
    rows = {}
    for name in study.recipes:
        row: dict[str, str | None] = {}
        for found_here in [tried[name]] if name in tried else []:
            row = {
                key: f"{mean(one[key] for one in found_here):.3f}"
                for key in ("probe", "expert", "moved")
            }
            alone = mean(one["expert"] for one in found_here)
            for at in points:
                gap = mean(one[at]["val"] for one in found_here) - alone
                row[at] = f"{100 * gap:+.2f} ({mean(one[at]['bits'] for one in found_here):.3f})"
        mark = " (chosen)" if name in chosen[:1] else ""
        rows[name + mark] = row
    columns = ("probe", "expert", "moved", *points)
    table(page, "Recipes of experts", rows, columns, REAL.format("b"), first="recipe")
    page.text(
        f"Mean accuracy on `val` of {listed(real_experts.TUNING_TASKS)}, seed {TUNING_SEED}, which "
        "no other table uses; `moved`: norm of the task vector by that of the base; then what the "
        "switch loses against its expert in points, with its bits a parameter on disk in brackets "
        "(a bank of one task, whose header weighs on it alone). `pulled` decays towards the base, "
        f"not towards zero. Chosen is the best mean accuracy of {T_SWITCH} at alpha {PULSE}, not "
        "the least loss, which an expert that learns nothing would win. The other recipe below is "
        "that of the best experts; whose switches are the better models on test images, the tables "
        "say."
    )


def one_recipe(page: Page, study: Study, recipe: str | None, folder: Path, word: str) -> None:
    """All tables of the experts of one recipe."""
    command = REAL.format("b")
    runs = _real_runs(study, recipe)
    if not runs:
        page.text(f"Not run: `{command}`.")
        return
    ways = study.ways_of(recipe)
    verdict(page, runs)
    planned = {way: study.alphas_of(way) for way in ways}
    tables.every_alpha(page, runs, planned, study.alphas, command)
    page.text(
        "`a knob a row`: one for each output channel. `head's bias corrected`: each task's own "
        "head makes up for the mean by which the switch shifts its features on "
        f"{study.calibration} training images without labels; `head refitted`: on "
        f"{study.refit['calibration']} of them it is fitted to the expert's own answers, by least "
        "squares with a pull towards what it was (`switches.refit_head`, strength "
        f"{study.refit['strength']:g}). The switch is the same to the bit. "
        "`curvature saliency`: the squared change times what the optimizer kept."
    )
    names = {**PULSES, switching_real.REFIT: "head refitted"}
    if pulse(runs, names, study.alphas, folder / f"switches_{word}.png"):
        page.picture(f"switches_{word}.png", "Accuracy by alpha, and by bits on disk")
    tables.bits(page, runs, study.alphas, command)
    strengths(page, study, recipe)
    tables.methods(
        page,
        runs,
        (INDIVIDUAL, PROBE, *switching_real.RULES),
        [(way, alpha) for way in ways for alpha in (PULSE, "auto")],
        real_tasks.TASKS,
        command,
        folder / f"switches_{word}_methods.png",
        DRAWN,
    )
    page.text("Scales and densities of merging rules are chosen on `val`, as in the merging study.")
    tables.routes(page, runs, command, True, folder / f"switches_{word}_router.png")
    tables.gaps(page, "Differences seed by seed", runs, tables.usual_pairs(ways), command)
    if word == "switched":
        cells = [study.flex_cells(seed, recipe) for seed in study.seeds] if recipe else []
        late = {p: found((c[p] for c in cells), study.root) for p in study.prices}
        tables.learned(page, late, runs, study.flex["examples"], REAL.format("l"))


def strengths(page: Page, study: Study, recipe: str | None) -> None:
    """How much it matters how a head is refitted; on ``val``."""
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in study.seeds if recipe is not None else ():
        cells = study.expert_cells(seed, recipe).values()
        for images, cell in study.strengths_cells(seed, recipe).items():
            if (one := result(cell, study.root)) is None:
                continue
            alone = mean(result(expert, study.root)["expert"]["val"] for expert in cells)
            for name, row in one.items():
                for strength, value in row.items():
                    values = rows.setdefault(f"{name}, {images} images", {})
                    values.setdefault(strength, []).append(100 * (value - alone))
    columns = [f"{strength:g}" for strength in study.strengths]
    digits = dict.fromkeys(columns, 2)
    title = "Strength of refitted heads"
    command = REAL.format("b")
    table(page, title, rows, columns, command, digits=digits, first="switch")
    page.text(
        "Points on `val` less than the experts, by strength. That heads are refitted at all, from "
        f"{study.refit['calibration']} images and at a strength of {study.refit['strength']:g} "
        "for both recipes, was settled after a look at these numbers; at 100 images and strength 1 "
        "test images had been looked at, too."
    )


def _real_runs(study: Study, recipe: str | None) -> list[Run]:
    """The seeds whose experts are there, with what has been run on them."""
    runs = []
    for seed in study.seeds if recipe is not None else ():
        cells = study.expert_cells(seed, recipe)
        experts = {task: result(cell, study.root) for task, cell in cells.items()}
        if None in experts.values():
            continue
        test = {INDIVIDUAL: {task: one["expert"]["test"] for task, one in experts.items()}}
        test[PROBE] = {task: one["probe"]["test"] for task, one in experts.items()}
        rules = result(study.rules_cell(seed, recipe), study.root) or {}
        fronts = study.front_cells(seed, recipe)
        runs.append(
            {
                "test": test | {name: row["test"] for name, row in rules.items()},
                "fronts": {
                    way: one
                    for way, cell in fronts.items()
                    if (one := result(cell, study.root)) is not None
                },
                "router": result(study.router_cell(seed, recipe), study.root),
            }
        )
    return runs


def verdict(page: Page, runs: Sequence[Run]) -> None:
    """In words whether switches stay within a point of the experts, in how many bits."""
    alone = over(runs, lambda run: row_accuracy(run, INDIVIDUAL))
    probe = over(runs, lambda run: row_accuracy(run, PROBE))
    if alone is None or probe is None:
        return
    page.text(
        f"The experts have {mean(alone):.3f} on average, the base with linear probes "
        f"{mean(probe):.3f}: {100 * (mean(alone) - mean(probe)):.1f} points are what there is to "
        "keep."
    )
    lines = []
    controls = (VALUES, switching_real.REFIT_VALUES, RANDOM, switching_real.REFIT_RANDOM)
    for way in (T_SWITCH, *CORRECTIONS, switching_real.ROW, *controls):
        for alpha, most in LINE:
            switched = over(runs, lambda run, w=way, a=alpha: accuracy(run, w, a))
            size = over(runs, lambda run, w=way, a=alpha: weight(run, w, a, "bits"))
            if switched is None or size is None or len(switched) < len(alone):
                continue
            gap = 100 * (mean(switched) - mean(alone))
            near = "within" if gap >= -POINTS else "not within"
            small = "at most" if mean(size) <= most else "not at most"
            lines.append(
                f"* {way} at alpha {alpha}: {gap:+.2f} points, {near} {POINTS:g} point of the "
                f"experts; {mean(size):.3f} bits a parameter, {small} {most:g}."
            )
    if lines:
        page.text("\n".join(lines))


# --- the published storage ------------------------------------------------------------------------

PUBLISHED = {"T-Switch": 57.0, "Auto-Switch": 58.6, "EMR": 461.0}
"""MB for eight tasks of CLIP ViT-B/32 in the table of arXiv 2412.00054, as reported by others."""

TOWERS = {"visual tower": 87_456_000, "saved image encoder": 113_450_000}
MEASURED_AGAIN = 185.28


def storage(page: Page) -> None:
    """What of the published storage column can be reproduced by arithmetic."""
    tasks, mib = 8, 8 * 2**20
    rows = {}
    for name, count in TOWERS.items():
        rows[name] = {
            "parameters": f"{count / 1e6:.1f} M",
            "bits at 57.0": f"{PUBLISHED['T-Switch'] * mib / tasks / count:.2f}",
            "bound at 0.6": f"{tasks * entropy_bits(count, round(0.4 * count)) / mib:.0f}",
            "two planes": f"{2 * tasks * count / mib:.0f}",
            "EMR": f"{(32 + tasks) * count / mib:.0f}",
        }
    page.text("## The published storage")
    columns = ("parameters", "bits at 57.0", "bound at 0.6", "two planes", "EMR")
    table(page, "", rows, columns, COMMAND.format("a") + " --page", first="of ViT-B/32")
    page.text(
        f"MiB for eight tasks, by computation. The table of the publication has "
        f"{PUBLISHED['T-Switch']} for T-Switch, {PUBLISHED['Auto-Switch']} for Auto-Switch and "
        f"{PUBLISHED['EMR']} for EMR (known to us from summaries); a later paper measures "
        f"{MEASURED_AGAIN} for Auto-Switch. We could not reproduce this column: at the ratio of "
        "0.6 that the code ships with, no lossless code of independent entries is below `bound`. "
        "Another ratio, another set of tensors or another unit may explain the difference. Sizes "
        "on this page are those of files."
    )
