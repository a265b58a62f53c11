"""The k largest of many scores, exactly, without sorting them.

A sort is the slowest way to find a threshold (``jnp.sort`` and ``lax.top_k`` handle one or two
million entries a second on a CPU). NumPy arrays are partitioned; JAX arrays are bisected on the
bits of their float32 values, 31 counts under ``jit`` whatever the size or the sharding; and where
scores come in parts that do not fit in memory, two histograms of their bits find the same
threshold in two passes.

Scores are non-negative. The bits of non-negative float32 numbers, read as integers, are in the
order of the numbers, which is what bisection and histograms rest on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.arrays import namespace
from sinewich_jax.errors import ConfigError

Array = Any

_SAMPLE = 1 << 15
_HIGH, _LOW = 15, 16  # a float32 without its sign, split into two indices of histograms


def keep_count(size: int, density: float) -> int:
    """How many of ``size`` entries a density keeps: ``round(density * size)``, at least one.

    Raises:
      ConfigError: a density that is not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise ConfigError(
            f"density is {density}, the fraction of entries that are kept; expected a number above "
            "0 and at most 1"
        )
    return min(size, max(1, round(density * size)))


def kth_largest(scores: Array, count: int) -> Array:
    """The ``count``-th largest score, the threshold that keeps at least ``count`` entries.

    Args:
      scores: non-negative float32 of any shape, without NaN.
      count: from 1 to the number of scores.

    Returns:
      A scalar of the same library.
    """
    if namespace(scores) is np:
        return _partition(scores.ravel(), count)
    return _bisect([scores], count)


def top_mask(scores: Array, count: int) -> Array:
    """Marks the ``count`` largest positive scores; among equal ones the first in C order.

    Args:
      scores: non-negative float32 of any shape, without NaN.
      count: how many to keep; fewer are kept where fewer are positive.

    Returns:
      bool, of the same shape and library.
    """
    return break_ties(scores, kth_largest(scores, count), count)


def break_ties(scores: Array, threshold: Array, count: int) -> Array:
    """The mask of :func:`top_mask` once its threshold is known."""
    xp = namespace(scores)
    if xp is np and threshold > 0:
        reached = scores >= threshold
        if np.count_nonzero(reached) == count:  # most often; saves all other passes
            return reached
    above = scores > threshold
    left = count - above.sum()
    level = ((scores == threshold) & (scores > 0)).ravel()
    first = xp.cumsum(level, dtype=np.int32) <= left
    return above | (level & first).reshape(scores.shape)


class Cut(NamedTuple):
    """Where a selection among many arrays ends.

    Attributes:
      threshold: everything above it is kept.
      ties: how many of those that equal it are kept too, at least one.
    """

    threshold: Array
    ties: Array


def shared_cuts(
    parts: Callable[[], Iterable[Sequence[Array]]], keep: Sequence[Callable[[int], int]]
) -> list[Cut]:
    """The ends of several selections over a whole model, each the largest of its own scores.

    NumPy arrays are read in two passes and never held together; where one is a JAX array all are
    held and bisected at once, which works while JAX traces.

    Args:
      parts: gives an iterator over the model, called once a pass: at each step one array of
        non-negative float32 scores for every selection.
      keep: for every selection, from the number of all its scores to how many are kept.

    Returns:
      One cut a selection.
    """
    sizes = [0] * len(keep)
    high = [np.zeros(1 << _HIGH, np.int64) for _ in keep]
    for arrays in parts():
        if namespace(*arrays) is not np:
            return [
                _bisected(list(column), count)
                for column, count in zip(zip(*parts(), strict=True), keep, strict=True)
            ]
        for i, array in enumerate(arrays):
            sizes[i] += array.size
            high[i] += np.bincount(_bits(array) >> _LOW, minlength=1 << _HIGH)
    counts = [count(size) for count, size in zip(keep, sizes, strict=True)]
    found = [_locate(histogram, count) for histogram, count in zip(high, counts, strict=True)]
    low = [np.zeros(1 << _LOW, np.int64) for _ in keep]
    for arrays in parts():
        for i, array in enumerate(arrays):
            bits = _bits(array)
            bits = bits[bits >> _LOW == found[i][0]] & ((1 << _LOW) - 1)
            low[i] += np.bincount(bits, minlength=1 << _LOW)
    cuts = []
    for (bucket, rank), histogram in zip(found, low, strict=True):
        last, ties = _locate(histogram, rank)
        cuts.append(Cut(np.uint32(bucket << _LOW | last).view(np.float32), np.int64(ties)))
    return cuts


def shared_threshold(
    parts: Callable[[], Iterable[Array]], count: int, *, traced: bool = False
) -> Array:
    """The ``count``-th largest score of many arrays, read twice and never held together.

    Args:
      parts: gives an iterator over the arrays (non-negative float32), called once a pass.
      count: from 1 to the number of all scores.
      traced: the parts are JAX arrays and may be traced: bisect them all at once instead.

    Returns:
      A float32 scalar.
    """
    if traced:
        return _bisect(list(parts()), count)
    return shared_cuts(lambda: ((part,) for part in parts()), [lambda _: count])[0].threshold


def _bisected(parts: list[Array], keep: Callable[[int], int]) -> Cut:
    count = keep(sum(part.size for part in parts))
    threshold = _bisect(parts, count)
    return Cut(threshold, count - sum((part > threshold).sum() for part in parts))


def _partition(flat: np.ndarray, count: int) -> Array:
    """The ``count``-th largest, by partitioning only what a sample cannot rule out.

    A bracket of four standard deviations around the place in a sample holds the answer nearly
    always (Floyd and Rivest 1975); where it does not, everything is partitioned.
    """
    inside, rank = flat, count
    if flat.size > 16 * _SAMPLE:
        sample = np.sort(flat[:: flat.size // _SAMPLE])[::-1]
        place = count / flat.size * sample.size
        margin = 4 * np.sqrt(place * (1 - count / flat.size)) + 1
        high = sample[max(0, int(place - margin))]
        low = sample[min(sample.size - 1, int(place + margin))]
        above = np.count_nonzero(flat > high)
        bracket = flat[(flat >= low) & (flat <= high)]
        if 1 <= count - above <= bracket.size:
            inside, rank = bracket, count - above
    return np.partition(inside, inside.size - rank)[inside.size - rank]


def _bits(part: Array) -> np.ndarray:
    return np.ascontiguousarray(part, np.float32).ravel().view(np.int32)


def _locate(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """The bin that holds the ``count``-th largest, and its rank among those of the bin."""
    above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(above, count))
    return len(histogram) - 1 - place, count - int(above[place] - histogram[::-1][place])


def _bisect(parts: list[Array], count: int) -> Array:
    return _compiled_bisection()(parts, count)


@functools.cache
def _compiled_bisection() -> Callable[[list[Array], int], Array]:
    """One function, so that leaves of equal shape share one compilation."""
    import jax
    import jax.numpy as jnp

    def bisect(parts: list[Array], count: Array) -> Array:
        bits = [jax.lax.bitcast_convert_type(part.astype(jnp.float32), jnp.int32) for part in parts]

        def step(i: Array, found: Array) -> Array:
            # From the highest bit down: keep it where at least ``count`` scores reach that far.
            trial = found | (1 << (30 - i))
            reached = sum(jnp.sum(part >= trial) for part in bits)
            return jnp.where(reached >= count, trial, found)

        found = jax.lax.fori_loop(0, 31, step, jnp.int32(0))
        return jax.lax.bitcast_convert_type(found, jnp.float32)

    return jax.jit(bisect)
