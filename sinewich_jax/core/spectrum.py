"""Diagnostics of frequency switching: does the sine really give every task a kernel of its own?

Three questions, three numbers: is the sine bent at all (:func:`modulation_index`), do the tasks
point in different directions (:func:`kernel_cosine`), and is the kernel richer than its factors
(:func:`effective_rank`). For normal entries the second has a closed form, the ``_law`` functions.
All of it is also reachable as ``core.sine.<name>``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def at_least_float32(*arrays: jax.Array) -> jnp.dtype:
    """The common dtype of ``arrays``, widened to float32 where it is narrower."""
    return jnp.result_type(jnp.float32, *arrays)


def modulation_index(kernel: jax.Array, omega: jax.Array | float) -> jax.Array:
    """``mu_t = omega_t * std(M)``, in the shape of omega; below 0.1 the tasks share a direction."""
    return jnp.asarray(omega) * jnp.std(kernel.astype(at_least_float32(kernel)))


def kernel_cosine(kernels: jax.Array) -> jax.Array:
    """The cosine between every two of T kernels.

    Args:
      kernels: (T, ...), one kernel (or update) per task.

    Returns:
      (T, T); 0 in the row and column of a kernel that is all zero, which has no direction. It can
      be differentiated, to penalise tasks that run in parallel.
    """
    flat = kernels.astype(at_least_float32(kernels)).reshape(kernels.shape[0], -1)
    # Scaling by the largest entry first keeps the squares of tiny updates from underflowing.
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(flat), axis=1, keepdims=True))
    flat = flat / jnp.where(peak > 0, peak, 1)
    square = jnp.sum(flat**2, axis=1, keepdims=True)
    unit = flat / jnp.sqrt(jnp.where(square > 0, square, 1))
    return jnp.matmul(unit, unit.T, precision="highest")


def mean_pairwise_cosine(kernels: jax.Array) -> jax.Array:
    """The mean of :func:`kernel_cosine` over the pairs of different tasks; 0 for a single task."""
    cosine = kernel_cosine(kernels)
    pairs = max(cosine.size - len(cosine), 1)
    return jnp.sum(jnp.where(jnp.eye(len(cosine), dtype=bool), 0, cosine)) / pairs


def kernel_matrix(kernel: jax.Array) -> jax.Array:
    """A kernel (k, k, in, out) as the matrix (k * k * in, out) that it applies to a patch."""
    return kernel.reshape(-1, kernel.shape[-1])


def numeric_rank(matrix: jax.Array, rtol: float = 1e-6) -> jax.Array:
    """The number of singular values of (..., m, n) above ``rtol`` times the largest; int (...)."""
    values = jnp.linalg.svd(matrix, compute_uv=False)
    return jnp.sum(values > rtol * values[..., :1], axis=-1)


def effective_rank(matrix: jax.Array) -> jax.Array:
    """``exp(-sum p log p)``, p the singular values of (..., m, n) over their sum; 1 to min(m, n).

    Zero for a zero matrix. Source: Roy and Vetterli 2007.
    """
    values = jnp.linalg.svd(matrix, compute_uv=False)
    total = jnp.sum(values, axis=-1, keepdims=True)
    p = values / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1)
    return jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0)


def stable_rank(matrix: jax.Array) -> jax.Array:
    """``|M|_F^2 / |M|_2^2`` of (..., m, n), 1 to the rank; zero for a zero matrix."""
    values = jnp.linalg.svd(matrix, compute_uv=False)
    largest = jnp.where(values[..., :1] > 0, values[..., :1], 1)
    return jnp.sum((values / largest) ** 2, axis=-1)


def gaussian_cosine_law(
    sigma: float | jax.Array, w1: float | jax.Array, w2: float | jax.Array
) -> jax.Array:
    """The expected cosine of ``sin(w1 M)`` and ``sin(w2 M)`` for entries of M from N(0, sigma^2).

        cos = exp(-sigma^2 (w1 - w2)^2 / 2) E(w1 w2) / sqrt(E(w1^2) E(w2^2)),
        E(x) = 1 - exp(-2 sigma^2 x)

    It tends to 1 as ``sigma * w`` tends to 0, the collapse. Arguments broadcast; none may be zero.
    """
    sigma, w1, w2 = (jnp.asarray(x) for x in (sigma, w1, w2))
    shared, first, second = (-jnp.expm1(-2 * sigma**2 * x) for x in (w1 * w2, w1**2, w2**2))
    return jnp.exp(-((sigma * (w1 - w2)) ** 2) / 2) * shared / jnp.sqrt(first * second)


def gaussian_update_cosine_law(
    sigma: float | jax.Array, w1: float | jax.Array, w2: float | jax.Array
) -> jax.Array:
    """The same law for the first updates of the anchored start, ``cos(w_t M_0) * dM``.

    cos = exp(-sigma^2 (w1 - w2)^2 / 2) C(w1 w2) / sqrt(C(w1^2) C(w2^2)),
    C(x) = 1 + exp(-2 sigma^2 x)
    """
    sigma, w1, w2 = (jnp.asarray(x) for x in (sigma, w1, w2))
    shared, first, second = (1 + jnp.exp(-2 * sigma**2 * x) for x in (w1 * w2, w1**2, w2**2))
    return jnp.exp(-((sigma * (w1 - w2)) ** 2) / 2) * shared / jnp.sqrt(first * second)
