"""Gradient surgery: closed forms for two tasks, optimality for more, and what must not matter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sinewich_jax.core import surgery

KEY = jax.random.key(0)
METHODS = {
    "pcgrad": jax.jit(lambda gram: surgery.pcgrad(gram, KEY)),
    "cagrad": jax.jit(surgery.cagrad),
    "mgda": jax.jit(surgery.mgda),
    "imtl_g": jax.jit(surgery.imtl_g),
    "nash": jax.jit(surgery.nash),
    "aligned": jax.jit(surgery.aligned),
}
SUM_OF_EQUALS = {"pcgrad": 3, "cagrad": 1.5 / 1.25, "mgda": 1, "imtl_g": 1, "nash": 3**0.5}
"""What the coefficients of three equal unit gradients add up to."""


def random_gradients(seed: int, tasks: int, size: int = 12, spread: float = 1.0) -> np.ndarray:
    """(T, size): normal directions, lengths that differ by factors of up to 10**spread."""
    random = np.random.default_rng(seed)
    lengths = 10 ** random.uniform(-spread / 2, spread / 2, (tasks, 1))
    return (random.normal(size=(tasks, size)) * lengths).astype(np.float32)


seeds = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def gradients():
    return {"w": jnp.arange(12.0).reshape(3, 2, 2), "b": jnp.array([[1.0], [-2.0], [0.0]])}


def test_gram_and_combine_go_over_all_leaves(gradients):
    flat = np.concatenate([np.asarray(g).reshape(3, -1) for g in gradients.values()], axis=1)
    np.testing.assert_allclose(surgery.gram(gradients), flat @ flat.T)
    step = surgery.combine(jnp.array([1.0, -1.0, 0.5]), gradients)
    np.testing.assert_allclose(step["w"], [[0.0, 0.5], [1.0, 1.5]])
    np.testing.assert_allclose(step["b"], [3.0])


def test_gram_of_half_precision_is_summed_in_float32():
    leaf = jnp.full((2, 5000), 1.0, jnp.bfloat16)
    assert surgery.gram([leaf]).tolist() == [[5000.0, 5000.0], [5000.0, 5000.0]]


@pytest.mark.parametrize("name", METHODS)
def test_one_task_keeps_the_direction_of_its_gradient(name):
    (coefficient,) = METHODS[name](jnp.array([[4.0]]))
    assert np.isfinite(coefficient) and coefficient > 0


@pytest.mark.parametrize("name", SUM_OF_EQUALS)
def test_equal_tasks_share_equally_at_the_scale_of_the_paper(name):
    coefficients = METHODS[name](jnp.ones((3, 3)))
    np.testing.assert_allclose(coefficients.sum(), SUM_OF_EQUALS[name], rtol=1e-5)
    if name != "mgda":  # any point of the simplex is its answer
        np.testing.assert_allclose(coefficients, coefficients[0], rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_vanishing_gradients_give_finite_coefficients(name):
    for gram in (jnp.zeros((3, 3)), jnp.diag(jnp.array([1.0, 0.0, 2.0]))):
        assert np.isfinite(METHODS[name](gram)).all()


@given(seeds)
@settings(max_examples=30)
def test_pcgrad_of_two_tasks_is_the_closed_form(seed):
    a, b = random_gradients(seed, 2)
    dot = a @ b
    expected = [1.0, 1.0] if dot >= 0 else [1 - dot / (a @ a), 1 - dot / (b @ b)]
    found = METHODS["pcgrad"](jnp.array(np.stack([a, b]) @ np.stack([a, b]).T))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    step = found[0] * a + found[1] * b
    assert step @ a >= -1e-3 * (a @ a) and step @ b >= -1e-3 * (b @ b)


def test_pcgrad_equals_the_loop_of_the_paper():
    own = random_gradients(3, 4)
    keys = jax.random.split(KEY, 4)
    total = np.zeros(own.shape[1])
    for i in range(4):
        projected = own[i].astype(np.float64)
        for j in np.asarray(jax.random.permutation(keys[i], 4)):
            if j != i and (dot := projected @ own[j]) < 0:
                projected = projected - dot / (own[j] @ own[j]) * own[j]
        total += projected
    found = METHODS["pcgrad"](jnp.asarray(own @ own.T)) @ own
    np.testing.assert_allclose(found, total, rtol=1e-4, atol=1e-5)


@given(seeds)
@settings(max_examples=30)
def test_mgda_of_two_tasks_is_the_closed_form(seed):
    a, b = random_gradients(seed, 2).astype(np.float64)
    expected = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
    found = METHODS["mgda"](jnp.asarray(np.stack([a, b]) @ np.stack([a, b]).T, jnp.float32))
    np.testing.assert_allclose(found, [expected, 1 - expected], atol=1e-4)


@given(seeds, st.integers(3, 8))
@settings(max_examples=30)
def test_mgda_meets_the_conditions_of_optimality(seed, tasks):
    own = random_gradients(seed, tasks)
    found = np.asarray(METHODS["mgda"](jnp.asarray(own @ own.T)), np.float64)
    shortest = found @ own
    assert found.min() >= 0 and found.sum() == pytest.approx(1, abs=1e-5)
    # No task can be improved less than the common step improves all: g_t . d >= |d|^2.
    slack = 1e-4 * (own * own).sum(axis=1).max()
    assert (own @ shortest >= shortest @ shortest - slack).all()


@given(seeds, st.integers(2, 8))
@settings(max_examples=30)
def test_cagrad_does_best_for_the_worst_task_within_its_ball(seed, tasks):
    own, c = random_gradients(seed, tasks).astype(np.float64), 0.5
    found = (1 + c * c) * np.asarray(METHODS["cagrad"](jnp.asarray(own @ own.T, jnp.float32)))
    mean, step = own.mean(axis=0), found @ own
    radius = c * np.linalg.norm(mean)
    assert np.linalg.norm(step - mean) <= radius * (1 + 1e-3)
    # Weak duality: no step gains more for its worst task than the dual allows for any weights. The
    # step is best when its own weights reach that bound.
    weights = (found - 1 / tasks) / (found - 1 / tasks).sum()
    assert weights.min() >= -1e-3
    bound = weights @ own @ mean + radius * np.linalg.norm(weights @ own)
    assert (own @ step).min() == pytest.approx(bound, abs=1e-3 * (own * own).sum(axis=1).max())


def test_cagrad_without_a_ball_is_the_mean():
    own = random_gradients(0, 3)
    found = surgery.cagrad(jnp.asarray(own @ own.T), c=0.0)
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-6)


@given(seeds, st.integers(2, 6))
@settings(max_examples=30)
def test_imtl_g_projects_alike_on_all_directions(seed, tasks):
    own = random_gradients(seed, tasks).astype(np.float64)
    found = np.asarray(METHODS["imtl_g"](jnp.asarray(own @ own.T, jnp.float32)))
    projections = (found @ own) @ (own / np.linalg.norm(own, axis=1, keepdims=True)).T
    scale = np.linalg.norm(found[:, None] * own, axis=1).max()
    assert found.sum() == pytest.approx(1, abs=1e-4)
    assert np.ptp(projections) <= 1e-3 * scale


@given(seeds, st.integers(2, 8))
@settings(max_examples=30)
def test_nash_solves_its_equation(seed, tasks):
    own = random_gradients(seed, tasks).astype(np.float64)
    found = np.asarray(METHODS["nash"](jnp.asarray(own @ own.T, jnp.float32)), np.float64)
    assert (found > 0).all()
    np.testing.assert_allclose((own @ own.T) @ found * found, 1.0, atol=1e-3)


@example(921, 0.015625)
@given(seeds, st.floats(0.01, 100.0))
@settings(max_examples=30)
@pytest.mark.parametrize("name", ["imtl_g", "nash"])
def test_the_direction_does_not_change_when_a_loss_is_multiplied(name, seed, factor):
    own = random_gradients(seed, 3).astype(np.float64)
    scaled = own * np.array([[factor], [1.0], [1.0]])
    steps = [
        np.asarray(METHODS[name](jnp.asarray(g @ g.T, jnp.float32))) @ g for g in (own, scaled)
    ]
    one, other = (step / np.linalg.norm(step) for step in steps)
    # IMTL-G's coefficients add up to 1 whatever their signs, so that a factor may turn it round.
    sign = np.sign(one @ other) if name == "imtl_g" else 1
    np.testing.assert_allclose(one, sign * other, atol=2e-2)


def test_aligned_gives_all_components_the_smallest_length():
    own = random_gradients(1, 4).astype(np.float64)
    values, vectors = np.linalg.eigh(own @ own.T)
    balance = np.sqrt(values[0]) * vectors @ np.diag(values**-0.5) @ vectors.T
    np.testing.assert_allclose(
        METHODS["aligned"](jnp.asarray(own @ own.T, jnp.float32)), balance.sum(axis=1), rtol=1e-2
    )
    # What it adds up are T orthogonal vectors of that one length.
    moved = balance @ own
    np.testing.assert_allclose(moved @ moved.T, values[0] * np.eye(4), atol=1e-6 * values[-1])
    np.testing.assert_allclose(METHODS["aligned"](jnp.eye(4)), 1.0, rtol=1e-5)


def test_aligned_leaves_out_what_is_linearly_dependent():
    own = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    step = np.asarray(METHODS["aligned"](jnp.asarray(own @ own.T, jnp.float32))) @ own
    # Singular values sqrt 2 and 2: the second axis is cut to the length of the first.
    np.testing.assert_allclose(step, [2.0, np.sqrt(2.0)], rtol=1e-5)
