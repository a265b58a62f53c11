from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sinewich_jax.errors import ConfigError
from sinewich_jax.parallel import (
    abstract_with_shardings,
    make_mesh,
    sharding_tree,
    state_shardings,
    unsharded_fraction,
)

RULES = [("(.*/)?kernel", P(None, "model")), (".*", P())]


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=4, model=2)


def specs(tree):
    return jax.tree.map(lambda sharding: sharding.spec, tree)


def test_first_matching_rule_wins(mesh):
    tree = {"a": {"kernel": shape(3, 4), "bias": shape(4)}, "kernel": shape(2, 2)}
    rules = [("a/kernel", P(None, ("task", "model"))), *RULES]
    found = sharding_tree(tree, mesh, rules)
    assert specs(found) == {
        "a": {"kernel": P(None, ("task", "model")), "bias": P()},
        "kernel": P(None, "model"),
    }
    assert all(isinstance(leaf, NamedSharding) for leaf in jax.tree.leaves(found))


def test_a_rule_has_to_match_the_whole_path(mesh):
    with pytest.raises(ConfigError, match="no sharding rule matches leaf 'a/kernel'"):
        sharding_tree({"a": {"kernel": shape(2, 2)}}, mesh, [("kernel", P())])


def test_indivisible_dimension_is_an_error_that_names_everything(mesh):
    with pytest.raises(ConfigError) as error:
        sharding_tree({"a": {"kernel": shape(4, 3)}}, mesh, RULES)
    message = str(error.value)
    assert all(part in message for part in ("dimension 1", "'a/kernel'", "(4, 3)", "'model'", "2"))


def test_indivisible_dimension_may_be_replicated(mesh):
    rules = [(".*", P("data", "model"))]
    found = sharding_tree({"w": shape(8, 3)}, mesh, rules, on_indivisible="replicate")
    assert found["w"].spec == P("data", None)


def test_wrong_rules(mesh):
    with pytest.raises(ConfigError, match=r"'modle'.*did you mean 'model'"):
        sharding_tree({"w": shape(2)}, mesh, [(".*", P("modle"))])
    with pytest.raises(ConfigError, match=r"'w' has shape \(2,\).*2 dimensions"):
        sharding_tree({"w": shape(2)}, mesh, [(".*", P(None, "model"))])
    with pytest.raises(ConfigError, match="did you mean 'replicate'"):
        sharding_tree({"w": shape(2)}, mesh, RULES, on_indivisible="replicat")


def test_optimizer_moments_lie_where_their_parameter_lies(mesh):
    params = {"a": {"kernel": shape(6, 4), "bias": shape(4)}}
    target = abstract_with_shardings(params, sharding_tree(params, mesh, RULES))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = jax.eval_shape(tx.init, params)
    found = state_shardings(state, target, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    adam = found[1][0]
    assert specs(adam.mu) == specs(adam.nu) == {"a": {"kernel": P(None, "model"), "bias": P()}}
    assert adam.count.spec == P()
    # Also from a flat dict of paths.
    flat = {"a/kernel": target["a"]["kernel"], "a/bias": target["a"]["bias"]}
    assert state_shardings(state, flat, mesh) == found


def test_state_that_only_resembles_a_parameter_is_replicated(mesh):
    params = {"kernel": shape(6, 4), "a": {"kernel": shape(4, 8)}}
    target = abstract_with_shardings(params, sharding_tree(params, mesh, RULES))
    state = {
        "row": {"kernel": shape(6)},  # a factored statistic: same path, another shape
        "mu": {"a": {"kernel": shape(6, 4)}},  # the longest suffix, a/kernel, is its parameter
        "mykernel": shape(6, 4),  # a suffix of the text, but not of the path
        "nu": {"kernel": shape(6, 4, dtype=jnp.bfloat16)},
    }
    assert specs(state_shardings(state, target, mesh)) == {
        "row": {"kernel": P()},
        "mu": {"a": {"kernel": P()}},
        "mykernel": P(),
        "nu": {"kernel": P(None, "model")},
    }


def test_masked_and_partitioned_optimizers_keep_their_structure(mesh):
    params = {"a": shape(2, 2), "b": shape(2)}
    target = abstract_with_shardings(params, sharding_tree(params, mesh, [(".*", P("model"))]))
    tx = optax.partition({"x": optax.adam(1.0), "y": optax.sgd(1.0)}, {"a": "x", "b": "y"})
    state = jax.eval_shape(tx.init, params)
    found = state_shardings(state, target, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert {leaf.spec for leaf in jax.tree.leaves(found)} == {P(), P("model")}


def test_every_leaf_of_the_state_runs_on_the_mesh(mesh):
    params = {"kernel": np.ones((6, 4), np.float32)}
    shardings = sharding_tree(params, mesh, RULES)
    tx = optax.adam(0.1)
    target = abstract_with_shardings(params, shardings)
    states = state_shardings(jax.eval_shape(tx.init, params), target, mesh)
    placed = jax.device_put(params, shardings)
    state = jax.jit(tx.init, out_shardings=states)(placed)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(state))
    updates, _ = jax.jit(tx.update)(placed, state, placed)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)


def test_unsharded_fraction(mesh):
    tree = {"kernel": shape(8, 10), "bias": shape(20)}
    found = sharding_tree(tree, mesh, RULES)
    assert unsharded_fraction(found, tree, "model") == pytest.approx(20 / 100)
    assert unsharded_fraction(found, tree, "data") == 1.0
    assert unsharded_fraction({}, {}, "data") == 0.0


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    axes=st.permutations([None, "data", "model"]),
)
def test_fitted_specs_are_always_placeable(mesh, sizes, axes):
    spec = P(*axes[: len(sizes)])
    found = sharding_tree({"w": shape(*sizes)}, mesh, [("w", spec)], on_indivisible="replicate")
    local = found["w"].shard_shape(tuple(sizes))  # raises when a dimension does not divide
    parts = {None: 1, "data": 4, "model": 2}
    for size, axis, part in zip(sizes, spec, local, strict=True):
        assert part == (size // parts[axis] if size % parts[axis] == 0 else size)
