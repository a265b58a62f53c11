"""OTA with Fast Fisher Grafting: curvature decides what is kept and what each expert weighs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sinewich_jax.core import curvature as curvatures
from sinewich_jax.errors import ConfigError
from sinewich_jax.merging.leaf import Leaf, Leaves
from sinewich_jax.merging.means import weighted_mean
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite, shares_of
from sinewich_jax.merging.statistics import curvatures_of, relative
from sinewich_jax.merging.trim import Trim


@register(
    "ota",
    source="Mahdavinia et al. 2025 (Optimization Trajectory Aware merging), arXiv 2509.11167",
    needs=("curvature",),
    whole=True,
    cost="three passes and a selection; one with an absolute threshold",
)
def ota(
    leaves: Leaves,
    *,
    density: float | Sequence[float] | None = None,
    threshold: float | None = None,
    power: float = 0.5,
    scale: float = 1.0,
    scope: Literal["leaf", "global"] = "global",
    weights: Sequence[float] | None = None,
) -> Iterator[tuple[str, Any]]:
    """``W_0 + scale * sum_t m_t V_t^p d_t / sum_t m_t V_t^p``, ``m_t`` keeps large ``V_t d_t^2``.

    Entries that no expert keeps stay at the base.

    Args:
      leaves: of the model, with the second moment of each expert's optimizer.
      density: the fraction of each expert that is kept, 0.2 by default.
      threshold: in the place of a density, the least ``V_t d_t^2`` that is kept; absolute, so it
        belongs to one model and one training (1e-21 to 1e-18 for large language models).
      power: of the curvature in the mean; 0.5 is the preconditioner of Adam.
      scale: of what is added to the base.
      scope: counts over the whole model, or in each leaf by itself.
      weights: one an expert, 1 by default.

    Raises:
      ConfigError: both a density and a threshold.
    """
    if density is not None and threshold is not None:
        raise ConfigError("ota has both a density and a threshold; give one of them")
    given = shares_of(weights, len(leaves.names))
    if threshold is None:
        fraction = 0.2 if density is None else density
        kept: Any = Trim.of_leaves(leaves, roots, fraction, scope=scope)
    else:
        if finite("threshold", threshold) < 0:
            raise ConfigError(f"threshold is {threshold}; scores are not negative")
        kept = ((leaf, [r >= threshold**0.5 for r in roots(leaf)]) for leaf in leaves)
    for leaf, masks in kept:
        shares = [
            leaf.xp.where(mask, weight * share, 0)
            for mask, weight, share in zip(
                masks, given, relative(leaf, curvatures_of(leaf), power), strict=True
            )
        ]
        delta = weighted_mean(leaf.xp, leaf.deltas, shares, empty="zero")
        yield leaf.path, leaf.base + finite("scale", scale) * delta


def roots(leaf: Leaf) -> Iterator[Any]:
    """``|d_t| sqrt(V_t)``, the root of what is ranked, which float32 holds at any scale."""
    return (
        leaf.xp.abs(expert - leaf.base) * curvatures.root(curvature, leaf.base.shape)
        for expert, curvature in zip(leaf.experts, curvatures_of(leaf), strict=True)
    )
