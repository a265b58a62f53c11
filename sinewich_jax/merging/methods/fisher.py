"""Fisher merging: the average weighed by the diagonal Fisher information of each expert."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.arrays import is_traced
from sinewich_jax.errors import ConfigError
from sinewich_jax.merging.leaf import Leaf, Leaves
from sinewich_jax.merging.means import towards, weighted_mean
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite, one_of, shares_of
from sinewich_jax.merging.statistics import curvatures_of


@register(
    "fisher",
    source="Matena and Raffel 2022, arXiv 2111.09832, the diagonal form",
    needs=("fisher",),
    whole=True,
    cost="one pass, two where it normalizes",
)
def fisher(
    leaves: Leaves,
    *,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    floor: float = 0.0,
    add: float = 0.0,
    normalize: Literal["none", "global"] = "none",
) -> Iterator[tuple[str, Any]]:
    """``sum_t w_t F_t W_t / sum_t w_t F_t``, ``F_t`` the diagonal Fisher information.

    Entries where no expert has information get the plain mean, for which no floor is needed; those
    of other implementations are absolute, and erase the information of a large model, which may be
    1e-20. mats is ``floor=1e-8``, fusion_bench ``add=1e-6, normalize="global"``.

    Args:
      leaves: of the model, with an array in the shape of each leaf, or a curvature.
      scale: of what is added to the base; 1 is the average itself.
      weights: one an expert, the lambdas of the paper; 1 by default.
      floor: smaller information is replaced by it.
      add: is added to all information.
      normalize: ``"global"`` divides each expert's information by its norm over the whole model
        (before ``add``), so that no expert is louder because its loss is.

    Raises:
      ConfigError: a negative floor.
    """
    one_of("normalize", normalize, ("none", "global"))
    if finite("floor", floor) < 0 or finite("add", add) < 0:
        raise ConfigError(f"floor is {floor} and add {add}; information cannot be negative")
    given = shares_of(weights, len(leaves.names))
    if normalize == "global":
        norms = [norm + 1e-6 if add else norm for norm in _norms(leaves)]
        given = tuple(w / (norm + (norm == 0)) for w, norm in zip(given, norms, strict=True))
        given = _balanced(given)
    for leaf in leaves:
        shares = _shares(leaf, given, floor, add)
        mean = weighted_mean(leaf.xp, leaf.experts, shares)
        yield leaf.path, towards(leaf.base, mean, scale)


def _shares(leaf: Leaf, weights: Sequence[Any], floor: float, add: float) -> list[Any]:
    xp = leaf.xp
    shares = []
    for weight, curvature in zip(weights, curvatures_of(leaf), strict=True):
        information = curvatures.dense(curvature, leaf.base.shape)
        if floor:
            information = xp.maximum(information, xp.float32(floor))
        if add:
            information = information + xp.float32(add)
        shares.append(weight * information)
    # Only ratios count; the largest becomes 1, so that no product below leaves float32.
    top = functools.reduce(xp.maximum, [share.max(initial=0) for share in shares])
    return [share / (top + (top == 0)) for share in shares]


def _norms(leaves: Leaves) -> list[Any]:
    """``||F_t||`` over all leaves, of numbers that may be too small to be squared in float32."""
    norms: list[Any] = [0.0] * len(leaves.names)
    for leaf in leaves:
        for i, curvature in enumerate(curvatures_of(leaf)):
            information = curvatures.dense(curvature, leaf.base.shape)
            top = information.max(initial=0)
            part = top * leaf.xp.sqrt(((information / (top + (top == 0))) ** 2).sum())
            norms[i] = leaf.xp.hypot(norms[i], part)
    return norms


def _balanced(weights: Sequence[Any]) -> tuple[Any, ...]:
    """The same ratios with a sum of 1, in plain numbers where the values are known."""
    total = sum(weights)
    shares = (weight / total for weight in weights)
    return tuple(w if is_traced(w) or not isinstance(w, np.generic) else float(w) for w in shares)
