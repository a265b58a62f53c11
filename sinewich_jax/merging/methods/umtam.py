"""UMTAM: the three steps of TIES, each with curvature in the place of magnitude."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.curvature import Curvature, Diagonal, Factored
from sinewich_jax.merging.blocks import by_blocks
from sinewich_jax.merging.leaf import Leaf, Leaves
from sinewich_jax.merging.means import weighted_mean
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite, one_of, shares_of
from sinewich_jax.merging.signs import ON_TIE, balance, elect
from sinewich_jax.merging.statistics import curvatures_of, relative
from sinewich_jax.merging.trim import Trim


@register(
    "umtam",
    source="Moayedikia and Troncoso 2025 (UMTAM), arXiv 2512.17109, algorithm 2",
    needs=("curvature",),
    whole=True,
    cost="one pass and a selection; over the whole model two passes more",
)
def umtam(
    leaves: Leaves,
    *,
    density: float | Sequence[float] = 0.2,
    vote: Literal["saliency", "curvature", "magnitude"] = "saliency",
    sign_election: bool = True,
    on_tie: Literal["majority", "zero", "positive"] = "zero",
    aggregate: Literal["curvature", "uniform"] = "curvature",
    curvature: Literal["product", "sqrt_rc"] = "product",
    scope: Literal["leaf", "global"] = "leaf",
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Iterator[tuple[str, Any]]:
    """``W_0 + scale * sum_t a_t V_t d_t / sum_t a_t V_t``, ``a_t = m_t [sign(d_t) = e]``.

    ``m_t`` keeps the highest saliencies ``V_t d_t^2``, and ``e`` is the sign of
    ``sum_t m_t sign(d_t) q_t``. Entries on which no expert with curvature agrees stay at the base.

    Args:
      leaves: of the model, with the curvature of each expert.
      density: the fraction of entries that is kept, one for all or one an expert.
      vote: ``q_t``, what an expert's side weighs: saliency, curvature, or the size of its change.
      sign_election: without it everything that is kept is averaged.
      on_tie: the side where votes cancel exactly; ``"zero"`` leaves the entry at the base.
      aggregate: the mean weighted by curvature, or the plain mean of those that agree.
      curvature: ``V~ = row x col / mean(row)``, which is on the scale of squared gradients in every
        leaf, or the paper's ``sqrt(R C^T)`` of sums over rows and columns.
      scope: trims each leaf by itself, or all together.
      scale: of what is added to the base.
      weights: one an expert, 1 by default; they multiply the curvature in the mean, and the votes.
    """
    one_of("vote", vote, ("saliency", "curvature", "magnitude"))
    one_of("aggregate", aggregate, ("curvature", "uniform"))
    one_of("curvature", curvature, ("product", "sqrt_rc"))
    one_of("on_tie", on_tie, ON_TIE)
    given = shares_of(weights, len(leaves.names))
    roots = functools.partial(_roots, form=curvature)
    trimmed = Trim.of_leaves(leaves, roots, density, scope=scope)
    count = len(given)

    def total(leaf: Leaf, arrays: Sequence[Any]) -> Any:
        kept, shares = arrays[:count], arrays[count:]
        strengths = _strengths(leaf, vote, shares)
        return sum(
            leaf.xp.where(mask, weight * leaf.xp.sign(delta) * strength, 0)
            for mask, weight, delta, strength in zip(
                kept, given, leaf.deltas, strengths, strict=True
            )
        )

    def merge(leaf: Leaf, arrays: Sequence[Any], majority: Any) -> Any:
        xp, deltas = leaf.xp, leaf.deltas
        kept, shares = arrays[:count], arrays[count:]
        if sign_election:
            side = elect(xp, total(leaf, arrays), on_tie, majority)
            kept = [mask & (delta * side > 0) for mask, delta in zip(kept, deltas, strict=True)]
        weighed = [
            xp.where(mask, weight * (share if aggregate == "curvature" else 1), 0)
            for mask, weight, share in zip(kept, given, shares, strict=True)
        ]
        delta = weighted_mean(xp, deltas, weighed, empty="zero")
        return leaf.base + finite("scale", scale) * delta

    for leaf, kept in trimmed:
        shares = relative(leaf, _forms(leaf, curvature))
        arrays, majority = [*kept, *shares], 0
        if sign_election and on_tie == "majority":
            majority = balance(by_blocks(total, leaf, arrays))
        yield leaf.path, by_blocks(functools.partial(merge, majority=majority), leaf, arrays)


def _strengths(leaf: Leaf, vote: str, shares: Sequence[Any]) -> Sequence[Any]:
    """``q_t``, up to one factor for all experts."""
    if vote == "curvature":
        return shares
    sizes = [leaf.xp.abs(delta) for delta in leaf.deltas]
    if vote == "magnitude":
        return sizes
    top = functools.reduce(leaf.xp.maximum, [size.max(initial=0) for size in sizes])
    sizes = [size / (top + (top == 0)) for size in sizes]  # a tiny change has no square
    return [share * size * size for share, size in zip(shares, sizes, strict=True)]


def _forms(leaf: Leaf, form: str) -> list[Curvature]:
    """The curvature of each expert as it is, or as the paper's ``sqrt(R C^T)``."""
    found = curvatures_of(leaf)
    return found if form == "product" else [_root_of_sums(leaf, each) for each in found]


def _root_of_sums(leaf: Leaf, curvature: Curvature) -> Diagonal:
    # sqrt(R_i C_j) is sqrt(V~_ij sum(R)), and sums are m n times the mean.
    root = curvatures.root(curvature, leaf.base.shape)
    if isinstance(curvature, Factored):
        root = root * leaf.xp.sqrt(curvature.row.mean() * leaf.base.size)
    return Diagonal(root)


def _roots(leaf: Leaf, form: str) -> Iterator[Any]:
    """The root of the saliency, which float32 holds at any scale."""
    return (
        leaf.xp.abs(expert - leaf.base) * curvatures.root(curvature, leaf.base.shape)
        for expert, curvature in zip(leaf.experts, _forms(leaf, form), strict=True)
    )
