"""Elementwise work on a leaf, a piece at a time, so that its temporaries stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sinewich_jax.merging.leaf import Leaf

_BLOCK = 1 << 15  # a dozen float32 arrays of it fit into the cache of a core


def by_blocks(
    function: Callable[[Leaf, Sequence[Any]], Any], leaf: Leaf, arrays: Sequence[Any]
) -> Any:
    """``function(leaf, arrays)``, which works on each entry alone.

    NumPy makes an array of every intermediate result, and for a large leaf the memory that takes
    costs more than the arithmetic. JAX fuses by itself, and gets all at once.

    Args:
      function: of a leaf and arrays of its shape to one array of that shape; the leaf it is given
        has flat pieces and no statistics.
      leaf: the base and the experts.
      arrays: more arrays in the shape of the leaf.
    """
    if leaf.xp is not np or leaf.base.size <= _BLOCK:
        return function(leaf._replace(stats=()), arrays)
    base, *others = (np.ravel(array) for array in (leaf.base, *leaf.experts, *arrays))
    count, found = len(leaf.experts), None
    for start in range(0, base.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        pieces = [array[part] for array in others]
        piece = Leaf(leaf.path, base[part], tuple(pieces[:count]), (), np)
        result = function(piece, pieces[count:])
        found = np.empty(base.size, result.dtype) if found is None else found
        found[part] = result
    return found.reshape(leaf.base.shape)
