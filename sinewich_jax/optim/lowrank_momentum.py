"""A running mean of gradients of low rank, without ever making the dense one.

    M_t = trunc_r(b M_{t-1} + (1 - b) G_t),        M = U diag(s) V^T

A full SVD of that sum each step can cost as much as the model. :func:`averaged` finds the range
of the sum instead, warm: the old U spans what is there, ``G V`` what the gradient adds along old
directions, and a few random probes ``G Omega`` what is new. It is exact whenever the gradient has
rank at most r + p, or lies in the tangent space of the old factors, and then costs four thin
products and two thin QRs (Halko, Martinsson and Tropp 2011, arXiv 0909.4061; the tangent space as
in MoFaSGD, Mahdavi et al. 2025, arXiv 2507.08091, whose error before truncation this one never
exceeds).

Householder QR throughout: through Gram matrices the factors lose their orthogonality over time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class LowRank(NamedTuple):
    """A matrix (m, n) of rank r, ``U diag(s) V^T``.

    Attributes:
      u: (m, r), orthonormal columns.
      s: (r,), not negative, falling.
      v: (n, r), orthonormal columns.
    """

    u: Array
    s: Array
    v: Array


def zero(m: int, n: int, rank: int, key: Array, dtype: Any = jnp.float32) -> LowRank:
    """The zero matrix, ready for :func:`averaged`.

    V is random, so that ``G V`` of the first step already is a sketch of G. U is zero: nothing is
    there yet that it should span.
    """
    v, _ = jnp.linalg.qr(jax.random.normal(key, (n, rank)))
    return LowRank(jnp.zeros((m, rank), dtype), jnp.zeros(rank, dtype), v.astype(dtype))


def pays(m: int, n: int, rank: int, probes: int) -> bool:
    """Whether factors are smaller than the matrix and the sketch is thinner than it."""
    return rank * (m + n + 1) < m * n and 2 * rank + probes < min(m, n)


def product(factors: LowRank) -> Array:
    """``U diag(s) V^T``, (m, n) float32."""
    u, s, v = _float32(factors)
    return _dot(u * s, v.T)


def truncated(matrix: Array, rank: int) -> LowRank:
    """The nearest matrix of rank r in the Frobenius norm (Eckart and Young), by a full SVD.

    Args:
      matrix: (m, n) float32.
      rank: r, at most min(m, n).
    """
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return LowRank(u[:, :rank], s[:rank], vt[:rank].T)


def averaged(mean: LowRank, gradient: Array, decay: Any, key: Array, probes: int = 2) -> LowRank:
    """``trunc_r(decay U S V^T + (1 - decay) G)`` by the warm range finder.

        Y = [U, G V, G Omega],  Q = qr(Y)             (m, 2r + p)
        B = decay Q^T U S V^T + (1 - decay) Q^T G     (2r + p, n),    then its SVD through a QR

    What is lost before truncation is ``(1 - decay) (I - Q Q^T) G (I - V V^T)``.

    Args:
      mean: the factors so far, of any float dtype.
      gradient: (m, n).
      decay: b in [0, 1).
      key: of the probes; a new one each step.
      probes: p, random directions a step.

    Returns:
      Factors in the dtypes of ``mean``; computed in float32.
    """
    rank = mean.s.size
    u, s, v = _float32(mean)
    gradient = gradient.astype(jnp.float32)
    probe = jax.random.normal(key, (gradient.shape[1], probes))
    sketch = _dot(gradient, jnp.concatenate([v, probe], axis=1))
    q, _ = jnp.linalg.qr(jnp.concatenate([u, sketch], axis=1))
    core = decay * _dot(_dot(q.T, u) * s, v.T) + (1 - decay) * _dot(q.T, gradient)
    basis, triangle = jnp.linalg.qr(core.T)
    left, values, right = jnp.linalg.svd(triangle.T)
    new = LowRank(_dot(q, left[:, :rank]), values[:rank], _dot(basis, right[:rank].T))
    return LowRank(*(part.astype(mean.u.dtype) for part in new))


def _dot(a: Array, b: Array) -> Array:
    # Accelerators round float32 products to fewer bits unless told otherwise.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _float32(factors: LowRank) -> LowRank:
    return LowRank(*(part.astype(jnp.float32) for part in factors))
