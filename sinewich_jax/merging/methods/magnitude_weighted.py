"""An average in which each entry is weighed by how far training moved it."""

from __future__ import annotations

from typing import Any

from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.merging.means import towards, weighted_mean
from sinewich_jax.merging.registry import register


@register(
    "magnitude_weighted",
    source="a baseline in Moayedikia and Troncoso 2025 (UMTAM), arXiv 2512.17109",
)
def magnitude_weighted(leaf: Leaf, *, scale: float = 1.0) -> Any:
    """``W_0 + scale * sum_t |d_t| d_t / sum_t |d_t|``, ``d_t = W_t - W_0``.

    Args:
      leaf: the base's and the experts' arrays.
      scale: of what is added to the base.
    """
    mean = weighted_mean(leaf.xp, leaf.experts, [leaf.xp.abs(delta) for delta in leaf.deltas])
    return towards(leaf.base, mean, scale)
