from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import ConfigError
from sinewich_jax.nn import fusion
from sinewich_jax.nn.bert import Bert
from sinewich_jax.nn.fusion import AdaptedBert, Average, ByTask, Fuse, Only, Plain, Split, Stack
from tests.tiers import cases

BERT = Bert(vocabulary=30, width=16, depth=2, heads=4, hidden=24, positions=12)
NAMES = ("sst2", "mrpc", "rte")


def filled(model, ids, mask, scale=0.3):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, mask)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 30, (3, 6))
    return ids, np.arange(6) < np.array([[6], [4], [5]])


@pytest.fixture(scope="module", params=sorted(fusion.PLACEMENTS))
def case(request, batch):
    model = AdaptedBert(BERT, NAMES, hidden=4, placement=request.param, fused=True)
    return model, filled(model, *batch)


def run(case, batch, how):
    model, variables = case
    return model.apply(variables, *batch, how=how)


def test_without_adapters_it_is_the_encoder(case, batch):
    _, variables = case
    plain = BERT.apply({"params": variables["params"]["encoder"]}, *batch)
    np.testing.assert_array_equal(run(case, batch, Plain()).hidden, plain)
    assert not np.allclose(run(case, batch, Only("rte")).hidden, plain, atol=1e-2)


def test_samples_have_the_adapters_of_their_tasks(case, batch):
    ids = jnp.array([2, 0, 1])
    found = run(case, batch, ByTask(ids)).hidden
    for row, task in enumerate(ids.tolist()):
        alone = run(case, batch, Only(NAMES[task])).hidden
        np.testing.assert_allclose(found[row], alone[row], atol=2e-5)


def test_averages_and_parts(case, batch):
    one = run(case, batch, Only("mrpc")).hidden
    np.testing.assert_allclose(run(case, batch, Average(("mrpc",))).hidden, one, atol=2e-5)
    weighted = Average(weights=(0.0, 1.0, 0.0))
    np.testing.assert_allclose(run(case, batch, weighted).hidden, one, atol=2e-5)
    whole = Split(("rte", "mrpc"), (0, 6))
    np.testing.assert_allclose(run(case, batch, whole).hidden, one, atol=2e-5)
    apart = run(case, batch, Split(("rte", "mrpc"), (2, 4))).hidden
    assert not np.allclose(apart, one, atol=1e-3)


def test_stacks_depend_on_their_order(case, batch):
    model, _ = case
    one, other = Only("sst2"), Only("rte")
    found = run(case, batch, Stack(one, other)).hidden
    turned = run(case, batch, Stack(other, one)).hidden
    # Parallel adapters both read the input of the sub-layer: their sum has no order.
    assert np.allclose(found, turned, atol=2e-5) == (model.placement == "parallel")
    np.testing.assert_array_equal(
        run(case, batch, Stack(Plain(), one)).hidden, run(case, batch, one).hidden
    )


def test_forms_of_fusion_agree_and_give_attention(case, batch):
    model, _ = case
    found = {form: run(case, batch, Fuse(form)) for form in ("reference", "folded", "bottleneck")}
    assert run(case, batch, None).attention.keys() == set(model.sites)
    for one in found.values():
        scale = 1 + np.abs(found["reference"].hidden).max()
        np.testing.assert_allclose(one.hidden / scale, found["reference"].hidden / scale, atol=2e-5)
        for place in model.sites:
            assert one.attention[place].shape == (3, 3, 6)
            np.testing.assert_allclose(one.attention[place].sum(0), 1, atol=1e-5)
    assert run(case, batch, Only("rte")).attention == {}


