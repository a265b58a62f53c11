"""Nearest neighbours by brute force: for some thousands of points one matrix product is the search.

Everything takes NumPy arrays, which need no JAX, and JAX arrays, also while these are traced.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.arrays import namespace, widen
from sinewich_jax.errors import ConfigError

Array = Any


class Nearest(NamedTuple):
    """The k nearest points of every row, nearest first.

    Attributes:
      distances: (B, k), as they were given.
      index: int (B, k), of the points.
    """

    distances: Array
    index: Array


def squared_distances(features: Array, points: Array) -> Array:
    """``||f||^2 - 2 f q^T + ||q||^2`` between every feature and every point.

    Both are moved first by the mean of the points, which changes no distance and keeps float32
    from cancelling where features lie far from the origin.

    Args:
      features: (B, e).
      points: (M, e).

    Returns:
      (B, M), at least float32 and never negative; infinite in the rows of features that are not
      finite.
    """
    xp = namespace(features, points)
    features, points = widen(features, xp), widen(points, xp)
    center = points.mean(axis=0)
    features, points = features - center, points - center
    if xp is np:
        with np.errstate(invalid="ignore", over="ignore"):
            squared = features @ (-2 * points).T
            squared += _squares(features)[:, None]
            squared += _squares(points)
            np.maximum(squared, 0, out=squared)
        if not np.isfinite(squared.sum()):
            squared[np.isnan(squared)] = np.inf
        return squared
    # Accelerators multiply in fewer bits unless they are told; neighbours would change places.
    product = xp.matmul(features, points.T, precision="highest")
    squared = _squares(features)[:, None] - 2 * product + _squares(points)
    return xp.where(xp.isnan(squared), xp.inf, xp.maximum(squared, 0))


def squared_distances_to(features: Array, points: Array, index: Array) -> Array:
    """The squared distances to a few chosen points, from differences and so without cancelling.

    Args:
      features: (B, e).
      points: (M, e).
      index: int (B, k), of points.

    Returns:
      (B, k); exactly 0 where a feature is its point, infinite where it is not finite.
    """
    xp = namespace(features, points, index)
    features, points = widen(features, xp), widen(points, xp)
    # NumPy would warn of inf - inf; JAX has no such state to set.
    with np.errstate(invalid="ignore", over="ignore"):
        squared = ((features[:, None, :] - points[index]) ** 2).sum(axis=-1)
    return xp.where(xp.isnan(squared), xp.inf, squared)


def unit_rows(features: Array) -> Array:
    """(B, e) with rows of length 1; a row of zeros has no direction and stays."""
    xp = namespace(features)
    features = widen(features, xp)
    with np.errstate(invalid="ignore", over="ignore"):
        peak = xp.max(xp.abs(features), axis=1, keepdims=True)
        features = features / xp.where(peak > 0, peak, 1)  # squares neither overflow nor vanish
        length = xp.sqrt(_squares(features))[:, None]
        return features / xp.where(length > 0, length, 1)


def nearest(distances: Array, k: int) -> Nearest:
    """The k smallest of every row; among equal ones those of the lowest index.

    Args:
      distances: (B, M) without NaN.
      k: from 1 to M.

    Raises:
      ConfigError: another k.
    """
    if not 1 <= k <= distances.shape[1]:
        raise ConfigError(f"k is {k} for {distances.shape[1]} points; expected 1 to that number")
    if namespace(distances) is not np:
        lax = sys.modules["jax"].lax
        negative, index = lax.top_k(-distances, k)  # of equal entries the lower index first
        # XLA would merge a slice of these with the one inside top_k, and sort whole rows instead.
        return Nearest(*lax.optimization_barrier((-negative, index)))
    index = np.argpartition(distances, k - 1, axis=1)[:, :k]
    last = np.take_along_axis(distances, index, axis=1).max(axis=1, initial=0.0)
    # A partition takes any of the entries that equal the last; where it had a choice, sort.
    open_rows = np.count_nonzero(distances <= last[:, None], axis=1) > k
    if open_rows.any():
        index[open_rows] = np.argsort(distances[open_rows], axis=1, kind="stable")[:, :k]
    index.sort(axis=1)
    found = np.take_along_axis(distances, index, axis=1)
    order = np.argsort(found, axis=1, kind="stable")
    return Nearest(*(np.take_along_axis(array, order, axis=1) for array in (found, index)))


def soft_neighbours(squared: Array, temperature: float = 1.0) -> Array:
    """``p_ij = softmax_j(-d_ij^2 / temperature)`` over the other points: stochastic neighbours.

    Goldberger et al. 2004 (Neighbourhood Components Analysis). An infinite distance excludes a
    point, as one does with the point itself.

    Args:
      squared: (B, M) squared distances, at least one of every row finite.
      temperature: in the unit of squared distances.

    Returns:
      (B, M), rows that sum to 1.
    """
    xp = namespace(squared)
    scores = -squared / temperature
    scores = scores - scores.max(axis=1, keepdims=True)
    shares = xp.exp(scores)
    return shares / shares.sum(axis=1, keepdims=True)


def _squares(rows: Array) -> Array:
    xp = namespace(rows)
    return xp.einsum("be,be->b", rows, rows) if xp is np else (rows * rows).sum(axis=1)
