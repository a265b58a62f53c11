"""Pruning a task vector: the entries that matter most for the loss, and zeros elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.arrays import content, fails, namespace, widen
from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.errors import SinewichError
from sinewich_jax.merging import statistics
from sinewich_jax.merging.settings import finite
from sinewich_jax.merging.trim import Count, Scope, Trim


def prune(
    delta: Any,
    curvature: Any = None,
    *,
    density: float = 0.1,
    scope: Scope = "global",
    trim: Count = "exact",
) -> Any:
    """Keeps the most salient entries of a task vector: those with the largest ``d^2 V``.

    To second order, resetting an entry to the base costs ``d^2 V / 2`` of loss, so of all masks of
    one size this one costs least. Keeping the largest ``|d|`` instead supposes equal curvature.

    Args:
      delta: a task vector, see :func:`sinewich_jax.merging.task_vector`.
      curvature: its tree of statistics; None prunes by magnitude.
      density: the fraction of entries that is kept.
      scope: counts over all leaves together, or in each leaf by itself.
      trim: how the number that is kept is rounded, see :func:`sinewich_jax.merging.trim.kept`.

    Returns:
      A tree like ``delta``; leaves of integers stay as they are.

    Raises:
      ConfigError: a density that is not above 0 and at most 1.
      SinewichError: a leaf without curvature, or curvature that does not fit it or is all zero.

    References:
      LeCun et al. 1989, Optimal Brain Damage, with the curvature of Moayedikia and Troncoso 2025
      (UMTAM), arXiv 2512.17109.
    """
    reals = {path: leaf for path, leaf in flatten_paths(delta).items() if content(leaf) == "real"}
    stats = None if curvature is None else statistics.by_leaf(curvature)
    for path, leaf in reals.items():
        xp = namespace(leaf)
        if fails(xp.isfinite(widen(leaf, xp)).all()):
            raise SinewichError(f"the leaf {path!r} of the task vector holds NaN or infinity")
    if stats is not None:
        _check(reals, stats)

    def scores(item: tuple[str, Any]) -> tuple[Any]:
        path, leaf = item
        xp = namespace(leaf)
        sizes = xp.abs(widen(leaf, xp))
        if stats is None:
            return (sizes,)
        return (sizes * curvatures.root(statistics.as_curvature(stats[path], xp), sizes.shape),)

    trimmed = Trim(reals.items(), scores, (finite("density", density),), scope, trim)
    kept = {
        path: namespace(leaf).where(mask, leaf, namespace(leaf).zeros_like(leaf))
        for (path, leaf), (mask,) in trimmed
    }
    return map_paths(lambda path, leaf: kept.get(path, leaf), delta)


def _check(reals: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
    for path, leaf in reals.items():
        if path not in stats:
            raise SinewichError(
                f"the curvature has nothing for the leaf {path!r}; track it, or leave that leaf "
                "out of the task vector"
            )
        statistics.check(path, leaf.shape, "curvature", stats[path], "the statistics")
    if reals and all(statistics.is_zero(stats[path]) for path in reals):
        raise SinewichError(
            "the curvature is zero everywhere, so no entry is more salient than another; "
            "export it after training, not before"
        )
