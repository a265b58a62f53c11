"""docs/results/merging.md and its pictures, from the cells that have run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import merging_digits, merging_optimizers, merging_real, real_experts, real_tasks
from benchmarks.cells import result
from benchmarks.merging_plan import TUNING_SEED, Study
from benchmarks.pages import beside, found, lines, listed, mean, paired, table
from sinewich_jax.merging import DEFAULT_RULE
from sinewich_jax.report import chart, compare_methods
from sinewich_jax.report.study import NOT_RUN, Page
from sinewich_jax.report.tables import mean_spread

COMMAND = "python -m benchmarks.study_merging --parts {}"
REAL = "SINEWICH_DATA=DIR " + COMMAND
INDIVIDUAL, PROBE, UPPER = "each expert alone", "base with linear probes", "fisher"
RIVALS = ("average", "ties, default", "ties", "magnitude_weighted", "umtam", "regmean", UPPER)
"""What the default rule is compared with, seed by seed."""

WHY = (
    ("curvature_average, normalised", DEFAULT_RULE),
    ("curvature_average of Fisher margins", DEFAULT_RULE),
    (UPPER, "curvature_average of Fisher margins"),
    ("curvature_average, tuned", DEFAULT_RULE),
    ("curvature_average, tuned", "ties"),
)
"""What the scale of the losses, the source of the squares, factoring and tuning are worth."""

RULE_PICTURES = ("merging_rules.png", "merging_rules_gentle.png")

Values = list[float] | None


def write(study: Study, folder: Path) -> None:
    """Writes the page and the pictures for which there is something to draw."""
    made = Page("Merging: what curvature from training is worth").text(
        "Made by `python -m benchmarks.study_merging`; every number is read from the files of its "
        f"cells. Mean and sample standard deviation over seeds ({listed(study.seeds)}); where "
        "fewer have run, the cell says so.",
    )
    digits(made, study, folder)
    eight_tasks(made, study, folder)
    optimizers(made, study, folder)
    made.write(folder / "merging.md")


# --- digits -------------------------------------------------------------------------------------


def digits(page: Page, study: Study, folder: Path) -> None:
    """(a), (b) and merging on digits."""
    runs = {steps: found(cells, study.root) for steps, cells in study.digits_cells().items()}
    page.text(
        "## (a) Curvature from training against the exact Fisher information",
        "Four tasks on scikit-learn's digits (upright, turned, mirrored: ten classes each; odd or "
        "even), a network 64-128-64-classes trained by AdamW at a rate of "
        f"{study.digits['rate']:g} in batches of {study.digits['batch']}, every estimate from the "
        "same training. Truth is the mean of squared gradients of single training images at the "
        "final weights. `saliency`: Spearman's rank correlation of `d^2 V` over all entries; "
        "`live`: over those that are not zero in truth (the others, of dark pixels, tie at the "
        "bottom); `overlap`: how much of the largest 20 % is the same; `curvature`: rank "
        "correlation of V itself; `least`: the lowest saliency of all runs.",
    )
    for steps, results in runs.items():
        agreement(page, steps, results)
    agreement_picture(page, runs, folder)
    pruning(page, runs, folder)
    rows = {
        name: {
            f"{steps} steps": [one["merging"][name] for one in results] or None
            for steps, results in runs.items()
        }
        for name in merging_digits.MERGED_BY
    }
    rows[INDIVIDUAL] = {
        f"{steps} steps": [
            mean(task["accuracy"] for task in one["tasks"].values()) for one in results
        ]
        or None
        for steps, results in runs.items()
    }
    table(page, "Merging the four experts", rows, [f"{s} steps" for s in runs], COMMAND.format("a"))
    page.text("Mean test accuracy of the merged trunk under each expert's own head; no tuning.")


def agreement(page: Page, steps: int, results: Sequence[Mapping[str, Any]]) -> None:
    """The table of one length of training."""
    keys = ("saliency", "live", "overlap", "curvature")
    rows: dict[str, dict[str, Any]] = {}
    for name in merging_digits.ESTIMATES:
        by_seed = [[t["agreement"][name] for t in one["tasks"].values()] for one in results]
        rows[name] = {
            key: [mean(task[key] for task in tasks) for tasks in by_seed] or None
            if all(key in task for tasks in by_seed for task in tasks)
            else "none"
            for key in keys
        }
        lowest = [task["saliency"] for tasks in by_seed for task in tasks]
        rows[name]["least"] = f"{min(lowest):.3f}" if lowest else None
    table(
        page, f"After {steps} steps", rows, (*keys, "least"), COMMAND.format("a"), first="estimate"
    )


def agreement_picture(
    page: Page, runs: Mapping[int, Sequence[Mapping[str, Any]]], folder: Path
) -> None:
    """Saliency's rank correlation of every estimate, seed by seed."""
    drawn = {
        name: {
            f"after {steps} steps": [
                mean(task["agreement"][name]["saliency"] for task in one["tasks"].values())
                for one in results
            ]
            for steps, results in runs.items()
            if results
        }
        for name in merging_digits.ESTIMATES
    }
    if not any(drawn.values()):
        return
    higher = {column: True for row in drawn.values() for column in row}
    compare_methods(drawn, folder / "merging_agreement.png", higher_is_better=higher)
    page.picture("merging_agreement.png", "Rank correlation of saliency with the exact Fisher")


