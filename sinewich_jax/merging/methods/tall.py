"""TALL masks: where a task is found again in the multi-task vector; Consensus: what they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sinewich_jax.errors import ConfigError
from sinewich_jax.merging.leaf import Conditional, Leaf, Leaves
from sinewich_jax.merging.methods.ties import magnitudes, merged_deltas
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite, one_of, per_expert
from sinewich_jax.merging.trim import Trim

_SOURCE = "Wang et al. 2024 (Localizing Task Information), arXiv 2405.07813, {}"


@register(
    "tall",
    source=_SOURCE.format("the mask of a task"),
    whole=True,
    conditional=True,
    cost="one pass; with the TIES vector three passes more and a selection",
)
def tall(
    leaves: Leaves,
    *,
    lam: float | Sequence[float] = 0.4,
    vector: Literal["sum", "ties"] = "sum",
    density: float = 0.2,
) -> Iterator[tuple[str, Conditional]]:
    """``W_0 + m_t d``: ``d`` of all tasks, ``m_t = [|W_0 - W_t| > lam |W_0 + d - W_t|]``.

    A mask keeps an entry of the multi-task vector where it comes nearer to the task's own weight
    than the base does, by the factor ``lam``; the smaller that is, the more is kept.

    Args:
      leaves: of the model.
      lam: one for all, or one a task; the paper chooses it among 0.2 to 0.6 for each task by its
        validation data.
      vector: the sum of the task vectors, or that of TIES in its official form (the largest
        entries of the whole model, those of the elected sign summed).
      density: how much TIES keeps.
    """
    lams = _lams(lam, len(leaves.names))
    for leaf, delta in multi_task(leaves, vector, density):
        ones = (leaf.xp.ones((), leaf.base.dtype),) * len(lams)
        yield leaf.path, Conditional(leaf.base, delta, masks(leaf, delta, lams), ones)


@register(
    "consensus",
    source=_SOURCE.format("the consensus mask"),
    whole=True,
    cost="one pass; with the TIES vector three passes more and a selection",
)
def consensus(
    leaves: Leaves,
    *,
    k: int = 2,
    lam: float | Sequence[float] = 0.4,
    scale: float = 0.3,
    vector: Literal["sum", "ties"] = "sum",
    density: float = 0.2,
) -> Iterator[tuple[str, Any]]:
    """``W_0 + scale [sum_t m_t >= k] d``: of the multi-task vector, what ``k`` tasks use at least.

    Entries that one task alone uses are selfish, and those that none uses catastrophic; both go.
    With fewer than ``k`` experts there is no consensus, and the base is left.

    Args:
      leaves: of the model.
      k: 0 keeps everything, 1 what any task uses.
      lam: of the TALL masks, one for all or one a task.
      scale: of the sum, as in task arithmetic.
      vector: see ``tall``.
      density: how much TIES keeps.

    Raises:
      ConfigError: ``k`` is no whole number, or negative.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ConfigError(f"k is {k!r}, the number of tasks that agree; expected 0, 1, 2, ...")
    lams = _lams(lam, len(leaves.names))
    for leaf, delta in multi_task(leaves, vector, density):
        shared = sum(mask.astype("int32") for mask in masks(leaf, delta, lams)) >= k
        yield leaf.path, leaf.base + finite("scale", scale) * leaf.xp.where(shared, delta, 0)


def _lams(lam: Any, count: int) -> tuple[Any, ...]:
    lams = per_expert("lam", lam, count)
    if any(isinstance(each, float) and each < 0 for each in lams):
        raise ConfigError(f"lam is {lam}; distances are not negative, expected numbers from 0")
    return lams


def masks(leaf: Leaf, delta: Any, lams: Sequence[Any]) -> tuple[Any, ...]:
    """The TALL mask of each task, on weights as the official code has it, not on task vectors."""
    xp, together = leaf.xp, leaf.base + delta
    return tuple(
        xp.abs(leaf.base - expert) > lam * xp.abs(together - expert)
        for lam, expert in zip(lams, leaf.experts, strict=True)
    )


def multi_task(leaves: Leaves, vector: str, density: float) -> Iterator[tuple[Leaf, Any]]:
    """Each leaf with its multi-task vector."""
    if one_of("vector", vector, ("sum", "ties")) == "sum":
        for leaf in leaves:
            yield leaf, sum(leaf.deltas[1:], leaf.deltas[0])
        return
    trimmed = Trim.of_leaves(leaves, magnitudes, density, scope="global", count="inclusive")
    yield from merged_deltas(trimmed, (1.0,) * len(leaves.names), aggregate="sum")
