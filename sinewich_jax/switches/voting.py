"""Nearest examples vote for their tasks, and say how far away they are.

``w_i(x) = |Q_i ∩ N_x| / |N_x|`` (arXiv 2412.00054, equation 7): of the k query features nearest to
``f(x)``, the fraction that belongs to task i; what scikit-learn's ``KNeighborsClassifier`` calls
``predict_proba``. NumPy arrays need no JAX; JAX arrays may be traced (close over the query set,
whose names are no arrays).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.arrays import namespace
from sinewich_jax.core.neighbours import (
    nearest,
    squared_distances,
    squared_distances_to,
    unit_rows,
)
from sinewich_jax.errors import ConfigError, DataError, did_you_mean
from sinewich_jax.switches.queries import QuerySet

Array = Any
METRICS = ("l2", "cosine")
WEIGHTINGS = ("uniform", "distance")
QUANTILE = 0.995
"""Of leave-one-out distances: one known example in 200 would be taken for unknown."""

_BLOCK = 1024


class Poll(NamedTuple):
    """What the neighbours of each sample say.

    Attributes:
      votes: float32 (B, T), rows that sum to 1, or are 0 where the feature is not finite.
      distance: (B,), to the k-th neighbour (the last there is, without oneself, where k is more);
        Euclidean or ``1 - cosine``; infinite where the feature is not finite.
    """

    votes: Array
    distance: Array


def votes(
    queries: QuerySet,
    features: Array,
    k: int = 10,
    *,
    metric: str = "l2",
    weighting: str = "uniform",
) -> Array:
    """The share of each task among the k nearest examples.

    Args:
      queries: M examples of T tasks.
      features: (B, e).
      k: neighbours; cut to M where there are fewer. Among equal distances the first examples win.
      metric: ``"l2"``, or ``"cosine"`` for ``1 - cosine``.
      weighting: ``"uniform"``, or ``"distance"`` for votes in proportion to 1 / distance (examples
        at distance 0 then vote alone).

    Returns:
      float32 (B, T), rows that sum to 1; zeros for features that are not finite.

    Raises:
      ConfigError: a k below 1, another metric or weighting.
      DataError: features of another width.
    """
    return poll(queries, features, k, metric=metric, weighting=weighting).votes


def poll(
    queries: QuerySet,
    features: Array,
    k: int = 10,
    *,
    metric: str = "l2",
    weighting: str = "uniform",
) -> Poll:
    """:func:`votes` with the distance from which one abstains, for one search."""
    _check(queries, features, k, metric)
    if weighting not in WEIGHTINGS:
        raise ConfigError(f"weighting is {weighting!r}{did_you_mean(str(weighting), WEIGHTINGS)}")
    xp = namespace(features, queries.features)
    points, tasks = xp.asarray(queries.features), xp.asarray(queries.tasks)
    features = xp.asarray(features)
    if metric == "cosine":
        features, points = unit_rows(features), unit_rows(points)
    count = len(points)
    index = nearest(_search(features, points, metric), min(k, count)).index
    # A long product cancels: whatever is used as a number is computed again from differences.
    edge = index[:, min(k, max(count - 1, 1)) - 1][:, None]
    distance = _exact(features, points, edge, metric)[:, 0]
    heard = xp.isfinite(distance)[:, None]
    shares = xp.ones(index.shape, np.float32)
    if weighting == "distance":
        exact = xp.where(heard, _exact(features, points, index, metric), 1)
        least = exact.min(axis=1, keepdims=True)
        ratios = least / xp.where(exact > 0, exact, 1)  # 1 / distance, which could overflow
        shares = xp.where(least > 0, ratios, exact == 0)
    shares = shares.astype(np.float32)
    for_task = tasks[index][..., None] == xp.arange(len(queries.names))
    totals = (shares[..., None] * for_task).sum(axis=1)
    found = totals / shares.sum(axis=1, keepdims=True)
    return Poll(xp.where(heard, found, 0), distance)


def leave_one_out_distances(queries: QuerySet, k: int = 10, *, metric: str = "l2") -> np.ndarray:
    """How far each example is from its k-th neighbour among the others: (M,), NumPy.

    Raises:
      ConfigError: a single example, which has no other.
    """
    points = np.asarray(queries.features)
    _check(queries, points, k, metric)
    count = len(points)
    if count < 2:
        raise ConfigError(
            "one example has no neighbour to learn a threshold from; give more examples, or do "
            "without abstention"
        )
    if metric == "cosine":
        points = unit_rows(points)
    found = []
    for start in range(0, count, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, count))
        distances = _search(points[rows], points, metric)
        distances[rows - start, rows] = np.inf
        edge = nearest(distances, min(k, count - 1)).index[:, -1:]
        found.append(_exact(points[rows], points, edge, metric)[:, 0])
    return np.concatenate(found)


def abstention_threshold(
    queries: QuerySet, k: int = 10, *, metric: str = "l2", quantile: float = QUANTILE
) -> float:
    """The distance beyond which a sample is no member of any task: a leave-one-out quantile.

    Raises:
      ConfigError: a quantile outside 0 to 1, or a single example.
    """
    if not 0 <= quantile <= 1:
        raise ConfigError(f"quantile is {quantile}; expected a number from 0 to 1")
    return float(np.quantile(leave_one_out_distances(queries, k, metric=metric), quantile))


def _search(features: Array, points: Array, metric: str) -> Array:
    """Distances by which neighbours are found: those of the metric or increasing with them."""
    squared = squared_distances(features, points)
    return squared if metric == "l2" else _cosine(squared, features, points)


def _exact(features: Array, points: Array, index: Array, metric: str) -> Array:
    """(B, k) distances of the metric to chosen points."""
    squared = squared_distances_to(features, points, index)
    if metric == "l2":
        return namespace(squared).sqrt(squared)
    return _cosine(squared, features, points[index])


def _cosine(squared: Array, features: Array, points: Array) -> Array:
    """``1 - cosine`` from the squared distance between unit rows, of which some may be zeros."""
    empty = (features == 0).all(axis=-1)[:, None]
    return squared / 2 + empty / 2 + (points == 0).all(axis=-1) / 2


def _check(queries: QuerySet, features: Array, k: int, metric: str) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ConfigError(f"k is {k!r}, the number of neighbours; expected a whole number from 1")
    if metric not in METRICS:
        raise ConfigError(f"metric is {metric!r}{did_you_mean(str(metric), METRICS)}")
    width = np.shape(queries.features)[1]
    if np.ndim(features) != 2 or np.shape(features)[1] != width:
        raise DataError(
            f"features have shape {np.shape(features)}; the query set expects (B, {width})"
        )
