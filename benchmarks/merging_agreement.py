"""Curvature against curvature: rank correlation and overlap of the largest entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import stats as statistics

from sinewich_jax import optim
from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.merging.statistics import as_curvature, by_leaf

Tree = Any
TOP = 0.2


def margins(squares: Tree) -> Tree:
    """Squares as a tracker keeps them: the margins of all but small leaves."""
    empty = optim.init_curvature(squares)
    return optim.debiased(*optim.update_curvature(empty, jnp.zeros(()), squares, 0.0))


def dense(stats: Tree, params: Tree) -> dict[str, np.ndarray]:
    """The second moment of every entry by leaf."""
    found = {path: as_curvature(own) for path, own in by_leaf(stats).items()}
    return {
        path: np.asarray(curvatures.dense(found[path], leaf.shape), np.float64)
        for path, leaf in flatten_paths(params).items()
    }


def joined(leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """All entries of a model in one row."""
    return np.concatenate([np.ravel(leaves[path]) for path in sorted(leaves)])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs."""
    return float(np.corrcoef(statistics.rankdata(a), statistics.rankdata(b))[0, 1])


def top_overlap(a: np.ndarray, b: np.ndarray, share: float = TOP) -> float:
    """Which part of the largest entries of one is among the largest of the other."""
    count = round(share * a.size)
    first, second = (np.argsort(-values, kind="stable")[:count] for values in (a, b))
    return len(np.intersect1d(first, second)) / count
