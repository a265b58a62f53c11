"""Task vectors: what training added to a base, and how to add it back."""

from __future__ import annotations

from typing import Any

from sinewich_jax.core.arrays import content, namespace, widen
from sinewich_jax.core.trees import map_paths
from sinewich_jax.merging.align import check_integers, matched


def task_vector(params: Any, base: Any) -> Any:
    """``tau = params - base``, leaf by leaf.

    Args:
      params: a trained tree.
      base: the tree that it started from; same paths and shapes.

    Returns:
      A tree like ``base``, float32 at least; zeros where the leaves are integers, which must agree.

    Raises:
      SinewichError: when the trees do not fit; the leaf is named.
    """
    flat_base, trained = matched(base, params, "the trained tree")
    check_integers(flat_base, trained, "the trained tree")

    def subtract(path: str, leaf: Any) -> Any:
        xp = namespace(leaf, trained[path])
        if content(leaf) == "discrete":
            return xp.zeros_like(xp.asarray(leaf))
        return widen(trained[path], xp) - widen(leaf, xp)

    return map_paths(subtract, base)


def apply_task_vector(base: Any, vector: Any, scale: float = 1.0) -> Any:
    """``base + scale * tau``, in the dtypes of the base: the inverse of :func:`task_vector`.

    A negative scale takes the task away. Integer leaves stay those of the base.

    Raises:
      SinewichError: when the trees do not fit; the leaf is named.
    """
    _, tau = matched(base, vector, "the task vector")

    def add(path: str, leaf: Any) -> Any:
        if content(leaf) == "discrete":
            return leaf
        xp = namespace(leaf, tau[path])
        base_array = xp.asarray(leaf)
        return (widen(base_array, xp) + scale * widen(tau[path], xp)).astype(base_array.dtype)

    return map_paths(add, base)
