"""Gradient surgery in the space of tasks: how much of each task's gradient goes into one step.

Every method here looks at the T gradients ``g_t`` of the shared parameters through their Gram
matrix alone,

    G[i, j] = g_i . g_j,        step = sum_t a_t g_t,        a = method(G),

so that a method costs T x T numbers whatever the size of the model, and works under any sharding:
a Gram matrix of sharded gradients is one reduction. Coefficients keep the scale that their paper
gives them: some sum to one, others add up all tasks.

Sources: PCGrad (Yu et al. 2020, arXiv 2001.06782), CAGrad (Liu et al. 2021, arXiv 2110.14048), MGDA
(Sener and Koltun 2018, arXiv 1810.04650), IMTL-G (Liu et al., ICLR 2021), Nash-MTL (Navon et al.
2022, arXiv 2202.01017), Aligned-MTL (Senushkin et al. 2023, arXiv 2305.19000).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

TINY = 1e-30
"""No squared length that divides is taken to be smaller."""

ZERO = 1e-12
"""Squared length, as a share of all, below which opposing gradients count as cancelled."""

RANK_TOLERANCE = 1e-5
"""Eigenvalues below this share of the largest are zero: float32 sums do not resolve them."""


def gram(gradients: Any) -> Array:
    """``G[i, j] = g_i . g_j`` summed over all leaves.

    Args:
      gradients: a pytree whose leaves have a leading task axis, (T, ...).

    Returns:
      (T, T) float32, symmetric.
    """
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(gradients):
        flat = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)
        total = total + jnp.matmul(flat, flat.T, precision="highest")
    return total


def combine(coefficients: Array, gradients: Any) -> Any:
    """``sum_t a_t g_t`` for each leaf (T, ...) of ``gradients``."""
    return jax.tree.map(lambda leaf: jnp.tensordot(coefficients, leaf, axes=1), gradients)


def pcgrad(gram: Array, key: Array) -> Array:
    """Each gradient loses what points against another one; then all are added.

        for j in random order:   if g_i' . g_j < 0:   g_i' -= (g_i' . g_j / |g_j|^2) g_j

    ``g_i'`` starts as ``g_i`` and ``g_j`` is always the untouched one. (Yu et al., algorithm 1.)

    Args:
      gram: (T, T).
      key: draws, for each task, the order in which it meets the others.

    Returns:
      (T,) coefficients, all one when no two gradients conflict.
    """
    tasks = len(gram)

    def project(own: Array, key: Array) -> Array:
        def meet(coefficients: Array, other: Array) -> tuple[Array, None]:
            product = coefficients @ gram[:, other]
            conflict = (product < 0) & (other != own)
            share = jnp.where(conflict, product / jnp.maximum(gram[other, other], TINY), 0.0)
            return coefficients.at[other].add(-share), None

        start = jnp.zeros(tasks).at[own].set(1.0)
        return jax.lax.scan(meet, start, jax.random.permutation(key, tasks))[0]

    return jax.vmap(project)(jnp.arange(tasks), jax.random.split(key, tasks)).sum(axis=0)


def mgda(gram: Array, steps: int = 300) -> Array:
    """The shortest vector in the convex hull of the gradients: ``argmin_a |sum_t a_t g_t|``.

    Its length is zero exactly where no direction improves all tasks. (Sener and Koltun, eq. 3.)

    Args:
      gram: (T, T).
      steps: of the solver.

    Returns:
      (T,) coefficients on the simplex.
    """
    scaled = gram / jnp.maximum(jnp.trace(gram), TINY)
    return _on_simplex(scaled, jnp.zeros(len(gram)), lambda w: jnp.ones(()), steps)


def cagrad(gram: Array, c: float = 0.5, steps: int = 300) -> Array:
    """The best step for the worst task within ``c |g_0|`` of the mean gradient ``g_0``.

        w = argmin_{simplex} g_0 . g_w + c |g_0| |g_w|,        g_w = sum_t w_t g_t
        step = (g_0 + c (|g_0| / |g_w|) g_w) / (1 + c^2)

    (Liu et al., algorithm 1; the division is the official code's ``rescale=1``. ``g_0`` is the
    mean, so the coefficients of equal gradients sum to ``(1 + c) / (1 + c^2)``.)

    Args:
      gram: (T, T).
      c: 0 is the mean gradient; below 1, the method converges to a minimum of the mean loss.
      steps: of the solver.

    Returns:
      (T,) coefficients.
    """
    tasks = len(gram)
    scaled = gram / jnp.maximum(jnp.trace(gram), TINY)
    towards_mean = scaled.mean(axis=1)
    radius = c * jnp.sqrt(jnp.maximum(scaled.mean(), 0.0))

    def length(w: Array) -> Array:
        return jnp.sqrt(jnp.maximum(w @ scaled @ w, ZERO))

    # |g_w| lies below the parabola that touches it, whose slope is G w / |g_w|.
    w = _on_simplex(scaled, towards_mean, lambda w: radius / length(w), steps)
    return (1.0 / tasks + radius * w / length(w)) / (1 + c * c)


def imtl_g(gram: Array) -> Array:
    """The step whose projection on every gradient's direction is the same: ``a ~ G^-1 |g|``.

    (Liu et al., ICLR 2021, eq. 6, solved in the space of tasks.) Linearly dependent gradients get
    the least of the solutions, so equal tasks share equally.

    Args:
      gram: (T, T).

    Returns:
      (T,) coefficients that sum to one; some may be negative.
    """
    norms, cosines = _norms_and_cosines(gram)
    share = _inverse(cosines) @ jnp.ones(len(gram)) / norms
    total = share.sum()
    return share / jnp.where(jnp.abs(total) < TINY, 1.0, total)


def nash(gram: Array, steps: int = 30) -> Array:
    """The Nash bargaining solution: ``G a = 1 / a`` with ``a > 0``.

    It is the minimum of the self-concordant ``a.G.a / 2 - sum log a``, which damped Newton steps
    reach from anywhere. The step does not change when a task's loss is multiplied. (Navon et al.,
    claim 3.1; they solve a sequence of convex programs instead. A task whose gradient vanishes
    counts as orthogonal to the others.)

    Args:
      gram: (T, T).
      steps: Newton steps.

    Returns:
      (T,) positive coefficients; T orthogonal unit gradients get one each.
    """
    norms, cosines = _norms_and_cosines(gram)

    def newton(b: Array, _: None) -> tuple[Array, None]:
        slope = cosines @ b - 1.0 / b
        hessian = cosines + jnp.diag(1.0 / (b * b))
        move = jnp.linalg.solve(hessian, slope)
        decrement = jnp.sqrt(jnp.maximum(slope @ move, 0.0))
        return b - move / (1.0 + decrement), None

    start = jnp.full(len(gram), 1.0 / jnp.sqrt(len(gram)))  # the solution for equal gradients
    return jax.lax.scan(newton, start, None, length=steps)[0] / norms


def aligned(gram: Array) -> Array:
    """The mean direction after all principal components are given one length, the smallest.

        G = V diag(l) V^T,        a = sqrt(l_min) V diag(l)^(-1/2) V^T 1

    Components below :data:`RANK_TOLERANCE` are left out. (Senushkin et al., eq. 12, scale "min".)

    Args:
      gram: (T, T).

    Returns:
      (T,) coefficients, all one when the gradients are orthogonal and of one length.
    """
    values, vectors = jnp.linalg.eigh(gram)
    kept = values > RANK_TOLERANCE * values[-1]
    smallest = jnp.min(jnp.where(kept, values, jnp.inf))
    scale = jnp.where(kept, jnp.sqrt(smallest / jnp.where(kept, values, 1.0)), 0.0)
    return vectors @ (scale * vectors.sum(axis=0))


def _on_simplex(gram: Array, linear: Array, weight: Callable[[Array], Array], steps: int) -> Array:
    """Minimises a convex function with the slope ``linear + weight(w) G w`` over the simplex.

    Each step moves mass between the two tasks that gain most by it, by the exact amount for a
    quadratic (Platt's sequential minimal optimisation): as good for badly scaled gradients.
    """
    tasks = len(gram)

    def step(w: Array, _: None) -> tuple[Array, None]:
        factor = weight(w)
        slope = linear + factor * (gram @ w)
        to, source = jnp.argmin(slope), jnp.argmax(jnp.where(w > 0, slope, -jnp.inf))
        bend = factor * (gram[to, to] + gram[source, source] - 2 * gram[to, source])
        amount = jnp.minimum((slope[source] - slope[to]) / jnp.maximum(bend, TINY), w[source])
        return w.at[to].add(amount).at[source].add(-amount), None

    return jax.lax.scan(step, jnp.full(tasks, 1.0 / tasks), None, length=steps)[0]


def _norms_and_cosines(gram: Array) -> tuple[Array, Array]:
    """Lengths (T,) and cosines (T, T); a vanishing gradient is orthogonal to all others."""
    norms = jnp.sqrt(jnp.maximum(jnp.diag(gram), TINY))
    cosines = gram / jnp.outer(norms, norms)
    return norms, jnp.where(jnp.eye(len(gram), dtype=bool), 1.0, cosines)


def _inverse(symmetric: Array) -> Array:
    return jnp.linalg.pinv(symmetric, rtol=RANK_TOLERANCE, hermitian=True)
