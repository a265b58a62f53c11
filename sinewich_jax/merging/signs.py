"""Signs: how experts that pull an entry to opposite sides elect one, and who is heard after that.

The three steps of TIES (Yadav et al. 2023, arXiv 2306.01708) are trimming (see
:mod:`sinewich_jax.merging.trim`), electing (:func:`elect`), and the mean over those that agree
(:func:`disjoint`). Every rule that elects does it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

from sinewich_jax.core.arrays import is_traced
from sinewich_jax.errors import SinewichError
from sinewich_jax.merging.settings import is_one

OnTie = Literal["majority", "zero", "positive"]
ON_TIE = ("majority", "zero", "positive")
AGGREGATES = ("mean", "sum", "max")
DIVISORS = ("weights", "count")


def votes_for(xp: ModuleType, deltas: Sequence[Any], how: Literal["sum", "frequency"]) -> list[Any]:
    """What each expert says of an entry: its change, or (``"frequency"``) only its side.

    Raises:
      SinewichError: complex numbers, which have no side.
    """
    if any(delta.dtype.kind == "c" for delta in deltas):
        raise SinewichError("complex leaves have no sign to elect; leave them out of the merge")
    return [xp.sign(delta) for delta in deltas] if how == "frequency" else list(deltas)


def balance(total: Any) -> Any:
    """How many entries are elected positive less how many negative, by the sum of their votes."""
    return (total > 0).sum() - (total < 0).sum()


def may_tie(votes: Sequence[Any], total: Any) -> bool:
    """Whether votes cancel anywhere; True while JAX traces and cannot say."""
    if is_traced(total):
        return True
    silent = sum(vote != 0 for vote in votes) == 0
    return bool(((total == 0) & ~silent).any())


def elect(xp: ModuleType, total: Any, on_tie: OnTie, majority: Any = 0) -> Any:
    """The side of every entry: ``sign(sum_t votes_t)``.

    Args:
      xp: ``numpy`` or ``jax.numpy``.
      total: the sum of the votes.
      on_tie: the side of an entry whose votes cancel exactly: ``"zero"`` leaves it at the base,
        ``"positive"`` is mergekit's and PEFT's, ``"majority"`` is the official code of TIES: one
        side for all of them, that which more entries were elected to.
      majority: that :func:`balance`, summed over whatever is trimmed together.

    Returns:
      -1, 0 or 1 in the dtype of the votes.
    """
    side = xp.sign(total)
    if on_tie == "zero":
        return side
    tied = xp.sign(majority) if on_tie == "majority" else 1
    return xp.where(side == 0, xp.asarray(tied, side.dtype), side)


def disjoint(
    xp: ModuleType,
    deltas: Sequence[Any],
    agree: Sequence[Any],
    weights: Sequence[Any],
    aggregate: Literal["mean", "sum", "max"] = "mean",
    divisor: Literal["weights", "count"] = "weights",
) -> Any:
    """One change out of those that agree, zero where none does.

    Args:
      xp: ``numpy`` or ``jax.numpy``.
      deltas: one array an expert.
      agree: bool, which entries of it are heard.
      weights: a number an expert.
      aggregate: ``mean`` is ``sum_t w_t d_t`` over the divisor, ``sum`` is without it, ``max`` the
        largest in size.
      divisor: of the mean: the sum of the weights that are heard (mergekit), or their number
        (PEFT). The same where all weights are 1.
    """
    # A product, not a choice: NumPy is seven times faster at it, and all numbers are finite.
    parts = [
        (delta if is_one(weight) else weight * delta) * heard
        for heard, delta, weight in zip(agree, deltas, weights, strict=True)
    ]
    if aggregate == "max":
        # All that agree have one side, so the largest in size is the highest or the lowest.
        high, low = parts[0], parts[0]
        for part in parts[1:]:
            high, low = xp.maximum(high, part), xp.minimum(low, part)
        return xp.where(high > -low, high, low)
    total = sum(parts[1:], parts[0])
    if aggregate == "sum":
        return total
    if divisor == "count" or all(map(is_one, weights)):
        count = sum(heard.astype(total.dtype) for heard in agree)
    else:
        count = sum(
            weight * heard.astype(total.dtype) for heard, weight in zip(agree, weights, strict=True)
        )
    return total / xp.where(count == 0, 1, count)
