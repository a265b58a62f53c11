"""The cells of the switching study: what runs, in which order, and what each of them calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    merging_plan,
    merging_real,
    real_experts,
    real_tasks,
    switching_digits,
    switching_real,
)
from benchmarks.cells import Cell, result
from benchmarks.merging_plan import SEEDS, TUNING_SEED
from benchmarks.switching import ALPHAS, PULSE, RANDOM, T_SWITCH, VALUES, WAYS, Alpha

STUDY = "switches"
PARTS = {"a": "digits", "b": "eight tasks", "l": "learned switches"}
ROUTER = {"alpha": PULSE, "examples": 100, "neighbours": 10}
FLEX = {"steps": 500, "examples": 100}
CALIBRATION = 100
REFIT = {"calibration": 400, "strength": 0.1}
"""Of heads that are fitted as a whole."""

STRENGTHS, IMAGES = (0.03, 0.1, 0.3, 1.0, 3.0), (100, 400)
"""What was tried of that on ``val``."""

PRICES = (0.3, 0.1, 0.03)
RECIPES: dict[str, dict[str, float]] = {
    "rate 0.003": {"rate": 3e-3, "steps": 400, "pull": 0.0},
    "rate 0.001": {"rate": 1e-3, "steps": 400, "pull": 0.0},
    "rate 0.0003": {"rate": 3e-4, "steps": 400, "pull": 0.0},
    "rate 0.0003, three times the steps": {"rate": 3e-4, "steps": 1200, "pull": 0.0},
    "rate 0.001, pulled": {"rate": 1e-3, "steps": 400, "pull": 10.0},
}
"""Ways to train experts; a pull is weight decay towards the base."""

FEW: tuple[Alpha, ...] = (0.3, 0.6, 0.9, 0.97, "auto")
CURVES = (T_SWITCH, VALUES, RANDOM)
CURVES += (switching_real.ROW, switching_real.CORRECTED, switching_real.REFIT)
"""The ways that are measured at every alpha."""


def owner(kind: str) -> str:
    """The study that cells of a kind belong to: bases and experts are the merging study's."""
    return "merging" if kind in ("base", "expert") else STUDY


