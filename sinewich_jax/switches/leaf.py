"""What a task switch is made of: for each leaf two bit planes and a knob.

In the paper's words the *activation switch* says which entries change (``mask``),
the *polarity switch* which way (``sign``), the *knob* by how much; arXiv 2412.00054, equations 2
to 4. Entry i of a leaf (row-major order) is bit ``i & 7`` of byte ``i >> 3`` of a plane.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from typing import Any, NamedTuple

Array = Any


class _Leaf:
    """Lets JAX know the classes, if JAX is there, wherever a leaf comes from."""

    def __post_init__(self) -> None:
        register_pytrees()

    def __setstate__(self, state: dict[str, Any]) -> None:  # unpickled and copied ones
        self.__dict__.update(state)
        register_pytrees()


@dataclasses.dataclass(frozen=True, eq=False)
class LeafSwitch(_Leaf):
    """The change of one leaf: an entry moves by ``knob`` up, ``knob`` down, or not at all.

    With ``levels`` it moves by ``knob`` times a whole number from 1 to ``2**(b - 1) - 1``: a leaf
    of b bits an active entry, one of them the sign. Under ``vmap`` and in stacked switches every
    array has leading axes, and ``shape`` stays that of one leaf.

    Attributes:
      mask: uint8 (bytes,), 1 where the entry is active; ``bytes = ceil(n / 8)``, pad bits 0.
      sign: uint8 (bytes,), 1 where an active entry is positive; 0 wherever ``mask`` is.
      knob: float32, () or (shape[-1],) for one of each output channel; 0 for an unchanged leaf.
      levels: uint8 (b - 1, bytes), the bits of the whole numbers at active entries, lowest first;
        (0, bytes) where all are 1.
      shape: of the leaf.
    """

    mask: Array
    sign: Array
    knob: Array
    levels: Array
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of entries n of the leaf."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Bits b of an active entry, its sign included: 1 for a ternary leaf."""
        return 1 + self.levels.shape[-2]


@dataclasses.dataclass(frozen=True, eq=False)
class DenseLeaf(_Leaf):
    """The change of a leaf that is kept as it is.

    Attributes:
      delta: the task vector's leaf, in its own dtype.
    """

    delta: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the leaf."""
        return tuple(self.delta.shape)


class Switch(NamedTuple):
    """A task as the change of each leaf by its path; leaves that are not named do not change.

    A pytree of arrays (shapes are static), so that ``jit``, ``vmap`` and shardings take it. One
    that is older than the import of JAX is taken once anything of ``sinewich_jax.switches`` was
    looked up, or called with a switch, after that import.

    Attributes:
      leaves: path, such as ``"stage0/block1/kernel"`` -> the change of that leaf.
    """

    leaves: dict[str, LeafSwitch | DenseLeaf]


def plane_bytes(size: int) -> int:
    """The bytes of a plane of ``size`` bits."""
    return (size + 7) // 8


def register_pytrees() -> None:
    """Lets JAX know the classes, if the program has it: switches of NumPy arrays need none.

    Asked for by every leaf that is made, by whatever is handed leaves, and by every look at
    ``sinewich_jax.switches``: leaves may be older than the program's import of JAX.
    """
    if "jax" in sys.modules:
        _register()


@functools.cache
def _register() -> None:
    import jax

    jax.tree_util.register_dataclass(
        LeafSwitch, data_fields=["mask", "sign", "knob", "levels"], meta_fields=["shape"]
    )
    jax.tree_util.register_dataclass(DenseLeaf, data_fields=["delta"], meta_fields=[])