@pytest.mark.parametrize("form", cases(fusion.FORMS, fast=("folded",)))
def test_a_fused_encoder_has_a_derivative_in_both_modes(batch, form):
    model = AdaptedBert(BERT, NAMES, hidden=4, fused=True)
    variables = filled(model, *batch)
    along = jax.tree.map(jnp.cos, variables)

    def loss(variables):
        return jnp.sum(jnp.sin(model.apply(variables, *batch, how=Fuse(form)).hidden))

    _, forward = jax.jit(lambda at: jax.jvp(loss, (at,), (along,)))(variables)
    grads = jax.jit(jax.grad(loss))(variables)
    reverse = sum(map(jnp.vdot, *map(jax.tree.leaves, (grads, along))))
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-3)


def test_no_fusion_of_a_stack_is_lost(case, batch):
    model, _ = case
    first, second = Fuse(names=("rte",)), Fuse(names=("sst2", "rte"))
    found = run(case, batch, Stack(first, Stack(Only("rte"), second))).attention
    assert found.keys() == {name for place in model.sites for name in (place, f"{place}_2")}
    alone = run(case, batch, first).attention
    place = model.sites[0]  # where nothing before it can differ
    np.testing.assert_array_equal(found[place], alone[place])
    for place in model.sites:
        assert found[place].shape == (1, 3, 6) and found[f"{place}_2"].shape == (2, 3, 6)


def test_numbers_of_tasks_are_an_argument_of_a_compiled_function(case, batch):
    model, variables = case
    traced = []

    @jax.jit
    def step(variables, how):
        traced.append(how)
        return model.apply(variables, *batch, how=how).hidden

    for ids in (jnp.array([2, 0, 1]), jnp.array([1, 1, 0])):
        plain = run(case, batch, ByTask(ids)).hidden
        np.testing.assert_allclose(step(variables, ByTask(ids)), plain, atol=2e-5)
    assert len(traced) == 1
    with pytest.raises(ConfigError, match="there are 2 task_ids for 3 texts"):
        step(variables, ByTask(jnp.array([0, 1])))
    with pytest.raises(ConfigError, match="task_ids are float32"):
        step(variables, ByTask(jnp.ones(3)))


@pytest.mark.parametrize("array", [jnp.array, np.array, list])
def test_numbers_of_tasks_that_a_compiled_function_closes_over_are_looked_at(batch, array):
    model = AdaptedBert(BERT, NAMES, hidden=4)
    variables = filled(model, *batch)

    def run(ids):
        return model.apply(variables, *batch, how=ByTask(ids)).hidden

    right, wrong = array([2, 0, 1]), array([0, 1, 3])
    np.testing.assert_allclose(jax.jit(lambda: run(right))(), run(right), atol=2e-5)
    with pytest.raises(ConfigError, match="task_ids go from 0 to 3, expected from 0 to 2"):
        jax.jit(lambda: run(wrong))()


def test_composition_trains_the_fusion_alone(case, batch):
    """The gradient reaches all of it but the bias of the keys, which cancels."""
    model, variables = case
    params = variables["params"]
    kept = {name: leaf for name, leaf in params.items() if not name.startswith("fusion_")}

    def loss(trained):
        found = model.apply({"params": kept | trained}, *batch)
        return jnp.square(found.hidden).sum()

    trained = {name: leaf for name, leaf in params.items() if name.startswith("fusion_")}
    for path, grad in flatten_paths(jax.jit(jax.grad(loss))(trained)).items():
        size = np.abs(grad).max()
        assert size < 1e-3 if path.endswith("key_bias") else size > 1e-3, path


def test_adapters_that_start_at_zero_change_nothing(batch):
    model = AdaptedBert(BERT, NAMES, hidden=4, placement="parallel")
    variables = model.init(jax.random.key(0), *batch)
    plain = BERT.apply({"params": variables["params"]["encoder"]}, *batch)
    np.testing.assert_allclose(model.apply(variables, *batch).hidden, plain, atol=1e-6)
    down = variables["params"]["adapters_layer0_output"]["down_kernel"]
    assert np.abs(down).max() <= 1 / 4 and np.abs(down).max() > 0.2  # uniform in 1 / sqrt(16)


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby"])
def test_adapters_start_near_nothing(batch, placement):
    model = AdaptedBert(BERT, NAMES, hidden=4, placement=placement, fused=True)
    variables = model.init(jax.random.key(0), *batch)
    plain = BERT.apply({"params": variables["params"]["encoder"]}, *batch)
    np.testing.assert_allclose(model.apply(variables, *batch).hidden, plain, atol=0.05)


