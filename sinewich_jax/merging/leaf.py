"""What a merge rule sees, one leaf or all of them, and what it gives where tasks keep masks."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple, Protocol


class Leaf(NamedTuple):
    """What a rule sees: one parameter of the base and of every expert.

    Attributes:
      path: its name, ``"stage0/block1/kernel"``; the seed of anything random, so that a result does
        not depend on the order of leaves.
      base: the base's array, float32 at least.
      experts: the experts' arrays in the order given, same shape and dtype.
      stats: what the rule asked for of each expert in ``needs``, in that order; () where it asked
        for nothing, None where a leaf has no Gram matrix; whoever lacks another is refused.
      xp: ``numpy`` or ``jax.numpy``, to compute with.
    """

    path: str
    base: Any
    experts: tuple[Any, ...]
    stats: tuple[Any, ...]
    xp: ModuleType

    @property
    def deltas(self) -> tuple[Any, ...]:
        """The task vectors ``W_t - W_0``, made anew at each call."""
        return tuple(expert - self.base for expert in self.experts)


class Leaves(Protocol):
    """The leaves of a whole model, for rules that look at all of them.

    Iterating reads every leaf once more, one at a time and always in the same order, so that a rule
    may pass over a model that does not fit in memory.

    Attributes:
      names: of the experts.
    """

    names: tuple[str, ...]

    def __iter__(self) -> Iterator[Leaf]:
        """The leaves that hold reals."""
        ...


class Conditional(NamedTuple):
    """One leaf of a model that keeps a mask for each task: ``W_0 + scale_t mask_t shared``.

    Attributes:
      base: ``W_0``.
      shared: the vector that all tasks use.
      masks: one boolean array a task.
      scales: one number a task.
    """

    base: Any
    shared: Any
    masks: tuple[Any, ...]
    scales: tuple[Any, ...]

    def select(self, task: int) -> Any:
        """The leaf of one task."""
        return self.base + self.scales[task] * (self.masks[task] * self.shared)
