"""Statistics that experts bring along: how they are found, checked, scaled and turned to weights.

A tree of statistics has the paths of the parameters and at each of them a curvature
(:class:`~sinewich_jax.core.curvature.Factored` or ``Diagonal``), an array of Fisher information in
the parameter's shape, or a Gram matrix of the layer's inputs.
"""

from __future__ import annotations

import functools
import itertools
import math
from types import ModuleType
from typing import Any, Literal

import numpy as np

from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.arrays import fails, namespace, widen
from sinewich_jax.core.curvature import Curvature, Diagonal, Factored
from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.errors import ConfigError, SinewichError
from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.merging.settings import finite, one_of

WORDS = {"curvature": "curvature", "fisher": "Fisher information", "gram": "Gram matrix"}
"""What rules of this library ask for, and how a message calls it."""

_MARGINS = ("row", "col")
_NOTHING = 1e-30  # relative to the largest of a leaf; far below, float32 has no digits left


# --- trees of statistics ------------------------------------------------------------------------


def by_leaf(tree: Any) -> dict[str, Any]:
    """A tree of statistics by the path of the parameter; a curvature counts as one.

    Raises:
      SinewichError: a factored curvature that lacks a margin.
    """
    flat: dict[str, Any] = {}
    margins: dict[str, dict[str, Any]] = {}
    for path, leaf in flatten_paths(tree).items():
        parent, _, field = path.rpartition("/")
        if field in _MARGINS:
            margins.setdefault(parent, {})[field] = leaf
        elif field == "diag":
            flat[parent] = Diagonal(leaf)
        else:
            flat[path] = leaf
    for path, parts in margins.items():
        if parts.keys() != set(_MARGINS):
            raise SinewichError(
                f"the curvature of {path!r} has {', '.join(parts)} and not the other margin; "
                "expected both row and col"
            )
        flat[path] = Factored(**parts)
    return flat


def fisher_scale(stats: Any, batch_size: float) -> Any:
    """Curvature on the scale of the Fisher information of one example.

    An optimizer squares the gradient of a batch mean, and where the noise of examples dominates,
    the square of a mean over B examples is a B-th of the mean of the squares. Experts that were
    trained with different batch sizes compare only after this.

    Args:
      stats: a tree of statistics; both margins of a factored one are linear in it.
      batch_size: over how many examples the loss was averaged in one step.

    Returns:
      The tree, multiplied.

    Raises:
      ConfigError: a batch size that is not positive.
    """
    size = finite("batch_size", batch_size)
    if isinstance(size, float) and size <= 0:
        raise ConfigError(f"batch_size is {batch_size}; expected the positive number of examples")
    return map_paths(lambda _, leaf: leaf * size, stats)


def normalize_curvature(
    stats: Any, how: Literal["none", "global", "leaf_mean", "leaf_max"] = "global"
) -> Any:
    """Takes the scale out of an expert's curvature, for experts whose losses do not compare.

    Args:
      stats: a tree of curvatures or Fisher arrays.
      how: ``"global"`` divides by the mean over all entries, which keeps leaves comparable;
        ``"leaf_mean"`` and ``"leaf_max"`` divide each leaf by its own, and all-zero leaves stay;
        ``"none"`` leaves all as it is.

    Returns:
      A tree like ``stats``.

    Raises:
      SinewichError: everything is zero and the scale is asked for.
    """
    one_of("how", how, ("none", "global", "leaf_mean", "leaf_max"))
    if how == "none":
        return stats
    found = {path: as_curvature(stat) for path, stat in by_leaf(stats).items()}
    if how == "global":
        sizes = {path: math.prod(map(np.size, stat)) for path, stat in found.items()}
        mean = sum(
            _mean(found[path]) * (size / sum(sizes.values())) for path, size in sizes.items()
        )
        if fails(mean > 0):
            raise SinewichError("the curvature is zero everywhere, so it has no scale to divide by")
        scales = dict.fromkeys(found, mean)
    else:
        measure = _mean if how == "leaf_mean" else curvatures.largest
        scales = {path: measure(stat) for path, stat in found.items()}

    def divide(path: str, leaf: Any) -> Any:
        parent, _, field = path.rpartition("/")
        scale = scales[parent if field in (*_MARGINS, "diag") else path]
        return leaf / (scale + (scale == 0))

    return map_paths(divide, stats)


