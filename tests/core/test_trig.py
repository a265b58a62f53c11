"""Our sine and cosine against NumPy's in float64: error, bounds, derivatives, exact zeros."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core import trig

PAIRS = [(trig.sin, np.sin), (trig.cos, np.cos)]


def points(limit, count=200_001):
    random = np.random.default_rng(0).uniform(-limit, limit, count).astype(np.float32)
    turns = np.arange(-int(limit), int(limit) + 1, max(1, int(limit) // 500)) * (np.pi / 4)
    near = turns[np.abs(turns) <= limit].astype(np.float32)
    around = [np.nextafter(near, np.float32(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([random, near, *around])


@pytest.mark.parametrize(("ours", "exact"), PAIRS)
@pytest.mark.parametrize("limit", [1e-3, 1.0, 10.0, 1e3, 1e4])
@pytest.mark.parametrize("compiled", [False, True])
def test_error_is_one_unit_in_the_last_place_of_one(ours, exact, limit, compiled):
    x = points(limit)
    value = np.asarray(jax.jit(ours)(x) if compiled else ours(x))
    assert value.dtype == np.float32
    assert np.abs(value.astype(np.float64) - exact(x.astype(np.float64))).max() <= 1.2e-7


@pytest.mark.parametrize(("ours", "_"), PAIRS)
def test_never_beyond_one_and_exact_at_zero(ours, _):
    bits = np.random.default_rng(1).integers(0, 2**32, 500_000, dtype=np.uint32)
    x = bits.view(np.float32)
    value = np.asarray(jax.jit(ours)(x[np.isfinite(x)]))
    assert np.abs(value).max() <= 1.0
    assert trig.sin(jnp.zeros(3)).tolist() == [0.0] * 3 and trig.cos(jnp.zeros(())) == 1.0


def test_small_arguments_keep_their_relative_precision():
    x = np.geomspace(1e-30, 1e-2, 1000).astype(np.float32)
    np.testing.assert_allclose(np.asarray(trig.sin(x)), np.sin(x.astype(np.float64)), rtol=1.2e-7)
    np.testing.assert_array_equal(np.asarray(trig.sin(-x)), -np.asarray(trig.sin(x)))


def test_derivatives_of_every_order():
    x = jnp.linspace(-7.0, 7.0, 101)
    for order, exact in enumerate([np.sin, np.cos, lambda t: -np.sin(t), lambda t: -np.cos(t)]):
        f = trig.sin
        for _ in range(order):
            f = jax.grad(f)
        np.testing.assert_allclose(jax.vmap(f)(x), exact(np.asarray(x, np.float64)), atol=2e-7)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(trig.cos))(x), -np.sin(np.asarray(x, np.float64)), atol=2e-7
    )
    assert jax.linearize(trig.sin, x)[1](jnp.ones_like(x)).shape == x.shape


def test_other_dtypes_take_the_library_functions():
    x = jnp.linspace(-3, 3, 7, dtype=jnp.bfloat16)
    assert trig.sin(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(trig.cos(x), np.float32), np.asarray(jnp.cos(x), np.float32)
    )
    assert np.isnan(np.asarray(trig.sin(jnp.array([jnp.nan, jnp.inf])))).all()
