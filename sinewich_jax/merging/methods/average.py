"""The plain average of the experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import shares_of


@register("average", source="Wortsman et al. 2022 (Model soups), arXiv 2203.05482")
def average(leaf: Leaf, *, weights: Sequence[float] | None = None) -> Any:
    """``sum_t w_t W_t / sum_t w_t``, which is the base plus the mean task vector.

    As a running mean, so that experts that agree are returned bit for bit.

    Args:
      leaf: the experts' arrays.
      weights: non-negative, one an expert; all alike by default.
    """
    mean, total = leaf.experts[0], 0.0
    for expert, weight in zip(leaf.experts, shares_of(weights, len(leaf.experts)), strict=True):
        total = total + weight
        if not (isinstance(weight, float) and weight == 0):
            mean = mean + weight / total * (expert - mean)
    return mean
