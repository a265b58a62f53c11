"""The average in which each expert is heard where its loss is curved: the default rule.

Around its optimum an expert's loss is about ``1/2 sum_i V_i (w_i - W_i)^2``, with the curvature V
that its optimizer kept. The sum of these bowls over experts has one minimum, the mean weighted by
curvature. No mask, no election, no coefficient to tune.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.merging.means import towards, weighted_mean
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import shares_of
from sinewich_jax.merging.statistics import curvatures_of, relative


@register(
    "curvature_average",
    source="Matena and Raffel 2022, arXiv 2111.09832, the diagonal form, with the curvature of "
    "Moayedikia and Troncoso 2025, arXiv 2512.17109",
    needs=("curvature",),
)
def curvature_average(
    leaf: Leaf,
    *,
    power: float = 1.0,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Any:
    """``W_0 + scale * sum_t w_t V_t^power d_t / sum_t w_t V_t^power``, ``d_t = W_t - W_0``.

    Entries where no expert has curvature get the plain mean: nothing speaks for one or the other.

    Args:
      leaf: the arrays, and the curvature of each expert.
      power: 1 is the minimum of the quadratic losses, 0.5 a compromise with the average, 0 is it.
      scale: of what is added to the base.
      weights: one an expert, 1 by default; for experts that were trained with different batch sizes
        these sizes (or scale the statistics by :func:`sinewich_jax.merging.fisher_scale`).
    """
    given = shares_of(weights, len(leaf.experts))
    shares = relative(leaf, curvatures_of(leaf), power)
    shares = [w * share for w, share in zip(given, shares, strict=True)]
    mean = weighted_mean(leaf.xp, leaf.experts, shares)
    return towards(leaf.base, mean, scale)
