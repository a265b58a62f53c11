"""The tracker: it changes no update, records what it should, and its statistics come out again."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import sinewich_jax as sj
from sinewich_jax import optim
from sinewich_jax.core.curvature import Diagonal, Factored, of_squares
from sinewich_jax.errors import ConfigError
from tests.optim.helpers import difference, normal, over, take, tree

PARAMS = tree(seed=10)
GRADS = tree(4, seed=20)
FIRST = take(GRADS, 0)


def tracker(inner=None, **options):
    inner = optax.adamw(1e-2) if inner is None else inner
    return optim.with_merge_stats(inner, **{"decay": 0.9, "min_dim_to_factor": 8, **options})


def expected(grads, decay=0.9):
    """What should be exported after gradients [steps, ...]."""
    weights = decay ** np.arange(len(grads["b"]) - 1, -1, -1.0)
    averages = jax.tree.map(
        lambda g: np.tensordot(weights / weights.sum(), np.square(np.asarray(g, np.float64)), 1),
        grads,
    )
    return {k: of_squares(v, factored=k == "w") for k, v in averages.items()}


@pytest.mark.parametrize("options", [{}, {"stats_every": 2, "saliency": "trajectory"}], ids=str)
def test_updates_are_those_of_the_inner_optimizer_bit_for_bit(options):
    inner = optax.adamw(1e-2)
    tx = tracker(inner, **options)
    (bare, kept), steps = (inner.init(PARAMS), tx.init(PARAMS)), (inner.update, tx.update)
    alone, beside = (jax.jit(step) for step in steps)
    for step in range(4):
        grads = take(GRADS, step)
        expected_updates, bare = alone(grads, bare, PARAMS)
        updates, kept = beside(grads, kept, PARAMS)
        chex.assert_trees_all_equal((updates, kept.inner), (expected_updates, bare))
    assert kept.count == 4


def test_the_record_is_that_of_the_pure_functions():
    _, state, _ = over(tracker(), PARAMS, GRADS)
    assert state.count == 4 and state.weight == pytest.approx(1 - 0.9**4)
    assert difference(optim.export_stats(state), expected(GRADS)) < 1e-6


def test_merging_takes_what_is_exported():
    _, state, _ = over(tracker(mask=lambda p: {k: k != "s" for k in p}), PARAMS, GRADS)
    stats = optim.export_stats((optax.EmptyState(), {"deep": state}))
    assert sorted(stats) == ["b", "q", "w"]
    assert isinstance(stats["w"], Factored) and isinstance(stats["b"], Diagonal)
    assert isinstance(state.curv["s"], optax.MaskedNode)
    nested = tracker(optax.identity())
    params = {"body": [PARAMS["w"], {"b": PARAMS["b"]}]}
    _, state = nested.update(params, nested.init(params), params)
    assert set(sj.core.trees.flatten_paths(optim.export_stats(state))) == {
        "body/0/row", "body/0/col", "body/1/b/diag"}  # fmt: skip


def test_other_gradients_and_squares_can_be_recorded():
    tx = tracker(optax.sgd(0.1))
    state = tx.init(PARAMS)
    doubled = jax.tree.map(lambda g: 2 * g, FIRST)
    update = jax.jit(tx.update)
    updates, raw = update(FIRST, state, PARAMS, merge_grads=doubled)
    np.testing.assert_allclose(updates["b"], -0.1 * FIRST["b"], rtol=1e-6)
    squares = jax.tree.map(jnp.square, doubled)
    _, given = update(FIRST, state, PARAMS, merge_sq=squares)
    chex.assert_trees_all_close(raw.curv, given.curv)
    np.testing.assert_allclose(optim.export_stats(raw)["b"].diag, 4 * FIRST["b"] ** 2, rtol=1e-5)
    with pytest.raises(ConfigError, match="leave merge_grads out"):
        tx.update(FIRST, state, PARAMS, merge_sq=squares, merge_grads=FIRST)


def test_other_keywords_reach_the_inner_optimizer():
    def update(grads, state, params=None, *, value, **extra):
        assert not extra
        return jax.tree.map(lambda g: value * g, grads), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = optax.chain(tracker(inner), optax.scale(-1.0))
    updates, state = tx.update(FIRST, tx.init(PARAMS), PARAMS, value=3.0, merge_grads=FIRST)
    np.testing.assert_allclose(updates["b"], -3 * FIRST["b"])
    assert optim.export_stats(state)["w"].row.shape == (12,)


FOLLOWING = tracker(optax.sgd(0.1), saliency="trajectory")
FOLLOWING_UPDATE = jax.jit(FOLLOWING.update)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_gradient_that_is_not_finite_leaves_no_trace(bad):
    _, state = FOLLOWING_UPDATE(FIRST, FOLLOWING.init(PARAMS), PARAMS)
    broken = {**FIRST, "b": FIRST["b"].at[0].set(bad)}
    updates, after = FOLLOWING_UPDATE(broken, state, PARAMS)
    chex.assert_trees_all_equal(after._replace(inner=None), state._replace(inner=None))
    assert not np.isfinite(updates["b"][0]) or bad == 1e30


def test_recording_every_second_step():
    _, state, _ = over(tracker(stats_every=2), PARAMS, GRADS)
    assert state.count == 4
    every_second = take(GRADS, slice(None, None, 2))
    assert difference(optim.export_stats(state), expected(every_second)) < 1e-6
    seen = []
    tx = tracker(stats_every=2, decay=lambda n: (seen.append(n), 1 - 1 / (n + 1))[1])
    broken = jax.tree.map(lambda g: g.at[2].set(jnp.nan), GRADS)
    _, state, _ = over(tx, PARAMS, broken)
    assert seen and state.count == 3  # the broken third step is made up for by the fourth
    mean = (GRADS["b"][0] ** 2 + GRADS["b"][3] ** 2) / 2
    np.testing.assert_allclose(optim.export_stats(state)["b"].diag, mean, rtol=1e-5)


def test_saliency_along_the_way():
    tx = tracker(optax.sgd(0.1), saliency="trajectory", saliency_decay=0.5)
    _, state, updates = over(tx, PARAMS, GRADS)
    weights, total, count = PARAMS["b"], 0.0, 0.0
    for step in range(4):
        curvature = expected(take(GRADS, slice(step + 1)))["b"].diag
        weights = weights + updates["b"][step]
        total = 0.5 * total + 0.5 * (weights - PARAMS["b"]) ** 2 * curvature
        count = 0.5 * count + 0.5
    found = optim.export_saliency(state)
    np.testing.assert_allclose(found["b"], total / count, rtol=1e-4)
    assert found["w"].shape == (12, 10)
    chex.assert_trees_all_equal(state.anchor, PARAMS)
    own = jax.tree.map(jnp.zeros_like, PARAMS)
    state = tracker(saliency="trajectory", anchor=own, anchor_dtype=jnp.bfloat16).init(PARAMS)
    assert state.anchor["w"].dtype == jnp.bfloat16 and not state.anchor["w"].any()


def test_half_precision_parameters_have_float32_statistics():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, GRADS))
    tx = tracker(saliency="trajectory")
    params, state, updates = over(tx, *half)
    assert {x.dtype for x in jax.tree.leaves((params, updates))} == {jnp.dtype("bfloat16")}
    kept = jax.tree.leaves((state.curv, state.saliency, state.weight))
    assert {x.dtype for x in kept} == {jnp.dtype("float32")}
    assert difference(optim.export_stats(state), expected(GRADS)) < 1e-2


def test_tasks_under_vmap_are_a_loop_over_tasks():
    tx = tracker(saliency="trajectory", stats_every=2)
    grads = jax.tree.map(lambda g: np.stack([g, 2 * g, -g]), jax.tree.map(np.asarray, GRADS))
    params = jax.tree.map(lambda p: jnp.asarray(np.stack([p, p, p])), PARAMS)
    state = jax.jit(jax.vmap(tx.init))(params)
    update = jax.jit(jax.vmap(tx.update))
    for step in range(2):
        _, state = update(take(grads, slice(None), step), state, params)
    stats = optim.export_stats(state)
    assert stats["w"].row.shape == (3, 12) and stats["s"].diag.shape == (3,)
    for task, scale in enumerate((1, 2, -1)):
        own = jax.tree.map(lambda g, by=scale: by * np.asarray(g)[:1], GRADS)
        assert difference(take(stats, task), expected(own)) < 1e-6


def test_shards_make_no_difference():
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    place = {"w": ("model",), "q": ("model",), "b": (), "s": ()}
    shardings = {k: NamedSharding(mesh, PartitionSpec(*axes)) for k, axes in place.items()}
    tx = tracker()
    grads, params = jax.device_put((FIRST, PARAMS), (shardings, shardings))
    _, state = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    assert difference(optim.export_stats(state), expected(take(GRADS, slice(1)))) < 1e-6
    assert state.curv["w"].row.sharding.spec == PartitionSpec("model")


def test_splitting_the_batch_over_devices_makes_no_difference():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"w": PARAMS["w"]}
    batch = normal(8, 12), normal(8, 10, seed=1)
    tx = tracker(optax.sgd(0.1))

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(lambda p: jnp.square(x @ p["w"] - y).sum(-1).mean())(params)
        return tx.update(grads, state, params)[1]

    single = optim.export_stats(step(params, tx.init(params), *batch))
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    assert difference(optim.export_stats(step(params, tx.init(params), *split)), single) < 1e-6


def test_inside_and_outside_of_multi_steps():
    pairs = jax.tree.map(lambda g: np.reshape(g, (2, 2, *g.shape[1:])), GRADS)
    inside = optax.MultiSteps(tracker(), every_k_schedule=2)
    _, state, _ = over(inside, PARAMS, GRADS)
    means = jax.tree.map(lambda g: g.mean(axis=1), pairs)
    assert difference(optim.export_stats(state), expected(means)) < 1e-6
    outside = tracker(optax.MultiSteps(optax.adamw(1e-2), every_k_schedule=2))
    _, state, _ = over(outside, PARAMS, GRADS)
    assert difference(optim.export_stats(state), expected(GRADS)) < 1e-6


def test_two_groups_of_parameters():
    labels = {"w": "a", "q": "a", "b": "b", "s": "b"}
    tx = optax.partition({"a": tracker(), "b": tracker(optax.sgd(1.0))}, labels)
    state = tx.init(PARAMS)
    _, state = jax.jit(tx.update)(FIRST, state, PARAMS)
    assert difference(optim.export_stats(state), expected(take(GRADS, slice(1)))) < 1e-6
    with pytest.raises(ConfigError, match="two transformations keep statistics of 'q'"):
        optim.export_stats([state, state])


def test_state_and_parameters_can_be_donated():
    tx = tracker(saliency="trajectory")

    def step(params, state):
        updates, state = tx.update(FIRST, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, PARAMS)
    params, state = jax.jit(step, donate_argnums=(0, 1))(params, tx.init(params))
    chex.assert_trees_all_equal(state.anchor, PARAMS)


def test_the_state_survives_a_checkpoint(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = tracker(saliency="trajectory", mask=lambda p: {k: k != "s" for k in p})
    _, state, _ = over(tx, PARAMS, GRADS)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, PARAMS))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    chex.assert_trees_all_equal(restored, state)


def test_bad_input():
    state = tracker().init(PARAMS)
    with pytest.raises(ConfigError, match="no step with finite gradients has been recorded"):
        optim.export_stats(state)
    with pytest.raises(ConfigError, match="holds no merge statistics"):
        optim.export_stats(optax.adam(1e-3).init(PARAMS))
    with pytest.raises(ConfigError, match="holds no saliency"):
        optim.export_saliency(state)
    with pytest.raises(ConfigError, match=r"saliency is 'trajectry' \(did you mean 'trajectory'"):
        tracker(saliency="trajectry")
    with pytest.raises(ConfigError, match="decay is 1"):
        tracker(decay=1.0)
    with pytest.raises(ConfigError, match="stats_every is 0"):
        tracker(stats_every=0)
    with pytest.raises(ConfigError, match="only read with saliency"):
        tracker(anchor=PARAMS)
    follows = tracker(saliency="trajectory")
    with pytest.raises(ConfigError, match="needs update"):
        follows.update(FIRST, follows.init(PARAMS))
    wrong = tracker(saliency="trajectory", anchor={**PARAMS, "b": jnp.zeros(3)})
    with pytest.raises(ConfigError, match=r"anchor of 'b' has shape \(3,\); expected \(10,\)"):
        wrong.init(PARAMS)
    with pytest.raises(ConfigError, match="structure of the parameters"):
        tracker(optax.identity()).update({"w": FIRST["w"]}, state)


def test_only_statistics_go_through_the_branch_of_a_recording():
    # What a branch gives is copied at each step; with Adam's moments in it that took 5 % of a step.
    params = {"kernel": jnp.ones((64, 48)), "bias": jnp.ones(48)}
    tx = optim.with_merge_stats(optax.adam(1e-3), stats_every=10)
    state = tx.init(params)
    jaxpr = jax.make_jaxpr(tx.update)(params, state, params)
    (branch,) = [one for one in jaxpr.eqns if one.primitive.name == "cond"]
    assert sum(out.aval.size for out in branch.outvars) == 64 + 48 + 48 + 2
