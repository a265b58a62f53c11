"""Switching the trunks of eight real classification tasks; every task keeps its own head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.cells import load_arrays
from benchmarks.merging_agreement import dense
from benchmarks.pages import mean
from benchmarks.real_experts import probe, train_expert
from benchmarks.real_tasks import Tree, class_count, features, linear, load, pooled, score
from benchmarks.switching import (
    AUTO,
    PULSE,
    RANDOM,
    T_SWITCH,
    VALUES,
    WAYS,
    Alpha,
    Setting,
    Way,
    front,
    learned_front,
    point,
)
from benchmarks.switching_routes import Task, routed
from sinewich_jax import merging
from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.switches.flex import compress
from sinewich_jax.switches.leaf import Switch
from sinewich_jax.switches.refit import refit_head

ROW = "T-Switch, a knob a row"
CORRECTED = "T-Switch, head's bias corrected"
CORRECTED_FULL = "T-Switch, knob l2_full, head's bias corrected"
REFIT = "T-Switch, head refitted"
REFIT_FULL = "T-Switch, knob l2_full, head refitted"
REFIT_VALUES, REFIT_RANDOM = f"{VALUES}, head refitted", f"{RANDOM}, head refitted"
REAL_WAYS: dict[str, Way] = {
    **WAYS,
    ROW: Way({"knob": "l2_kept", "group": "row"}),
    CORRECTED: Way({"knob": "l2_kept"}, corrected=True),
    CORRECTED_FULL: Way({"knob": "l2_full"}, corrected=True),
    REFIT: Way({"knob": "l2_kept"}, corrected=True),
    REFIT_FULL: Way({"knob": "l2_full"}, corrected=True),
    REFIT_VALUES: WAYS[VALUES]._replace(corrected=True),
    REFIT_RANDOM: WAYS[RANDOM]._replace(corrected=True),
    "T-Switch, a knob a row, l2_full": Way({"knob": "l2_full", "group": "row"}),
    "T-Switch, one threshold for both signs": Way({"knob": "l2_kept", "sign_split": False}),
    "T-Switch, entries by curvature saliency": Way({"knob": "l2_kept"}, curvature=True),
}
HEAD = ("kernel", "bias")
RULES = ("average", "task_arithmetic", "ties", "emr")
CONTRAST = (T_SWITCH, VALUES, CORRECTED, CORRECTED_FULL, REFIT, REFIT_FULL)
"""The ways that are measured on the second recipe too."""

REFITTED = (REFIT, REFIT_FULL, REFIT_VALUES, REFIT_RANDOM)
"""Heads that are fitted as a whole; the other corrections move the bias alone."""

TRIED = (T_SWITCH, CORRECTED)
"""Ways that are tried on every recipe, at these alphas:"""

ALPHAS: tuple[Alpha, ...] = (PULSE, AUTO)


def read(
    base: Path, files: Mapping[str, Path], calibration: int = 0, strength: float = math.inf
) -> Setting:
    """The experts of a seed; saliency is ``delta^2`` times the curvature that training kept."""
    trunk = load_arrays(base)
    trees = {task: load_arrays(path) for task, path in files.items()}
    saliency = {}
    for task, tree in trees.items():
        delta = flatten_paths(merging.task_vector(tree["trunk"], trunk))
        curvature = dense(tree["curvature"], trunk)
        found = {p: np.float32(d.astype(np.float64) ** 2 * curvature[p]) for p, d in delta.items()}
        saliency[task] = unflatten_paths(found)
    found = setting_of(trunk, trees, "test", calibration, strength)
    return found._replace(saliency=saliency)


def setting_of(
    base: Tree,
    experts: Mapping[str, Tree],
    split: str,
    calibration: int = 0,
    strength: float = math.inf,
) -> Setting:
    """Trunks that are switched, scored under the heads of their experts.

    Heads are corrected from so many training images without labels, which costs no bits, as each
    task has its own in any case; 0 where no way asks for it.
    """

    def plain(task: str, tree: Tree) -> float:
        return score(tree, experts[task]["head"], load(task, split))

    def corrected(task: str, tree: Tree) -> float:
        few, own = load(task, "train").x[:calibration], experts[task]
        before, after = (features(trunk, few) for trunk in (own["trunk"], tree))
        head = refit_head(*(own["head"][key] for key in HEAD), before, after, strength=strength)
        return score(tree, dict(zip(HEAD, head, strict=True)), load(task, split))

    trunks = {task: tree["trunk"] for task, tree in experts.items()}
    return Setting(base, trunks, plain, corrected=corrected if calibration else None)


def fronts(
    base: Path,
    files: Mapping[str, Path],
    way: str,
    alphas: Sequence[Alpha],
    calibration: int,
    strength: float = math.inf,
) -> dict[str, Any]:
    """One way at every alpha, on test images."""
    return front(read(base, files, calibration, strength), REAL_WAYS[way], alphas)


def refits(
    base: Path, files: Mapping[str, Path], strengths: Sequence[float], calibration: int
) -> dict[str, dict[str, float]]:
    """Mean accuracy on ``val`` with heads that were refitted, by way and alpha, by strength."""
    trunk = load_arrays(base)
    trees = {task: load_arrays(path) for task, path in files.items()}
    rows: dict[str, dict[str, float]] = {}
    for strength in strengths:
        one = setting_of(trunk, trees, "val", calibration, strength)
        for way in (REFIT, REFIT_FULL):
            for alpha in ALPHAS:
                found = point(one, REAL_WAYS[way], alpha)["test"]
                rows.setdefault(f"{way}, {alpha}", {})[f"{strength:g}"] = mean(found.values())
    return rows


def try_recipe(
    base: Path, task: str, seed: int, rate: float, steps: int, pull: float, **settings: int
) -> dict[str, Any]:
    """Trains one expert in one way and switches it; everything is measured on ``val``."""
    data, trunk = load(task, "train"), load_arrays(base)
    head = probe(trunk, data, class_count(task), settings["probe_steps"])
    start = {"trunk": trunk, "head": head}
    params, _, seconds = train_expert(start, data, rate, steps, settings["batch"], seed, pull)
    params, val = jax.tree.map(np.asarray, params), load(task, "val")
    one = setting_of(trunk, {task: params}, "val", settings["calibration"])
    delta = merging.task_vector(params["trunk"], trunk)
    found = {
        "probe": score(trunk, head, val),
        "expert": score(params["trunk"], params["head"], val),
        "moved": norm(delta) / norm(trunk),
        "seconds": seconds,
    }
    for way in TRIED:
        for alpha in ALPHAS:
            at = point(one, REAL_WAYS[way], alpha)
            found[f"{way}, {alpha}"] = {"val": at["test"][task], "bits": at["bits"]}
    return found


def norm(tree: Tree) -> float:
    """Of all entries as one vector."""
    leaves = (np.asarray(leaf, np.float64) for leaf in flatten_paths(tree).values())
    return float(np.sqrt(sum(np.square(leaf).sum() for leaf in leaves)))


# --- routing --------------------------------------------------------------------------------------


def router(
    base: Path, files: Mapping[str, Path], alpha: Alpha, examples: int, neighbours: int
) -> dict[str, Any]:
    """Auto-Switch under every protocol, on test images; features are those of the base."""
    setting = read(base, files)
    heads = {task: load_arrays(path)["head"] for task, path in files.items()}
    tasks = {}
    for task in heads:
        few, test = load(task, "train").x[:examples], load(task, "test")
        query, found = (features(setting.base, x) for x in (few, test.x))
        tasks[task] = Task(query, test.x, found, test.y)

    def score_rows(outputs: np.ndarray, chosen: np.ndarray, labels: np.ndarray) -> np.ndarray:
        right = np.zeros(len(outputs), bool)
        for number, head in enumerate(heads.values()):
            mine = (chosen == number) & (labels[:, 0] == number)  # another task's class is wrong
            best = linear(jax.tree.map(np.asarray, head), outputs).argmax(-1)
            right |= mine & (best == labels[:, 1])
        return right

    return routed(setting, jax.jit(pooled), score_rows, tasks, alpha, neighbours)


# --- learned switches -----------------------------------------------------------------------------


def learned(
    base: Path, files: Mapping[str, Path], price: float, steps: int, examples: int
) -> dict[str, Any]:
    """FlexSwitch-style switches, distilled on training images without their labels."""
    setting = read(base, files)

    def one(task: str, delta: Tree) -> tuple[Switch, Any]:
        head = load_arrays(files[task])["head"]
        images = load(task, "train").x[:examples]
        return compress(
            setting.base,
            delta,
            lambda trunk, x: linear(head, pooled(trunk, x)),
            images,
            steps=steps,
            bytes_weight=price,
        )

    return learned_front(setting, one)