def test_layers_can_be_dropped(batch):
    model = AdaptedBert(BERT, NAMES, hidden=4, placement="houlsby", dropped=(0,))
    assert model.sites == ("layer1_attention", "layer1_output")
    variables = filled(model, *batch)
    assert {name for name in variables["params"] if name.startswith("adapters")} == {
        "adapters_layer1_attention",
        "adapters_layer1_output",
    }
    model.apply(variables, *batch, how=Only("rte"))


def test_counts_of_parameters(batch):
    """Of the adapters library for BERT-base: 894,528 an adapter, 21,252,096 a fusion."""
    base = Bert(vocabulary=10, width=768, depth=12, heads=12, hidden=64, positions=12)
    model = AdaptedBert(base, ("one",), fused=True)
    ids = np.zeros((1, 2), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]
    count = lambda word: sum(  # noqa: E731
        leaf.size for path, leaf in flatten_paths(shapes).items() if path.startswith(word)
    )
    assert count("adapters_layer3_output") == 74_544 and count("adapters_") == 894_528
    assert count("fusion_layer3_output") == 1_771_008 and count("fusion_") == 21_252_096


def test_what_is_not_there_is_named(batch):
    model = AdaptedBert(BERT, NAMES, hidden=4)
    variables = filled(model, *batch)
    for how, words in (
        (Only("rto"), r"there is no adapter 'rto' \(did you mean 'rte'\?\)"),
        (Fuse(), "there is no fusion in this network; make it with fused=True"),
        (Average(weights=(1.0,)), "there are 1 weights for 3 adapters"),
        (Split(("rte",), (5,)), "expected 1, one an adapter, that sum to the 6 tokens"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.apply(variables, *batch, how=how)
    for changes, words in (
        ({"placement": "pfeifer"}, r"placement is 'pfeifer' \(did you mean 'pfeiffer'\?\)"),
        ({"names": ("a", "a")}, "expected names, each once"),
        ({"names": "ab"}, "the adapters are 'ab', expected a tuple of names"),
        ({"dropped": (1, 0)}, r"dropped is \(1, 0\), all 2 layers, expected one left for"),
        ({"dropped": (0, 1), "fused": True}, "all 2 layers, expected one left for the adapters"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.clone(**changes).init(jax.random.key(0), *batch)


def test_compositions_that_fit_no_batch_are_refused(case, batch):
    for how, words in (
        (ByTask(jnp.array([0, 1, 3])), "task_ids go from 0 to 3, expected from 0 to 2"),
        (ByTask(jnp.array([0, -1, 1])), "task_ids go from -1 to 1"),
        (ByTask(jnp.array([0, 1])), "there are 2 task_ids for 3 texts"),
        (ByTask(jnp.array([0.0, 1.0, 2.0])), "task_ids are float32"),
        (Average(()), "the adapters are \\(\\), expected a tuple of names"),
        (Average("rte"), "the adapters are 'rte', expected a tuple of names"),
        (Fuse("foo"), "the form of fusion is 'foo' .*bottleneck"),
        (Fuse(temperature=0.0), "the temperature of fusion is 0.0, expected a finite number"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(case, batch, how)
    model, variables = case
    two = [array[:2] for array in batch]
    with pytest.raises(ConfigError, match="2 texts are in turn those of 3 adapters"):
        model.apply(variables, *two, how=fusion.InTurn())
    with pytest.raises(ConfigError, match="dropped names layer 5, expected from 0 to 1"):
        AdaptedBert(BERT, NAMES, dropped=(5,)).init(jax.random.key(0), *batch)
