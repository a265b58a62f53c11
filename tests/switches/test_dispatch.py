from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.switches.apply import apply_switch, merge_switches
from sinewich_jax.switches.dispatch import Dispatcher, group_routes, padded_size
from sinewich_jax.switches.make import make_switch
from sinewich_jax.switches.queries import QuerySet
from sinewich_jax.switches.router import Router

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal((4, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
    deltas = {
        name: jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), base)
        for name in NAMES
    }
    return base, {name: make_switch(delta, alpha=0.5) for name, delta in deltas.items()}


def network(tree, inputs):
    return {"y": inputs["x"] @ tree["w"] + tree["b"]}


def batch(size: int, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((size, 4)).astype(np.float32)}


def one_by_one(model, inputs, weights):
    base, switches = model
    trees = [merge_switches(base, switches, row) for row in weights]
    return np.stack([x @ t["w"] + t["b"] for x, t in zip(inputs["x"], trees, strict=True)])


@pytest.mark.parametrize("strategy", ["group", "vmap"])
@pytest.mark.parametrize("library", [np, jnp])
def test_samples_come_back_in_their_order_with_their_own_weights(model, strategy, library):
    base, switches = model
    weights = np.float32(np.random.default_rng(2).integers(0, 3, (11, 3))) / 10
    dispatcher = Dispatcher(jax.jit(network), base, switches, strategy=strategy)
    inputs = batch(11)
    found = dispatcher(jax.tree.map(library.asarray, inputs), library.asarray(weights))
    expected = one_by_one(model, inputs, weights)
    np.testing.assert_allclose(found.outputs["y"], expected, rtol=1e-4, atol=1e-5)
    assert isinstance(found.outputs["y"], np.ndarray)
    assert found.trees == len(np.unique(weights, axis=0))


def test_numpy_models_need_no_jax_arrays(model):
    base, switches = model
    seen = []

    def plain(tree, inputs):
        seen.append((type(tree["w"]), len(inputs["x"])))
        return network(tree, inputs)

    weights = np.float32([[1, 0, 0]] * 3 + [[0, 0, 0]] * 2)
    found = Dispatcher(plain, base, switches)(batch(5), weights)
    assert sorted(seen, key=lambda s: s[1]) == [(np.ndarray, 2), (np.ndarray, 4)]  # 3 are padded
    own = apply_switch(base, switches["a"])
    np.testing.assert_array_equal(found.outputs["y"][:3], (batch(5)["x"] @ own["w"] + own["b"])[:3])
    plainly = batch(5)["x"] @ base["w"] + base["b"]
    np.testing.assert_allclose(found.outputs["y"][3:], plainly[3:], rtol=1e-6)
    assert (found.trees, found.merged, found.hits) == (2, 1, 0)
    assert found.multiplier == pytest.approx(6 / 5)


def test_merged_trees_are_kept_while_they_are_in_use(model):
    base, switches = model
    dispatcher = Dispatcher(network, base, switches, cache=2)
    a, b, c = np.eye(3, dtype=np.float32)

    def call(*rows):
        found = dispatcher(batch(len(rows)), np.stack(rows))
        return found.merged, found.hits

    assert call(a, b, a) == (2, 0)
    assert call(a) == (0, 1)
    assert call(c, a) == (1, 1)  # b was the last used, and goes
    assert call(a) == (0, 1)
    assert call(b) == (1, 0)
    assert call(0 * a) == (0, 0)  # the base is there already
    nothing = Dispatcher(network, base, switches, cache=0)
    assert [nothing(batch(1), a[None])[2:4] for _ in range(2)] == [(1, 0)] * 2


def test_what_is_merged_does_not_depend_on_what_came_before(model):
    base, switches = model
    near = np.float32([[0.5, 0.5, 0], [0.50001, 0.49999, 0]])
    dispatcher = Dispatcher(network, base, switches)
    first = dispatcher(batch(1), near[1:]).outputs["y"]
    again = dispatcher(batch(1), near[:1])
    assert again.hits == 1
    fresh = Dispatcher(network, base, switches)(batch(1), near[:1]).outputs["y"]
    np.testing.assert_array_equal(first, fresh)
    np.testing.assert_array_equal(again.outputs["y"], fresh)


