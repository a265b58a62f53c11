"""Frequency switching against its definition: T-lin, -id, -bound, -vmap, -merge, -odd, -scale."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.core import clock, sine
from sinewich_jax.errors import SinewichError

OUT, IN, RANK = 12, 8, 3

# Compiled as a whole: operation by operation the compiler takes most of the test time.
awb_kernel = jax.jit(sine.awb_kernel)
modulate = jax.jit(sine.modulate, static_argnames="lowpass")
anchored = jax.jit(sine.anchored, static_argnames="lowpass")
anchor_factors = jax.jit(sine.anchor_factors, static_argnums=(1, 2, 3))
fold = jax.jit(sine.fold)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def factors(seed: int = 0) -> tuple[jax.Array, jax.Array]:
    return normal(OUT, RANK, seed=seed), normal(IN, RANK, seed=seed + 1)


@functools.partial(jax.jit, static_argnames="groups")
def conv(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def spatial_kernel(mode: str, size: int) -> jax.Array | None:
    if mode == "none":
        return None
    shape = (size, size, RANK) if mode == "depthwise" else (size, size, RANK, RANK)
    return normal(*shape, seed=7)


# --- the fused kernel ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["depthwise", "full"])
@pytest.mark.parametrize("size", sine.KERNEL_SIZES)
def test_awb_entries_are_the_written_sum(mode, size):
    up, down = (np.asarray(x) for x in factors())
    w = np.asarray(spatial_kernel(mode, size))
    dense = w if mode == "full" else np.einsum("uva,ab->uvba", w, np.eye(RANK))
    expected = np.zeros((size, size, IN, OUT))
    for a in range(RANK):
        for b in range(RANK):
            rank_one = np.outer(down[:, b], up[:, a])
            expected += dense[:, :, b, a][:, :, None, None] * rank_one
    kernel = awb_kernel(jnp.asarray(up), jnp.asarray(w), jnp.asarray(down))
    assert kernel.shape == (size, size, IN, OUT)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-5)


def test_awb_without_conv_is_one_by_one():
    up, down = factors()
    np.testing.assert_allclose(awb_kernel(up, None, down), (down @ up.T)[None, None], 1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_centre_tap_leaves_the_plain_product_in_the_middle(full):
    up, down = factors()
    kernel = awb_kernel(up, sine.centre_tap(5, RANK, full=full), down)
    np.testing.assert_allclose(kernel[2, 2], down @ up.T, rtol=1e-6)
    assert not np.any(np.delete(np.asarray(kernel).reshape(25, IN, OUT), 12, axis=0))


@pytest.mark.parametrize(("mode", "size"), [("none", 1), ("depthwise", 3), ("full", 5)])
def test_t_lin_the_fused_convolution_is_the_factored_path(float64, mode, size):
    """T-lin: sin(w M) / w -> M, and convolving with M is down, W, up, borders included."""
    up, down, w = *factors(), spatial_kernel(mode, size)
    kernel, x = awb_kernel(up, w, down), normal(2, 6, 7, IN, seed=3)
    omega = 1e-3
    slope = modulate(kernel, omega) / omega
    error = jnp.linalg.norm(slope - kernel) / jnp.linalg.norm(kernel)
    # The next term of the series is (omega M)^2 / 6, weighted by the entries themselves.
    assert error < omega**2 * jnp.max(kernel**2) / 6
    middle = x @ down
    if mode == "depthwise":
        middle = conv(middle, w[:, :, None, :], groups=RANK)
    elif mode == "full":
        middle = conv(middle, w)
    fused, factored = conv(x, kernel), middle @ up.T
    assert np.linalg.norm(fused - factored) <= 1e-14 * np.linalg.norm(factored)


# --- modulation ---------------------------------------------------------------------------------


def test_t_id_the_zero_start_is_the_frozen_network_and_its_frequencies_are_stuck():
    """T-id: exactly no change for every omega; no gradient to omega, some to the up factor."""
    up, down = sine.zero_factors(jax.random.key(0), OUT, IN, RANK)
    frozen, x = normal(IN, OUT, seed=2), normal(5, IN, seed=3)

    def network(up, omega):
        return x @ fold(frozen, modulate(awb_kernel(up, None, down), omega), 4.0)

    def loss(up, omega):
        return jnp.sum((network(up, omega) - 1.0) ** 2)

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    for omega in (0.5, 50.0, 150.0):
        assert jnp.array_equal(network(up, omega), x @ frozen)
        up_gradient, omega_gradient = gradients(up, omega)
        assert omega_gradient == 0.0
        assert jnp.max(jnp.abs(up_gradient)) > 1e-3
    assert jnp.max(jnp.abs(down)) <= IN**-0.5


@pytest.mark.parametrize("rank", [1, 2, RANK])
@pytest.mark.parametrize("lowpass", [None, sine.LowPass(), (3, 0.5)])
def test_t_id_the_anchored_start_is_the_frozen_network_bit_for_bit(rank, lowpass):
    """Exactly 0.0 under jit and vmap, with the factors fused into the same program."""

    def change(up, down, anchor_up, anchor_down, omega):
        kernel = awb_kernel(up, None, down)
        anchor = awb_kernel(anchor_up, None, anchor_down)
        return anchored(kernel, anchor, omega, 3.3, lowpass)

    start = anchor_factors(jax.random.key(1), OUT, IN, rank, std=2.0)
    again = anchor_factors(jax.random.key(1), OUT, IN, rank, std=2.0)
    omega = jnp.array([0.6, 1.0, 1.4, 50.0])
    changes = jax.jit(jax.vmap(change, (None,) * 4 + (0,)))(*start, *again, omega)
    assert changes.shape == (4, 1, 1, IN, OUT)
    assert not jnp.any(changes)


def test_the_anchored_start_moves_from_the_first_step(float64):
    kernel, omega = normal(1, 1, IN, OUT), 1.3
    direction = normal(1, 1, IN, OUT, seed=5)
    primal, tangent = jax.jvp(lambda m: anchored(m, kernel, omega, 2.0), (kernel,), (direction,))
    assert not jnp.any(primal)
    np.testing.assert_allclose(tangent, omega * jnp.cos(omega * kernel) * direction / 2, 1e-12)


@pytest.mark.parametrize("lowpass", [None, sine.LowPass(5, 0.8, "reflect", True)])
def test_anchored_is_the_difference_of_two_modulations(float64, lowpass):
    kernel, anchor = normal(3, 3, IN, OUT), normal(3, 3, IN, OUT, seed=1)
    difference = modulate(kernel, 2.1, 3.0, lowpass) - modulate(anchor, 2.1, 3.0, lowpass)
    changed = anchored(kernel, anchor, 2.1, 3.0, lowpass)
    np.testing.assert_allclose(changed, difference, rtol=0, atol=1e-14)


@settings(max_examples=30)
@given(
    omega=st.floats(-1e4, 1e4),
    size=st.floats(1e-3, 1e5),
    gain=st.floats(0.1, 100),
    lowpass=st.sampled_from([None, (7, 1.0), (3, 2.0, "reflect")]),
)
def test_t_bound_no_entry_exceeds_the_gain(omega, size, gain, lowpass):
    """T-bound: |M_t| <= 1 / gain whatever training does; averaging by a low-pass keeps it."""
    kernel = size * normal(1, 1, IN, OUT)
    assert jnp.max(jnp.abs(modulate(kernel, omega, gain, lowpass))) <= (1 + 1e-6) / gain


@pytest.mark.parametrize("lowpass", [None, (7, 1.0)])
def test_t_vmap_equals_a_loop_over_tasks(lowpass):
    """T-vmap: over (omega_t, x_t), the shared kernel un-batched."""
    kernel = awb_kernel(*factors()[:1], spatial_kernel("depthwise", 3), factors()[1])
    omega, streams = jnp.array([0.5, 1.0, 3.0]), normal(3, 2, 5, 5, IN, seed=9)

    def task(omega, x):
        return conv(x, modulate(kernel, omega, 2.0, lowpass))

    together = jax.jit(jax.vmap(task))(omega, streams)
    alone = np.stack([jax.jit(task)(w, x) for w, x in zip(omega, streams, strict=True)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_t_merge_one_task_becomes_plain_weights(float64, size):
    """T-merge: frozen(x) + scale * conv(x, M~_t) is one convolution with the folded kernel."""
    frozen, update = normal(IN, OUT), modulate(normal(size, size, IN, OUT), 2.0, gain=5.0)
    x, scale = normal(2, 6, 6, IN, seed=4), 4.0
    adapted = x @ frozen + scale * conv(x, update)
    folded = fold(frozen, update, scale)
    assert folded.shape == ((IN, OUT) if size == 1 else (size, size, IN, OUT))
    plain = x @ folded if size == 1 else conv(x, folded)
    np.testing.assert_allclose(plain, adapted, rtol=0, atol=1e-12)


def test_t_merge_a_small_update_sits_in_the_centre_of_a_large_kernel(float64):
    frozen, update = normal(5, 5, IN, OUT), normal(3, 3, IN, OUT, seed=1)
    x = normal(1, 6, 6, IN, seed=4)
    adapted = conv(x, frozen) + 0.5 * conv(x, update)
    np.testing.assert_allclose(conv(x, fold(frozen, update, 0.5)), adapted, atol=1e-12)


def test_t_odd_signs_of_factor_and_frequency_cancel():
    """T-odd: (A, omega) and (-A, -omega) are one kernel; omega and -omega are opposite ones."""
    up, down = factors()
    kernel = awb_kernel(up, None, down)
    mirrored = awb_kernel(-up, None, down)
    assert jnp.array_equal(modulate(kernel, 1.7), modulate(mirrored, -1.7))
    assert jnp.array_equal(modulate(kernel, 1.7), -modulate(kernel, -1.7))


@settings(max_examples=30)
@given(exponent=st.integers(-20, 20), omega=st.floats(0.1, 100))
def test_t_scale_only_the_product_of_frequency_and_kernel_counts(exponent, omega):
    """T-scale: (a omega, M / a) is the same kernel, bit for bit when a is a power of two."""
    kernel, a = normal(1, 1, IN, OUT), 2.0**exponent
    omega = jnp.float32(omega)
    assert jnp.array_equal(modulate(kernel / a, a * omega), modulate(kernel, omega))


def test_a_whole_period_changes_nothing(float64):
    kernel, omega = normal(1, 1, IN, OUT), 3.0
    shifted = kernel.at[0, 0, 2, 5].add(2 * np.pi / omega)
    np.testing.assert_allclose(modulate(shifted, omega), modulate(kernel, omega), atol=1e-14)


def test_narrow_factors_are_computed_in_float32():
    up, down = (x.astype(jnp.bfloat16) for x in factors())
    kernel = awb_kernel(up, None, down)
    assert kernel.dtype == jnp.float32
    assert modulate(kernel.astype(jnp.bfloat16), 100.0).dtype == jnp.float32
    exact = down.astype(jnp.float32) @ up.astype(jnp.float32).T
    np.testing.assert_allclose(kernel[0, 0], exact, rtol=1e-6)


# --- the starts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [0.5, 2.0, 4.0])
def test_the_anchor_has_the_modulation_index_asked_for(mu):
    up, down = anchor_factors(jax.random.key(3), 64, 48, 8, std=mu)
    omega = clock.spread_frequencies(4, scale=0.5)
    index = sine.modulation_index(awb_kernel(up, None, down), omega)
    assert np.mean(index) == pytest.approx(mu, rel=1e-5)
    np.testing.assert_allclose(index, mu * omega, rtol=1e-5)
    # Neither factor carries all of the size.
    assert 0.7 < np.std(up) / np.std(down) < 1.4


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "w", "down", "message"),
    [
        ((4, 2), None, (5, 3), r"up \(out, r\) and down \(in, r\), found \(4, 2\) and \(5, 3\)"),
        ((4, 2), (3, 3, 5), (5, 2), r"conv must be \(k, k, 2\) or \(k, k, 2, 2\)"),
        ((4, 2), (3, 1, 2), (5, 2), r"conv must be"),
        ((4, 2), (4, 4, 2), (5, 2), r"kernel size must be one of \(1, 3, 5, 7\), found 4"),
    ],
)
def test_factors_that_do_not_fit_are_named(up, w, down, message):
    with pytest.raises(SinewichError, match=message):
        sine.awb_kernel(jnp.zeros(up), None if w is None else jnp.zeros(w), jnp.zeros(down))


def test_other_bad_input_is_named():
    kernel = jnp.zeros((1, 1, IN, OUT))
    with pytest.raises(SinewichError, match=r"omega must be a scalar, found shape \(12,\)"):
        sine.modulate(kernel, jnp.ones(OUT))
    with pytest.raises(SinewichError, match="kernel and anchor need one shape"):
        sine.anchored(kernel, kernel[..., :3], 1.0)
    with pytest.raises(SinewichError, match="cannot fold"):
        sine.fold(jnp.zeros((OUT, IN)), kernel)
    with pytest.raises(SinewichError, match="kernel size"):
        sine.centre_tap(2, 4)
