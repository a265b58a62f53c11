"""The plain average of the experts."""

from __future__ import annotations

from typing import Any

from sinewich_jax.merging.registry import Leaf, register


@register("average", source="Wortsman et al. 2022 (Model soups), arXiv 2203.05482")
def average(leaf: Leaf) -> Any:
    """``mean_t W_t``, which is the base plus the mean task vector.

    As a running mean, so that experts that agree are returned bit for bit.
    """
    mean = leaf.experts[0]
    for number, expert in enumerate(leaf.experts[1:], start=2):
        mean = mean + (expert - mean) / number
    return mean
