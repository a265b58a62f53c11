"""Task arithmetic: the sum of the task vectors, scaled."""

from __future__ import annotations

from typing import Any

from sinewich_jax.merging.registry import Leaf, register


@register("task_arithmetic", source="Ilharco et al. 2023, arXiv 2212.04089")
def task_arithmetic(leaf: Leaf, *, scale: float = 0.3) -> Any:
    """``W_0 + scale * sum_t (W_t - W_0)``; 0.3 to 0.4 is usual, tune it on validation data."""
    return leaf.base + scale * sum(expert - leaf.base for expert in leaf.experts)
