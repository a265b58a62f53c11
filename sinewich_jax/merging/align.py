"""Trees that are merged must have the same leaves; where they do not, the leaf is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinewich_jax.core.arrays import content, dtype_of, is_traced
from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import SinewichError


def matched(base: Any, other: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves by path of two trees, which must agree in paths, shapes and kind of content.

    Args:
      base: the tree that says what there should be.
      other: the tree to check.
      name: what a message calls ``other``.

    Raises:
      SinewichError: naming the first leaf that is missing, surplus, or of another shape or kind.
    """
    flat_base, flat = flatten_paths(base), flatten_paths(other)
    missing = [path for path in flat_base if path not in flat]
    extra = [path for path in flat if path not in flat_base]
    if missing or extra:
        found = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which the base has not"
        raise SinewichError(
            f"{name} {found} ({len(missing)} leaves missing, {len(extra)} more than the base); "
            f"merge only the part that all models share"
        )
    for path, leaf in flat_base.items():
        _check_leaf(path, leaf, flat[path], name)
    return flat_base, flat


def check_integers(base: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Refuses integers and booleans that differ: a counter or an index has no meaningful mean.

    While JAX traces there are no values to compare, and those of the base are taken unseen.

    Raises:
      SinewichError: naming the leaf.
    """
    for path, leaf in base.items():
        if content(leaf) != "discrete" or is_traced(leaf) or is_traced(other[path]):
            continue
        if not np.array_equal(np.asarray(leaf), np.asarray(other[path])):
            raise SinewichError(
                f"the leaf {path!r} holds {dtype_of(leaf)} values that differ between {name} and "
                f"the base; integers cannot be merged, leave that leaf out"
            )


def _check_leaf(path: str, base: Any, other: Any, name: str) -> None:
    if np.shape(base) != np.shape(other):
        raise SinewichError(
            f"the leaf {path!r} has shape {np.shape(other)} in {name} and {np.shape(base)} in the "
            f"base; leave it out of the merge, as one does with task heads"
        )
    kinds = content(base), content(other)
    if kinds[0] != kinds[1] or "other" in kinds:
        raise SinewichError(
            f"the leaf {path!r} is {dtype_of(other)} in {name} and {dtype_of(base)} in the base; "
            f"both must be floating, or both integer"
        )
