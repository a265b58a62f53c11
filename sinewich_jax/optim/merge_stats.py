"""``with_merge_stats``: any optimizer, with the curvature that merging needs kept beside it.

A model trained this way carries, for ``m + n`` floats a matrix, the averaged squares of its
gradients: an estimate of the Fisher information's diagonal that otherwise costs another pass over
the data (Li et al. 2025, arXiv 2507.18807; Moayedikia and Troncoso 2025, arXiv 2512.17109).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sinewich_jax.core.arrays import is_traced
from sinewich_jax.core.trees import Tree, unflatten_paths
from sinewich_jax.errors import ConfigError
from sinewich_jax.optim import checks, trajectory
from sinewich_jax.optim.statistics import (
    CURVATURES,
    Rows,
    aligned,
    debiased,
    fold,
    init_curvature,
    is_curvature,
    keep_finite,
)

Array = jax.Array


class MergeStatsState(NamedTuple):
    """State of :func:`with_merge_stats`.

    Attributes:
      count: () int32, updates so far without those whose gradients were not finite.
      weight: () float32, the sum of the averages' weights; ``curv / weight`` has no bias.
      curv: the parameters' tree with a float32 :class:`~sinewich_jax.core.curvature.Factored` or
        ``Diagonal`` at each leaf, ``optax.MaskedNode()`` where a leaf is left out.
      saliency: the parameters' tree with float32 arrays (free of bias already), or one
        ``optax.MaskedNode()`` unless it is kept.
      anchor: the parameters that saliency is measured from, likewise.
      inner: the state of the inner transformation.
    """

    count: Array
    weight: Array
    curv: Tree
    saliency: Tree
    anchor: Tree
    inner: Any


def with_merge_stats(
    inner: optax.GradientTransformation,
    *,
    decay: float | optax.Schedule = 0.999,
    min_dim_to_factor: int = 32,
    rows: Rows | None = None,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    saliency: Literal["none", "trajectory"] = "none",
    anchor: Tree | None = None,
    anchor_dtype: Any = None,
    saliency_decay: float = 0.99,
    stats_every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Keeps curvature statistics beside ``inner``, whose updates pass through bit for bit.

        V <- d V + (1 - d) g^2,        row_i = mean_j V_ij,  col_j = mean_i V_ij  of a matrix

    in float32 whatever the parameters are. Small leaves keep V itself. ``update`` takes two more
    keywords: ``merge_grads``, gradients to square in place of those it is given (before clipping,
    for instance), and ``merge_sq``, means of squared per-example or micro-batch gradients
    (:func:`~sinewich_jax.optim.per_example_squares`), a better estimate because the square of a
    mean over B examples is about 1/B of the mean of squares. All other keywords reach ``inner``.

    The gradients should be means over the global batch, without loss scaling, clipping and weight
    decay: put this outside of a chain that clips. Where a gradient that is averaged is not finite,
    or its square overflows, that step leaves no trace in the statistics.

    Several gradients a step: ``optax.MultiSteps(with_merge_stats(tx), k)`` squares the mean of k
    gradients once in k calls; ``with_merge_stats(optax.MultiSteps(tx, k))`` squares each of them.
    One optimizer for T tasks: ``jax.vmap`` of ``update`` over a leading axis of gradients and
    state. On a mesh, margins inherit the sharding of their axis and means over a sharded axis are
    one all-reduce of m + n floats.

    Args:
      inner: any gradient transformation.
      decay: d in [0, 1), or a schedule from the number of earlier recordings to d;
        ``lambda n: 1 - 1 / (n + 1)`` gives the plain mean of all steps.
      min_dim_to_factor: a leaf whose smaller side as a matrix is below this keeps V itself.
      rows: ``(path, leaf) -> int``, how many leading axes are the rows of the matrix; None takes
        all but the last. A query kernel (d, heads, width) wants 1.
      mask: as for ``optax.masked``: a tree of bools, or a function of the parameters that makes
        one; True is mergeable. Integer, boolean and complex leaves are left out in any case.
      saliency: ``"trajectory"`` also keeps the average of ``(W - W_0)^2 V~`` along the way, with W
        after the step (equation 9 of arXiv 2512.17109, with ``V~`` free of bias in the place of
        ``sqrt(R C^T)``). It takes two arrays of each parameter's size. ``"none"`` keeps nothing:
        at the end ``core.curvature.saliency`` makes the same of the final weights, and ranked
        weights better in our measurements.
      anchor: W_0; None takes the parameters given to ``init``.
      anchor_dtype: dtype that W_0 is kept in; None is each parameter's own. bfloat16 halves it and
        rounds W_0 by up to 0.4 %, which hides smaller steps: for bfloat16 parameters only.
      saliency_decay: of that average.
      stats_every: record each so many updates, the first included, at that fraction of the cost.

    Returns:
      A ``GradientTransformationExtraArgs`` with :class:`MergeStatsState`. ``update`` needs the
      parameters only if ``inner`` does or saliency is kept.

    Raises:
      ConfigError: for an argument outside of its range, and from ``update`` for trees that do not
        fit, or both ``merge_grads`` and ``merge_sq``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> tx = with_merge_stats(optax.sgd(0.1))
      >>> params = {"w": jnp.zeros(2)}
      >>> _, state = tx.update({"w": jnp.array([1.0, 3.0])}, tx.init(params), params)
      >>> export_stats(state)["w"].diag.round(3).tolist()
      [1.0, 9.0]
    """
    checks.fraction("decay", decay)
    checks.fraction("saliency_decay", saliency_decay)
    checks.choice("saliency", saliency, ("none", "trajectory"))
    min_dim_to_factor = checks.whole("min_dim_to_factor", min_dim_to_factor, 1)
    stats_every = checks.whole("stats_every", stats_every, 1)
    follows = saliency == "trajectory"
    if anchor is not None and not follows:
        raise ConfigError("an anchor is only read with saliency='trajectory'; leave one of them")
    inner = optax.with_extra_args_support(inner)

    def init(params: Tree) -> MergeStatsState:
        curv = init_curvature(params, min_dim_to_factor=min_dim_to_factor, rows=rows, mask=mask)
        start = params if anchor is None else anchor
        sums = kept = optax.MaskedNode()
        if follows:
            sums, kept = trajectory.begin(params, curv, CURVATURES, start, anchor_dtype)
        zero = jnp.zeros((), jnp.int32)
        weight = jnp.zeros((), jnp.float32)
        return MergeStatsState(zero, weight, curv, sums, kept, inner.init(params))

    def update(
        grads: Tree,
        state: MergeStatsState,
        params: Tree | None = None,
        *,
        merge_grads: Tree | None = None,
        merge_sq: Tree | None = None,
        **extra: Any,
    ) -> tuple[Tree, MergeStatsState]:
        if merge_grads is not None and merge_sq is not None:
            raise ConfigError("merge_sq already replaces the gradients; leave merge_grads out")
        if follows and params is None:
            raise ConfigError("saliency='trajectory' needs update(grads, state, params)")
        updates, inner_state = inner.update(grads, state.inner, params, **extra)
        seen = grads if merge_grads is None else merge_grads

        old = (state.curv, state.weight, state.saliency)

        def record() -> tuple[Array, Any]:
            squared = merge_sq is not None
            found = merge_sq if squared else _tracked(seen, state.curv)
            earlier = (state.count + stats_every - 1) // stats_every
            now = decay(earlier) if callable(decay) else decay
            curv, weight = fold(state.curv, state.weight, found, now, squared=squared)
            sums = state.saliency
            if follows:
                after = optax.apply_updates(params, updates)
                share = trajectory.share_of_newest(saliency_decay, earlier)
                unbiased = debiased(curv, weight)
                sums = trajectory.follow(sums, state.anchor, after, unbiased, share)
            fresh, finite = keep_finite((curv, weight, sums), old)
            return jnp.where(finite, optax.safe_increment(state.count), state.count), fresh

        def skip() -> tuple[Array, Any]:
            return optax.safe_increment(state.count), old

        # What a branch gives is copied: nothing but the statistics goes through it.
        due = state.count % stats_every == 0
        found = record() if stats_every == 1 else jax.lax.cond(due, record, skip)
        count, (curv, weight, sums) = found
        return updates, MergeStatsState(count, weight, curv, sums, state.anchor, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def export_stats(opt_state: Any) -> Tree:
    """The recorded curvature by parameter, free of bias: what ``merging`` takes as ``stats``.

    Args:
      opt_state: the state of any optimizer with :func:`with_merge_stats` or
        :func:`~sinewich_jax.optim.scale_by_umtam` anywhere in it. A state with leading axes (of
        ``jax.vmap`` over tasks) gives curvatures with those axes.

    Returns:
      A nested dict with the parameters' paths; at each leaf a float32 ``Factored`` or
      ``Diagonal``. Leaves that are left out are not in it.

    Raises:
      ConfigError: the state holds no statistics, two of one parameter, or none recorded yet.
    """

    def read(state: Any) -> Tree:
        if not is_traced(state.weight) and np.any(np.asarray(state.weight) == 0):
            raise ConfigError(
                "no step with finite gradients has been recorded yet; export after training"
            )
        return debiased(state.curv, state.weight)

    return _export(opt_state, read, is_curvature)


def export_saliency(opt_state: Any) -> Tree:
    """The saliency kept along the way, by parameter: a nested dict of float32 arrays.

    Args:
      opt_state: of an optimizer with ``with_merge_stats(..., saliency="trajectory")`` or
        ``umtam(..., mode="faithful")`` in it.

    Raises:
      ConfigError: the state holds none.
    """
    exported = _export(opt_state, lambda state: state.saliency, None)
    if not jax.tree.leaves(exported):
        raise ConfigError(
            "the optimizer state holds no saliency; train with saliency='trajectory', or compute "
            "core.curvature.saliency from the exported statistics"
        )
    return exported


def _export(opt_state: Any, read: Callable[[Any], Tree], is_leaf: Any) -> Tree:
    """The union of what ``read`` gives for all states in ``opt_state`` that hold curvature."""
    # By its fields, so that this need not know every transformation that keeps statistics.
    found = [
        state
        for state in jax.tree.leaves(opt_state, is_leaf=_holds_statistics)
        if _holds_statistics(state)
    ]
    if not found:
        raise ConfigError(
            "the optimizer state holds no merge statistics; wrap the optimizer in "
            "optim.with_merge_stats, or use optim.umtam"
        )
    flat: dict[str, Any] = {}
    for state in found:
        for path, leaf in jax.tree_util.tree_leaves_with_path(read(state), is_leaf=is_leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name in flat:
                raise ConfigError(
                    f"two transformations keep statistics of {name!r}; pass the state of one"
                )
            flat[name] = leaf
    return unflatten_paths(flat)


def _holds_statistics(node: Any) -> bool:
    return isinstance(node, tuple) and {"curv", "weight"} <= set(getattr(node, "_fields", ()))


def _tracked(grads: Tree, curv: Tree) -> Tree:
    """The gradients of the leaves that have a curvature."""
    leaves, treedef = jax.tree.flatten(grads)
    kept = aligned(treedef, curv, "the state of with_merge_stats")
    chosen = [leaf for leaf, own in zip(leaves, kept, strict=True) if is_curvature(own)]
    # Apart, so that the compiler does not share work with the inner update and round it anew.
    chosen = iter(jax.lax.optimization_barrier(chosen))
    return treedef.unflatten(next(chosen) if is_curvature(own) else own for own in kept)
