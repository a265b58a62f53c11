"""Running curvature as pure functions over trees: start, update, remove the bias.

With the mean gradient ``g_t`` of step t (or, better, the mean of squared per-example gradients in
the place of its square) and a decay d,

    V_t = d V_{t-1} + (1 - d) g_t^2,        weight_t = d weight_{t-1} + (1 - d)

from zero, so that ``V_t / weight_t`` is an average of what was seen, whatever d did over time. Of
a matrix only the means over rows and columns are kept (``core.curvature``); they are linear in
``g^2`` and therefore exactly the margins of the dense average. Nothing has a floor: curvatures of
1e-20 are as good as those of 1.

A plain training loop needs no optax for this:

    curvature, weight = init_curvature(params), jnp.zeros(())
    curvature, weight = update_curvature(curvature, weight, squares, 0.999)    # each step
    stats = debiased(curvature, weight)                                        # for merging
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sinewich_jax.core.curvature import Curvature, Diagonal, Factored, matrix_shape, of_squares
from sinewich_jax.core.trees import Tree
from sinewich_jax.errors import ConfigError

Array = jax.Array
Rows = Callable[[str, Any], int]
"""``(path, leaf) -> how many leading axes make the rows``, asked of leaves with two and more."""

CURVATURES = (Factored, Diagonal)


def is_curvature(node: Any) -> bool:
    """Whether ``node`` is the curvature of one leaf."""
    return isinstance(node, CURVATURES)


def named_leaves(tree: Tree) -> tuple[list[str], list[Any], Any]:
    """Paths as in ``core.trees``, leaves and the structure of a tree."""
    keyed, treedef = jax.tree_util.tree_flatten_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in keyed]
    return paths, [leaf for _, leaf in keyed], treedef


def aligned(treedef: Any, tree: Tree, name: str) -> list[Any]:
    """What ``tree`` holds at each leaf of ``treedef``; that may be a container (a curvature).

    Raises:
      ConfigError: the structures differ.
    """
    try:
        return treedef.flatten_up_to(tree)
    except ValueError as error:
        raise ConfigError(
            f"{name} must have the structure of the parameters; the first difference: {error}"
        ) from None


def matrix_of(path: str, leaf: Any, rows: Rows | None) -> tuple[int, int]:
    """The leaf's shape as that of a matrix (m, n), see :func:`core.curvature.matrix_shape`.

    Raises:
      ConfigError: ``rows`` answered with more axes than there are.
    """
    leading = None if rows is None or leaf.ndim < 2 else rows(path, leaf)
    if leading is not None and not 0 <= leading <= leaf.ndim:
        raise ConfigError(
            f"rows says that {leading} leading axes of {path!r} are its rows, which has "
            f"{leaf.ndim} axes"
        )
    return matrix_shape(leaf.shape, leading)


def init_curvature(
    params: Tree,
    *,
    min_dim_to_factor: int = 32,
    rows: Rows | None = None,
    mask: Tree | Callable[[Tree], Tree] | None = None,
) -> Tree:
    """Zero curvature for every leaf of ``params``.

    Args:
      params: real leaves of any shape (m axes first, then n).
      min_dim_to_factor: leaves whose smaller side as a matrix is at least this keep a
        ``Factored(row (m,), col (n,))``, all others a ``Diagonal``.
      rows: ``(path, leaf) -> int``, how many leading axes make the rows; None takes all but the
        last, (inputs, output) in Flax.
      mask: a tree of bools that is a prefix of ``params``, or a function of ``params`` that makes
        one; False leaves out. Integer, boolean and complex leaves are always left out.

    Returns:
      A tree with the structure of ``params``; at each leaf a float32 curvature, or
      ``optax.MaskedNode()`` where it is left out.
    """
    paths, leaves, treedef = named_leaves(params)
    mask = mask(params) if callable(mask) else mask
    wanted = [True] * len(leaves) if mask is None else jax.tree.leaves(_broadcast(mask, params))

    def start(path: str, leaf: Any, want: bool) -> Any:
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        if not want or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return optax.MaskedNode()
        m, n = matrix_of(path, leaf, rows)
        if min(m, n) >= min_dim_to_factor:
            return Factored(jnp.zeros(m, jnp.float32), jnp.zeros(n, jnp.float32))
        return Diagonal(jnp.zeros(leaf.shape, jnp.float32))

    return treedef.unflatten(map(start, paths, leaves, wanted))


def update_curvature(
    curvature: Tree, weight: Array, squares: Tree, decay: Any
) -> tuple[Tree, Array]:
    """One step of the running average; non-finite squares anywhere leave all of it as it was.

    Args:
      curvature: from :func:`init_curvature` or the last call.
      weight: () float32, the sum of the averages' weights so far.
      squares: the tree of the parameters: squared gradients, or means of them; what stands at
        leaves that are left out is not looked at.
      decay: of this step, in [0, 1).

    Returns:
      The new curvature and weight, both float32.

    Raises:
      ConfigError: when the trees do not fit.
    """
    fresh = fold(curvature, weight, squares, decay)
    return keep_finite(fresh, (curvature, weight))[0]


def fold(
    curvature: Tree, weight: Array, seen: Tree, decay: Any, *, squared: bool = True
) -> tuple[Tree, Array]:
    """:func:`update_curvature` without its protection; of gradients unless ``squared``."""
    decay = jnp.asarray(decay, jnp.float32)
    kept, treedef = jax.tree.flatten(curvature, is_leaf=_is_slot)
    found = aligned(treedef, seen, "the squared gradients")
    folded = [_fold_leaf(*pair, decay, squared) for pair in zip(kept, found, strict=True)]
    return treedef.unflatten(folded), decay * weight + (1 - decay)


def keep_finite(fresh: Tree, old: Tree) -> tuple[Tree, Array]:
    """``fresh`` if all of it is finite, else ``old``, and which: () bool."""
    # Margins of squares are finite exactly if every square is: no need to read gradients again.
    finite = jnp.asarray(True)
    for leaf in jax.tree.leaves(fresh):
        finite &= jnp.isfinite(leaf).all()
    return jax.tree.map(lambda new, was: jnp.where(finite, new, was), fresh, old), finite


def debiased(curvature: Tree, weight: Array) -> Tree:
    """``curvature / weight``: the average of what was recorded, zero if that was nothing.

    Args:
      curvature: as kept by :func:`update_curvature`; or with leading axes, one curvature a task.
      weight: () float32, or those leading axes.
    """
    divisor = jnp.where(weight == 0, 1, weight)

    def divide(part: Array) -> Array:
        return part / divisor.reshape(divisor.shape + (1,) * (part.ndim - divisor.ndim))

    return jax.tree.map(divide, curvature)


def _fold_leaf(kept: Any, seen: Any, decay: Array, squared: bool) -> Any:
    if not is_curvature(kept):
        return kept
    new = _margins(kept, jnp.asarray(seen, jnp.float32), squared)
    return jax.tree.map(lambda old, now: decay * old + (1 - decay) * now, kept, new)


def _margins(like: Curvature, seen: Array, squared: bool) -> Curvature:
    """What is kept of squares, or of the squares of gradients, in the form of ``like``."""
    if isinstance(like, Diagonal):
        if seen.shape != like.diag.shape:
            raise ConfigError(
                f"a curvature of shape {like.diag.shape} cannot take squares of shape "
                f"{seen.shape}; pass them in the shape of the parameter"
            )
        return of_squares(seen if squared else jnp.square(seen), factored=False)
    # The split of the axes follows from the number of rows; axes of length one are all the same.
    splits = range(seen.ndim + 1)
    rows = next((k for k in splits if math.prod(seen.shape[:k]) == like.row.size), None)
    if rows is None or seen.size != like.row.size * like.col.size:
        raise ConfigError(
            f"a curvature of {like.row.size} rows and {like.col.size} columns cannot take squares "
            f"of shape {seen.shape}; pass them in the shape of the parameter"
        )
    if squared:
        return of_squares(seen, rows, factored=True)
    # Two means of one square make XLA write the square out; of two squares it writes neither, in a
    # quarter of the time. The barrier keeps it from finding out that they are the same.
    again = jax.lax.optimization_barrier(seen)
    row, _ = of_squares(jnp.square(seen), rows, factored=True)
    _, col = of_squares(jnp.square(again), rows, factored=True)
    return Factored(row, col)


def _is_slot(node: Any) -> bool:
    return is_curvature(node) or isinstance(node, optax.MaskedNode)


def _broadcast(mask: Tree, params: Tree) -> Tree:
    try:
        return jax.tree.broadcast(mask, params)
    except ValueError as error:
        raise ConfigError(
            f"mask must be a tree of bools that is a prefix of the parameters: {error}"
        ) from None
