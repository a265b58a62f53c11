"""Factored curvature: its margins, its optimality, and what a saliency promises."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinewich_jax.core import curvature as curvatures


def squares(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, size=shape)


@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 2, 8), (1, 5)])
def test_the_dense_form_has_the_margins_of_what_was_kept(shape):
    full = squares(*shape)
    kept = curvatures.of_squares(full, factored=True)
    m, n = curvatures.matrix_shape(shape)
    assert kept.row.shape == (m,) and kept.col.shape == (n,)
    dense = curvatures.dense(kept, shape).reshape(m, n)
    np.testing.assert_allclose(dense.mean(axis=1), full.reshape(m, n).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(dense.mean(axis=0), full.reshape(m, n).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(curvatures.largest(kept), dense.max(), rtol=1e-12)


def test_a_matrix_of_rank_one_is_kept_exactly_however_its_axes_are_split():
    heads = squares(12, seed=1)[:, None, None] * squares(3, 5, seed=2)
    for rows in (0, 1):
        kept = curvatures.of_squares(heads if rows else heads[:1], rows, factored=True)
        shape = (12 if rows else 1, 3, 5)
        np.testing.assert_allclose(curvatures.dense(kept, shape), heads[: shape[0]], rtol=1e-12)


def test_it_is_the_closest_matrix_of_rank_one_in_generalised_divergence():
    full = squares(5, 7)
    kept = curvatures.of_squares(full, factored=True)

    def divergence(approximation: np.ndarray) -> float:
        return float(np.sum(full * np.log(full / approximation) - full + approximation))

    best = divergence(curvatures.dense(kept, full.shape))
    rng = np.random.default_rng(3)
    for _ in range(200):
        row = kept.row * np.exp(0.1 * rng.standard_normal(5))
        col = kept.col * np.exp(0.1 * rng.standard_normal(7))
        assert divergence(row[:, None] * col / kept.row.mean()) >= best


@pytest.mark.parametrize("factored", [True, False])
def test_scaling_is_linear_and_zeros_stay_zeros(factored):
    full = squares(4, 3)
    kept = curvatures.of_squares(full, factored=factored)
    twice = curvatures.dense(curvatures.scaled(kept, 2.0), full.shape)
    np.testing.assert_allclose(twice, 2 * curvatures.dense(kept, full.shape), rtol=1e-15)
    nothing = curvatures.of_squares(np.zeros((4, 3)), factored=factored)
    np.testing.assert_array_equal(curvatures.dense(nothing, (4, 3)), 0)
    assert curvatures.largest(nothing) == 0


def test_margins_of_tiny_gradients_do_not_underflow():
    full = np.full((4, 4), 1e-30, np.float32)
    kept = curvatures.of_squares(full, factored=True)
    np.testing.assert_allclose(curvatures.dense(kept, (4, 4)), full, rtol=1e-6)


def test_numpy_and_jax_agree():
    full = squares(6, 4).astype(np.float32)
    ours, theirs = (
        curvatures.saliency(array, curvatures.of_squares(array, factored=True))
        for array in (full, jnp.asarray(full))
    )
    assert isinstance(ours, np.ndarray) and not isinstance(theirs, np.ndarray)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@given(st.integers(0, 2**31))
def test_keeping_the_most_salient_loses_the_least(seed):
    """On a quadratic, no other mask of the same size raises the loss less (specification, T5)."""
    rng = np.random.default_rng(seed)
    delta, hessian = rng.standard_normal(8), rng.gamma(0.5, size=8)
    score = curvatures.saliency(delta, curvatures.Diagonal(hessian))
    best = min(sum(score[i] for i in dropped) for dropped in itertools.combinations(range(8), 5))
    np.testing.assert_allclose(np.sort(score)[:5].sum(), best, rtol=1e-12)
