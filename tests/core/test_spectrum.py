"""The two claims about the sine, rank and decorrelation: T-rank-1..4 and T-dec-1..5."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.core import sine

# Compiled once a shape: operation by operation the SVDs and gradients take most of the test time.
effective_rank = jax.jit(sine.effective_rank)
stable_rank = jax.jit(sine.stable_rank)
numeric_rank = jax.jit(sine.numeric_rank, static_argnames="rtol")
lowpass = jax.jit(sine.gaussian_lowpass)
kernel_cosine = jax.jit(sine.kernel_cosine)
mean_pairwise_cosine = jax.jit(sine.mean_pairwise_cosine)
task_kernels = jax.jit(jax.vmap(sine.modulate, (None, 0)))
task_changes = jax.jit(jax.vmap(sine.anchored, (None, None, 0)))


def low_rank(rows: int, columns: int, rank: int, seed: int = 0) -> np.ndarray:
    """A generic rank-r matrix with entries of unit variance, float64."""
    rng = np.random.default_rng(seed)
    product = rng.standard_normal((rows, rank)) @ rng.standard_normal((columns, rank)).T
    return product / product.std()


def sine_of(matrix: np.ndarray, omega: float) -> jax.Array:
    return sine.modulate(jnp.asarray(matrix)[None, None], omega)[0, 0]


# --- rank ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "count"), [(2, 6), (3, 13), (4, 24), (5, 40)])
def test_t_rank_1_the_cubic_term_adds_an_exact_number_of_directions(float64, rank, count):
    """Between O(w^2) and O(w^4) there are r + C(r + 2, 3) singular values."""
    assert count == rank + math.comb(rank + 2, 3)
    switched = sine_of(low_rank(160, 140, rank), 1e-2)
    assert numeric_rank(switched, rtol=1e-7) == count
    assert numeric_rank(switched, rtol=1e-3) == rank


@pytest.mark.parametrize(("rows", "columns", "rank"), [(128, 96, 4), (256, 128, 8)])
@pytest.mark.parametrize("index", [2.0, 5.0])
def test_t_rank_2_full_rank_from_modulation_index_two(float64, rows, columns, rank, index):
    matrix = low_rank(rows, columns, rank)
    assert numeric_rank(matrix) == rank
    assert sine.modulation_index(jnp.asarray(matrix), index) == pytest.approx(index)
    assert numeric_rank(sine_of(matrix, index), rtol=1e-6) == min(rows, columns)


def test_t_rank_3_rank_measures_grow_with_frequency_and_the_low_pass_lowers_them(float64):
    matrix = 0.93 * low_rank(128, 96, 4)
    omegas = (0.1, 0.5, 1, 2, 3, 5, 10)
    kernels = {omega: sine_of(matrix, omega) for omega in (0.001, *omegas)}
    effective = {omega: float(effective_rank(k)) for omega, k in kernels.items()}
    assert effective[0.001] == pytest.approx(4, abs=0.1)
    assert effective[3] > 5 * effective[0.001]
    stable = [float(stable_rank(kernels[omega])) for omega in omegas]
    assert all(later >= 0.98 * earlier for earlier, later in itertools.pairwise(stable))
    for omega in (0.001, *omegas):
        assert effective_rank(lowpass(kernels[omega])) < effective[omega]


def test_t_rank_4_the_sine_of_the_factors_keeps_their_rank(float64):
    """sin(A) . sin(W) . sin(B)^T is the wrong order."""
    rng = np.random.default_rng(1)
    up, down = rng.standard_normal((64, 4)), rng.standard_normal((48, 4))
    middle = rng.standard_normal((4, 4))
    wrong = np.sin(3 * up) @ np.sin(3 * middle) @ np.sin(3 * down).T
    assert numeric_rank(wrong) <= 4
    assert numeric_rank(sine_of(up @ middle @ down.T, 3.0)) == 48


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_rank_measures_of_equal_singular_values_are_their_number(float64, rank):
    rng = np.random.default_rng(2)
    left, _ = np.linalg.qr(rng.standard_normal((8, rank)))
    right, _ = np.linalg.qr(rng.standard_normal((7, rank)))
    matrix = jnp.asarray(2.5 * left @ right.T)
    for measure in (effective_rank, stable_rank, numeric_rank):
        assert measure(matrix) == pytest.approx(rank)
        np.testing.assert_allclose(measure(jnp.stack([matrix, 3 * matrix])), rank, rtol=1e-9)


def test_a_zero_matrix_has_rank_zero_by_every_measure():
    zero = jnp.zeros((5, 4))
    for measure in (effective_rank, stable_rank, numeric_rank):
        assert measure(zero) == 0


def test_a_kernel_as_a_matrix_keeps_its_output_channels():
    kernel = jnp.arange(3 * 3 * 4 * 5).reshape(3, 3, 4, 5)
    matrix = sine.kernel_matrix(kernel)
    assert matrix.shape == (36, 5)
    assert jnp.array_equal(matrix[4 * (3 * 1 + 2) + 3], kernel[1, 2, 3])


# --- decorrelation ------------------------------------------------------------------------------

PAIRS = [((1, 2), 0.6404), ((2, 3), 0.6066), ((5, 7), 0.1353), ((10, 13), 0.0111)]


def cosine(matrix: np.ndarray, w1: float, w2: float) -> float:
    kernels = task_kernels(jnp.asarray(matrix), jnp.array([w1, w2]))
    return float(kernel_cosine(kernels)[0, 1])


@pytest.mark.parametrize(("pair", "published"), PAIRS)
def test_t_dec_1_gaussian_entries_follow_the_law(float64, pair, published):
    matrix = np.random.default_rng(0).standard_normal((400, 400))
    assert float(sine.gaussian_cosine_law(1.0, *pair)) == pytest.approx(published, abs=5e-5)
    assert cosine(matrix, *pair) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("pair", [(5, 7), (10, 13)])
def test_t_dec_2_low_rank_entries_follow_it_nearly(float64, pair):
    matrix = low_rank(400, 400, 16)
    law = float(sine.gaussian_cosine_law(1.0, *pair))
    assert cosine(matrix, *pair) == pytest.approx(law, abs=0.05)


@pytest.mark.parametrize("pair", [(0.01, 0.02), (0.001, 0.05), (0.04, 0.05)])
def test_t_dec_3_below_index_005_every_pair_is_collinear(float64, pair):
    matrix = np.random.default_rng(0).standard_normal((100, 100))
    assert cosine(matrix, *pair) > 0.999
    assert sine.gaussian_cosine_law(1.0, *pair) > 0.999
    if pair == (0.01, 0.02):
        assert cosine(matrix, *pair) == pytest.approx(1.0, abs=5e-5)


def test_t_dec_4_uniform_entries_follow_a_sinc(float64):
    """With sinc(a x) in the place of exp(-sigma^2 x^2 / 2); such tasks can even oppose."""
    half_width = 1.0
    matrix = np.random.default_rng(0).uniform(-half_width, half_width, (400, 400))

    def law(w1: float, w2: float) -> float:
        def inner(p, q):
            return (
                np.sinc(half_width * (p - q) / np.pi) - np.sinc(half_width * (p + q) / np.pi)
            ) / 2

        return inner(w1, w2) / math.sqrt(inner(w1, w1) * inner(w2, w2))

    assert law(3, 5) == pytest.approx(0.315, abs=1e-3)
    assert cosine(matrix, 3, 5) == pytest.approx(law(3, 5), abs=0.01)
    assert law(3, 7) < -0.1
    assert cosine(matrix, 3, 7) == pytest.approx(law(3, 7), abs=0.01)


def test_t_dec_5_equal_frequencies_are_equal_kernels_and_distance_decorrelates():
    kernel = jnp.asarray(low_rank(32, 24, 4))[None, None]
    same = task_kernels(kernel, jnp.array([1.3, 1.3, 1.3]))
    assert jnp.array_equal(same[0], same[1])
    assert jnp.array_equal(same[0], same[2])
    distance = jnp.linspace(0, 5, 40)
    law = sine.gaussian_cosine_law(1.0, 3 - distance / 2, 3 + distance / 2)
    assert law[0] == pytest.approx(1.0)
    assert jnp.all(jnp.diff(law) < 0)


@settings(max_examples=100)
@given(sigma=st.floats(0.05, 5), w1=st.floats(0.1, 20), w2=st.floats(0.1, 20), a=st.floats(0.1, 10))
def test_the_law_is_symmetric_bounded_and_blind_to_the_gauge(sigma, w1, w2, a):
    law = sine.gaussian_cosine_law(sigma, w1, w2)
    assert 0 <= law <= 1 + 1e-5
    np.testing.assert_allclose(law, sine.gaussian_cosine_law(sigma, w2, w1), rtol=1e-4, atol=1e-6)
    gauged = sine.gaussian_cosine_law(sigma / a, a * w1, a * w2)
    np.testing.assert_allclose(law, gauged, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("index", "mean"), [(0.5, 0.99), (1.0, 0.88), (2.0, 0.66), (3.0, 0.47), (4.0, 0.32)]
)
def test_the_first_anchored_updates_follow_their_law(float64, index, mean):
    """The table of mean update cosines by mu, omega = linspace(0.6, 1.4, 4)."""
    omega = jnp.linspace(0.6, 1.4, 4)
    law = sine.gaussian_update_cosine_law(index, omega[:, None], omega[None, :])
    assert (jnp.sum(law) - 4) / 12 == pytest.approx(mean, abs=0.006)
    anchor, step = np.random.default_rng(0).standard_normal((2, 1, 1, 300, 300))
    anchor = jnp.asarray(index * anchor)
    updates = task_changes(anchor + 1e-4 * step, anchor, omega)
    np.testing.assert_allclose(kernel_cosine(updates), law, atol=0.02)
    assert mean_pairwise_cosine(updates) == pytest.approx(mean, abs=0.02)


# --- the cosine itself --------------------------------------------------------------------------


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-18, 15))
def test_cosines_do_not_depend_on_size(seed, exponent):
    kernels = jnp.asarray(np.random.default_rng(seed).standard_normal((3, 2, 5)), jnp.float32)
    matrix = kernel_cosine(kernels)
    flat = np.asarray(kernels, np.float64).reshape(3, -1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix, unit @ unit.T, atol=1e-6)
    np.testing.assert_allclose(kernel_cosine(10.0**exponent * kernels), matrix, atol=1e-5)


def test_a_kernel_of_zeros_has_no_direction_and_a_finite_gradient():
    kernels = jnp.stack([jnp.zeros((4, 3)), jnp.ones((4, 3))])
    expected = [[0.0, 0.0], [0.0, 1.0]]
    np.testing.assert_allclose(kernel_cosine(kernels), expected, rtol=1e-6)
    assert mean_pairwise_cosine(kernels) == 0
    assert jnp.all(jnp.isfinite(jax.jit(jax.grad(sine.mean_pairwise_cosine))(kernels)))


def test_the_mean_is_over_pairs_of_different_tasks():
    kernels = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert mean_pairwise_cosine(kernels) == pytest.approx(2 * math.sqrt(0.5) / 3)
    assert mean_pairwise_cosine(kernels[:1]) == 0


def test_the_cosine_can_be_penalised():
    """Going downhill in the mean cosine separates two nearly parallel tasks."""
    kernels = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6)) + np.zeros((2, 1)))
    kernels = kernels.at[0, 0].add(0.3)
    before, gradient = jax.jit(jax.value_and_grad(sine.mean_pairwise_cosine))(kernels)
    assert mean_pairwise_cosine(kernels - gradient) < before - 1e-3
