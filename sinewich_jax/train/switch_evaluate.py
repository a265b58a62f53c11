"""Runs of one bank under each routing protocol: the honest ones and the published side by side.

What :func:`sinewich_jax.switches.protocols.evaluate_protocols` does for any function with a score a
sample, done for runs, with their data and their metrics, which are over a whole set. The work
directories stay as they are.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.report.tables import markdown_table
from sinewich_jax.switches.apply import merge_switches
from sinewich_jax.switches.bank import SwitchBank
from sinewich_jax.switches.dispatch import LEVELS, group_routes
from sinewich_jax.switches.leaf import Switch
from sinewich_jax.switches.own import split_own
from sinewich_jax.switches.router import Router
from sinewich_jax.switches.traffic import (
    ORACLE,
    PROTOCOLS,
    Sent,
    Traffic,
    check_protocols,
    send,
)
from sinewich_jax.train import evaluate, replace
from sinewich_jax.train import workdir as workdirs
from sinewich_jax.train.evaluate_weights import own_scores
from sinewich_jax.train.switch_features import Features, batches
from sinewich_jax.train.switch_leaves import SwitchedLeaves
from sinewich_jax.train.switch_origin import described, opened_base
from sinewich_jax.train.switch_route import check_router

Progress = Callable[[int, int, str], None]
Leaves = Mapping[str, np.ndarray]
ITSELF = "each run itself"


def evaluate_runs(
    bank: str | os.PathLike[str],
    runs: Mapping[str, str | os.PathLike[str]],
    base: str | os.PathLike[str] | None = None,
    *,
    protocols: str | Sequence[str] = PROTOCOLS,
    batch: int = 256,
    abstain: bool = False,
    side: int | None = None,
    experiments: Mapping[str, Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores the tasks of a bank, each on the data of its run, as every protocol routes them.

    A sample gets the weights that its votes make. They are read by the model of a run, with the
    decoder and whatever else that run's task has of its own: that of the true task ("true head",
    as published), and that of the chosen one ("chosen head", all that a server has). The second is
    measured where all runs answer the same tasks at the same size.

    Args:
      bank: a file of switches with a router.
      runs: a work directory for each task of the router.
      base: what the bank was packed with; None takes the first run, for what it started from.
      protocols: of :data:`~sinewich_jax.switches.traffic.PROTOCOLS`.
      batch: images a batch of one task; it is part of what the batch protocols are.
      abstain: sends unknown samples to the base, with the best guess of a head.
      side: of the images for the router, see
        :class:`~sinewich_jax.train.switch_features.Features`.
      experiments: models, tasks and data of runs; by default what their configs name.
      devices: devices of the mesh; None takes all.
      progress: called with steps done, steps in all, and what is looked at.

    Returns:
      ``{"bank", "batch", "abstain", "runs", "protocols", "notes"}``: of each run its ``workdir``,
      ``steps`` and ``tasks`` (``metric``, ``unit``, ``higher_is_better``, ``own``: what the run
      scored when it was last evaluated, or None); of each protocol ``true_head`` and
      ``chosen_head`` (task of the bank -> task -> value; None where heads cannot be exchanged),
      ``task_found``, ``unknown``, ``trees`` and ``passes`` as
      :class:`~sinewich_jax.switches.protocols.Protocol` has them,
      ``confusion`` (true task -> chosen task -> images) and ``to_base`` (true task -> images that
      went to the base, which are in no other count); ``notes`` are sentences for people.

    Raises:
      ConfigError: no router, runs that are not its tasks, features of another kind.
      CheckpointError: no run, or a bank of another model.
      SinewichError: another base.
    """
    protocols = (protocols,) if isinstance(protocols, str) else tuple(dict.fromkeys(protocols))
    check_protocols(protocols)
    if batch < 1:
        raise ConfigError(f"batch is {batch}; expected at least 1")
    bank, folders = Path(bank), {name: Path(path).absolute() for name, path in runs.items()}
    with SwitchBank.open(bank) as opened:
        router, mark, names = opened.router(), opened.base, opened.names
    _check_runs(bank, names, router, folders, abstain)
    base = Path(next(iter(folders.values())) if base is None else base)
    with opened_base(base, mark, bank) as origin:
        features = Features(origin, base, side)
        check_router(router, features)
        with SwitchBank.open(bank, base=described(origin, mark)) as opened:
            packed = {name: opened.get(name) for name in router.names}
        shared = {name: origin.read(name) for name in origin.names}
        models = []
        for name, switch in packed.items():
            leaves = SwitchedLeaves(
                Path(f"{bank}@{name}"), origin, {name: switch}, {name: 1.0}, mark
            )
            given = (experiments or {}).get(name)
            models.append(_Model.open(name, folders[name], leaves, given, devices))
    switches = {name: split_own(switch, shared)[0] for name, switch in packed.items()}
    weighing = _Weighing(shared, switches, models)
    total = len(models) * (1 + len(protocols))
    steps = itertools.count()

    def tell(words: str) -> None:
        if progress is not None:
            progress(next(steps), total, words)

    seen = []
    for model in models:
        tell(f"{model.name}: features")
        seen.append(model.features(features))
    found = {}
    for protocol in protocols:
        traffic, scores = Traffic(len(models)), []
        for number, rows in enumerate(seen):
            tell(f"{protocol}: {models[number].name}")
            cuts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
            sent = [send(router, cut, number, protocol, abstain=abstain) for cut in cuts]
            for part in sent:
                traffic.add(number, part)
            scores.append(weighing.scores(number, sent))
        found[protocol] = _described(router.names, traffic, scores)
    return evaluate.finite(
        {
            "bank": os.fspath(bank),
            "batch": batch,
            "abstain": abstain,
            "runs": {model.name: model.facts() for model in models},
            "protocols": found,
            "notes": [note for model in models for note in model.notes()] + weighing.notes(),
        }
    )


