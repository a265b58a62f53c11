"""Tables that both halves of the page of the switching study show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import mean, paired, table
from benchmarks.switching import FULL, PULSE, RANDOM, T_SWITCH, VALUES, Alpha, merged_bits
from benchmarks.switching_pictures import (
    INDIVIDUAL,
    Run,
    accuracy,
    confusion,
    over,
    row_accuracy,
    weight,
)
from benchmarks.switching_routes import ABSTAINING, LEARNED
from sinewich_jax.report import compare_methods
from sinewich_jax.report.study import Page

PROTOCOLS = ("oracle", "per_sample", "top1", "batch_mean", "batch_top1")
ROUTES = (*PROTOCOLS, "per_sample" + ABSTAINING, "per_sample" + LEARNED, "top1" + LEARNED)


# --- accuracy and bits ----------------------------------------------------------------------------


def every_alpha(
    page: Page,
    runs: Sequence[Run],
    ways: Mapping[str, Sequence[Alpha]],
    alphas: Sequence[Alpha],
    command: str,
) -> None:
    """Mean accuracy of every way at the alphas it is meant to be run at."""
    rows: dict[str, dict[str, Any]] = {}
    for way, planned in ways.items():
        rows[way] = dict.fromkeys(map(str, alphas), "")
        for alpha in planned:
            values = over(runs, lambda run, a=alpha, w=way: accuracy(run, w, a))
            rows[way][str(alpha)] = values
    table(page, "Accuracy by alpha", rows, [str(a) for a in alphas], command, first="switch")


def bits(page: Page, runs: Sequence[Run], alphas: Sequence[Alpha], command: str) -> None:
    """What T-Switch weighs at every alpha."""
    rows = {}
    for alpha in alphas:
        row: dict[str, Any] = {
            key: over(runs, lambda run, a=alpha, key=key: weight(run, T_SWITCH, a, key))
            for key in ("density", "bound", "coded", "bits")
        }
        row["ratio"] = over(runs, lambda run, a=alpha: _ratio(run, a))
        row["float32 / bits"] = over(runs, lambda run, a=alpha: _shrunk(run, a))
        rows[str(alpha)] = row
    columns = ("density", "bound", "coded", "bits", "ratio", "float32 / bits")
    table(
        page,
        "Bits a parameter",
        rows,
        columns,
        command,
        digits=dict.fromkeys(columns, 3),
        first="alpha",
    )
    page.text(
        "`bits`: bytes of a switch bank with all tasks on disk, index, checksums and header with "
        "them, by parameters and tasks; `coded`: masks, signs and knobs of it; `ratio`: `bits` by "
        "`bound`; `bound`: what no code goes below that knows the density of each "
        "leaf and takes entries for independent. A ratio below 1 says that they are not."
    )


def _ratio(run: Run, alpha: Alpha) -> float | None:
    found, least = (weight(run, T_SWITCH, alpha, key) for key in ("bits", "bound"))
    return found / least if found is not None and least else None


def _shrunk(run: Run, alpha: Alpha) -> float | None:
    found = weight(run, T_SWITCH, alpha, "bits")
    return None if found is None else FULL / found


# --- routing --------------------------------------------------------------------------------------


def routes(page: Page, runs: Sequence[Run], command: str, heads: bool, picture: Path) -> None:
    """Auto-Switch under every protocol, and who is taken for whom."""
    columns = ["accuracy", *(["chosen head"] if heads else []), "task found", "trees", "passes"]
    keys = {
        "accuracy": "accuracy",
        "chosen head": "routed_accuracy",
        "task found": "task_accuracy",
        "trees": "trees",
        "passes": "multiplier",
    }
    rows = {
        name: {
            column: over(runs, lambda run, n=name, k=keys[column]: _routed(run, n, k))
            for column in columns
        }
        for name in ROUTES
    }
    digits = {"accuracy": 3, "chosen head": 3, "task found": 3, "trees": 0, "passes": 2}
    table(page, "Auto-Switch", rows, columns, command, digits=digits, first="protocol")
    text = (
        "`oracle` is told the task. `per_sample` mixes switches by the votes of each sample's own "
        "neighbours and `top1` takes the first of them: what a server can do. `batch_mean` "
        "(published for images) and `batch_top1` (for texts) see a batch of 256 of one task. "
        "`abstaining` leaves samples far from all examples to the base. `trees`: distinct merged "
        "models; `passes`: forward passes a sample."
    )
    if heads:
        text += (
            " `accuracy` is with the head of the true task, as published; `chosen head` with that "
            "of the task that was routed to."
        )
    page.text(text)
    drawn = [run["router"] for run in runs if run["router"]]
    if drawn:
        counts = np.sum([one["rows"]["per_sample"]["confusion"] for one in drawn], axis=0)
        confusion(picture, counts, drawn[0]["names"])
        page.picture(picture.name, "Where samples of each task are routed")


def _routed(run: Run, protocol: str, key: str) -> float | None:
    return run["router"]["rows"][protocol][key] if run["router"] else None


# --- all methods, and what learning adds ----------------------------------------------------------


def methods(
    page: Page,
    runs: Sequence[Run],
    rows: Sequence[str],
    ways: Sequence[tuple[str, Alpha]],
    tasks: Sequence[str],
    command: str,
    picture: Path,
    drawn_ways: Sequence[str] | None = None,
) -> None:
    """Every method by task, with the bits of a parameter that a task costs.

    ``rows`` begins with the experts; the picture has the others, and switches at 0.6, of
    ``drawn_ways`` alone where these are named.
    """
    body: dict[str, dict[str, Any]] = {}
    for name in rows:
        found = [run["test"].get(name) for run in runs]
        body[name] = _by_task([one for one in found if one], tasks)
        body[name]["bits"] = {INDIVIDUAL: str(FULL)}.get(name) or (
            "0" if name.startswith("base") else f"{merged_bits(name, len(tasks)):.1f}"
        )
    switched = (way for way, alpha in ways if alpha == PULSE)
    chosen = [way for way in switched if drawn_ways is None or way in drawn_ways]
    drawn = [*rows[1:], *(f"{way}, {PULSE}" for way in chosen)]
    for way, alpha in ways:
        points = [run["fronts"].get(way, {}).get(str(alpha)) for run in runs]
        have = [one for one in points if one]
        label = f"{way}, {alpha}"
        body[label] = _by_task([one["test"] for one in have], tasks)
        body[label]["bits"] = f"{mean(one['bits'] for one in have):.3f}" if have else None
    columns = ("mean", "bits", *tasks)
    table(page, "Every method", body, columns, command, first="method")
    page.text(
        "Test accuracy. `bits` a parameter and task, besides the base: of switches as they lie on "
        "disk, of all others by computation (32 for an expert; one merged vector, shared by all "
        "tasks; EMR's masks of one bit; values under a mask with the mask's entropy)."
    )
    shown = {
        name: {"mean": body[name]["mean"], **{task: body[name][task] for task in tasks}}
        for name in drawn
    }
    alone = {key: mean(body[INDIVIDUAL][key]) for key in ("mean", *tasks) if body[INDIVIDUAL][key]}
    if alone and any(row["mean"] for row in shown.values()):
        compare_methods(
            shown,
            picture,
            titles={"mean": f"mean of {len(tasks)} tasks"},
            higher_is_better=dict.fromkeys(alone, True),
            baselines=alone,
        )
        page.picture(picture.name, "Test accuracy by task; dashed: experts")


def _by_task(found: Sequence[Mapping[str, float]], tasks: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {task: [one[task] for one in found] or None for task in tasks}
    row["mean"] = [mean(one.values()) for one in found] or None
    return row


def gaps(
    page: Page,
    title: str,
    runs: Sequence[Run],
    pairs: Mapping[str, tuple[Callable[[Run], float | None], Callable[[Run], float | None]]],
    command: str,
) -> None:
    """Differences seed by seed, in points of a hundred."""
    rows = {}
    for name, (first, second) in pairs.items():
        both = [(first(run), second(run)) for run in runs]
        have = [(a, b) for a, b in both if a is not None and b is not None]
        rows[name] = {"points": paired(*zip(*have, strict=True)) if have else None}
    table(page, title, rows, ("points",), command, first="difference")


def usual_pairs(ways: Sequence[str]) -> dict[str, Any]:
    """What is compared, by name; of the switches only ``ways``."""

    def switch(alpha: Alpha, way: str = T_SWITCH) -> Callable[[Run], float | None]:
        return lambda run: accuracy(run, way, alpha)

    def alone(run: Run) -> float | None:
        return row_accuracy(run, INDIVIDUAL)

    def route(name: str) -> Callable[[Run], float | None]:
        return lambda run: _routed(run, name, "accuracy")

    pairs = {
        f"{way} at {alpha} less {INDIVIDUAL}": (switch(alpha, way), alone)
        for way in ways
        if way.startswith(T_SWITCH)
        for alpha in (PULSE, "auto")
    }
    for alpha in (PULSE, 0.7):
        name = f"{T_SWITCH} at {alpha} less its float32 values"
        pairs[name] = (switch(alpha), switch(alpha, VALUES))
    if RANDOM in ways:
        pairs[f"{T_SWITCH} at {PULSE} less a random mask"] = (switch(PULSE), switch(PULSE, RANDOM))
    pairs[f"{T_SWITCH} at {PULSE} less EMR"] = (
        switch(PULSE),
        lambda run: row_accuracy(run, "emr"),
    )
    pairs["batch_mean less per_sample"] = (route("batch_mean"), route("per_sample"))
    pairs["per_sample less oracle"] = (route("per_sample"), route("oracle"))
    return pairs


def learned(
    page: Page,
    results: Mapping[float, Sequence[Mapping[str, Any]]],
    runs: Sequence[Run],
    examples: int,
    command: str,
) -> None:
    """Learned switches by price, beside the fixed alpha of about the same bits."""
    rows = {}
    for price, found in results.items():
        row: dict[str, Any] = {
            "accuracy": [mean(one["test"].values()) for one in found] or None,
            "bits": [one["bits"] for one in found] or None,
            "fixed alpha at these bits": None,
        }
        fixed = _curve(runs)
        if found and fixed:
            bits_here = mean(row["bits"])
            row["fixed alpha at these bits"] = f"{np.interp(bits_here, *fixed):.3f}"
        rows[f"{price:g}"] = row
    columns = ("accuracy", "bits", "fixed alpha at these bits")
    table(page, "Learned switches", rows, columns, command, first="price of a bit")
    page.text(
        "FlexSwitch-style: threshold, scale and width of every leaf distilled from the expert on "
        f"{examples} training images without labels. Beside it the accuracy of T-Switch at as many "
        "bits, interpolated between the alphas above."
    )


def _curve(runs: Sequence[Run]) -> tuple[list[float], list[float]] | None:
    """T-Switch's mean bits and accuracies, both rising: what fewer bits beat is left out."""
    alphas = {a for run in runs for a in run["fronts"].get(T_SWITCH, {}) if a != "auto"}
    points = sorted(
        (
            mean(over(runs, lambda run, a=a: weight(run, T_SWITCH, a, "bits"))),
            mean(over(runs, lambda run, a=a: accuracy(run, T_SWITCH, a))),
        )
        for a in alphas
    )
    front: list[tuple[float, float]] = []
    for point in points:
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return tuple(map(list, zip(*front, strict=True))) if front else None