def _mean(curvature: Curvature) -> Any:
    return curvature[0].mean()


def as_curvature(statistic: Any, xp: ModuleType | None = None) -> Curvature:
    """Any statistic of second moments as a curvature, its arrays in one library."""
    parts = statistic if isinstance(statistic, Factored | Diagonal) else Diagonal(statistic)
    xp = xp or namespace(*parts)
    return type(parts)(*(widen(part, xp) for part in parts))


# --- the statistics of one leaf -----------------------------------------------------------------


def curvatures_of(leaf: Leaf) -> list[Curvature]:
    """The curvature of a leaf for each expert, in the leaf's array library."""
    return [as_curvature(statistic, leaf.xp) for statistic in leaf.stats]


def relative(leaf: Leaf, found: list[Curvature], power: float = 1.0) -> list[Any]:
    """Dense weights ``V^power`` of each expert over the largest entry that any has on the leaf.

    Ratios are what a mean needs, so nothing changes when all curvatures are multiplied by a number,
    be it 1e-20; what is below 1e-30 of the largest counts as zero.
    """
    xp, power = leaf.xp, finite("power", power)
    if isinstance(power, float) and power < 0:
        raise ConfigError(f"power is {power}; expected a number from 0, which weighs all alike")
    top = functools.reduce(xp.maximum, map(curvatures.largest, found))
    top = top + (top == 0)
    weights = []
    for curvature in found:
        share = type(curvature)(*_divided(curvature, top))
        share = curvatures.dense(share, leaf.base.shape)
        share = share if power == 1 else share**power
        weights.append(xp.where(share > _NOTHING, share, 0))
    return weights


def _divided(curvature: Curvature, by: Any) -> list[Any]:
    return [part / by for part in curvature]


def check(path: str, shape: tuple[int, ...], need: str, statistic: Any, owner: str) -> None:
    """Refuses a statistic that does not belong to a parameter of this shape.

    Raises:
      SinewichError: naming the leaf and its owner.
    """
    splits = [*itertools.accumulate(shape, initial=1, func=lambda a, b: a * b)]
    found: Any = np.shape(statistic) if not isinstance(statistic, tuple) else None
    if need == "gram":
        expected = "a square matrix over the inputs"
        fits = found is not None and len(found) == 2 and found[0] == found[1] in splits
    elif isinstance(statistic, Factored):
        found = tuple(map(np.size, statistic))
        expected = "margins of the rows and columns of the leaf"
        fits = math.prod(found) == splits[-1] and found[0] in splits
    else:
        found = np.shape(statistic.diag) if isinstance(statistic, Diagonal) else found
        expected = "the shape of the leaf"
        fits = found == shape
    if not fits:
        raise SinewichError(
            f"the {WORDS[need]} of {path!r} in {owner} has shape {found} for a leaf of shape "
            f"{shape}; expected {expected}"
        )
    parts = statistic if isinstance(statistic, Factored | Diagonal) else (statistic,)
    for part in parts:
        xp = namespace(part)
        values = widen(part, xp)
        if fails((xp.isfinite(values) if need == "gram" else _in_range(values)).all()):
            bad = "not finite" if need == "gram" else "negative or not finite"
            raise SinewichError(
                f"the {WORDS[need]} of {path!r} in {owner} holds values that are {bad}"
            )


def _in_range(values: Any) -> Any:
    return (values >= 0) & (values < np.inf)


def is_zero(statistic: Any) -> bool:
    """Whether nothing at all can be weighed with a statistic; unknown (False) while JAX traces."""
    parts = statistic if isinstance(statistic, Factored | Diagonal) else (statistic,)
    return any(fails((widen(part, namespace(part)) != 0).any()) for part in parts)
