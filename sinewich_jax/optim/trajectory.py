"""Saliency along the way: a running mean of ``(W - W_0)^2 V~`` beside training.

It keeps two arrays of each parameter's size and is there to be compared with: the saliency of the
final weights, which needs neither, ranks better (equation 9 of arXiv 2512.17109).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.curvature import Curvature
from sinewich_jax.core.trees import Tree
from sinewich_jax.errors import ConfigError
from sinewich_jax.optim.statistics import aligned, named_leaves

Array = jax.Array


def begin(
    params: Tree, curv: Tree, keep: type | tuple[type, ...], anchor: Tree, dtype: Any
) -> tuple[Tree, Tree]:
    """Zero saliency, float32, and the weights that it is measured from.

    Args:
      params: the parameters.
      curv: their curvature.
      keep: leaves with a curvature of these types take part, the others get
        ``optax.MaskedNode()``.
      anchor: W_0, with the structure and shapes of ``params``.
      dtype: that W_0 is kept in; None is each parameter's own.

    Raises:
      ConfigError: the anchor does not fit.
    """
    paths, leaves, treedef = named_leaves(params)
    starts, own = aligned(treedef, anchor, "anchor"), aligned(treedef, curv, "the curvature")
    sums, kept = [], []
    for path, leaf, start, curvature in zip(paths, leaves, starts, own, strict=True):
        if not isinstance(curvature, keep):
            sums.append(optax.MaskedNode())
            kept.append(optax.MaskedNode())
            continue
        if jnp.shape(start) != leaf.shape:
            raise ConfigError(
                f"the anchor of {path!r} has shape {jnp.shape(start)}; expected {leaf.shape}, that "
                "of the parameter"
            )
        sums.append(jnp.zeros_like(leaf, jnp.float32))
        # A copy: a state that shares buffers with the parameters cannot be donated beside them.
        kept.append(jnp.array(start, dtype or leaf.dtype, copy=True))
    return treedef.unflatten(sums), treedef.unflatten(kept)


def follow(
    sums: Tree,
    anchor: Tree,
    params: Tree,
    curv: Tree,
    share: Any,
    score: Callable[[Array, Curvature], Array] = curvatures.saliency,
) -> Tree:
    """``sums + share (score(W - W_0, V~) - sums)`` for the leaves that take part.

    Args:
      sums: the running mean.
      anchor: W_0.
      params: W.
      curv: free of bias, if the score should be.
      share: of the newest value, () float32.
      score: ``(delta, curvature) -> array`` in the shape of delta.
    """
    _, leaves, treedef = named_leaves(params)
    columns = [aligned(treedef, tree, "the optimizer state") for tree in (anchor, curv, sums)]

    def step(leaf: Array, start: Any, own: Any, total: Any) -> Any:
        if isinstance(total, optax.MaskedNode):
            return total
        delta = leaf.astype(jnp.float32) - start.astype(jnp.float32)
        return total + share * (score(delta, own) - total)

    return treedef.unflatten(map(step, leaves, *columns))


def share_of_newest(decay: Any, earlier: Array) -> Array:
    """What makes :func:`follow` an average with decay that is free of bias.

    Args:
      decay: alpha.
      earlier: () int32, how many values the mean already holds.
    """
    return (1 - decay) / (1 - decay ** (earlier + 1.0))


def root_of_sums(delta: Array, curvature: Any) -> Array:
    """``delta^2 sqrt(R C^T)`` with the sums ``R = n row`` and ``C = m col``, as the paper has it.

    Against ``delta^2 V~`` it halves the curvature's range and favours large matrices.
    """
    m, n = curvature.row.size, curvature.col.size
    root = jnp.sqrt(n * curvature.row)[:, None] * jnp.sqrt(m * curvature.col)
    return jnp.square(delta) * root.reshape(delta.shape)
