"""What both halves of the switching study measure: fronts of switches, controls, bytes on disk."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax import merging
from sinewich_jax.core.ternary import entropy_bits
from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.switches.apply import apply_switch, unpack
from sinewich_jax.switches.bank import SwitchBank
from sinewich_jax.switches.leaf import Switch
from sinewich_jax.switches.make import make_switch

Tree = Any
Alpha = float | str
ALPHAS: tuple[Alpha, ...] = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, "auto")
PULSE, AUTO = 0.6, "auto"
FULL = 32
"""Bits of a number that is not compressed."""


class Way(NamedTuple):
    """A row of the tables: how a switch is made, or what stands in its place.

    Attributes:
      options: of ``make_switch``, besides alpha.
      control: ``"values"`` keeps the task vector as it is under the mask of the switch;
        ``"random"`` chooses the active entries at random; None is no control.
      curvature: the saliency of the expert's curvature chooses the entries.
      corrected: the task's own head makes up for what the switch does to its inputs.
    """

    options: dict[str, Any]
    control: str | None = None
    curvature: bool = False
    corrected: bool = False


T_SWITCH, VALUES, RANDOM = "T-Switch", "float32 values under its mask", "random mask"
WAYS: dict[str, Way] = {
    T_SWITCH: Way({"knob": "l2_kept"}),
    "T-Switch, knob l1": Way({"knob": "l1"}),
    "T-Switch, knob l2_full": Way({"knob": "l2_full"}),
    VALUES: Way({"knob": "l2_kept"}, control="values"),
    RANDOM: Way({"knob": "l2_kept"}, control="random"),
}
"""What is measured on both; alpha goes with each."""


class Setting(NamedTuple):
    """A base and the experts that were trained from it.

    Attributes:
      base: the tree that is switched.
      experts: by task, trees as the base.
      score: from a task and a tree to accuracy.
      saliency: by task, a tree of scores for ``curvature`` ways.
      corrected: as ``score``, for ``corrected`` ways.
    """

    base: Tree
    experts: Mapping[str, Tree]
    score: Callable[[str, Tree], float]
    saliency: Mapping[str, Tree] = {}
    corrected: Callable[[str, Tree], float] | None = None

    @property
    def deltas(self) -> dict[str, Tree]:
        """The task vectors, in NumPy."""
        return {t: merging.task_vector(one, self.base) for t, one in self.experts.items()}

    @property
    def size(self) -> int:
        """Parameters of the base."""
        return sum(np.size(leaf) for leaf in flatten_paths(self.base).values())


def switches(setting: Setting, way: Way, alpha: Alpha) -> dict[str, Switch]:
    """The switch of every task."""
    made = {}
    for task, delta in setting.deltas.items():
        options = dict(way.options)
        if way.curvature:
            options["score"] = setting.saliency[task]
        elif way.control == "random":
            options["score"] = chance(task, delta)
        made[task] = make_switch(delta, alpha=alpha, **options)
    return made


def chance(task: str, delta: Tree) -> Tree:
    """Scores that choose at random, the same for every alpha, so that masks are nested."""

    def one(path: str, leaf: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(f"{task}/{path}".encode()))
        return rng.random(np.shape(leaf), np.float32)

    return map_paths(one, delta)


def front(setting: Setting, way: Way, alphas: Iterable[Alpha] = ALPHAS) -> dict[str, Any]:
    """Accuracy, bits and likeness at every alpha, by its text."""
    return {str(alpha): point(setting, way, alpha) for alpha in alphas}


def point(setting: Setting, way: Way, alpha: Alpha) -> dict[str, Any]:
    """One alpha, see :func:`measured`."""
    made = switches(setting, way, alpha)
    if way.corrected:
        setting = setting._replace(score=setting.corrected)
    if way.control != "values":
        return measured(setting, made)
    deltas = setting.deltas
    trees = {task: under_mask(setting.base, deltas[task], one) for task, one in made.items()}
    found = measured(setting, made, trees)
    mask = found["bound"] - found["density"]  # the sign is part of the value
    return found | {"bits": mask + FULL * found["density"]}


def measured(
    setting: Setting, made: Mapping[str, Switch], trees: Mapping[str, Tree] | None = None
) -> dict[str, Any]:
    """What switches are worth, and what they weigh.

    Returns:
      ``test`` and ``cosine`` (with the task vector) by task; ``bits`` a parameter in a bank file,
      ``coded`` without its index and header, ``bound`` (see :func:`bound`) and ``density``, means
      over the tasks.
    """
    deltas = setting.deltas
    if trees is None:
        trees = {task: apply_switch(setting.base, one) for task, one in made.items()}
    count, disk = len(made) * setting.size, on_disk(setting.base, made)
    return {
        "test": {task: setting.score(task, tree) for task, tree in trees.items()},
        "cosine": {task: cosine(deltas[task], unpack(one)) for task, one in made.items()},
        "coded": 8 * disk.coded / count,
        "bits": 8 * disk.total / count,
        "bound": sum(map(bound, made.values())) / count,
        "density": sum(map(active_entries, made.values())) / count,
    }


def learned_front(
    setting: Setting, learn: Callable[[str, Tree], tuple[Switch, Any]]
) -> dict[str, Any]:
    """:func:`measured` of the switches that ``learn(task, delta)`` gives with their trace."""
    made, widths = {}, {}
    for task, delta in setting.deltas.items():
        made[task], trace = learn(task, delta)
        widths[task] = trace.widths
    return measured(setting, made) | {"widths": widths}


def under_mask(base: Tree, delta: Tree, switch: Switch) -> Tree:
    """The base plus the task vector where the switch is active."""
    flat, steps = flatten_paths(delta), flatten_paths(unpack(switch))
    return map_paths(lambda path, leaf: leaf + np.where(steps[path] != 0, flat[path], 0), base)


def cosine(first: Tree, second: Tree) -> float:
    """Of two trees with the same paths, all leaves as one vector; 0 where one of them is 0."""
    a, b = (flatten_paths(tree) for tree in (first, second))
    a, b = (
        np.concatenate([np.asarray(tree[path], np.float64).ravel() for path in sorted(tree)])
        for tree in (a, b)
    )
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale else 0.0


# --- bits -----------------------------------------------------------------------------------------


def active_entries(switch: Switch) -> int:
    """How many entries change."""
    return sum(int(np.bitwise_count(leaf.mask).sum()) for leaf in switch.leaves.values())


def bound(switch: Switch) -> float:
    """Bits that these densities and fair signs cannot do without, leaf by leaf; no knobs."""
    return sum(
        entropy_bits(leaf.size, int(np.bitwise_count(leaf.mask).sum()), leaf.bits)
        for leaf in switch.leaves.values()
    )


class Disk(NamedTuple):
    """Bytes of a bank file.

    Attributes:
      coded: masks, signs, knobs and leaves kept in full.
      total: index, checksums, padding and header as well.
    """

    coded: int
    total: int


def on_disk(base: Tree, made: Mapping[str, Switch]) -> Disk:
    """Writes a bank with these tasks and asks it."""
    with tempfile.TemporaryDirectory() as folder:
        bank = SwitchBank.create(Path(folder) / "tasks.swb", base=base)
        for task, switch in made.items():
            bank.add(task, switch)
        report = bank.report()
        bank.close()
    row = report.total
    return Disk(row.mask + row.sign + row.knob + row.dense, report.nbytes)


def merged_bits(rule: str, tasks: int) -> float:
    """Bits a parameter and task that a merged model needs besides the base, by computation.

    One vector of float32 for all tasks; EMR has a mask of one bit a task as well (its rescalers
    are a number a task).
    """
    return FULL / tasks + (rule == "emr")
