"""The cells of the language study: which runs there are, and at which rates.

Texts are cut at a length that holds most of a task whole; runs of several tasks at the longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell as Measurement
from benchmarks.cells import result as measurement
from benchmarks.study import Cell, is_done, result

SEEDS = (0, 1, 2)
TUNING_SEED = 0
TARGETS = ("rte", "mrpc", "trec", "cola")
"""The first delivery."""
TASKS = (*TARGETS, "sst2", "sick")
LENGTHS = {"cola": 24, "trec": 24, "sick": 32, "sst2": 48, "mrpc": 64, "rte": 64}
SIZES = (60, 250, 1000)
"""Training texts of a small target."""
TUNED_ON = ("mrpc", "trec")
STEPS = {"cola": 1200, "trec": 400, "sick": 400, "sst2": 400, "mrpc": 400, "rte": 400}
"""Of 16 texts, the same for all methods that learn one task at a time; cola's are short, and at 400
steps nothing learns it."""
JOINT_STEPS = 400

ADAPTERS, FULL, FUSION, HEAD = "adapters", "single_task", "fusion", "decoder_only"
LONGER = "adapters, twice the steps"
"""The control of fusion, whose target's texts are used in both stages."""
FUSION_OF_JOINT = "fusion, of multi_adapters"
JOINT = ("sinewich", "lora", "multi_adapters", "full_ft")
"""Methods that learn all tasks in one run."""
ROWS = {
    HEAD: "head only",
    FULL: "full fine-tuning, a model a task",
    ADAPTERS: "single adapters",
    LONGER: "single adapters, twice the steps",
    "multi_adapters": "multi-task adapters, encoder trained too (MT-A)",
    "full_ft": "full fine-tuning, one model",
    "lora": "shared LoRA",
    "sinewich": "Sinewich",
    FUSION: "AdapterFusion of single adapters",
    FUSION_OF_JOINT: "AdapterFusion of multi-task adapters, beside their encoder",
}
GRIDS = {
    ADAPTERS: (1e-3, 3e-3),
    FULL: (5e-5, 1.5e-4),
    FUSION: (1e-4, 3e-4, 1e-3),
}
"""Rates; the best on ``val`` of :data:`TUNED_ON`, with one seed, is used for all tasks."""

FISHER_TEXTS = 256
KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    "merging": ({"fisher_texts": FISHER_TEXTS},),
    "switching": ({},),
    "pruning": tuple({"task": task} for task in TARGETS),
}
"""What is measured on the experts of a seed, and the settings of its own that each has."""
ATTENDED = "attended"
"""What is measured on fusions."""
DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.4)
ATTENTION_TEXTS = 512
ALPHAS = (0.0, 0.6, 0.8, 0.9, 0.95, "auto")

Overrides = tuple[tuple[str, Any], ...]


