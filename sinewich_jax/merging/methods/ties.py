"""TIES: trim each task vector, elect a sign for every entry, and average those that agree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from sinewich_jax.merging.blocks import by_blocks
from sinewich_jax.merging.leaf import Leaf, Leaves
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite, is_one, one_of, weights_of
from sinewich_jax.merging.signs import (
    AGGREGATES,
    DIVISORS,
    ON_TIE,
    balance,
    disjoint,
    elect,
    may_tie,
    votes_for,
)
from sinewich_jax.merging.trim import Trim


@register(
    "ties",
    source="Yadav et al. 2023 (TIES-Merging), arXiv 2306.01708, trim, elect and merge",
    whole=True,
    cost="one pass and a selection; over the whole model two or three passes more",
)
def ties(
    leaves: Leaves,
    *,
    density: float | Sequence[float] = 0.2,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    scope: Literal["leaf", "global"] = "leaf",
    trim: Literal["exact", "floor", "inclusive"] = "exact",
    sign: Literal["sum", "frequency"] = "sum",
    weighted_vote: bool = True,
    on_tie: Literal["majority", "zero", "positive"] = "majority",
    aggregate: Literal["mean", "sum", "max"] = "mean",
    divisor: Literal["weights", "count"] = "weights",
) -> Iterator[tuple[str, Any]]:
    """``W_0 + scale * mean over {t: sign(d_t) = e} of d_t``, ``d_t`` trimmed, ``e`` elected.

    The official code is ``scope="global", trim="inclusive"``; mergekit is ``trim="floor",
    on_tie="positive"``; PEFT is that with ``weighted_vote=False, divisor="count"``.

    Args:
      leaves: of the model.
      density: the fraction of entries that is kept, one for all or one an expert.
      scale: of what is added to the base; 1 suits the mean, about 0.3 the sum.
      weights: one an expert, 1 by default.
      scope: trims each leaf by itself, or all together as in the paper (which reads the experts two
        times more).
      trim: how the number that is kept is rounded, see :func:`sinewich_jax.merging.trim.kept`.
      sign: elects the side of the sum of the changes, or of the larger number of experts.
      weighted_vote: whether weights count in the election.
      on_tie: the side where votes cancel exactly, see :func:`sinewich_jax.merging.signs.elect`; a
        majority is counted over the scope.
      aggregate: of those that agree.
      divisor: of the mean: the sum of the weights of those that agree, or their number.
    """
    trimmed = Trim.of_leaves(leaves, magnitudes, density, scope=scope, count=trim)
    given = weights_of(weights, len(leaves.names))
    for leaf, delta in merged_deltas(
        trimmed,
        given,
        sign=sign,
        weighted_vote=weighted_vote,
        on_tie=on_tie,
        aggregate=aggregate,
        divisor=divisor,
    ):
        yield leaf.path, leaf.base + finite("scale", scale) * delta


def magnitudes(leaf: Leaf) -> Iterator[Any]:
    """``|W_t - W_0|``, what TIES trims by; one expert at a time."""
    return (leaf.xp.abs(expert - leaf.base) for expert in leaf.experts)


def merged_deltas(
    trimmed: Trim,
    weights: Sequence[Any],
    *,
    sign: Literal["sum", "frequency"] = "sum",
    weighted_vote: bool = True,
    on_tie: Literal["majority", "zero", "positive"] = "majority",
    aggregate: Literal["mean", "sum", "max"] = "mean",
    divisor: Literal["weights", "count"] = "weights",
) -> Iterator[tuple[Leaf, Any]]:
    """Each leaf with what TIES adds to it; the options are those of :func:`ties`."""
    one_of("sign", sign, ("sum", "frequency"))
    one_of("on_tie", on_tie, ON_TIE)
    one_of("aggregate", aggregate, AGGREGATES)
    one_of("divisor", divisor, DIVISORS)
    say = weights if weighted_vote else (1.0,) * len(weights)

    def speak(leaf: Leaf, masks: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """What is kept of the changes, and the votes."""
        kept = map(leaf.xp.asarray, masks)
        deltas = [delta * mask for mask, delta in zip(kept, leaf.deltas, strict=True)]
        votes = votes_for(leaf.xp, deltas, sign)
        return deltas, [v if is_one(w) else w * v for w, v in zip(say, votes, strict=True)]

    def count(leaf: Leaf, masks: Sequence[Any]) -> Any:
        return balance(by_blocks(lambda leaf, masks: sum(speak(leaf, masks)[1]), leaf, masks))

    def merge(leaf: Leaf, masks: Sequence[Any], majority: Callable[[], Any]) -> Any:
        deltas, votes = speak(leaf, masks)
        total = sum(votes)
        counted = majority() if by_majority and may_tie(votes, total) else 0
        side = elect(leaf.xp, total, on_tie, counted)
        agree = [vote * side > 0 for vote in votes]
        return disjoint(leaf.xp, deltas, agree, weights, aggregate, divisor)

    by_majority = on_tie == "majority"
    # Counted only where votes cancel, which real numbers seldom do: it is a pass of its own.
    everywhere = functools.cache(lambda: sum(count(leaf, masks) for leaf, masks in trimmed))
    for leaf, masks in trimmed:
        here = functools.cache(functools.partial(count, leaf, masks))
        majority = everywhere if trimmed.scope == "global" else here
        yield leaf, by_blocks(functools.partial(merge, majority=majority), leaf, masks)
