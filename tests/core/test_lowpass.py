"""The Gaussian over the channel plane, against scipy.ndimage and its own arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from sinewich_jax.core import sine
from sinewich_jax.errors import SinewichError

lowpass = jax.jit(sine.gaussian_lowpass, static_argnums=(1, 2, 3), static_argnames="renormalise")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("padding", "mode"), [("zero", "constant"), ("reflect", "mirror")])
@pytest.mark.parametrize(("size", "sigma"), [(7, 1.0), (3, 0.5), (1, 1.0)])
@pytest.mark.parametrize("shape", [(3, 3, 10, 8), (1, 1, 4, 17)])
def test_equals_scipy_tap_by_tap(float64, padding, mode, size, sigma, shape):
    kernel = RNG.standard_normal(shape)
    taps = sine.gaussian_taps(size, sigma)
    expected = kernel
    for axis in (2, 3):
        expected = ndimage.correlate1d(expected, taps, axis=axis, mode=mode)
    filtered = lowpass(jnp.asarray(kernel), size, sigma, padding)
    np.testing.assert_allclose(filtered, expected, rtol=0, atol=1e-14)


def test_the_taps_are_those_of_the_paper():
    expected = [0.00443, 0.05401, 0.24204, 0.39905, 0.24204, 0.05401, 0.00443]
    np.testing.assert_allclose(sine.gaussian_taps(7, 1.0), expected, atol=5e-6)


def test_an_unordered_kernel_loses_the_energy_of_the_taps_and_renormalising_returns_it():
    kernel = jnp.asarray(RNG.standard_normal((1, 1, 600, 500)))
    norm = jnp.linalg.norm(kernel)
    assert jnp.linalg.norm(lowpass(kernel)) / norm == pytest.approx(0.2823, rel=0.02)
    again = lowpass(kernel, renormalise=True)
    assert jnp.linalg.norm(again) / norm == pytest.approx(1.0, rel=0.02)


def test_reflection_keeps_a_constant_and_zeros_darken_its_edge():
    kernel = jnp.ones((1, 1, 9, 9))
    np.testing.assert_allclose(lowpass(kernel, 7, 1.0, "reflect"), 1.0, rtol=1e-6)
    darkened = lowpass(kernel)[0, 0]
    assert darkened[4, 4] == pytest.approx(1.0, rel=1e-6)
    assert darkened[0, 0] == pytest.approx(float(sine.gaussian_taps(7, 1.0)[3:].sum()) ** 2, 1e-6)


def test_it_is_linear_and_its_own_transpose(float64):
    """Zero padding with symmetric taps is a symmetric operator, so gradients are blurred too."""
    x, y = (jnp.asarray(RNG.standard_normal((1, 1, 12, 9))) for _ in range(2))
    _, pullback = jax.vjp(lowpass, x)
    np.testing.assert_allclose(pullback(y)[0], lowpass(y), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("size", "sigma"), [(4, 1.0), (7, 0.0), (0, 1.0)])
def test_impossible_filters_are_refused(size, sigma):
    with pytest.raises(SinewichError, match="odd size and sigma > 0"):
        sine.gaussian_lowpass(jnp.ones((1, 1, 4, 4)), size, sigma)
    with pytest.raises(SinewichError, match="found 'edge'"):
        sine.gaussian_lowpass(jnp.ones((1, 1, 4, 4)), padding="edge")