def _run(words: str, rate: float | None, seed: int, *more: tuple[str, Any], steps: int) -> Cell:
    file = "glue_fusion" if dict(more).get("adapters.sources") else "glue_adapters"
    rates = () if rate is None else (("learning_rate", rate),)
    common = (("steps", steps), ("warmup_steps", steps // 10), ("log_every", 50), ("seed", seed))
    return Cell(f"configs/{file}.py:{words}", (*common, *rates, *more))


def single(
    method: str, task: str, rate: float | None, seed: int, split: str = "test", size: int = 0
) -> Cell:
    """One task in a run of its own."""
    small = (("train_size", size),) if size else ()
    return _run(
        f"{method.partition(',')[0]},{task}",
        rate,
        seed,
        ("text.max_tokens", LENGTHS[task]),
        ("eval_split", split),
        *small,
        steps=2 * STEPS[task] if method == LONGER else STEPS[task],
    )


def joint(method: str, seed: int) -> Cell:
    """Several tasks in one run, at the rates of its config."""
    more = (("tasks", TARGETS), ("text.max_tokens", max(LENGTHS.values())))
    return _run(method, None, seed, *more, ("eval_split", "test"), steps=JOINT_STEPS)


def fusion(
    task: str,
    rate: float,
    sources: Sequence[Path],
    seed: int,
    split: str = "test",
    size: int = 0,
    encoder: Path | None = None,
) -> Cell:
    """Stage two for one target, beside the encoder of a run where one is named."""
    more: tuple[tuple[str, Any], ...] = (("train_size", size),) if size else ()
    if encoder is not None:
        more = (*more, ("backbone_weights", str(encoder)))
    return _run(
        task,
        rate,
        seed,
        ("adapters.sources", tuple(map(str, sources))),
        ("text.max_tokens", LENGTHS[task]),
        ("eval_split", split),
        *more,
        steps=STEPS[task],
    )


class Plan:
    """The study in one folder: what has run decides on the rates of what follows."""

    def __init__(self, root: Path) -> None:
        """Takes the folder of the runs."""
        self.root = root
        # What has been decided stays so, and asking every run again takes minutes.
        self._rates: dict[str, float] = {}
        self._done: dict[Cell, dict[str, Any]] = {}

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The results of a run; None while it has not finished."""
        found = self._done.get(cell) or result(cell, self.root)
        if found is not None:
            self._done[cell] = found
        return found

    # --- rates --------------------------------------------------------------------------------

    def grid(self, method: str) -> dict[float, tuple[Cell, ...]]:
        """The cells that choose a method's rate; none while they cannot be named yet."""
        seed = TUNING_SEED
        if method != FUSION:
            return {
                rate: tuple(single(method, task, rate, seed, "val") for task in TUNED_ON)
                for rate in GRIDS[method]
            }
        sources = self.sources(seed)
        if sources is None:
            return {}
        return {
            rate: tuple(fusion(task, rate, sources, seed, "val") for task in TUNED_ON)
            for rate in GRIDS[method]
        }

    def rate(self, method: str) -> float | None:
        """The rate with the best mean on ``val``; None while its grid is not finished."""
        if method not in GRIDS:
            return None
        if method in self._rates:
            return self._rates[method]
        grid = self.grid(method)
        if not grid or not all(is_done(c, self.root) for cells in grid.values() for c in cells):
            return None
        scores = {
            rate: sum(self.primary(cell) or 0.0 for cell in cells) for rate, cells in grid.items()
        }
        self._rates[method] = max(scores, key=scores.__getitem__)
        return self._rates[method]

    # --- cells --------------------------------------------------------------------------------

    def adapter(self, task: str, seed: int, size: int = 0) -> Cell | None:
        """Stage one of a task."""
        rate = self.rate(ADAPTERS)
        return None if rate is None else single(ADAPTERS, task, rate, seed, size=size)

    def sources(self, seed: int, own: str | None = None, size: int = 0) -> list[Path] | None:
        """The finished adapters of all tasks; of a small target's own, the small one."""
        cells = [self.adapter(task, seed, size if task == own else 0) for task in sorted(TASKS)]
        if any(cell is None or self.result(cell) is None for cell in cells):
            return None
        return [cell.directory(self.root) for cell in cells if cell is not None]

    def composed(self, task: str, seed: int, size: int = 0) -> Cell | None:
        """Stage two of a target."""
        rate, sources = self.rate(FUSION), self.sources(seed, task, size)
        if rate is None or sources is None:
            return None
        return fusion(task, rate, sources, seed, size=size)

    def composed_of_joint(self, task: str, seed: int) -> Cell | None:
        """Stage two of a target over the adapters of a run of all targets."""
        rate, run = self.rate(FUSION), joint("multi_adapters", seed)
        if rate is None or task not in TARGETS or self.result(run) is None:
            return None
        workdir = run.directory(self.root)
        return fusion(task, rate, [workdir], seed, encoder=workdir)

    def cell(self, method: str, task: str, seed: int, size: int = 0) -> Cell | None:
        """The run that a number of the page comes from; None while it cannot be named."""
        if method == FUSION:
            return self.composed(task, seed, size)
        if method == FUSION_OF_JOINT:
            return self.composed_of_joint(task, seed)
        if method == ADAPTERS:
            return self.adapter(task, seed, size)
        if method in JOINT:
            return joint(method, seed) if task in TARGETS else None
        tuned = ADAPTERS if method == LONGER else method
        rate = self.rate(tuned)
        if tuned in GRIDS and rate is None:
            return None
        return single(method, task, rate, seed, size=size)

    def stages(self, seeds: Sequence[int]) -> list[Any]:
        """Functions that name the cells of a stage, which those before it may decide on."""

        def rows(method: str, tasks: Sequence[str], seed: int, size: int = 0) -> list[Cell]:
            cells = [self.cell(method, task, seed, size) for task in tasks]
            return list(dict.fromkeys(cell for cell in cells if cell is not None))

        def tuning(method: str) -> list[Cell]:
            return [cell for cells in self.grid(method).values() for cell in cells]

        def small(targets: Sequence[str], seeds: Sequence[int]) -> list[Any]:
            return [
                lambda m=method: [
                    cell for s in seeds for size in SIZES for cell in rows(m, targets, s, size)
                ]
                for method in (ADAPTERS, FUSION)
            ]

        first, later = seeds[:1], seeds[1:]
        pilot = [TUNING_SEED]

        def all_of(method: str, tasks: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
            return [cell for seed in seeds for cell in rows(method, tasks, seed)]

        # Few and long, so that no core waits for the other at the end of many.
        stages = [
            lambda: tuning(ADAPTERS),
            lambda: all_of(ADAPTERS, TASKS, pilot),
            lambda: [*tuning(FUSION), *tuning(FULL)],
            lambda: [
                *(cell for m in (FUSION, FULL) for cell in all_of(m, TARGETS, first)),
                *all_of(ADAPTERS, TASKS, seeds),
            ],
            lambda: [
                cell
                for seed in seeds
                for method in (FUSION, FULL, HEAD)
                for cell in rows(method, TARGETS, seed)
            ],
            lambda: [cell for m in JOINT for cell in all_of(m, TARGETS, first)],
            lambda: [cell for m in JOINT for cell in all_of(m, TARGETS, later)],
            lambda: all_of(LONGER, TARGETS, first),
            *small(("trec", "mrpc"), first),
            lambda: [
                *all_of(LONGER, TARGETS, later),
                *all_of(FUSION_OF_JOINT, TARGETS, seeds),
            ],
            *small(("trec", "mrpc"), later),
            lambda: [c for m in (FUSION, FULL, HEAD) for c in all_of(m, ("sst2", "sick"), seeds)],
            *small(("rte", "cola"), seeds),
        ]
        return stages

    # --- experts ------------------------------------------------------------------------------

    def experts(self, seed: int) -> dict[str, Path] | None:
        """The fine-tuned models of a seed by task; None while one of them is missing."""
        cells = {task: self.cell(FULL, task, seed) for task in TARGETS}
        if any(cell is None or self.result(cell) is None for cell in cells.values()):
            return None
        return {task: cell.directory(self.root) for task, cell in cells.items() if cell is not None}

    def measurements(self, seeds: Sequence[int]) -> list[Measurement]:
        """What is measured on the experts of seeds that have run."""
        ready = [seed for seed in seeds if self.experts(seed) is not None]
        rate = self.rate(FULL)
        found = [
            Measurement.of(kind, "language", **own, seed=seed, steps=sum(STEPS.values()), rate=rate)
            for seed in ready
            for kind, settings in KINDS.items()
            for own in settings
        ]
        rates = {"rate": self.rate(FUSION), "adapters": self.rate(ADAPTERS)}
        for seed in seeds:
            for task in TARGETS:
                cell = self.composed(task, seed)
                if cell is not None and self.result(cell) is not None:
                    own = {"task": task, "seed": seed, "steps": STEPS[task], **rates}
                    found.append(Measurement.of(ATTENDED, "language", **own))
        return found

    def measured(self, kind: str) -> list[dict[str, Any]]:
        """What has been measured of a kind, seed by seed."""
        return [one for _, one in self.measured_cells(kind)]

    def measured_cells(self, kind: str) -> list[tuple[Measurement, dict[str, Any]]]:
        """The same with what was asked for."""
        cells = [cell for cell in self.measurements(SEEDS) if cell.kind == kind]
        found = [(cell, measurement(cell, self.root)) for cell in cells]
        return [(cell, one) for cell, one in found if one is not None]

    # --- results ------------------------------------------------------------------------------

    def primary(self, cell: Cell | None, task: str | None = None) -> float | None:
        """The primary metric of a run's task (of its only one); None where it has not run."""
        found = None if cell is None else self.result(cell)
        if found is None:
            return None
        return found["tasks"][task or next(iter(found["tasks"]))]["value"]

    def values(self, method: str, task: str, size: int = 0) -> dict[int, float]:
        """A row's numbers for a task, by the seeds that have run."""
        found = {seed: self.primary(self.cell(method, task, seed, size), task) for seed in SEEDS}
        return {seed: value for seed, value in found.items() if value is not None}


def common(*values: Mapping[int, float]) -> list[list[float]]:
    """Of each, the numbers of the seeds that all have, in the order of seeds."""
    seeds = sorted(set.intersection(*(set(one) for one in values)))
    return [[one[seed] for seed in seeds] for one in values]