def test_columns_are_named(model):
    base, switches = model
    found = Dispatcher(network, base, switches, names=("c", "a"))(batch(1), [[0.0, 1.0]])
    own = apply_switch(base, switches["a"])
    np.testing.assert_allclose(found.outputs["y"], batch(1)["x"] @ own["w"] + own["b"], rtol=1e-6)


def test_few_shapes_are_compiled(model):
    base, switches = model
    traced = []

    def counted(tree, inputs):
        traced.append(inputs["x"].shape[0])
        return network(tree, inputs)

    dispatcher = Dispatcher(jax.jit(counted), base, switches)
    weights = np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], [7, 4, 3])]
    for size in range(1, 15):
        dispatcher(batch(size), weights[:size])
    assert sorted(traced) == [1, 2, 4, 8]


@settings(max_examples=50)
@given(st.integers(1, 10), st.integers(1, 30), st.integers(0, 2**16))
def test_votes_of_up_to_ten_neighbours_are_grouped_exactly(k, size, seed):
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(k, [0.5, 0.3, 0.2], size)
    votes = (counts / k).astype(np.float32)
    routes = group_routes(votes)
    distinct, group = np.unique(counts, axis=0, return_inverse=True)
    np.testing.assert_array_equal(routes.group, group.reshape(-1))
    np.testing.assert_array_equal(np.float32(routes.counts / 2520), np.float32(distinct / k))
    assert sum(routes.sizes) == size <= routes.forwards < 2 * size


def test_padded_sizes_are_powers_of_two():
    assert [padded_size(n) for n in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"strategy": "dense"}, "a mix of outputs is not the output of mixed weights"),
        ({"strategy": "groups"}, "did you mean 'group'"),
        ({"names": ("a", "z")}, "'z' without a switch"),
        ({"cache": -1}, "cache is -1"),
        ({"levels": 0}, "levels 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, options, words):
    with pytest.raises(ConfigError, match=words):
        Dispatcher(network, *model, **options)


@pytest.mark.parametrize(
    "inputs, weights, words",
    [
        (batch(2), np.zeros((2, 4)), "4 columns for the switches"),
        (batch(2), np.zeros((3, 3)), "for 3 rows of weights"),
        (batch(2), np.full((2, 3), np.nan), "expected finite numbers"),
        (batch(0), np.zeros((0, 3)), "one row a sample"),
        (batch(2), np.zeros(3), r"shape \(3,\)"),
        (batch(2), np.full((2, 3), 1e16), r"weights reach 1e\+16; expected at most 3.*e\+12"),
        (batch(2), np.full((2, 3), 1e300), "expected finite numbers"),
    ],
)
def test_batches_that_do_not_fit_are_refused(model, inputs, weights, words):
    with pytest.raises(DataError, match=words):
        Dispatcher(network, *model)(inputs, weights)


def test_a_model_that_gives_something_else_than_a_row_a_sample_is_refused(model):
    dispatcher = Dispatcher(lambda tree, inputs: {"loss": np.float32(0)}, *model)
    with pytest.raises(DataError, match=r"'loss' of apply_fn have shape \(\) for 2 samples"):
        dispatcher(batch(2), np.zeros((2, 3)))


def test_what_a_router_gives_is_taken_as_it_is(model):
    queries = QuerySet.checked(np.eye(3), [0, 1, 2], NAMES)
    routing = Router.fit(queries, 1)(np.eye(3)[[2, 0]])
    dispatcher = Dispatcher(network, *model)
    found, expected = (dispatcher(batch(2), given) for given in (routing, routing.weights))
    np.testing.assert_array_equal(found.outputs["y"], expected.outputs["y"])
