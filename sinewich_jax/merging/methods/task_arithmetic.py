"""Task arithmetic: the sum of the task vectors, scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite, is_one, shares_of, weights_of


@register("task_arithmetic", source="Ilharco et al. 2023, arXiv 2212.04089")
def task_arithmetic(
    leaf: Leaf,
    *,
    scale: float = 0.3,
    weights: Sequence[float] | None = None,
    normalize: bool = False,
) -> Any:
    """``W_0 + scale * sum_t w_t (W_t - W_0)``; 0.3 to 0.4 is usual, tune it on validation data.

    Args:
      leaf: the base's and the experts' arrays.
      scale: of the sum; 0.3 is what eight tasks have in the paper.
      weights: one an expert, 1 by default; a negative one takes a task away.
      normalize: divides by the sum of the weights, so that a scale of 1 gives their mean.
    """
    given = (shares_of if normalize else weights_of)(weights, len(leaf.experts))
    total = sum(
        delta if is_one(weight) else weight * delta
        for weight, delta in zip(given, leaf.deltas, strict=True)
    )
    return leaf.base + finite("scale", scale) * (total / sum(given) if normalize else total)
