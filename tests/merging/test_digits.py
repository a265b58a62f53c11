"""The promises of training-time curvature, measured on scikit-learn's digits.

Four tasks, three seeds, after 75 and after 400 steps: ranking against the exact Fisher information,
pruning, merging, and the rank of UMTAM's momentum. benchmarks/merging_digits.py says what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn brings the digits; it is in the test extra")

from benchmarks import merging_digits as digits
from benchmarks import merging_optimizers as optimizers

pytestmark = pytest.mark.slow

SEEDS, STEPS = (0, 1, 2), (75, 400)


@pytest.fixture(scope="module")
def runs() -> dict[tuple[int, int], dict[str, Any]]:
    return {(seed, steps): digits.measure(seed, steps) for steps in STEPS for seed in SEEDS}


def tasks(runs: dict) -> Iterator[dict[str, Any]]:
    for run in runs.values():
        yield from run["tasks"].values()


@pytest.fixture
def agreement(runs) -> Callable[..., np.ndarray]:
    """One number of one estimate for every task of every run."""

    def read(estimate: str, key: str = "saliency") -> np.ndarray:
        return np.array([task["agreement"][estimate][key] for task in tasks(runs)])

    return read


def test_saliency_ranks_as_the_exact_fisher_information(runs, agreement):
    found = agreement("factored")
    assert found.mean() >= 0.90 and found.min() >= 0.85
    assert agreement("factored", "live").mean() >= 0.90
    assert agreement("factored", "overlap").min() >= 0.68
    assert agreement("factored", "curvature, least of a kernel").min() >= 0.65
    assert (found - agreement("magnitude")).mean() >= 0.10


def test_squares_of_single_examples_rank_better_still(agreement):
    found = agreement("per-example squares")
    assert found.mean() >= 0.93 and agreement("per-example squares", "live").mean() >= 0.93
    assert found.mean() >= agreement("factored").mean() - 0.005


def test_what_factoring_and_averaging_on_the_way_cost(agreement):
    assert agreement("rank one of the Fisher").min() >= 0.97
    assert agreement("factored").mean() >= agreement("Adam's own").mean() - 0.02
    assert agreement("factored").mean() > agreement("root of sums").mean()
    assert agreement("factored").mean() > agreement("trajectory").mean()


def test_curvature_prunes_better_than_magnitude(runs):
    by_curvature, by_magnitude = (
        np.mean([task["pruning"][name] for task in tasks(runs)], axis=0)
        for name in ("curvature", "magnitude")
    )
    gains = dict(zip(digits.DENSITIES, by_curvature - by_magnitude, strict=True))
    assert gains[0.05] >= 0.05 and gains[0.1] >= 0.05 and gains[0.2] >= 0.02
    assert abs(gains[0.8]) <= 0.01


def test_curvature_merges_better_than_plain_averaging(runs):
    found = {
        rule: np.array([run["merging"][rule] for run in runs.values()]) for rule in digits.MERGED_BY
    }
    gains = found["curvature_average"] - found["average"]
    assert gains.mean() >= 0.015 and (gains > 0).all()
    assert found["umtam"].mean() >= found["ties"].mean() - 0.02


def test_ranks_below_that_of_the_gradients_train_more_slowly():
    data, start = digits.examples("upright", "train"), digits.fresh(10, 0)
    order = digits.batches(len(data.y), 400, 32, 0)

    def loss(name: str) -> float:
        params = optimizers._train(name, jnp.float32(3e-4), start, data, order)
        return float(digits.loss_of(params, data))

    # On matrices this small, rank 32 is kept dense: factors would not be smaller.
    dense = loss("UMTAM lean, rank 32")
    assert loss("UMTAM lean, rank 16") == pytest.approx(dense, abs=0.005)
    assert loss("UMTAM lean, rank 2") > dense + 0.2
