"""The cells of the merging study: what runs, in which order, and what each of them calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import merging_digits, merging_optimizers, merging_real, real_experts, real_tasks
from benchmarks.cells import Cell, result

SEEDS = (0, 1, 2)
TUNING_SEED = 3
PARTS = {
    "a": "curvature against the Fisher information",
    "b": "pruning",
    "c": "eight tasks",
    "d": "optimizers",
}


@dataclasses.dataclass(frozen=True)
class Study:
    """A study of one size.

    Attributes:
      root: folder of its files.
      digits: settings of the digits cells, the numbers of steps among them.
      sweep: of an optimizer over learning rates.
      time: of the timing of steps.
      base: of the pretraining.
      expert: of an expert.
      merge: of the rules.
      rates: learning rates that experts are tuned over.
      seeds: what means are taken over.
    """

    root: Path
    digits: Mapping[str, Any]
    sweep: Mapping[str, Any]
    time: Mapping[str, Any]
    base: Mapping[str, Any]
    expert: Mapping[str, Any]
    merge: Mapping[str, Any]
    rates: Sequence[float] = real_experts.RATES
    seeds: Sequence[int] = SEEDS

    # --- (a), (b): digits

    def digits_cells(self) -> dict[int, list[Cell]]:
        """By number of steps, one cell a seed."""
        rest = {key: value for key, value in self.digits.items() if key != "steps"}
        return {
            steps: [Cell.of("digits", seed=seed, steps=steps, **rest) for seed in self.seeds]
            for steps in self.digits["steps"]
        }

    # --- (c): eight tasks

    def base_cell(self, seed: int) -> Cell:
        """The pretraining of a seed."""
        return Cell.of("base", seed=seed, **self.base)

    def expert_cell(self, seed: int, task: str, rate: float, **changed: Any) -> Cell:
        """One expert; with ``fisher=0``, no Fisher pass, it is there for its accuracy alone."""
        expert = {**self.expert, **changed}
        return Cell.of("expert", seed=seed, task=task, rate=rate, base=dict(self.base), **expert)

    def tuning_cells(self) -> dict[float, list[Cell]]:
        """The experts that choose the learning rate, by rate."""
        tasks = real_experts.TUNING_TASKS
        return {
            rate: [self.expert_cell(TUNING_SEED, task, rate, fisher=0) for task in tasks]
            for rate in self.rates
        }

    def tuning(self) -> dict[float, list[float]]:
        """Accuracy on ``val`` of the tuning tasks by rate, of the rates that have run."""
        found = {
            rate: [result(c, self.root) for c in cells]
            for rate, cells in self.tuning_cells().items()
        }
        return {
            rate: [one["expert"]["val"] for one in results]
            for rate, results in found.items()
            if all(one is not None for one in results)
        }

    def rate(self) -> float | None:
        """The rate of all experts, or None while it is not tuned."""
        found = self.tuning()
        if len(found) < len(self.rates):
            return None
        return max(found, key=lambda rate: sum(found[rate]))

    def merge_rates(self) -> list[float]:
        """The rates whose experts are merged: the tuned one, then the next gentler of the grid.

        Experts at the rate that is best for themselves end far from the base; those of a gentler
        one stay nearer, where merging has more to work with.
        """
        best = self.rate()
        gentler = [] if best is None else sorted(rate for rate in self.rates if rate < best)[-1:]
        return [] if best is None else [best, *gentler]

    def expert_cells(self, seed: int, rate: float) -> dict[str, Cell]:
        """The experts of a seed by task."""
        return {task: self.expert_cell(seed, task, rate) for task in real_tasks.TASKS}

    def merge_cell(self, seed: int, rate: float) -> Cell:
        """All rules on the experts of a seed."""
        rows = {name: list(row) for name, row in merging_real.ROWS.items()}
        above = {"base": dict(self.base), "expert": dict(self.expert)}
        return Cell.of("merge", seed=seed, rate=rate, rows=rows, **above, **self.merge)

    # --- (d): optimizers

    def sweep_cells(self, name: str) -> list[Cell]:
        """An optimizer over all rates, one cell a seed."""
        return [Cell.of("sweep", name=name, seed=seed, **self.sweep) for seed in self.seeds]

    def bytes_cell(self) -> Cell:
        """The bytes of every optimizer's state."""
        return Cell.of("bytes", names=list(merging_optimizers.OPTIMIZERS))

    def time_cell(self) -> Cell:
        """The time of every optimizer's step."""
        return Cell.of("time", names=list(merging_optimizers.OPTIMIZERS), **self.time)

    # --- all of it

    def stages(self, parts: Sequence[str]) -> list[str]:
        """Names for :meth:`cells`, in order; cells of one stage do not need each other."""
        return ["first", "tuning", "experts", "merges", *(["time"] if "d" in parts else [])]

    def cells(self, stage: str, parts: Sequence[str]) -> list[Cell]:
        """What a stage has to run, given what has run before; seed by seed."""
        real = "c" in parts and real_tasks.folder() is not None
        if stage == "first":
            return self._first(parts, real)
        if stage == "time":
            return [self.time_cell()]
        if not real:
            return []
        if stage == "tuning":
            cells = [cell for row in self.tuning_cells().values() for cell in row]
            return cells if self._has_base(TUNING_SEED) else []
        ready = [seed for seed in self.seeds if self._has_base(seed)]
        every = [(seed, rate) for rate in self.merge_rates() for seed in ready]
        if stage == "experts":
            return [cell for one in every for cell in self.expert_cells(*one).values()]
        whole = [one for one in every if all(map(self._done, self.expert_cells(*one).values()))]
        return [self.merge_cell(*one) for one in whole]

    def _first(self, parts: Sequence[str], real: bool) -> list[Cell]:
        cells = [self.base_cell(seed) for seed in (TUNING_SEED, *self.seeds) if real]
        if "a" in parts or "b" in parts:
            cells += [cell for row in self.digits_cells().values() for cell in row]
        if "d" in parts:
            rows = [self.sweep_cells(name) for name in merging_optimizers.OPTIMIZERS]
            cells += [self.bytes_cell(), *(cell for row in rows for cell in row)]
        return cells

    def _done(self, cell: Cell) -> bool:
        return result(cell, self.root) is not None

    def _has_base(self, seed: int) -> bool:
        return self._done(self.base_cell(seed))

    def call(self, cell: Cell) -> dict[str, Any]:
        """What a cell finds out; arrays are written beside its file."""
        settings = cell.settings
        if cell.kind == "digits":
            return merging_digits.measure(settings["seed"], settings["steps"])
        if cell.kind == "sweep":
            return merging_optimizers.sweep(**settings)
        if cell.kind == "bytes":
            return merging_optimizers.state_bytes()
        if cell.kind == "time":
            return merging_optimizers.step_times(settings["width"], settings["rounds"])
        if cell.kind == "base":
            return real_experts.pretrain(cell.arrays(self.root), **settings)
        base = self.base_cell(settings["seed"]).arrays(self.root)
        if cell.kind == "expert":
            given = {key: value for key, value in settings.items() if key != "base"}
            return real_experts.fine_tune(cell.arrays(self.root), base, **given)
        experts = self.expert_cells(settings["seed"], settings["rate"])
        files = {task: one.arrays(self.root) for task, one in experts.items()}
        individual = {task: result(one, self.root)["expert"] for task, one in experts.items()}
        return merging_real.merge_all(base, files, individual, **self.merge)


def full(root: Path) -> Study:
    """The study of the page."""
    return Study(
        root,
        digits={"steps": (75, 400), **merging_digits.SETTINGS},
        sweep=merging_optimizers.SWEEP,
        time={"width": 384, "rounds": 25},
        base=real_experts.BASE,
        expert=real_experts.EXPERT,
        merge=merging_real.MERGE,
    )


def tiny(root: Path) -> Study:
    """Every path of the code in a minute or two; its numbers mean nothing."""
    return Study(
        root,
        digits={"steps": (10,), **merging_digits.SETTINGS},
        sweep={"steps": 10, "batch": 32, "rates": merging_optimizers.RATES[2:4]},
        time={"width": 32, "rounds": 2},
        base={"width": 8, "steps": 4, "batch": 8, "rate": 1e-3},
        expert={"steps": 4, "batch": 8, "probe_steps": 20, "fisher": 4},
        merge={"val": 16, "adamerging_steps": 2},
        rates=real_experts.RATES[:2],
        seeds=SEEDS[:1],
    )