def _described(
    names: Sequence[str], traffic: Traffic, scores: Sequence[tuple[Any, Any]]
) -> dict[str, Any]:
    """One protocol, from where it sent samples and how the runs scored under both heads."""
    true, chosen = (dict(zip(names, row, strict=True)) for row in zip(*scores, strict=True))
    counts = zip(names, traffic.confusion.tolist(), strict=True)
    return {
        "true_head": true,
        "chosen_head": None if None in chosen.values() else chosen,
        "task_found": traffic.task_accuracy,
        "unknown": traffic.unknown,
        "trees": traffic.trees,
        "passes": traffic.multiplier,
        "confusion": {name: dict(zip(names, row, strict=True)) for name, row in counts},
        "to_base": dict(zip(names, traffic.away.tolist(), strict=True)),
    }


def table(found: Mapping[str, Any]) -> str:
    """What :func:`evaluate_runs` has found, for people to read."""
    runs, protocols = found["runs"], found["protocols"]
    columns = [(name, task) for name, run in runs.items() for task in run["tasks"]]
    titles = [f"{name}: {task}, {runs[name]['tasks'][task]['metric']}" for name, task in columns]
    rows = [(ITSELF, "", *(_own(runs[n]["tasks"][t]["own"]) for n, t in columns), *[""] * 4)]
    for protocol, row in protocols.items():
        for head in ("true_head", "chosen_head"):
            if row[head] is None or (head == "chosen_head" and protocol == ORACLE):
                continue
            words = "either" if protocol == ORACLE else head.removesuffix("_head")
            costs: Sequence[object] = [""] * 4
            if head == "true_head":
                percents = (f"{100 * row[key]:.1f} %" for key in ("task_found", "unknown"))
                costs = [*percents, row["trees"], f"{row['passes']:.2f}"]
            values = (_text(row[head][name][task]) for name, task in columns)
            rows.append((protocol, words, *values, *costs))
    headers = ("protocol", "head", *titles, "task found", "unknown", "trees", "passes")
    text = markdown_table(headers, rows, "ll" + "r" * (len(headers) - 2))
    shown = next((name for name in ("per_sample", "top1") if name in protocols), None)
    if shown is not None:
        counts, away = (protocols[shown][key] for key in ("confusion", "to_base"))
        headers = (f"{shown}: true, by chosen", *counts)
        lines = [(true, *row.values()) for true, row in counts.items()]
        if any(away.values()):
            headers += ("the base",)
            lines = [(*line, away[line[0]]) for line in lines]
        text += f"\n{markdown_table(headers, lines)}"
    return text.rstrip("\n")


class _Model(NamedTuple):
    """A run, and where its parameters come from.

    Attributes:
      name: of its task in the bank.
      folder: its work directory.
      evaluator: scores it.
      resumed: its newest checkpoint.
      homes: path of a parameter -> name of the leaf of the bank that takes its place.
      own: leaves that its task alone has, by name.
    """

    name: str
    folder: Path
    evaluator: evaluate.Evaluator
    resumed: Any
    homes: Mapping[str, str]
    own: Leaves

    @classmethod
    def open(
        cls, name: str, folder: Path, leaves: SwitchedLeaves, given: Any, devices: Any
    ) -> _Model:
        """Opens a run whose model takes the leaves of its task."""
        evaluator, resumed = evaluate.open_run(folder, workdirs.read_config(folder), given, devices)
        homes = replace.homes(leaves, replace.parameters(resumed.state, resumed.constants))
        return cls(name, folder, evaluator, resumed, homes, leaves.own)

    def features(self, look: Features) -> np.ndarray:
        """Of the evaluation images, (N, e), in their order."""
        source = self.evaluator.source
        images = (look.fitted(source[index]["image"]) for index in range(len(source)))
        return np.concatenate([look(group) for group in batches(images)])

    def with_weights(self, shared: Leaves) -> tuple[Any, Any]:
        """State and constants with these leaves of the base, and all that is the task's own."""
        found = {
            path: self.own[name] if name in self.own else shared[name]
            for path, name in self.homes.items()
        }
        return replace.replaced(self.resumed.state, self.resumed.constants, found)

    @property
    def answers(self) -> Any:
        """What its predictions are about; those of another model with the same can be measured."""
        kinds = sorted((one.name, one.channels, one.class_names) for one in self.evaluator.tasks)
        return kinds, tuple(self.evaluator.source.size)

    def notes(self) -> list[str]:
        """What a user should know who named another run than the one that was packed."""
        model = replace.parameters(self.resumed.state, self.resumed.constants)
        for path, name in self.homes.items():
            if name in self.own and not np.array_equal(np.asarray(model[path]), self.own[name]):
                return [
                    f"the leaf {path!r} of {self.folder} is not the one packed as {self.name!r}; "
                    "it is scored with the packed one, and statistics of batch norms stay the run's"
                ]
        return []

    def facts(self) -> dict[str, Any]:
        """What the result says of the run."""
        known = own_scores(self.folder)
        tasks = {
            one.name: {
                "metric": one.primary,
                "unit": one.unit,
                "higher_is_better": one.higher_is_better,
                "own": known.get(one.name),
            }
            for one in self.evaluator.tasks
        }
        steps = int(self.resumed.state.step)
        return {"workdir": os.fspath(self.folder), "steps": steps, "tasks": tasks}


