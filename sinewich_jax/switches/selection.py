"""Which entries of a task vector are active: counts, thresholds and ties as the official code has.

Of each sign (or of both together) the entries with the largest scores are kept: by default their
magnitudes, the pulse of T-Switch (arXiv 2412.00054, equation 2; the counts are those of
``merge_vit.py`` in lfy-123/Binary-Task-Switch). Exact zeros are never active. Everything is counts
and comparisons, with no indexing by booleans, so that JAX can trace, map and shard it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from sinewich_jax.core import select
from sinewich_jax.core.arrays import namespace
from sinewich_jax.core.ternary import best_count

Array = Any
Side = Literal["positive", "negative", "both"]


class Cut(NamedTuple):
    """Where the selection among the entries of one sign, or of both, ends.

    Attributes:
      side: the entries it speaks of.
      threshold: float32 scalar; those whose score reaches it are active. Infinite keeps none.
      ties: how many of those that equal it are active, the first in row-major order; None for all.
    """

    side: Side
    threshold: Array
    ties: Array | None


class How(NamedTuple):
    """The settings of a selection, see :func:`sinewich_jax.switches.make.make_switch`."""

    sign_split: bool
    exact: bool
    compat: bool

    @property
    def sides(self) -> tuple[Side, ...]:
        """What is cut by itself."""
        return ("positive", "negative") if self.sign_split else ("both",)


def kept_count(count: Array, fraction: float) -> Array:
    """``int(count * fraction)`` in double precision, truncated, as Python computes it.

    10 entries at a discard ratio of .9 keep none (``1 - .9`` is below .1), and 30 keep two: float32
    and exact rationals both differ. Where JAX counts there may be no float64, so whole numbers do
    it: ``fraction`` is ``G / 2^96`` exactly, the product with the count has 128 bits in limbs of
    16, and its upper 32 are ``q = floor(count * fraction)``. The double product has 53 bits, of
    which the whole part takes those of q; it is rounded up to ``q + 1`` exactly when the first
    ``53 - floor(log2 q)`` bits behind the point are all ones (54 if q is 0; a tie is among these,
    and goes to the even neighbour, which is ``q + 1``).

    Args:
      count: an int, or an int32 scalar of JAX; at least 0 and below 2^31.
      fraction: above 0 and at most 1.

    Returns:
      An int or an int32 scalar.
    """
    if namespace(count) is np:
        return int(int(count) * fraction)
    if fraction == 1:
        return count
    if fraction < 2.0**-32:
        return count * 0
    import jax
    import jax.numpy as jnp

    numerator, denominator = fraction.as_integer_ratio()
    scaled = numerator * 2**96 // denominator  # exact: the last bit of fraction is above 2^-86
    limbs = [np.uint32(scaled >> (16 * i) & 0xFFFF) for i in range(6)]
    whole = count.astype(jnp.uint32)
    product = [jnp.zeros_like(whole)] * 8
    for i, half in enumerate((whole & 0xFFFF, whole >> 16)):
        carry = jnp.zeros_like(whole)
        for j, limb in enumerate(limbs):
            term = half * limb + product[i + j] + carry  # at most 2^32 - 1
            product[i + j], carry = term & 0xFFFF, term >> 16
        product[i + 6] = carry
    floor, high, low = (product[i + 1] << 16 | product[i] for i in (6, 4, 2))
    width = jax.lax.clz(floor) + 22  # bits behind the point that have to be ones, 23 to 54
    short = ~high >> (32 - jnp.minimum(width, 32)) == 0
    long = (~high == 0) & (~low >> jnp.minimum(64 - jnp.maximum(width, 33), 31) == 0)
    return (floor + jnp.where(width <= 32, short, long)).astype(jnp.int32)


def eligible(values: Array, side: Side) -> Array:
    """Where the entries of a side are: bool, of the shape of ``values``."""
    if side == "both":
        return values != 0
    return values > 0 if side == "positive" else values < 0


def leaf_cuts(
    values: Array, scores: Array | None, fraction: float | Literal["auto"], how: How
) -> list[Cut]:
    """The cuts of one leaf by itself.

    Args:
      values: float32, the task vector.
      scores: non-negative float32 of that shape, what decides; None for the magnitudes.
      fraction: of the entries of a side that are kept; ``"auto"`` keeps, of both signs together,
        as many as :func:`sinewich_jax.core.ternary.best_count` finds.
      how: the settings.
    """
    if fraction == "auto":
        keep = best_count(namespace(values).abs(values))
        return [_cut(values, scores, "both", lambda _: keep, how)]
    return [
        _cut(values, scores, side, lambda count: kept_count(count, fraction), how)
        for side in how.sides
    ]


def shared_cuts(
    leaves: Sequence[tuple[Array, Array | None]], fraction: float, how: How
) -> list[list[Cut]]:
    """The cuts of every leaf where one threshold a side holds for all leaves together.

    Args:
      leaves: values and scores of each, as in :func:`leaf_cuts`.
      fraction: of all entries of a side that are kept.
      how: the settings; exact ties are kept in the order of the leaves.
    """
    counts = [
        sum(namespace(values).count_nonzero(eligible(values, side)) for values, _ in leaves)
        for side in how.sides
    ]
    keeps = [kept_count(count, fraction) for count in counts]
    xp = namespace(*keeps)
    if not any(values.size for values, _ in leaves):
        return [[] for _ in leaves]
    found = select.shared_cuts(
        lambda: (
            tuple(_side_scores(values, scores, side) for side in how.sides)
            for values, scores in leaves
        ),
        # At least one, so that there is a place to look for; no matter where nothing is kept.
        [lambda _, keep=keep: xp.maximum(keep, 1) for keep in keeps],
    )
    shared: list[list[Cut]] = [[] for _ in leaves]
    for side, keep, cut in zip(how.sides, keeps, found, strict=True):
        threshold = xp.where(keep > 0, cut.threshold, _nothing(how)).astype(np.float32)
        left = xp.where(keep > 0, cut.ties, 0) if how.exact else None
        for place, (values, scores) in enumerate(leaves):
            shared[place].append(Cut(side, threshold, left))
            if left is not None:
                level = eligible(values, side) & (_side_scores(values, scores, side) == threshold)
                left = xp.maximum(left - level.sum(), 0)
    return shared


def reached(values: Array, scores: Array, cuts: Sequence[Cut]) -> tuple[Array, list[Cut]]:
    """The active entries.

    Args:
      values: float32 of any shape; a piece of a leaf if the rest follows in row-major order.
      scores: float32 of that shape.
      cuts: of the leaf, or what the piece before left of them.

    Returns:
      bool of that shape, and the cuts for the next piece.
    """
    xp = namespace(values, scores)
    active, after = None, []
    for cut in cuts:
        if cut.ties is None:
            mask = eligible(values, cut.side) & (scores >= cut.threshold)
            after.append(cut)
        else:
            here = eligible(values, cut.side)
            level = (here & (scores == cut.threshold)).ravel()
            rank = xp.cumsum(level, dtype=np.int32)
            first = (level & (rank <= cut.ties)).reshape(values.shape)
            mask = here & (scores > cut.threshold) | first
            after.append(cut._replace(ties=xp.maximum(cut.ties - level.sum(), 0)))
        active = mask if active is None else active | mask
    return active, after


def _cut(
    values: Array, scores: Array | None, side: Side, keep_of: Callable[[Array], Array], how: How
) -> Cut:
    xp = namespace(values)
    count = xp.count_nonzero(eligible(values, side))
    keep = keep_of(count)
    if keep is count or (xp is np and keep in (0, count)):  # no place to look for
        return Cut(side, xp.float32(_nothing(how) if keep is not count and keep == 0 else 0), None)
    sizes = _side_scores(values, scores, side)
    threshold = xp.where(keep > 0, select.kth_largest(sizes, keep), _nothing(how))
    ties = None
    if how.exact:
        ties = keep - (sizes > threshold).sum()
    return Cut(side, threshold.astype(np.float32), ties)


def _nothing(how: How) -> float:
    """The threshold of a side of which no entry is to be kept; the official code prunes none."""
    return 0.0 if how.compat else np.inf


def _side_scores(values: Array, scores: Array | None, side: Side) -> Array:
    """The scores of the entries of a side, and zeros elsewhere, which cannot raise a threshold."""
    xp = namespace(values)
    if scores is not None:
        return xp.where(eligible(values, side), scores, np.float32(0))
    if side == "both":
        return xp.abs(values)
    return xp.maximum(values if side == "positive" else -values, np.float32(0))
