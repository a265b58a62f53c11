"""Small models with experts, their statistics, and every rule with options worth a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sinewich_jax import merging
from sinewich_jax.core.curvature import Diagonal, Factored

RULES = [rule for rule in merging.rules() if "data" not in rule.needs]
NEEDS = {rule.name: rule.needs for rule in RULES}
CONDITIONAL = {rule.name for rule in RULES if rule.conditional}

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((rule.name, {}) for rule in RULES),
    ("average", {"weights": [1, 2, 0]}),
    ("task_arithmetic", {"weights": [1.0, -0.5, 0.25], "scale": 0.7}),
    ("task_arithmetic", {"weights": [1.0, 0.5, 0.25], "normalize": True}),
    ("ties", {"scope": "global", "trim": "inclusive"}),
    ("ties", {"scope": "global", "density": 0.3, "aggregate": "max"}),
    ("ties", {"sign": "frequency", "on_tie": "positive", "trim": "floor", "aggregate": "sum"}),
    ("ties", {"weights": [1.0, 0.5, 0.25], "on_tie": "zero", "density": [0.9, 0.5, 0.2]}),
    ("ties", {"weights": [1.0, 0.5, 0.25], "weighted_vote": False, "divisor": "count"}),
    ("dare", {"density": 0.5, "seed": 3}),
    ("dare_ties", {"density": [1.0, 0.5, 0.5], "weights": [1.0, 2.0, 0.5], "on_tie": "zero"}),
    ("breadcrumbs", {"beta": 0.3, "gamma": 0.2, "weights": [1.0, 2.0, 3.0]}),
    ("magnitude_weighted", {"scale": 0.5}),
    ("fisher", {"normalize": "global", "add": 1e-6}),
    ("fisher", {"normalize": "global", "floor": 1e-2, "weights": [0.2, 0.3, 0.5], "scale": 0.5}),
    ("regmean", {"ratio": 1.0, "scale": 0.5}),
    ("emr", {"rescale": "global"}),
    ("tall", {"lam": [0.2, 0.4, 0.6], "vector": "ties"}),
    ("consensus", {"k": 1, "vector": "ties", "scale": 1.0}),
    ("ota", {"density": 0.5, "scope": "leaf", "power": 1.0}),
    ("ota", {"threshold": 0.2, "weights": [1.0, 0.5, 0.25]}),
    ("umtam", {"scope": "global", "density": 0.5, "vote": "curvature"}),
    ("umtam", {"sign_election": False, "aggregate": "uniform", "density": 0.6}),
    ("umtam", {"curvature": "sqrt_rc", "vote": "magnitude", "scope": "global", "density": 0.4}),
    ("umtam", {"on_tie": "majority", "weights": [1.0, 0.5, 0.25], "scale": 0.8}),
    ("curvature_average", {"power": 0.5, "weights": [16, 32, 64]}),
]
"""The options of three experts."""

NAMES = [f"{rule}-{i}" for i, (rule, _) in enumerate(VARIANTS)]

EXACT: dict[str, Any] = {
    "average": lambda count: {},
    "task_arithmetic": lambda count: {"scale": 1 / count},
    "ties": lambda count: {"density": 1.0},
    "dare": lambda count: {"density": 1.0, "scale": 1 / count},
    "dare_ties": lambda count: {"density": 1.0},
    "breadcrumbs": lambda count: {"beta": 0.0, "gamma": 0.0, "scale": 1 / count},
    "magnitude_weighted": lambda count: {},
    "fisher": lambda count: {},
    "regmean": lambda count: {},
    "emr": lambda count: {},
    "ota": lambda count: {"density": 1.0},
    "umtam": lambda count: {"density": 1.0},
    "curvature_average": lambda count: {},
}
"""Options with which a rule gives back what all experts agree on."""


def family(count: int = 3, seed: int = 0) -> tuple[dict, dict[str, dict]]:
    """A base and experts around it: a kernel, a convolution, a bias, a scalar and a counter."""
    rng = np.random.default_rng(seed)

    def member(size: float) -> dict:
        return {
            "block": {
                "kernel": size * rng.standard_normal((6, 4)).astype(np.float32),
                "conv": size * rng.standard_normal((2, 2, 3, 4)).astype(np.float32),
            },
            "bias": size * rng.standard_normal(5).astype(np.float32),
            "logit_scale": np.float32(rng.standard_normal()),
            "steps": np.int32(7),
        }

    base = member(1.0)
    shifts = [member(0.1) for _ in range(count)]
    return base, {
        name: jax.tree.map(lambda w, d: w + d if w.dtype == np.float32 else w, base, shift)
        for name, shift in zip("abcdefgh", shifts, strict=False)
    }


def statistics(needs: tuple[str, ...], tree: Any, names: Any, seed: int = 1) -> dict | None:
    """What a rule asks for, made up: the same for a name whatever the order of names."""
    if not needs:
        return None
    return {name: _statistics_of(needs[0], tree, seed + sum(map(ord, name))) for name in names}


def _statistics_of(need: str, tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def of_leaf(leaf: np.ndarray) -> Any:
        if need == "gram":
            if np.ndim(leaf) < 2:
                return None
            inputs = rng.standard_normal((40, leaf.shape[0])).astype(np.float32)
            return inputs.T @ inputs / 40
        squares = rng.gamma(2.0, size=np.shape(leaf)).astype(np.float32)
        if need == "fisher":
            return squares
        if np.ndim(leaf) < 2:
            return Diagonal(squares)
        squares = squares.reshape(-1, leaf.shape[-1])
        return Factored(squares.mean(axis=1), squares.mean(axis=0))

    return jax.tree.map(of_leaf, tree)


def merged(
    rule: str,
    base: Any,
    experts: Mapping[str, Any],
    stats: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What ``merge`` gives, as one tree for each name a conditional rule can be asked for."""
    if stats is None and NEEDS[rule]:
        stats = statistics(NEEDS[rule], base, experts)
    result = merging.merge(rule, base, experts, stats=stats, **options)
    if rule in CONDITIONAL:
        return {name: result.select(name) for name in experts}
    return {"merged": result}


def assert_close(found: Any, expected: Any, **tolerance: float) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-6} | tolerance)),
        found,
        expected,
    )