class _Weighing:
    """Scores of models whose weights depend on the sample."""

    def __init__(
        self, shared: Leaves, switches: Mapping[str, Switch], models: Sequence[_Model]
    ) -> None:
        self._shared, self._switches, self._models = shared, switches, models
        self._exchange = all(model.answers == models[0].answers for model in models)
        # Groups come sorted by route, so that the last one is all that is asked for again.
        self._merged = functools.lru_cache(maxsize=1)(self._merge)

    def notes(self) -> list[str]:
        """Why chosen heads were not scored, if they were not."""
        if self._exchange:
            return []
        first = self._models[0]
        other = next(model for model in self._models if model.answers != first.answers)
        return [
            f"{first.name} and {other.name} have other tasks or classes, or images of another "
            "size, so that only the head of the true task is scored"
        ]

    def scores(self, number: int, sent: Sequence[Sent]) -> tuple[Any, Any]:
        """Of one run's samples, with the true and with the chosen head: ``{task: value}``.

        The second is None where heads of other runs cannot be measured on its labels.
        """
        true, chosen = [], []
        routes = group_routes(np.concatenate([one.weights for one in sent]))
        heads = np.concatenate([one.chosen for one in sent])
        pairs, places = np.unique(np.stack([routes.group, heads]), axis=1, return_inverse=True)
        model = self._models[number]
        for place, (route, head) in enumerate(pairs.T):
            rows = np.flatnonzero(places.reshape(-1) == place).tolist()
            weights = self._merged(tuple(routes.counts[route].tolist()))
            part = model.evaluator.measure(*model.with_weights(weights), rows)
            true.append(part)
            if self._exchange and head != number:
                other = self._models[head]
                part = model.evaluator.measure(
                    *other.with_weights(weights), rows, by=other.evaluator
                )
            chosen.append(part)
        whole = (true, chosen if self._exchange else None)
        return tuple(None if parts is None else self._values(number, parts) for parts in whole)

    def _merge(self, counts: tuple[int, ...]) -> Leaves:
        """The base with the switches of a route; its own leaves stay with each task."""
        weights = {
            name: count / LEVELS
            for name, count in zip(self._switches, counts, strict=True)
            if count
        }
        if not weights:
            return self._shared
        chosen = {name: self._switches[name] for name in weights}
        return merge_switches(self._shared, chosen, np.float32(list(weights.values())))

    def _values(self, number: int, parts: Sequence[Any]) -> dict[str, float]:
        tasks = self._models[number].evaluator.tasks
        scores = evaluate.compute_scores(tasks, evaluate.merge_states(tasks, parts))
        return {task.name: scores[task.name][task.primary] for task in tasks}


def _check_runs(
    bank: Path,
    names: Sequence[str],
    router: Router | None,
    folders: Mapping[str, Path],
    abstain: bool,
) -> None:
    if not names:
        raise ConfigError(f"the bank {bank} holds no task; 'sinewich switch inspect' says more")
    if router is None:
        raise ConfigError(
            f"the bank {bank} has no router; make one with 'sinewich switch route {bank} --base "
            "PATH --queries NAME=PATH --save'"
        )
    if abstain and router.threshold is None:
        raise ConfigError(
            f"the router of {bank} has no distance from which on it abstains; leave out --abstain, "
            "or make another router with 'sinewich switch route --queries ... --save'"
        )
    for name in folders:
        if name not in router.names:
            raise ConfigError(
                f"the router of {bank} has no task {name!r}{did_you_mean(name, router.names)}"
            )
    if missing := [name for name in router.names if name not in folders]:
        raise ConfigError(
            f"no run is named for {', '.join(missing)}, where the router of {bank} may send a "
            "sample; add NAME=WORKDIR of each"
        )


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _own(value: float | None) -> str:
    return "" if value is None else _text(value)
