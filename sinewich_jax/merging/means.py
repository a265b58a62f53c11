"""The weighted mean that merge rules share."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

from sinewich_jax.merging.settings import finite, is_one


def weighted_mean(
    xp: ModuleType,
    arrays: Sequence[Any],
    weights: Sequence[Any],
    empty: Literal["mean", "zero"] = "mean",
) -> Any:
    """``sum_t w_t a_t / sum_t w_t``, entry by entry.

    As a running mean: arrays that agree are returned bit for bit, and so is a single one; and
    nothing is ever divided by a sum that is zero.

    Args:
      xp: ``numpy`` or ``jax.numpy``.
      arrays: of one shape.
      weights: non-negative, of that shape.
      empty: what an entry becomes that has no weight at all: the plain mean, or zero.
    """
    mean, total = arrays[0], weights[0]
    if empty == "zero":
        mean = xp.where(total > 0, mean, 0)
    for number, (array, weight) in enumerate(zip(arrays[1:], weights[1:], strict=True), start=2):
        total = total + weight
        some = total > 0
        share = weight / xp.where(some, total, 1)
        if empty == "mean":
            share = xp.where(some, share, xp.float32(1 / number))
        mean = mean + share * (array - mean)
    return mean


def towards(base: Any, mean: Any, scale: Any) -> Any:
    """``base + scale (mean - base)``, and the mean bit for bit where the scale is 1."""
    return mean if is_one(scale) else base + finite("scale", scale) * (mean - base)
