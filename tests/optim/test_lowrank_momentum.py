"""The warm range finder: exact where it says so, orthonormal for long, near the best elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.optim import lowrank_momentum as low
from sinewich_jax.optim.lowrank_momentum import LowRank
from tests.optim.helpers import difference, normal

M, N, RANK, B1 = 48, 80, 6, 0.9
KEYS = jax.random.split(jax.random.key(0), 400)


PRODUCT = jax.jit(low.product)


def some(seed=0):
    u, s, vt = np.linalg.svd(normal(M, N, seed=seed), full_matrices=False)
    return LowRank(u[:, :RANK], s[:RANK], vt[:RANK].T)


def best(matrix):
    """The nearest matrix of rank r, in double precision."""
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return (u[:, :RANK] * s[:RANK]) @ vt[:RANK]


def tangent(mean, seed=1):
    """A gradient in the tangent space of the matrices of rank r at ``mean``."""
    return normal(M, RANK, seed=seed) @ mean.v.T + mean.u @ normal(RANK, N, seed=seed + 1)


def orthogonality(mean):
    eye = np.eye(RANK)
    return max(np.abs(mean.u.T @ mean.u - eye).max(), np.abs(mean.v.T @ mean.v - eye).max())


@jax.jit
def mofasgd(mean, gradient, b1):
    """Momentum factorisation of MoFaSGD: the gradient projected to the tangent space."""
    u, s, v = mean
    left, right, core = gradient @ v, gradient.T @ u, u.T @ gradient @ v
    q, ru = jnp.linalg.qr(jnp.concatenate([u, left], axis=1))
    p, rv = jnp.linalg.qr(jnp.concatenate([v, right], axis=1))
    eye = jnp.eye(RANK)
    middle = jnp.block([[b1 * jnp.diag(s) - (1 - b1) * core, (1 - b1) * eye],
                        [(1 - b1) * eye, jnp.zeros((RANK, RANK))]])  # fmt: skip
    a, values, bt = jnp.linalg.svd(ru @ middle @ rv.T)
    return LowRank(q @ a[:, :RANK], values[:RANK], p @ bt[:RANK].T)


def over(mean, gradients, step=low.averaged):
    """Factors after each of the gradients, and the dense average."""

    @jax.jit
    def loop(mean, gradients, keys):
        def one(carry, item):
            mean, dense = carry
            gradient, key = item
            carry = step(mean, gradient, B1, key), B1 * dense + (1 - B1) * gradient
            return carry, carry

        start = mean, jnp.zeros((M, N))
        return jax.lax.scan(one, start, (gradients, keys))[1]

    return loop(mean, jnp.asarray(gradients), KEYS[: len(gradients)])


def errors(means, dense):
    """Relative distance of the factors and of the best ones from the dense average, each step."""
    products = jax.vmap(low.product)(means)
    size = np.linalg.norm(dense, axis=(1, 2))
    tails = np.linalg.svd(np.asarray(dense), compute_uv=False)[:, RANK:]
    return np.linalg.norm(products - dense, axis=(1, 2)) / size, np.linalg.norm(
        tails, axis=1
    ) / size


def test_a_full_svd_is_the_nearest_and_loses_the_tail():
    matrix = normal(M, N)
    kept = jax.jit(lambda x: low.product(low.truncated(x, RANK)))(matrix)
    lost = np.linalg.norm(matrix - kept) ** 2
    tail = (np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)[RANK:] ** 2).sum()
    assert abs(lost - tail) / np.linalg.norm(matrix) ** 2 <= 1e-6


@pytest.mark.parametrize("probes", [0, 2, 4])
def test_a_gradient_in_the_tangent_space_is_taken_exactly(probes):
    mean = some()
    gradient = tangent(mean)
    found = jax.jit(low.averaged, static_argnums=4)(mean, gradient, B1, KEYS[0], probes)
    dense = best(B1 * PRODUCT(mean) + (1 - B1) * gradient)
    assert difference(PRODUCT(found), dense) <= 1e-5
    assert (np.diff(found.s) <= 0).all() and (found.s >= 0).all()
    if probes == 0:
        assert difference(PRODUCT(mofasgd(mean, gradient, B1)), dense) <= 1e-5


def test_what_is_lost_before_truncation_is_less_than_by_the_tangent_projection():
    mean, gradient = some(), normal(M, N, seed=3)
    away = gradient - mean.u @ (mean.u.T @ gradient)
    away = away - (away @ mean.v) @ mean.v.T
    probe = gradient @ jax.random.normal(KEYS[0], (N, 2))
    q, _ = np.linalg.qr(np.concatenate([mean.u, gradient @ mean.v, probe], axis=1))
    outside = gradient - q @ (q.T @ gradient)
    assert np.linalg.norm(outside) < np.linalg.norm(away)


def test_a_cold_start_follows_gradients_of_small_rank_exactly():
    left, right = normal(M, 5), normal(5, N, seed=1)
    gradients = np.stack([left * normal(5, seed=k) @ right for k in range(2, 12)])
    means, dense = over(low.zero(M, N, RANK, KEYS[-1]), gradients)
    assert errors(means, dense)[0].max() <= 1e-5


def test_noisy_gradients_are_followed_nearly_as_well_as_can_be():
    left, right = normal(M, 5) / np.sqrt(M), normal(5, N, seed=1) / np.sqrt(N)
    rng = np.random.default_rng(2)
    core = rng.standard_normal((60, 5, 5)) + 3 * np.eye(5)
    noise = 0.3 * rng.standard_normal((60, M, N)) / np.sqrt(M * N)
    gradients = (left @ core @ right + noise).astype(np.float32)
    start = low.zero(M, N, RANK, KEYS[-1])
    found, ideal = errors(*over(start, gradients))
    assert found.mean() <= 1.05 * ideal.mean() + 1e-3
    projected = over(some(9)._replace(s=jnp.zeros(RANK)), gradients, _ancestor)
    assert found.mean() <= errors(*projected)[0].mean() + 1e-3


def _ancestor(mean, gradient, b1, key):
    return mofasgd(mean, gradient, b1)


def test_it_finds_a_new_subspace():
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((M, 10)))[0]
    right = np.linalg.qr(rng.standard_normal((N, 10)))[0]
    core = rng.standard_normal((120, 5, 5)) + 3 * np.eye(5)
    noise = 0.05 * rng.standard_normal((120, M, N)) / np.sqrt(M * N)
    parts = [left[:, k : k + 5] @ core[i] @ right[:, k : k + 5].T for k, i in
             ((0, slice(0, 60)), (5, slice(60, 120)))]  # fmt: skip
    gradients = (np.concatenate(parts) + noise).astype(np.float32)
    found, ideal = errors(*over(low.zero(M, N, RANK, KEYS[-1]), gradients))
    assert found[-1] <= 1.2 * ideal[-1] + 0.005


def test_factors_stay_orthonormal():
    means, _ = over(low.zero(M, N, RANK, KEYS[-1]), normal(300, M, N))
    assert orthogonality(jax.tree.map(lambda x: x[-1], means)) <= 1e-5


def test_a_dead_row_stays_all_but_dead_and_half_precision_is_kept():
    mean = low.zero(M, N, RANK, KEYS[0], jnp.bfloat16)
    assert jax.tree.map(lambda x: x.dtype, mean) == LowRank(*[jnp.dtype("bfloat16")] * 3)
    gradient = normal(M, N)
    gradient[7] = 0
    mean = jax.jit(low.averaged)(mean, gradient, B1, KEYS[1])
    assert mean.u.dtype == jnp.bfloat16
    assert np.abs(np.asarray(PRODUCT(mean))[7]).max() < 1e-6


def test_when_factors_pay():
    assert low.pays(96, 96, 32, 2) and not low.pays(64, 96, 32, 2)
    assert not low.pays(20, 20, 9, 2) and not low.pays(20, 20, 10, 0)
    mean = low.zero(M, N, RANK, KEYS[0])
    assert not low.product(mean).any()
    np.testing.assert_allclose(mean.v.T @ mean.v, np.eye(RANK), atol=1e-6)
