"""DARE: drop most of each task vector at random and rescale the rest; alone, or before TIES."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from sinewich_jax.core import select
from sinewich_jax.errors import ConfigError
from sinewich_jax.merging.leaf import Leaf, Leaves
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite, one_of, per_expert, weights_of
from sinewich_jax.merging.signs import DIVISORS, ON_TIE, balance, disjoint, elect

_SOURCE = "Yu et al. 2024 (DARE), arXiv 2311.03099, drop and rescale"


@register("dare", source=_SOURCE, whole=True, cost="one pass and a random number an entry")
def dare(
    leaves: Leaves,
    *,
    density: float | Sequence[float] = 0.1,
    scale: float = 0.3,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, Any]]:
    """``W_0 + scale * sum_t w_t m_t (W_t - W_0) / density``, ``m_t`` a coin with that density.

    In the mean over seeds it is task arithmetic. A mask depends on the seed, the path of the leaf
    and the name of the expert, and on nothing else: not on the order of leaves or experts, on
    devices, or on the array library.

    Args:
      leaves: of the model.
      density: the probability that an entry is kept, 1 - p of the paper, whose p is 0.9.
      scale: of the sum, as in task arithmetic.
      weights: one an expert, 1 by default.
      seed: a whole number, not negative.
    """
    given = weights_of(weights, len(leaves.names))
    for leaf, deltas in dropped(leaves, density, seed):
        total = sum(weight * delta for weight, delta in zip(given, deltas, strict=True))
        yield leaf.path, leaf.base + finite("scale", scale) * total


@register("dare_ties", source=_SOURCE, whole=True, cost="one pass and a random number an entry")
def dare_ties(
    leaves: Leaves,
    *,
    density: float | Sequence[float] = 0.1,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    weighted_vote: bool = True,
    on_tie: Literal["majority", "zero", "positive"] = "majority",
    divisor: Literal["weights", "count"] = "weights",
) -> Iterator[tuple[str, Any]]:
    """``W_0 + scale * mean over {t: sign(d_t) = e} of d_t``, ``d_t`` dropped at random.

    TIES with the coins of ``dare`` in the place of its trimming.

    Args:
      leaves: of the model.
      density: the probability that an entry is kept, 1 - p of the paper.
      scale: of what is added to the base.
      weights: one an expert, 1 by default.
      seed: a whole number, not negative.
      weighted_vote: whether weights count in the election.
      on_tie: the side where votes cancel exactly, see :func:`sinewich_jax.merging.signs.elect`; a
        majority is counted in each leaf.
      divisor: of the mean: the sum of the weights of those that agree, or their number.
    """
    one_of("on_tie", on_tie, ON_TIE)
    one_of("divisor", divisor, DIVISORS)
    given = weights_of(weights, len(leaves.names))
    for leaf, deltas in dropped(leaves, density, seed):
        xp = leaf.xp
        say = given if weighted_vote else (1.0,) * len(given)
        votes = [weight * delta for weight, delta in zip(say, deltas, strict=True)]
        total = sum(votes)
        side = elect(xp, total, on_tie, balance(total))
        agree = [vote * side > 0 for vote in votes]
        delta = disjoint(xp, deltas, agree, given, divisor=divisor)
        yield leaf.path, leaf.base + finite("scale", scale) * delta


def dropped(leaves: Leaves, density: Any, seed: int) -> Iterator[tuple[Leaf, list[Any]]]:
    """Each leaf with the experts' changes after dropping and rescaling.

    Raises:
      ConfigError: a density that is not above 0 and at most 1, or a seed that is no whole number.
    """
    densities = per_expert("density", density, len(leaves.names))
    for each in densities:
        select.keep_count(1, each)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; expected a whole number that is not negative")
    for leaf in leaves:
        yield (
            leaf,
            [
                delta
                if each == 1
                else leaf.xp.where(coins(leaf, name, each, seed), delta, 0) / each
                for name, each, delta in zip(leaves.names, densities, leaf.deltas, strict=True)
            ],
        )


def coins(leaf: Leaf, name: str, density: float, seed: int) -> Any:
    """The mask of one expert's leaf, drawn on the host: it depends on no value, only on the shape.

    Under ``jit`` it is a constant, and the same for NumPy and JAX, on one device or many.
    """
    key = (int(seed), zlib.crc32(leaf.path.encode()), zlib.crc32(name.encode()))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    return leaf.xp.asarray(generator.random(leaf.base.shape, np.float32) < density)
