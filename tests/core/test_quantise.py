"""Few-bit numbers and soft gates: bounds, lent gradients, the size as the entropy bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinewich_jax.core import quantise
from sinewich_jax.core.ternary import entropy_bits
from sinewich_jax.errors import ConfigError

MAGNITUDES = hnp.arrays(
    np.float32,
    st.integers(1, 30),
    elements=st.floats(0, 1000, width=32, allow_subnormal=False),
)
WIDTHS = (1, 2, 4, 8)


@pytest.mark.parametrize(("bits", "top"), [(1, 1), (2, 1), (3, 3), (4, 7), (8, 127)])
def test_the_top_level_is_what_the_bits_without_the_sign_can_count_to(bits, top):
    assert quantise.top_level(bits) == top


@pytest.mark.parametrize("bits", [0, 9, 2.0])
def test_a_width_that_does_not_exist_is_refused(bits):
    with pytest.raises(ConfigError, match="a whole number from 1 to 8"):
        quantise.top_level(bits)


@given(MAGNITUDES, st.sampled_from((2, 3, 4, 8)))
def test_the_error_is_at_most_half_a_step_and_the_largest_is_the_top_level(magnitudes, bits):
    step = quantise.step_size(magnitudes, bits)
    whole = quantise.levels(magnitudes, step, bits)
    np.testing.assert_array_equal(whole, np.rint(whole))
    assert whole.min() >= 0
    assert whole.max() == (quantise.top_level(bits) if magnitudes.max() > 0 else 0)
    assert np.all(np.abs(step * whole - magnitudes) <= step * (0.5 + 1e-5))


@given(MAGNITUDES)
def test_one_bit_is_the_sign_and_its_knob_the_mean(magnitudes):
    whole = quantise.levels(magnitudes, quantise.step_size(magnitudes, 1), 1)
    np.testing.assert_array_equal(whole, magnitudes > 0)
    mean = magnitudes[magnitudes > 0].mean() if magnitudes.any() else 0
    np.testing.assert_allclose(quantise.best_knob(magnitudes, whole), mean, rtol=1e-5)


@pytest.mark.parametrize("bits", WIDTHS)
def test_numpy_and_jax_agree(bits):
    magnitudes = np.random.default_rng(0).exponential(size=50).astype(np.float32)
    step = quantise.step_size(magnitudes, bits)
    on_jax = quantise.levels(jnp.asarray(magnitudes), jnp.asarray(step), bits)
    assert isinstance(on_jax, jax.Array)
    np.testing.assert_allclose(on_jax, quantise.levels(magnitudes, step, bits))
    np.testing.assert_allclose(quantise.step_size(jnp.asarray(magnitudes), bits), step, rtol=1e-6)


def test_only_what_is_kept_counts_for_the_step():
    magnitudes = np.float32([1, 2, 10])
    assert quantise.step_size(magnitudes, 4, magnitudes < 5) == pytest.approx(2 / 7)
    assert quantise.step_size(magnitudes, 4, magnitudes > 50) == 0


def test_levels_beyond_the_range_are_clipped():
    np.testing.assert_array_equal(
        quantise.levels(np.float32([0.4, 0.6, 5, 1e9]), np.float32(1), 3), [0, 1, 3, 3]
    )


def test_the_best_knob_cannot_be_improved():
    magnitudes = np.random.default_rng(0).exponential(size=200).astype(np.float32)
    whole = quantise.levels(magnitudes, np.float32(0.5), 3)

    def error(knob):
        return np.sum((magnitudes - knob * whole) ** 2)

    knob = quantise.best_knob(magnitudes, whole)
    assert error(knob) < min(error(0.99 * knob), error(1.01 * knob))
    two = quantise.best_knob(magnitudes, np.stack([whole, np.ones_like(whole)]), axis=1)
    np.testing.assert_allclose(two, [knob, magnitudes.mean()], rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantising_passes_gradients_inside_the_range_and_none_outside(bits):
    step, top = jnp.float32(0.25), quantise.top_level(bits)
    x = jnp.float32([0.1, -0.2, (top + 3) * 0.25, -(top + 3) * 0.25])
    value = quantise.quantise(x, step, bits)
    np.testing.assert_array_equal(
        value, jnp.sign(x) * step * quantise.levels(jnp.abs(x), step, bits)
    )
    slopes = jax.vmap(jax.grad(lambda x: quantise.quantise(x, step, bits)))(x)
    np.testing.assert_array_equal(slopes, [1, 1, 0, 0])
    by_step = jax.jacobian(lambda step: quantise.quantise(x, step, bits))(step)
    inside = value[:2] / step - x[:2] / step  # learned step sizes, equation 3
    np.testing.assert_allclose(by_step, [*inside, top, -top], rtol=1e-6)


def test_a_straight_through_value_is_exact_and_its_gradient_is_the_soft_one():
    def lent(x):
        return quantise.straight_through(jnp.round(x), jnp.tanh(x))

    x = jnp.float32(0.7)
    assert lent(x) == 1
    np.testing.assert_allclose(jax.grad(lent)(x), 1 - jnp.tanh(x) ** 2, rtol=1e-6)


def test_the_hard_gate_is_hard_and_learns_like_the_soft_one():
    magnitudes = jnp.float32([0.5, 0.99, 1.01, 3])
    np.testing.assert_array_equal(quantise.hard_gate(magnitudes, 1.0, 0.3), [0, 0, 1, 1])
    hard = jax.jacobian(lambda t: quantise.hard_gate(magnitudes, t, 0.3))(1.0)
    soft = jax.jacobian(lambda t: quantise.soft_gate(magnitudes, t, 0.3))(1.0)
    np.testing.assert_array_equal(hard, soft)
    assert np.all(hard < 0)  # a higher threshold keeps less
    expected = 1 / (1 + np.exp(-(np.asarray(magnitudes) - 1) / 0.3))
    np.testing.assert_allclose(quantise.soft_gate(magnitudes, 1.0, 0.3), expected, rtol=1e-5)


def test_a_cold_gate_does_not_overflow():
    gate = quantise.soft_gate(jnp.float32([0, 1e6]), 1.0, 1e-6)
    np.testing.assert_array_equal(gate, [0, 1])


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from(WIDTHS))
def test_the_size_is_the_entropy_bound(n, share, bits):
    count = round(share * n)
    bound = entropy_bits(n, count, bits)
    assert n * quantise.size(np.float64(count / n), bits) == pytest.approx(bound, rel=1e-9)


def test_the_size_has_finite_gradients_at_the_ends():
    slopes = jax.vmap(jax.grad(quantise.size), (0, None))(jnp.float32([0, 0.5, 1]), 3.0)
    np.testing.assert_allclose(slopes, [3, 3, 3], atol=1e-6)
