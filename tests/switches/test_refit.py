from __future__ import annotations

import math

import numpy as np
import pytest

from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.switches import refit_head


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    expert = rng.normal(1.0, 2.0, (40, 6))
    switched = expert @ rng.normal(0, 0.5, (6, 6)) + rng.normal(0, 0.3, (40, 6)) - 0.7
    return rng.normal(size=(6, 3)), rng.normal(size=3), expert, switched


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_it_is_where_the_gradient_is_zero(case, strength):
    kernel, bias, expert, switched = case
    found, moved = (array.astype(np.float64) for array in refit_head(*case, strength=strength))
    left = switched @ found + moved - (expert @ kernel + bias)
    scale = strength * switched.var(axis=0).mean()
    by_kernel = switched.T @ left / len(left) + scale * (found - kernel)
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(by_kernel, 0, atol=1e-5 + 1e-6 * scale)  # of float32


def test_the_strongest_moves_the_bias_alone(case):
    kernel, bias, expert, switched = case
    found, moved = refit_head(*case, strength=math.inf)
    np.testing.assert_array_equal(found, np.float32(kernel))
    np.testing.assert_allclose(moved, bias - (switched - expert).mean(axis=0) @ kernel, rtol=1e-6)
    near, also = refit_head(*case, strength=1e9)
    np.testing.assert_allclose(near, found, atol=1e-6)
    np.testing.assert_allclose(also, moved, atol=1e-5)


def test_features_that_are_mixed_linearly_are_undone(case):
    """With as many inputs as it takes, and next to no pull towards the old head."""
    kernel, bias, expert, _ = case
    mix = np.random.default_rng(1).normal(size=(6, 6))
    switched = expert @ mix + 3
    found = refit_head(kernel, bias, expert, switched, strength=1e-9)
    np.testing.assert_allclose(switched @ found[0] + found[1], expert @ kernel + bias, atol=1e-3)


def test_nothing_changes_where_the_features_do_not(case):
    kernel, bias, expert, _ = case
    found = refit_head(kernel, bias, expert, expert)
    np.testing.assert_allclose(found[0], kernel, rtol=1e-6)
    np.testing.assert_allclose(found[1], bias, rtol=1e-5, atol=1e-6)
    assert {array.dtype for array in found} == {np.dtype(np.float32)}


def test_dead_features_leave_the_kernel(case):
    kernel, bias, expert, _ = case
    found, moved = refit_head(kernel, bias, expert, np.zeros_like(expert))
    np.testing.assert_array_equal(found, np.float32(kernel))
    np.testing.assert_allclose(moved, bias + expert.mean(axis=0) @ kernel, rtol=1e-6)


def test_what_is_refused(case):
    kernel, bias, expert, switched = case
    with pytest.raises(ConfigError, match="strength is 0; expected a number above 0"):
        refit_head(*case, strength=0)
    with pytest.raises(ConfigError, match="strength is nan"):
        refit_head(*case, strength=math.nan)
    with pytest.raises(DataError, match=r"shapes \(6, 3\) and \(2,\); expected"):
        refit_head(kernel, bias[:2], expert, switched)
    with pytest.raises(DataError, match=r"'switched' have shape \(40, 5\); expected \(N, 6\)"):
        refit_head(kernel, bias, expert, switched[:, :5])
    with pytest.raises(DataError, match="of at least two inputs"):
        refit_head(kernel, bias, expert[:1], switched[:1])
    with pytest.raises(DataError, match="40 rows of the expert's features and 39 of the switched"):
        refit_head(kernel, bias, expert, switched[:39])
    with pytest.raises(DataError, match="the head holds numbers that are not finite"):
        refit_head(kernel, bias + np.inf, expert, switched)
    with pytest.raises(DataError, match="'expert' reach beyond 3"):
        refit_head(kernel, bias, expert * 1e160, switched)
    with pytest.raises(DataError, match="numbers that float32 does not hold"):
        refit_head(kernel * 1e30, bias, expert * 1e30, switched)
    twice = np.repeat(switched[:, :1], 6, axis=1)
    with pytest.raises(ConfigError, match="at strength 1e-300 these inputs do not settle"):
        refit_head(kernel, bias, expert, twice, strength=1e-300)
    switched[3, 2] = np.nan
    with pytest.raises(DataError, match="'switched' hold numbers that are not finite"):
        refit_head(*case)
