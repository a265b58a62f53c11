"""EMR: elect one vector, and keep for each task a mask and a rescaler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from sinewich_jax.merging.leaf import Conditional, Leaf, Leaves
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import one_of
from sinewich_jax.merging.signs import disjoint, votes_for


@register(
    "emr",
    source="Huang et al. 2024 (EMR-Merging), arXiv 2405.17461, elect, mask and rescale",
    whole=True,
    conditional=True,
    cost="two passes",
)
def emr(
    leaves: Leaves, *, rescale: Literal["leaf_means", "global"] = "leaf_means"
) -> Iterator[tuple[str, Conditional]]:
    """``W_0 + s_t m_t u``: ``u = e max |d_t|``, ``m_t = [d_t e > 0]``, ``s_t = |d_t| / |m_t u|``.

    The side ``e`` of an entry is that of the mean change; where changes cancel exactly it is
    negative, as in the official code. The rescaler gives a task's masked vector the mean size of
    its own.

    Args:
      leaves: of the model.
      rescale: mean sizes are summed over leaves, each counting the same however large it is, or
        taken over all entries; official scripts have both.
    """
    one_of("rescale", rescale, ("leaf_means", "global"))
    own: list[Any] = [0.0] * len(leaves.names)
    masked: list[Any] = [0.0] * len(leaves.names)
    for leaf in leaves:
        unified, masks = elected(leaf)
        count = leaf.base.size if rescale == "leaf_means" else 1
        for i, (delta, mask) in enumerate(zip(leaf.deltas, masks, strict=True)):
            own[i] = own[i] + _size(leaf, delta, count)
            masked[i] = masked[i] + _size(leaf, mask * unified, count)
    scales = [a / (b + (b == 0)) for a, b in zip(own, masked, strict=True)]
    for leaf in leaves:
        unified, masks = elected(leaf)
        numbers = tuple(leaf.xp.asarray(scale, leaf.base.dtype) for scale in scales)
        yield leaf.path, Conditional(leaf.base, unified, masks, numbers)


def elected(leaf: Leaf) -> tuple[Any, tuple[Any, ...]]:
    """The unified vector of a leaf, and where each task's change is on its side."""
    xp, deltas = leaf.xp, leaf.deltas
    positive = sum(votes_for(xp, deltas, "sum")) > 0
    masks = tuple(xp.where(positive, delta > 0, delta < 0) for delta in deltas)
    return disjoint(xp, deltas, masks, (1.0,) * len(deltas), "max"), masks


def _size(leaf: Leaf, delta: Any, count: int) -> Any:
    return leaf.xp.abs(delta).sum() / max(count, 1)
