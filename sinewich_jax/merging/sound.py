"""Leaves on their way to a rule: what no rule could merge is refused, expert and leaf named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sinewich_jax.core.arrays import fails
from sinewich_jax.errors import SinewichError
from sinewich_jax.merging import statistics
from sinewich_jax.merging.leaf import Leaf, Leaves


class Sound:
    """The same leaves, looked at while they pass by for the first time.

    Refused are NaN and infinity, statistics that are missing or do not fit their leaf, and
    statistics that are zero for every expert and everywhere, with which nothing can be weighed.
    Values that JAX traces are not looked at.

    Args:
      leaves: of a whole model; whatever else they can do is still theirs.
      rule: name of the rule that will read them.
      needs: what that rule asks for beside the parameters.
    """

    def __init__(self, leaves: Leaves, rule: str, needs: tuple[str, ...]) -> None:
        self._leaves = leaves
        self._rule = rule
        self._need = next((need for need in needs if need != "data"), None)
        self._word = statistics.WORDS.get(self._need, self._need)
        self._seen = False
        self._found = self._zero = 0

    def __getattr__(self, name: str) -> Any:
        """What else the leaves can do."""
        return getattr(self._leaves, name)

    def __iter__(self) -> Iterator[Leaf]:
        """The leaves, as often as they are asked for."""
        for leaf in self._leaves:
            if not self._seen:
                self._check(leaf)
            yield leaf
        if not self._seen and self._need is not None:
            self._check_any()
        self._seen = True

    def _check(self, leaf: Leaf) -> None:
        owners = ["the base", *(f"the expert {name!r}" for name in self._leaves.names)]
        for owner, array in zip(owners, (leaf.base, *leaf.experts), strict=True):
            if fails(leaf.xp.isfinite(array).all()):
                raise SinewichError(
                    f"the leaf {leaf.path!r} holds NaN or infinity in {owner}; "
                    "merge a checkpoint from before training diverged"
                )
        if self._need is None:
            return
        present = [statistic is not None for statistic in leaf.stats]
        if self._need == "gram" and not any(present):  # averaged, by definition of the rule
            return
        for owner, statistic in zip(owners[1:], leaf.stats, strict=True):
            if statistic is None:
                raise SinewichError(
                    f"{owner} has no {self._word} of the leaf {leaf.path!r}, which the merge rule "
                    f"{self._rule!r} needs; track it, or leave that leaf out of the merge"
                )
            if self._need not in statistics.WORDS:
                continue
            statistics.check(leaf.path, leaf.base.shape, self._need, statistic, owner)
            self._found += 1
            self._zero += statistics.is_zero(statistic)

    def _check_any(self) -> None:
        name = self._rule
        if self._need == "gram" and not self._found:
            raise SinewichError(
                f"no leaf has a {self._word}, so the merge rule {name!r} has nothing to solve; "
                "give each the path of its kernel"
            )
        if self._found and self._zero == self._found:
            raise SinewichError(
                f"the {self._word} of every expert is zero everywhere, so the merge rule {name!r} "
                "cannot weigh anything; export it after training, not before"
            )
