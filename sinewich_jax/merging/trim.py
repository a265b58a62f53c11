"""Trimming: of every expert, the entries with the highest scores, by leaf or over a whole model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from sinewich_jax.core import select
from sinewich_jax.core.arrays import namespace
from sinewich_jax.merging.settings import one_of, per_expert

Scope = Literal["leaf", "global"]
Count = Literal["exact", "floor", "inclusive"]

SCOPES = ("leaf", "global")
COUNTS = ("exact", "floor", "inclusive")


def kept(size: int, density: float, count: Count) -> int:
    """How many of ``size`` entries are kept.

    ``"exact"`` rounds ``density * size``; ``"floor"`` truncates it, as mergekit and PEFT do;
    ``"inclusive"`` truncates it and adds one, as the official code of TIES does, whose threshold is
    the largest entry that it would drop. At least one, at most all of them.

    Raises:
      ConfigError: a density that is not above 0 and at most 1.
    """
    rounded = select.keep_count(size, density)
    if count == "exact":
        return rounded
    return min(size, max(1, int(size * density)) if count == "floor" else int(size * density) + 1)


@dataclasses.dataclass
class Trim:
    """Iterates over items, each with the mask of every expert; may be iterated again.

    A mask holds only entries whose score is positive, unless nothing is trimmed at all. Among equal
    scores the first in C order are kept, and all of them when ``count`` is ``"inclusive"``.

    Attributes:
      items: leaves, or anything else that :attr:`scores` can read; iterable more than once.
      scores: non-negative scores of an item, one array an expert.
      density: the fraction that is kept, one number an expert.
      scope: each leaf by itself, or (two passes more) all leaves together.
      count: see :func:`kept`.
    """

    items: Iterable[Any]
    scores: Callable[[Any], Iterable[Any]]
    density: tuple[float, ...]
    scope: Scope = "leaf"
    count: Count = "exact"

    def __post_init__(self) -> None:
        """Refuses settings before anything is read."""
        one_of("scope", self.scope, SCOPES)
        one_of("trim", self.count, COUNTS)
        for density in self.density:
            kept(1, density, self.count)

    @classmethod
    def of_leaves(
        cls, leaves: Any, scores: Callable[[Any], Iterable[Any]], density: Any, **settings: Any
    ) -> Trim:
        """Over the leaves of a model, with one density or one an expert."""
        return cls(leaves, scores, per_expert("density", density, len(leaves.names)), **settings)

    def __iter__(self) -> Iterator[tuple[Any, list[Any]]]:
        """Each item with its masks, one an expert."""
        whole = self.scope == "global" and min(self.density) < 1
        ties = [cut.ties for cut in self._cuts] if whole else []
        for item in self.items:
            masks = []
            for i, score in enumerate(self._scores(item)):
                if self.density[i] == 1 or score.size == 0:
                    masks.append(namespace(score).ones(score.shape, bool))
                elif not whole:
                    masks.append(self._mask(score, kept(score.size, self.density[i], self.count)))
                elif self.count == "inclusive":
                    masks.append(score >= self._cuts[i].threshold)
                else:
                    cut = self._cuts[i].threshold
                    above = (score > cut).sum()
                    masks.append(select.break_ties(score, cut, above + ties[i]))
                    left = ties[i] - (score == cut).sum()
                    ties[i] = namespace(score).maximum(left, 0)
            yield item, masks

    def _mask(self, score: Any, count: int) -> Any:
        if self.count == "inclusive":
            return score >= select.kth_largest(score, count)
        return select.top_mask(score, count)

    def _scores(self, item: Any) -> Iterator[Any]:
        # Selection reads the bits of float32.
        return (score.astype(np.float32, copy=False) for score in self.scores(item))

    @functools.cached_property
    def _cuts(self) -> list[select.Cut]:
        return select.shared_cuts(
            lambda: (tuple(self._scores(item)) for item in self.items),
            [functools.partial(kept, density=d, count=self.count) for d in self.density],
        )
