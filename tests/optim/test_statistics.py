"""Running curvature: linear, free of bias, of any scale, and the same however it is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.curvature import Diagonal, Factored
from sinewich_jax.errors import ConfigError
from sinewich_jax.optim import statistics
from tests.optim.helpers import difference, normal, take, tree

DECAY = 0.9


def averaged(grads, decay=DECAY, **options):
    """Debiased statistics of gradients [steps, ...], by a plain loop in one program."""
    options = {"min_dim_to_factor": 8, **options}

    @jax.jit
    def loop(grads):
        start = statistics.init_curvature(jax.tree.map(lambda x: x[0], grads), **options)

        def step(carry, item):
            count, grad = item
            now = decay(count) if callable(decay) else decay
            squares = jax.tree.map(jnp.square, grad)
            return statistics.update_curvature(*carry, squares, now), None

        steps = jnp.arange(jax.tree.leaves(grads)[0].shape[0])
        carry, _ = jax.lax.scan(step, (start, jnp.zeros(())), (steps, grads))
        return statistics.debiased(*carry)

    return loop(grads)


def test_which_leaves_are_kept_and_how():
    params = {
        "w": jnp.zeros((12, 10)),
        "q": jnp.zeros((12, 2, 6), jnp.bfloat16),
        "thin": jnp.zeros((100, 7)),
        "b": jnp.zeros(10),
        "s": jnp.zeros(()),
        "head": {"w": jnp.zeros((12, 12))},
        "step": jnp.zeros((), jnp.int32),
        "wave": jnp.zeros((9, 9), jnp.complex64),
    }
    mask = {name: name != "head" for name in params}
    rows = lambda path, leaf: 1 if path == "q" else leaf.ndim - 1  # noqa: E731
    kept = statistics.init_curvature(params, min_dim_to_factor=8, rows=rows, mask=mask)
    assert kept["w"].row.shape == (12,) and kept["w"].col.shape == (10,)
    assert kept["q"].row.shape == (12,) and kept["q"].col.shape == (12,)
    assert isinstance(kept["thin"], Diagonal) and isinstance(kept["b"], Diagonal)
    assert kept["s"].diag.shape == ()
    left_out = optax.MaskedNode()
    assert kept["head"] == {"w": left_out} and kept["step"] == kept["wave"] == left_out
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    assert statistics.init_curvature(params, mask=lambda p: False)["b"] == left_out
    assert statistics.init_curvature({}) == {}


def test_margins_are_those_of_the_dense_average():
    grads = tree(7)
    found = averaged(grads, rows=lambda path, leaf: 1)
    weights = (1 - DECAY) * DECAY ** np.arange(6, -1, -1.0)
    dense = jax.tree.map(lambda g: np.tensordot(weights / weights.sum(), np.square(g), 1), grads)
    for name in ("w", "q"):
        matrix = dense[name].reshape(12, -1)
        full = curvatures.dense(found[name], matrix.shape)
        for axis, margin in ((1, found[name].row), (0, found[name].col)):
            np.testing.assert_allclose(margin, matrix.mean(axis=axis), rtol=1e-6)
            np.testing.assert_allclose(full.mean(axis=axis), matrix.mean(axis=axis), rtol=1e-6)
    np.testing.assert_allclose(found["b"].diag, dense["b"], rtol=1e-6)


def test_a_second_moment_of_rank_one_is_exact():
    row, col = np.abs(normal(12)) + 0.1, np.abs(normal(10, seed=1)) + 0.1
    signs = np.sign(normal(9, 12, 10, seed=2))
    found = averaged({"w": jnp.asarray(signs * np.sqrt(np.outer(row, col)))})["w"]
    np.testing.assert_allclose(curvatures.dense(found, (12, 10)), np.outer(row, col), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 50])
@pytest.mark.parametrize("decay", [0.999, lambda n: 1 - 1 / (n + 1)], ids=["constant", "mean"])
def test_a_constant_gradient_gives_its_square(steps, decay):
    gradient = tree()
    gradient = jax.tree.map(np.asarray, gradient)
    found = averaged(jax.tree.map(lambda g: np.stack([g] * steps), gradient), decay)
    np.testing.assert_allclose(found["b"].diag, gradient["b"] ** 2, rtol=1e-5)
    np.testing.assert_allclose(found["w"].row, (gradient["w"] ** 2).mean(axis=1), rtol=1e-5)


def test_a_schedule_gives_the_plain_mean():
    grads = tree(11)
    found = averaged(grads, lambda n: 1 - 1 / (n + 1))
    np.testing.assert_allclose(found["b"].diag, np.square(grads["b"]).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["w"].col, np.square(grads["w"]).mean(axis=(0, 1)), rtol=1e-5)


def test_scale_and_order_of_the_entries():
    grads = tree(4)
    found = averaged(grads)
    for scale in (3.0, 1e-12):
        other = averaged(jax.tree.map(lambda g, by=scale: np.asarray(g) * np.float32(by), grads))
        for part in (lambda x: x["w"].row, lambda x: x["b"].diag):
            np.testing.assert_allclose(part(other), scale**2 * part(found), rtol=1e-5)
    order = np.random.default_rng(0).permutation(12)
    shuffled = averaged({**grads, "w": np.asarray(grads["w"])[:, order]})
    assert np.array_equal(shuffled["w"].row, np.asarray(found["w"].row)[order])
    np.testing.assert_allclose(shuffled["w"].col, found["w"].col, rtol=1e-6)


def test_vmap_over_tasks_is_a_loop_over_tasks():
    grads = tree(3)
    start = statistics.init_curvature(take(grads, 0), min_dim_to_factor=8)
    stacked = jax.tree.map(lambda x: np.stack([x + 1] * 3), jax.tree.map(np.asarray, start))

    def step(kept, grad):
        squares = jax.tree.map(jnp.square, grad)
        kept = statistics.update_curvature(kept, jnp.float32(0.5), squares, DECAY)
        return kept, statistics.debiased(*kept)

    kept, found = jax.jit(jax.vmap(step))(stacked, grads)
    assert difference(statistics.debiased(*kept), found) < 1e-6
    single = jax.jit(step)
    for task in range(3):
        _, alone = single(*take((stacked, grads), task))
        assert difference(take(found, task), alone) < 1e-6


def test_it_is_the_factored_second_moment_of_optax():
    grads = normal(5, 16, 24)
    reference = optax.scale_by_factored_rms(
        min_dim_size_to_factor=8, epsilon=0.0, decay_rate_fn=lambda step, rate: DECAY
    )
    params = {"w": jnp.zeros((16, 24))}
    state, step = reference.init(params), jax.jit(reference.update)
    curv, weight = statistics.init_curvature(params, min_dim_to_factor=8), jnp.zeros(())
    update = jax.jit(statistics.update_curvature)
    for grad in grads:
        _, state = step({"w": grad}, state, params)
        curv, weight = update(curv, weight, {"w": grad**2}, DECAY)
    np.testing.assert_allclose(curv["w"].row, state.v_row["w"], rtol=1e-6)
    np.testing.assert_allclose(curv["w"].col, state.v_col["w"], rtol=1e-6)
    assert weight == pytest.approx(1 - DECAY**5, rel=1e-6)


def test_squares_that_are_not_finite_change_nothing():
    curv, weight = Factored(jnp.ones(8), jnp.ones(9)), jnp.float32(0.5)
    update = jax.jit(statistics.update_curvature)
    for bad in (np.nan, np.inf):
        squares = np.ones((8, 9), np.float32)
        squares[2, 3] = bad
        after = update({"w": curv}, weight, {"w": squares}, DECAY)
        assert jax.tree.all(jax.tree.map(np.array_equal, after, ({"w": curv}, weight)))


def test_bad_input():
    params = {"w": jnp.zeros((8, 9)), "b": jnp.zeros(9)}
    kept = statistics.init_curvature(params, min_dim_to_factor=8)
    weight = jnp.zeros(())
    with pytest.raises(ConfigError, match="structure of the parameters"):
        statistics.update_curvature(kept, weight, {"w": jnp.zeros((8, 9))}, DECAY)
    for name, shape in (("w", (9, 9)), ("b", (1,))):
        squares = {**params, name: jnp.zeros(shape)}
        with pytest.raises(ConfigError, match="in the shape of the parameter"):
            statistics.update_curvature(kept, weight, squares, DECAY)
    with pytest.raises(ConfigError, match="3 leading axes of 'w'"):
        statistics.init_curvature(params, rows=lambda path, leaf: 3)
    with pytest.raises(ConfigError, match="prefix of the parameters"):
        statistics.init_curvature(params, mask={"w": True})