def pruning(page: Page, runs: Mapping[int, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """(b): the table and the curves."""
    shares = [f"{density:.0%}" for density in merging_digits.DENSITIES]
    rows, pictures = {}, []
    for steps, results in runs.items():
        curves = {}
        for name in merging_digits.PRUNED_BY:
            by_seed = [
                np.mean([task["pruning"][name] for task in one["tasks"].values()], axis=0)
                for one in results
            ]
            columns = np.transpose(by_seed).tolist() if by_seed else [None] * len(shares)
            rows[f"{name}, {steps} steps"] = dict(zip(shares, columns, strict=True))
            if by_seed:
                curves[name] = np.mean(by_seed, axis=0)
        if curves:
            x = [100 * density for density in merging_digits.DENSITIES]
            pictures.append(chart.draw_chart(f"accuracy after {steps} steps", lines(curves, x)))
    page.text("## (b) Pruning an expert's change")
    table(page, "", rows, shares, COMMAND.format("b"), first="by")
    page.text(
        "Test accuracy, mean over the four tasks, when only this part of all entries keeps its "
        "change and the rest goes back to the base; the entries compete over the whole model."
    )
    if pictures:
        beside(folder / "merging_pruning.png", pictures, "across: percent of entries kept")
        page.picture("merging_pruning.png", "Accuracy by the part that is kept")


# --- eight tasks --------------------------------------------------------------------------------


def eight_tasks(page: Page, study: Study, folder: Path) -> None:
    """(c)."""
    page.text("## (c) Eight real tasks", SETTING.format(**study.base, **_renamed(study.expert)))
    bases = found((study.base_cell(seed) for seed in study.seeds), study.root)
    columns = ("turn", "error", "variance", "parameters", "seconds")
    row: dict[str, Values] = {key: [one[key] for one in bases] or None for key in columns}
    table(
        page,
        "The base",
        {"base": row},
        columns,
        REAL.format("c"),
        digits={"turn": 3, "error": 3, "variance": 3, "parameters": 0, "seconds": 0},
        first="",
    )
    page.text(
        "On validation images of all tasks: accuracy of the turn (chance is 0.25), squared error "
        "of the restored pixels, and their variance, which is the error of a constant."
    )
    rates(page, study)
    titles = (
        "## (c1) Experts at the rate that is best for themselves",
        "## (c2) Experts at the next gentler rate, nearer to the base",
    )
    merged = [*study.merge_rates(), None, None][: len(titles)]
    for title, rate, picture in zip(titles, merged, RULE_PICTURES, strict=True):
        page.text(title if rate is None else f"{title}: {rate:g}")
        runs = _merges(study, rate)
        rules(page, study, runs, folder / picture)
        choices(page, runs)
        verdict(page, study, runs)


SETTING = """
One base trained without labels on the pooled training images (by which quarter an image was turned,
and restoring it from noise and a hole; {steps} steps of {batch}), then eight experts
({expert_steps} steps of {expert_batch} each, AdamW with merge statistics). Each task keeps its own
head, which starts from a linear probe of the base and is never merged. No network here has seen a
label of any task before.
"""


def _renamed(expert: Mapping[str, Any]) -> dict[str, Any]:
    return {f"expert_{key}": value for key, value in expert.items()}


def rates(page: Page, study: Study) -> None:
    """The learning rate of the experts."""
    tuning, best = study.tuning(), study.rate()
    row = {
        f"{rate:g}": f"{mean(tuning[rate]):.3f}{' (chosen)' if rate == best else ''}"
        for rate in study.rates
        if rate in tuning
    }
    names = [f"{rate:g}" for rate in study.rates]
    table(page, "Rate of the experts", {"accuracy": row}, names, REAL.format("c"), first="")
    page.text(
        f"Mean accuracy on `val` of the experts for {listed(real_experts.TUNING_TASKS)}, seed "
        f"{TUNING_SEED}, which no other table uses."
    )


Run = dict[str, Any]


def _merges(study: Study, rate: float | None) -> list[Run]:
    """The seeds whose rules have run: rows of test accuracies, and the experts."""
    runs = []
    for seed in study.seeds if rate is not None else ():
        rows = result(study.merge_cell(seed, rate), study.root)
        if rows is None:
            continue
        cells = study.expert_cells(seed, rate)
        experts = {task: result(one, study.root) for task, one in cells.items()}
        test = {name: row["test"] for name, row in rows.items()}
        test[INDIVIDUAL] = {task: one["expert"]["test"] for task, one in experts.items()}
        test[PROBE] = {task: one["probe"]["test"] for task, one in experts.items()}
        runs.append({"seed": seed, "rows": rows, "experts": experts, "test": test})
    return runs


def rules(page: Page, study: Study, runs: Sequence[Run], picture: Path) -> None:
    """The table of all rules, and the picture."""
    tasks = real_tasks.TASKS
    body: dict[str, dict[str, Any]] = {}
    drawn: dict[str, dict[str, Values]] = {}
    for name in (INDIVIDUAL, *merging_real.ROWS, PROBE):
        tests = [run["test"][name] for run in runs]
        row: dict[str, Any] = {task: [one[task] for one in tests] or None for task in tasks}
        row["mean"] = [mean(one.values()) for one in tests] or None
        drawn[name] = {"mean": row["mean"], **{task: row[task] for task in tasks}}
        row["relative"] = [
            merging_real.relative(run["test"][name], run["test"][INDIVIDUAL]) for run in runs
        ] or None
        body[_marked(name)] = row
    table(page, "Every rule", body, ("mean", "relative", *tasks), REAL.format("c"), first="rule")
    page.text(
        "Test accuracy under each task's own head. `relative`: mean over tasks of the accuracy as "
        "a part of the expert's own. † chosen on `val` from the grid below; ‡ needs to be told the "
        "task; § learns from validation images without labels, "
        f"{study.merge['adamerging_steps']} steps where the publication takes more. `fisher` is "
        f"the average by the exact Fisher information of {study.expert['fisher']} training images "
        "a task, a pass that the curvature of training saves: the upper line."
    )
    if runs:
        alone = {key: mean(values) for key, values in drawn.pop(INDIVIDUAL).items() if values}
        compare_methods(
            drawn,
            picture,
            titles={"mean": "mean of eight tasks"},
            higher_is_better=dict.fromkeys(alone, True),
            baselines=alone,
        )
        page.picture(picture.name, "Test accuracy of every rule by task; dashed: experts")


def _marked(name: str) -> str:
    row = merging_real.ROWS.get(name)
    if row is None:
        return name
    marks = ("†", row.tuned), ("‡", row.needs_task), ("§", row.rule == "adamerging")
    return " ".join([name, *(mark for mark, shown in marks if shown)])


def choices(page: Page, runs: Sequence[Run]) -> None:
    """What the grids were and what was chosen from them."""
    body: dict[str, dict[str, str | None]] = {}
    for name, row in merging_real.ROWS.items():
        if row.tuned:
            keys = row.grid[0]
            values = {key: dict.fromkeys(options[key] for options in row.grid) for key in keys}
            grid = "; ".join(f"{key} {listed(known)}" for key, known in values.items())
            body[name] = {"grid": grid}
            for run in runs:
                options = run["rows"][name]["options"]
                body[name][f"seed {run['seed']}"] = listed(
                    f"{key}={value}" for key, value in options.items()
                )
    columns = [f"seed {run['seed']}" for run in runs]
    table(page, "Options chosen on val", body, ("grid", *columns), REAL.format("c"), first="rule")


def verdict(page: Page, study: Study, runs: Sequence[Run]) -> None:
    """Paired differences, and in words what they say."""

    def means(name: str) -> list[float]:
        return [mean(run["test"][name].values()) for run in runs]

    def gaps(title: str, pairs: Iterable[tuple[str, str]]) -> None:
        rows = {
            f"{a} less {b}": {"points": paired(means(a), means(b)) if runs else None}
            for a, b in pairs
        }
        table(page, title, rows, ("points",), REAL.format("c"), first="difference")

    gaps(f"What {DEFAULT_RULE} gains", [(DEFAULT_RULE, rival) for rival in RIVALS])
    page.text("Mean test accuracy over the eight tasks, points of a hundred; seeds in brackets.")
    if runs:
        page.text(" ".join(_sentence(rival, means) for rival in ("average", "ties", UPPER)))
        page.text(_leader(means))
    page.text("### Why")
    gaps("", WHY)
    page.text(
        "From top to bottom: dividing each expert's curvature by its mean; squares of single "
        "images at the final weights in the place of those of batches on the way; all of the "
        "Fisher information in the place of its margins; an exponent and a scale chosen on `val`."
    )
    loudness(page, study, runs)


def _sentence(rival: str, means: Any) -> str:
    """Whether the default rule is above another, in how many seeds."""
    ours, theirs = means(DEFAULT_RULE), means(rival)
    above = sum(a > b for a, b in zip(ours, theirs, strict=True))
    gap = 100 * (mean(ours) - mean(theirs))
    word = "beats" if above == len(ours) else "does not beat" if gap <= 0 else "is on average above"
    return (
        f"`{DEFAULT_RULE}` {word} `{rival}`: {gap:+.2f} points, above it in {above} of "
        f"{len(ours)} seeds."
    )


def _leader(means: Any) -> str:
    """Which rules come out on top, and whether merging was worth it."""
    one_model = [name for name, row in merging_real.ROWS.items() if not row.needs_task]
    best = max(one_model, key=lambda name: mean(means(name)))
    top, probe = mean(means(best)), mean(means(PROBE))
    above = [name for name in one_model if mean(means(name)) > probe]
    word = ", ".join(f"`{name}`" for name in above) or "no rule"
    return (
        f"Of the rules that make one model, `{best}` has the best mean, {top:.3f}; the base with a "
        f"linear probe a task, which needs no expert at all, has {probe:.3f}, and {word} of them "
        f"{'is' if len(above) < 2 else 'are'} above that."
    )


def loudness(page: Page, study: Study, runs: Sequence[Run]) -> None:
    """By task: how well the curvature of training agrees with the Fisher information, and sizes."""
    keys = {
        "saliency": 3,
        "curvature": 3,
        "curvature_mean": 5,
        "fisher_mean": 5,
        "distance": 2,
        "seconds": 0,
        "fisher_seconds": 1,
    }
    rows = {
        task: {key: [run["experts"][task][key] for run in runs] or None for key in keys}
        for task in real_tasks.TASKS
    }
    table(page, "", rows, list(keys), REAL.format("c"), digits=keys, first="task")
    page.text(
        "`saliency` and `curvature`: rank correlation with the Fisher information of "
        f"{study.expert['fisher']} images; means over all entries, whose ratios say which expert "
        "is loud; `distance` of the expert from the base; seconds of training and of the Fisher "
        "pass on one core, some of them beside other work."
    )


# --- optimizers ---------------------------------------------------------------------------------


def optimizers(page: Page, study: Study, folder: Path) -> None:
    """(d)."""
    page.text(
        "## (d) Optimizers",
        f"scikit-learn's digits, ten classes, {study.sweep['steps']} steps of "
        f"{study.sweep['batch']} from the same random start on the same batches, constant rates, "
        "no weight decay. Lean UMTAM at rank 32 keeps the momentum of these small matrices dense, "
        "because its factors would not be smaller.",
    )
    names = list(merging_optimizers.OPTIMIZERS)
    runs = {name: found(study.sweep_cells(name), study.root) for name in names}
    shown = [f"{rate:g}" for rate in study.sweep["rates"]]
    losses = {name: _losses(results, len(shown)) for name, results in runs.items()}
    body = {}
    for name in names:
        row: dict[str, Any] = dict(zip(shown, map(_loss_text, losses[name]), strict=True))
        best = _best(losses[name])
        row["accuracy at best"] = None
        if best is not None:
            row["accuracy at best"] = [one["accuracy"][best] for one in runs[name]]
            row[shown[best]] = f"**{row[shown[best]]}**"
        body[name] = row
    table(
        page,
        "Training loss by learning rate",
        body,
        (*shown, "accuracy at best"),
        COMMAND.format("d"),
    )
    page.text("Loss over all training images after the last step; the best of each row in bold.")
    curves = {
        name: [mean(v) if v and None not in v else np.nan for v in losses[name]]
        for name in names
        if runs[name]
    }
    if curves:
        rate_pictures(page, study, curves, folder)
    costs(page, study)


def _losses(results: Sequence[Mapping[str, Any]], count: int) -> list[list[float | None]]:
    """By rate the losses of all seeds."""
    return [[one["loss"][i] for one in results] for i in range(count)]


def _loss_text(values: Sequence[float | None]) -> str:
    broken = sum(value is None for value in values)
    return f"{broken} of {len(values)} diverged" if broken else mean_spread(values, 4)


def _best(losses: Sequence[Sequence[float | None]]) -> int | None:
    """The rate of least mean loss among those at which no seed diverged."""
    known = {i: mean(v) for i, v in enumerate(losses) if v and None not in v}
    return min(known, key=known.get, default=None)


def rate_pictures(
    page: Page, study: Study, curves: Mapping[str, Sequence[float]], folder: Path
) -> None:
    """Loss by rate: optimizers on the left, ranks on the right."""
    x = np.log10(study.sweep["rates"])
    ranks = [n for n in curves if n.startswith("UMTAM lean")]
    others = [n for n in curves if n not in ranks or n.endswith("rank 32")]
    # With merge stats AdamW's curve is AdamW's own, bit for bit.
    others = [n for n in others if not n.endswith(("rank 8", "with merge stats"))]
    pictures = [
        chart.draw_chart(title, lines({n: curves[n] for n in chosen}, x), (520, 300), log=True)
        for title, chosen in (
            ("training loss", others),
            ("training loss by rank", [merging_optimizers.REFERENCE, *ranks]),
        )
        if all(n in curves for n in chosen)
    ]
    if pictures:
        beside(folder / "merging_rates.png", pictures, "across: log10 of the learning rate")
        page.picture("merging_rates.png", "Training loss by learning rate")


def costs(page: Page, study: Study) -> None:
    """Bytes of state and time of a step."""
    sizes, times = (result(c, study.root) for c in (study.bytes_cell(), study.time_cell()))
    rows = {}
    for name in merging_optimizers.OPTIMIZERS:
        row: dict[str, str | None] = {}
        for model, counts in (sizes or {}).items():
            row[model] = f"{counts[name] / counts['parameters']:.3f}"
        if times:
            row["step"] = f"{times['ratio'][name]:.2f}"
        rows[name] = row
    models = list(sizes or ("digits", "eight tasks", "Swin-T"))
    table(page, "State and time", rows, (*models, "step"), COMMAND.format("d"))
    reference = merging_optimizers.REFERENCE
    took = f"{1e3 * times['seconds'][reference]:.1f} ms" if times else NOT_RUN
    page.text(
        "Bytes of the optimizer's state as a multiple of the parameters', the time of an update "
        f"as a multiple of {reference}'s ({took}) on the weights of one transformer block of width "
        f"{study.time['width']}, median of {study.time['rounds']} interleaved rounds on a CPU. The "
        "SVD that GaLore does once in 200 steps is not in its time. Muon and GaLore leave "
        "convolutions to Adam, as optax has them by default."
    )
