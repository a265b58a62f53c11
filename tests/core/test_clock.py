"""The clock: bounded, spread at the start, and read back from its unconstrained parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.core import clock
from sinewich_jax.errors import ConfigError, SinewichError

TASKS, WIDTH = 4, 6
frequencies = jax.jit(clock.frequencies)


def read_out(seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((TASKS, WIDTH))), jnp.asarray(rng.standard_normal(WIDTH))


def test_frequencies_are_the_written_formula():
    tokens, weights = read_out()
    offset = clock.spread_offsets(TASKS)
    omega = frequencies(tokens, weights, 50.0, 2.0, offset)
    expected = [
        50 * (np.tanh(np.maximum(np.asarray(token), 0) @ np.asarray(weights) + o) + 2)
        for token, o in zip(tokens, np.asarray(offset), strict=True)
    ]
    np.testing.assert_allclose(omega, expected, rtol=1e-5)
    column = frequencies(tokens, weights[:, None], 50.0, 2.0, offset)
    assert jnp.array_equal(omega, column)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    size=st.floats(1e-3, 1e6),
    scale=st.floats(0.01, 100),
    shift=st.floats(1.01, 10),
)
def test_t_bound_frequencies_stay_in_their_interval(seed, size, scale, shift):
    """T-bound: s (c - 1) <= omega <= s (c + 1), strictly while the tanh is not saturated."""
    tokens, weights = read_out(seed)
    low, high = clock.bounds(scale, shift)
    slack = 1e-6 * high
    extreme = frequencies(size * tokens, weights, scale, shift)
    assert jnp.all((extreme >= low - slack) & (extreme <= high + slack))
    mild = frequencies(tokens, 0.1 * weights, scale, shift)
    assert jnp.all((mild > low) & (mild < high))


def test_a_silent_net_starts_the_tasks_evenly_spread():
    tokens, weights = jnp.zeros((TASKS, WIDTH)), jnp.ones(WIDTH)
    omega = frequencies(tokens, weights, 0.5, 2.0, clock.spread_offsets(TASKS))
    np.testing.assert_allclose(omega, np.linspace(0.6, 1.4, TASKS), rtol=1e-6)
    np.testing.assert_allclose(clock.spread_frequencies(TASKS, 0.5), omega, rtol=1e-6)
    np.testing.assert_allclose(clock.spread_frequencies(2, 50.0, extent=0.5), [75, 125], rtol=1e-6)


def test_a_single_task_sits_in_the_middle():
    assert clock.spread_offsets(1) == jnp.zeros(1)
    assert clock.spread_frequencies(1, 50.0) == jnp.array([100.0])


@settings(max_examples=60)
@given(value=st.floats(1e-3, 1e4))
def test_positive_parametrisations_are_inverted(value):
    raw = clock.positive_inverse(value)
    assert clock.positive(raw) == pytest.approx(value, rel=1e-5)
    assert clock.above_one(clock.above_one_inverse(1 + value)) == pytest.approx(1 + value, rel=1e-3)


@settings(max_examples=30)
@given(raw=st.floats(-30, 1e4))
def test_positive_parametrisations_keep_their_side(raw):
    assert clock.positive(jnp.float32(raw)) > 0
    assert clock.above_one(jnp.float32(raw)) >= 1


def test_gradients_reach_every_trainable_part():
    tokens, weights = read_out()

    def total(parts):
        scale, shift = clock.positive(parts["scale"]), clock.above_one(parts["shift"])
        omega = frequencies(parts["tokens"], parts["weights"], scale, shift)
        return jnp.sum(omega * jnp.arange(1, TASKS + 1))

    parts = {
        "tokens": tokens,
        "weights": 0.1 * weights,
        "scale": clock.positive_inverse(50.0),
        "shift": clock.above_one_inverse(2.0),
    }
    for gradient in jax.tree.leaves(jax.jit(jax.grad(total))(parts)):
        assert jnp.max(jnp.abs(gradient)) > 1e-3


@pytest.mark.parametrize(
    ("scope", "tables"),
    [("global", {"global"}), ("stage", {"stage0", "stage1"}), ("layer", {"a", "b", "c"})],
)
def test_a_scope_says_how_many_tables_there_are(scope, tables):
    layers = {"a": "stage0", "b": "stage0", "c": "stage1"}
    assigned = clock.assign_clocks(scope, layers)
    assert list(assigned) == list(layers)
    assert set(assigned.values()) == tables


def test_bad_input_is_named():
    with pytest.raises(
        ConfigError, match=r"unknown frequency scope 'layers' \(did you mean 'layer'"
    ):
        clock.assign_clocks("layers", {})
    with pytest.raises(SinewichError, match=r"found \(4, 6\) and \(5,\)"):
        clock.frequencies(read_out()[0], jnp.ones(5), 1.0, 2.0)
    with pytest.raises(SinewichError, match="at least one task and 0 <= extent < 1"):
        clock.spread_offsets(3, extent=1.0)
    with pytest.raises(SinewichError, match="at least one task"):
        clock.spread_offsets(0)
