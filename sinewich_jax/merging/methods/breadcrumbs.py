"""Model Breadcrumbs: neither the smallest nor the largest changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sinewich_jax.core import select
from sinewich_jax.errors import ConfigError
from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite, weights_of


@register(
    "breadcrumbs",
    source="Davari and Belilovsky 2023 (Model Breadcrumbs), arXiv 2312.06795, masks by layer",
    cost="one pass and two selections",
)
def breadcrumbs(
    leaf: Leaf,
    *,
    beta: float = 0.85,
    gamma: float = 0.01,
    scale: float = 0.3,
    weights: Sequence[float] | None = None,
) -> Any:
    """``W_0 + scale * sum_t w_t m_t (W_t - W_0)``, ``m_t`` without both tails of each leaf.

    Args:
      leaf: the base's and the experts' arrays.
      beta: the fraction of entries, the smallest changes, that is masked.
      gamma: the fraction of entries, the largest changes, that is masked, 0.01 as mergekit
        has it; the paper names the quantile above which it masks, 1 - gamma.
      scale: of the sum, as in task arithmetic.
      weights: one an expert, 1 by default.

    Raises:
      ConfigError: fractions that leave nothing.
    """
    if not (beta >= 0 and gamma >= 0 and beta + gamma < 1):
        raise ConfigError(
            f"beta is {beta} and gamma {gamma}, the fractions of the smallest and largest changes "
            "that are masked; expected two numbers from 0 whose sum is below 1"
        )
    given = weights_of(weights, len(leaf.experts))
    total = sum(
        weight * leaf.xp.where(_middle(leaf.xp.abs(delta), beta, gamma), delta, 0)
        for weight, delta in zip(given, leaf.deltas, strict=True)
    )
    return leaf.base + finite("scale", scale) * total


def _middle(sizes: Any, beta: float, gamma: float) -> Any:
    smallest, largest = round(beta * sizes.size), round(gamma * sizes.size)
    mask = sizes > 0
    if smallest and smallest < sizes.size:
        mask = select.top_mask(sizes, sizes.size - smallest)
    return mask & ~select.top_mask(sizes, largest) if largest else mask
