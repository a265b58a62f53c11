"""UMTAM: momentum of low rank over a factored second moment (arXiv 2512.17109), lean or faithful.

Both keep of a weight (m, n) the factored momentum ``U diag(s) V^T`` and the margins of the squared
gradients, which :func:`~sinewich_jax.optim.export_stats` hands to merging. They differ in what
truncation loses:

* ``"lean"`` never makes the momentum dense (``lowrank_momentum.averaged``) and keeps nothing
  (m, n): at rank 32 about a tenth of a Swin-T in place of Adam's two copies.
* ``"faithful"`` is algorithm 1 of the paper: a full SVD each step, the truncation error E, the
  saliency and the first weights, all of them dense: three copies of every matrix, for comparison.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.curvature import Curvature, Diagonal, Factored
from sinewich_jax.core.trees import Tree
from sinewich_jax.errors import ConfigError
from sinewich_jax.optim import checks, lowrank_momentum, trajectory
from sinewich_jax.optim.lowrank_momentum import LowRank
from sinewich_jax.optim.statistics import (
    Rows,
    aligned,
    debiased,
    fold,
    init_curvature,
    is_curvature,
    named_leaves,
)

Array = jax.Array
_TINY = 1e-30  # keeps a norm that is exactly zero out of a division


class UmtamState(NamedTuple):
    """State of :func:`scale_by_umtam`. Trees have the structure of the parameters.

    Attributes:
      count: () int32, updates so far.
      weight: () float32, ``1 - b2^count``.
      curv: float32 ``Factored`` curvature of matrices, ``Diagonal`` (Adam's second moment) of the
        rest, as in :class:`~sinewich_jax.optim.MergeStatsState`.
      momentum: a :class:`~sinewich_jax.optim.lowrank_momentum.LowRank` or a dense array each, in
        ``momentum_dtype``.
      residual: faithful only, else ``optax.MaskedNode()``, as are the next two: what truncation
        took from each matrix, float32.
      saliency: float32, equation 9 up to the step before the last, because weights after a step
        are first seen at the next one.
      anchor: the matrices given to ``init``, float32.
    """

    count: Array
    weight: Array
    curv: Tree
    momentum: Tree
    residual: Tree
    saliency: Tree
    anchor: Tree


def scale_by_umtam(
    rank: int = 32,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    mode: Literal["lean", "faithful"] = "lean",
    gamma: float | None = None,
    probes: int = 2,
    bias_correction: bool = True,
    eps_mode: Literal["adam", "paper"] = "adam",
    min_dim_to_factor: int = 32,
    rows: Rows | None = None,
    paper_exact: bool = False,
    momentum_dtype: Any = "float32",
    saliency_decay: float = 0.99,
    seed: int = 0,
    svd_every: int = 1,
) -> optax.GradientTransformation:
    """Low-rank momentum, scaled by the root of a second moment of rank one.

        lean       M_t = trunc_r(b1 M_{t-1} + (1 - b1) G_t)
        faithful   A_t = b1 M_{t-1} + (1 - b1) G_t + gamma E_{t-1},  M_t = trunc_r(A_t),
                   E_t = A_t - M_t
        both       V_t = b2 V_{t-1} + (1 - b2) G_t^2,   V~ = row col^T / mean(row)
        update     (M_t / (1 - b1^t)) / (sqrt(V~ / (1 - b2^t)) + eps),    0 where V~ is 0

    With ``gamma = b1`` the sum ``A_t`` is exactly the dense average of gradients, whatever r is.
    In lean mode the momentum follows it up to the best error of rank r once r is at least the rank
    of the gradients; below that, training is slower (results are *not* independent of r).

    Leaves whose smaller side is below ``min_dim_to_factor``, vectors among them, are Adam's. Where
    factors would not be smaller than the matrix, lean keeps a dense momentum. Gradients are not
    clipped: chain ``optax.clip_by_global_norm`` before. A row seen only rarely has a tiny V~ but
    gets its share of the error of truncation: chain ``optax.clip_by_block_rms(1.0)`` after, if
    embeddings spike.

    Args:
      rank: r of the momentum, at most the smaller side is used.
      b1: decay of the momentum.
      b2: decay of the second moment.
      eps: keeps the division finite.
      mode: see the module.
      gamma: faithful only: share of the lost part that comes back, in [0, 1); None is ``b1``.
      probes: lean only: random directions that look for new range each step.
      bias_correction: the two divisions by ``1 - b^t`` for matrices; Adam's leaves have them
        always.
      eps_mode: ``"paper"`` divides by ``sqrt(V~ + eps max(1, |G| / |W|))`` in place of the above.
      min_dim_to_factor: smallest side of a matrix that is factored.
      rows: ``(path, leaf) -> int``, how many leading axes are the matrix's rows; None takes all
        but the last.
      paper_exact: algorithm 1 to the letter: faithful, no bias correction for matrices,
        ``eps_mode="paper"``, every gradient clipped to norm 1 by itself, saliency
        ``(W - W_0)^2 sqrt(R C^T)`` without removal of its bias.
      momentum_dtype: of the kept momentum; arithmetic is float32.
      saliency_decay: faithful only: alpha of equation 9.
      seed: of the probes. Tasks under one ``jax.vmap`` share them.
      svd_every: only 1. Between SVDs neither the factors nor E would take up gradients: at 10, nine
        of ten never enter the momentum.

    Returns:
      A ``GradientTransformation`` with :class:`UmtamState`. Faithful and paper's eps need the
      parameters in ``update``.

    Raises:
      ConfigError: for an argument outside of its range, or leaves that are not real floats.

    References:
      Moayedikia and Troncoso 2025, arXiv 2512.17109, algorithm 1 (faithful); lean is this
      library's. Shazeer and Stern 2018, arXiv 1804.04235 (factored second moment).
    """
    rank = checks.whole("rank", rank, 1)
    probes = checks.whole("probes", probes, 0)
    min_dim_to_factor = checks.whole("min_dim_to_factor", min_dim_to_factor, 1)
    checks.choice("mode", mode, ("lean", "faithful"))
    checks.choice("eps_mode", eps_mode, ("adam", "paper"))
    for name, value in (("b1", b1), ("b2", b2), ("gamma", gamma), ("alpha", saliency_decay)):
        checks.fraction(name, value)
    faithful = mode == "faithful"
    momentum_dtype = jnp.dtype(momentum_dtype)
    if svd_every != 1:
        raise ConfigError(
            f"svd_every is {svd_every}; expected 1, because gradients between two SVDs would never "
            "enter the momentum (to save time use mode='lean')"
        )
    if not faithful and (gamma is not None or paper_exact):
        what = "paper_exact" if paper_exact else "gamma"
        raise ConfigError(f"{what} belongs to mode='faithful'; mode is {mode!r}")
    if paper_exact:
        bias_correction, eps_mode = False, "paper"
    gamma = b1 if gamma is None else gamma

    def start(path: str, leaf: Array, own: Curvature, key: Array) -> Any:
        if isinstance(own, Diagonal):
            return jnp.zeros(leaf.shape, momentum_dtype)
        m, n = own.row.size, own.col.size
        if not faithful and not lowrank_momentum.pays(m, n, rank, probes):
            return jnp.zeros(leaf.shape, momentum_dtype)
        return lowrank_momentum.zero(m, n, min(rank, m, n), key, momentum_dtype)

    def init(params: Tree) -> UmtamState:
        curv = init_curvature(params, min_dim_to_factor=min_dim_to_factor, rows=rows)
        paths, leaves, treedef = named_leaves(params)
        own = aligned(treedef, curv, "curvature")
        for path, leaf, curvature in zip(paths, leaves, own, strict=True):
            if not is_curvature(curvature):
                raise ConfigError(
                    f"the parameter {path!r} is {leaf.dtype}; umtam takes real floats only, so "
                    "keep it out with optax.masked"
                )
        keys = _keys(seed, 0, len(leaves))
        momentum = treedef.unflatten(map(start, paths, leaves, own, keys))

        residual = saliency = anchor = optax.MaskedNode()
        if faithful:
            residual, anchor = trajectory.begin(params, curv, Factored, params, jnp.float32)
            saliency = jax.tree.map(jnp.zeros_like, residual)
        zero = jnp.zeros((), jnp.int32)
        weight = jnp.zeros((), jnp.float32)
        return UmtamState(zero, weight, curv, momentum, residual, saliency, anchor)

    def moved(mean: Any, lost: Any, grad: Array, key: Array) -> tuple[Array, Any, Any]:
        """The dense momentum after this step, what is kept of it, and what is lost."""
        if not isinstance(mean, LowRank):
            dense = b1 * mean.astype(jnp.float32) + (1 - b1) * grad
            return dense, dense.astype(momentum_dtype), lost
        matrix = grad.reshape(mean.u.shape[0], mean.v.shape[0])
        if not faithful:
            mean = lowrank_momentum.averaged(mean, matrix, b1, key, probes)
            return lowrank_momentum.product(mean).reshape(grad.shape), mean, lost
        dense = b1 * lowrank_momentum.product(mean) + (1 - b1) * matrix
        dense += gamma * lost.reshape(matrix.shape)
        mean = lowrank_momentum.truncated(dense, mean.s.size)
        mean = LowRank(*(part.astype(momentum_dtype) for part in mean))
        kept = lowrank_momentum.product(mean)
        return kept.reshape(grad.shape), mean, (dense - kept).reshape(grad.shape)

    def direction(
        dense: Array, own: Curvature, weight: Array, count: Array, ratio: Array | None
    ) -> Array:
        matrix = isinstance(own, Factored)
        if bias_correction or not matrix:
            own, dense = debiased(own, weight), dense / (1 - b1**count)
        second = curvatures.dense(own, dense.shape)
        if eps_mode == "paper" and matrix:
            return dense * jax.lax.rsqrt(second + eps * jnp.maximum(1.0, ratio))
        # Factors leave rounding where no gradient ever was, which eps would blow up.
        return jnp.where(second > 0, dense / (jnp.sqrt(second) + eps), 0.0)

    def followed(state: UmtamState, params: Tree) -> Tree:
        """Equation 9 of the step before, whose weights are seen only now."""
        curv, share = state.curv, 1 - saliency_decay
        if paper_exact:
            score = trajectory.root_of_sums
        else:
            # At the first step there is nothing yet, and nothing times anything stays nothing.
            earlier = jnp.maximum(state.count - 1, 0)
            share = trajectory.share_of_newest(saliency_decay, earlier)
            curv, score = debiased(curv, state.weight), curvatures.saliency
        return trajectory.follow(state.saliency, state.anchor, params, curv, share, score)

    def update(grads: Tree, state: UmtamState, params: Tree | None = None) -> tuple[Tree, Any]:
        paper_eps = eps_mode == "paper"
        if params is None and (faithful or paper_eps):
            raise ConfigError("umtam needs update(grads, state, params) in this mode")
        _, given, treedef = named_leaves(grads)
        weights = treedef.flatten_up_to(params) if params is not None else given
        count = optax.safe_increment(state.count)
        raw = [leaf.astype(jnp.float32) for leaf in given]
        norms = [jnp.linalg.norm(leaf) for leaf in raw]
        used = raw
        if paper_exact:
            used = [leaf / jnp.maximum(1.0, norm) for leaf, norm in zip(raw, norms, strict=True)]

        saliency = followed(state, params) if faithful else state.saliency
        seen = treedef.unflatten(used)
        curv, weight = fold(state.curv, state.weight, seen, b2, squared=False)
        own = aligned(treedef, curv, "the state of umtam")
        kept = aligned(treedef, state.momentum, "the state of umtam")
        lost = aligned(treedef, state.residual, "the state") if faithful else [None] * len(used)
        steps = list(map(moved, kept, lost, used, _keys(seed, count, len(used))))

        updates = []
        for grad, (dense, _, _), curvature, norm, leaf in zip(
            given, steps, own, norms, weights, strict=True
        ):
            ratio = _ratio(norm, leaf) if paper_eps else None
            updates.append(direction(dense, curvature, weight, count, ratio).astype(grad.dtype))
        momentum = treedef.unflatten(mean for _, mean, _ in steps)
        residual = treedef.unflatten(rest for *_, rest in steps) if faithful else state.residual
        state = UmtamState(count, weight, curv, momentum, residual, saliency, state.anchor)
        return treedef.unflatten(updates), state

    return optax.GradientTransformation(init, update)


def umtam(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    rank: int = 32,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay_mask: Any = None,
    mode: Literal["lean", "faithful"] = "lean",
    gamma: float | None = None,
    probes: int = 2,
    bias_correction: bool = True,
    eps_mode: Literal["adam", "paper"] = "adam",
    min_dim_to_factor: int = 32,
    rows: Rows | None = None,
    paper_exact: bool = False,
    momentum_dtype: Any = "float32",
    saliency_decay: float = 0.99,
    seed: int = 0,
    svd_every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_umtam` with decoupled weight decay and a learning rate.

        W <- W - learning_rate (update + weight_decay W)

    Args:
      learning_rate: a number or a schedule; Adam's are the right size.
      weight_decay: not part of the statistics.
      rank: as below; every other argument is that of :func:`scale_by_umtam`.
      b1: decay of the momentum.
      b2: decay of the second moment.
      eps: keeps the division finite.
      weight_decay_mask: which leaves decay, as in ``optax.adamw``.
      mode: ``"lean"`` or ``"faithful"``.
      gamma: share of what was truncated that comes back.
      probes: random directions a step.
      bias_correction: of the moments of matrices.
      eps_mode: ``"adam"`` or ``"paper"``.
      min_dim_to_factor: smallest side of a matrix that is factored.
      rows: ``(path, leaf) -> int``, leading axes that are rows.
      paper_exact: algorithm 1 to the letter.
      momentum_dtype: of the kept momentum.
      saliency_decay: alpha of equation 9.
      seed: of the probes.
      svd_every: only 1.

    Raises:
      ConfigError: see :func:`scale_by_umtam`.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = umtam(1e-3, rank=4)
      >>> params = {"w": jnp.ones((64, 48)), "b": jnp.zeros(48)}
      >>> tx.init(params)[0].momentum["w"].u.shape
      (64, 4)
    """
    direction = scale_by_umtam(
        rank,
        b1,
        b2,
        eps,
        mode=mode,
        gamma=gamma,
        probes=probes,
        bias_correction=bias_correction,
        eps_mode=eps_mode,
        min_dim_to_factor=min_dim_to_factor,
        rows=rows,
        paper_exact=paper_exact,
        momentum_dtype=momentum_dtype,
        saliency_decay=saliency_decay,
        seed=seed,
        svd_every=svd_every,
    )
    return optax.chain(
        direction,
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _keys(seed: int, count: Any, leaves: int) -> list[Array]:
    """One key a leaf; made from the count, so that the state holds none."""
    step = jax.random.fold_in(jax.random.key(seed), count)
    return [jax.random.fold_in(step, leaf) for leaf in range(leaves)]


def _ratio(norm: Array, leaf: Array) -> Array:
    """``|G| / |W|``; 0 for a weight that starts at zero, which would otherwise never leave it."""
    size = jnp.linalg.norm(leaf.astype(jnp.float32))
    return jnp.where(size > 0, norm / jnp.maximum(size, _TINY), 0.0)