@dataclasses.dataclass(frozen=True)
class Study:
    """A study of one size.

    Attributes:
      root: folder of its files.
      merging: whose bases and experts are shared.
      digits: settings of the training on digits.
      recipes: of the experts on real tasks, by name.
      alphas: of the ways that are measured in full.
      router: settings of Auto-Switch.
      flex: settings of learned switches.
      prices: of a bit, for learned switches.
      few: alphas of the ways that are not among :data:`CURVES`.
      calibration: images a task from which biases of heads are corrected.
      refit: images a task, and strength, of heads that are refitted.
      strengths: of refitted heads, compared on ``val``.
      images: from which they are refitted there.
      seeds: what means are taken over.
    """

    root: Path
    merging: merging_plan.Study
    digits: Mapping[str, Any]
    recipes: Mapping[str, Mapping[str, float]]
    alphas: Sequence[Alpha]
    router: Mapping[str, Any]
    flex: Mapping[str, Any]
    prices: Sequence[float]
    seeds: Sequence[int] = SEEDS
    few: Sequence[Alpha] = FEW
    calibration: int = CALIBRATION
    refit: Mapping[str, Any] = dataclasses.field(default_factory=lambda: REFIT)
    strengths: Sequence[float] = STRENGTHS
    images: Sequence[int] = IMAGES

    # --- (a): digits

    def digits_cells(self) -> list[Cell]:
        """All that is not learned, one cell a seed."""
        given = {
            "training": dict(self.digits),
            "alphas": list(self.alphas),
            "router": dict(self.router),
            "ways": {name: list(way) for name, way in WAYS.items()},
        }
        return [Cell.of("digits", STUDY, seed=seed, **given) for seed in self.seeds]

    def digits_flex_cells(self) -> dict[float, list[Cell]]:
        """Learned switches by price, one cell a seed."""
        given = {"training": dict(self.digits), **self.flex}
        return {
            price: [
                Cell.of("digits-flex", STUDY, seed=seed, price=price, **given)
                for seed in self.seeds
            ]
            for price in self.prices
        }

    # --- (b): eight tasks

    def recipe_cells(self, name: str) -> list[Cell]:
        """A recipe on the tuning tasks, seed :data:`TUNING_SEED`."""
        given = {
            **self.recipes[name],
            "base": dict(self.merging.base),
            "batch": self.merging.expert["batch"],
            "probe_steps": self.merging.expert["probe_steps"],
            "calibration": self.calibration,
            "ways": {name: list(switching_real.REAL_WAYS[name]) for name in switching_real.TRIED},
        }
        return [
            Cell.of("recipe", STUDY, seed=TUNING_SEED, task=task, **given)
            for task in real_experts.TUNING_TASKS
        ]

    def recipe_results(self) -> dict[str, list[dict[str, Any]]]:
        """What the recipes that have run have left, task by task."""
        found = {
            name: [result(cell, self.root) for cell in self.recipe_cells(name)]
            for name in self.recipes
        }
        return {
            name: [one for one in row if one is not None]
            for name, row in found.items()
            if None not in row
        }

    def chosen(self) -> list[str]:
        """The recipes whose switches are measured in full, once all of them were tried.

        First that whose T-Switch at alpha 0.6 is best on ``val``; then that whose experts are best
        by themselves, if it is another one.
        """
        tried = self.recipe_results()
        if len(tried) < len(self.recipes):
            return []

        def switched(name: str) -> float:
            return sum(one[f"{T_SWITCH}, {PULSE}"]["val"] for one in tried[name])

        def alone(name: str) -> float:
            return sum(one["expert"] for one in tried[name])

        return list(dict.fromkeys([max(tried, key=switched), max(tried, key=alone)]))

    def expert_cells(self, seed: int, recipe: str) -> dict[str, Cell]:
        """The experts of a seed by task; those of a plain rate are the merging study's."""
        given = dict(self.recipes[recipe])
        rate = given.pop("rate")
        if not given["pull"]:
            del given["pull"]
        return {
            task: self.merging.expert_cell(seed, task, rate, **given) for task in real_tasks.TASKS
        }

    def _above(self, seed: int, recipe: str) -> dict[str, Any]:
        experts = {"base": dict(self.merging.base), "expert": dict(self.merging.expert)}
        return {"seed": seed, "recipe": dict(self.recipes[recipe]), **experts}

    def rules_cell(self, seed: int, recipe: str) -> Cell:
        """Merged models of the experts of a seed."""
        rows = {name: list(merging_real.ROWS[name]) for name in switching_real.RULES}
        val = {"val": self.merging.merge["val"]}
        return Cell.of("rules", STUDY, rows=rows, **self._above(seed, recipe), **val)

    def alphas_of(self, way: str) -> list[Alpha]:
        """Where a way is measured on the real tasks."""
        return [alpha for alpha in self.alphas if way in CURVES or alpha in self.few]

    def front_cells(self, seed: int, recipe: str) -> dict[str, Cell]:
        """Switches of the experts of a seed at every alpha, by way."""
        cells = {}
        for name in self.ways_of(recipe):
            way = list(switching_real.REAL_WAYS[name])
            given = {"name": name, "way": way, "alphas": self.alphas_of(name)}
            refitted = name in switching_real.REFITTED
            given |= self.refit if refitted else {"calibration": self.calibration}
            cells[name] = Cell.of("front", STUDY, **given, **self._above(seed, recipe))
        return cells

    def strengths_cells(self, seed: int, recipe: str) -> dict[int, Cell]:
        """Refitted heads of the experts of a seed at every strength, by images a task."""
        given = {"strengths": list(self.strengths), **self._above(seed, recipe)}
        return {n: Cell.of("strengths", STUDY, calibration=n, **given) for n in self.images}

    def ways_of(self, recipe: str | None) -> list[str]:
        """What is measured on the experts of a recipe: all on the first that was chosen."""
        first = recipe in (None, *self.chosen()[:1])
        return list(switching_real.REAL_WAYS if first else switching_real.CONTRAST)

    def router_cell(self, seed: int, recipe: str) -> Cell:
        """Auto-Switch on the experts of a seed."""
        return Cell.of("router", STUDY, **self.router, **self._above(seed, recipe))

    def flex_cells(self, seed: int, recipe: str) -> dict[float, Cell]:
        """Learned switches of the experts of a seed, by price."""
        return {
            price: Cell.of("flex", STUDY, price=price, **self.flex, **self._above(seed, recipe))
            for price in self.prices
        }

    # --- all of it

    def stages(self, parts: Sequence[str]) -> list[str]:
        """Names for :meth:`cells`, in order; cells of one stage do not need each other."""
        real = ["bases", "recipes", "experts", "switches"] if "b" in parts else []
        digits = ["digits"] if "a" in parts else []
        late = [f"learned {part}" for part in ("digits", "real") if "l" in parts]
        return [*digits, *real, *late]

    def cells(self, stage: str, parts: Sequence[str]) -> list[Cell]:
        """What a stage has to run, given what has run before; seed by seed."""
        if stage == "digits":
            return self.digits_cells()
        if stage == "learned digits":
            return [cell for row in self.digits_flex_cells().values() for cell in row]
        if real_tasks.folder() is None:
            return []
        if stage == "bases":
            return [self.merging.base_cell(seed) for seed in (TUNING_SEED, *self.seeds)]
        if stage == "recipes":
            cells = [cell for name in self.recipes for cell in self.recipe_cells(name)]
            return cells if self._done(self.merging.base_cell(TUNING_SEED)) else []
        based = [seed for seed in self.seeds if self._done(self.merging.base_cell(seed))]
        every = [(seed, recipe) for recipe in self.chosen() for seed in based]
        if stage == "experts":
            return [cell for one in every for cell in self.expert_cells(*one).values()]
        whole = [one for one in every if all(map(self._done, self.expert_cells(*one).values()))]
        if stage == "learned real":
            best = self.chosen()[:1]
            return [c for one in whole if one[1] in best for c in self.flex_cells(*one).values()]
        return [
            cell
            for one in whole
            for cell in (
                *self.front_cells(*one).values(),
                self.rules_cell(*one),
                self.router_cell(*one),
                *self.strengths_cells(*one).values(),
            )
        ]

    def _done(self, cell: Cell) -> bool:
        return result(cell, self.root) is not None

    def call(self, cell: Cell) -> dict[str, Any]:
        """What a cell finds out; arrays are written beside its file."""
        given = cell.settings
        if cell.kind == "digits":
            del given["ways"]
            return switching_digits.measure(**given)
        if cell.kind == "digits-flex":
            return switching_digits.learned(**given)
        if owner(cell.kind) != STUDY:
            return self.merging.call(cell)
        base = self.merging.base_cell(given["seed"]).arrays(self.root)
        if cell.kind == "recipe":
            return switching_real.try_recipe(
                base, **{key: given[key] for key in given if key not in ("base", "ways")}
            )
        (recipe,) = (name for name, one in self.recipes.items() if one == given["recipe"])
        experts = self.expert_cells(given["seed"], recipe)
        files = {task: one.arrays(self.root) for task, one in experts.items()}
        if cell.kind == "front":
            settings = {
                key: given[key] for key in ("alphas", "calibration", "strength") if key in given
            }
            return switching_real.fronts(base, files, given["name"], **settings)
        if cell.kind == "strengths":
            settings = (given[key] for key in ("strengths", "calibration"))
            return switching_real.refits(base, files, *settings)
        if cell.kind == "router":
            return switching_real.router(base, files, **self.router)
        if cell.kind == "flex":
            return switching_real.learned(base, files, given["price"], **self.flex)
        individual = {task: result(one, self.root)["expert"] for task, one in experts.items()}
        names = switching_real.RULES
        return merging_real.merge_all(base, files, individual, given["val"], 0, names)


def full(root: Path) -> Study:
    """The study of the page."""
    return Study(
        root,
        merging_plan.full(root),
        digits=switching_digits.SETTINGS,
        recipes=RECIPES,
        alphas=ALPHAS,
        router=ROUTER,
        flex=FLEX,
        prices=PRICES,
    )


def tiny(root: Path) -> Study:
    """Every path of the code in a minute or two; its numbers mean nothing."""
    return Study(
        root,
        merging_plan.tiny(root),
        digits={**switching_digits.SETTINGS, "base_steps": 4, "steps": 4},
        recipes={
            "fast": {"rate": 3e-3, "steps": 4, "pull": 0.0},
            "pulled": {"rate": 1e-3, "steps": 4, "pull": 10.0},
        },
        alphas=(0.0, PULSE, "auto"),
        router={**ROUTER, "examples": 8, "neighbours": 3},
        flex={"steps": 4, "examples": 8},
        prices=PRICES[:1],
        seeds=SEEDS[:1],
        few=(PULSE, "auto"),
        calibration=8,
        refit={"calibration": 8, "strength": 0.1},
        strengths=(1.0,),
        images=(8,),
    )
