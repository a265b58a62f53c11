"""The whole model: the untouched start, the dial, the clock, the decoder, what is trained."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core import trees
from sinewich_jax.errors import ConfigError
from sinewich_jax.nn import sinewich, streams, swin
from sinewich_jax.nn.clock import Clock, ClockSpec
from sinewich_jax.nn.decoder import Decoder, DecoderSpec
from sinewich_jax.nn.task_kernel import TaskSpec
from tests.helpers import fake_params
from tests.nn.helpers import random_start

HEADS = (("semseg", 3), ("normals", 3), ("depth", 1))
T = len(HEADS)
SMALL = dict(patch_size=2, embed_dim=8, depths=(1, 2, 1, 1), heads=(1, 2, 2, 4), window=4)


def make_model(start="anchored", kind="sine", scope="global", clock="net", base="sine", **options):
    task = None if kind is None else TaskSpec(T, kind=kind, rank=3, start=start)
    backbone = swin.Swin(**SMALL, task=task, lora_rank=0 if kind is None else 3, **options)
    return sinewich.MultiTaskModel(
        backbone,
        HEADS,
        ClockSpec(T, kind=clock, scope=scope, token_dim=8),
        DecoderSpec(channels=(4, 4, 4, 4), hidden=8, base=base),
    )


@functools.cache
def shapes_of(model):
    streams = {"params": jax.random.key(0), "anchor": jax.random.key(1)}
    return jax.eval_shape(lambda: model.init(streams, jnp.zeros((1, 32, 32, 3))))


@functools.cache
def variables_of(model):
    return random_start(shapes_of(model), model.backbone.task)


IMAGE = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)


@pytest.mark.parametrize("start", ["anchored", "zero"])
def test_untouched_features_equal_the_frozen_backbone_for_any_frequency(start):
    model = make_model(start)
    variables = variables_of(model)
    plain = swin.Swin(**SMALL)
    kept = {
        path: leaf
        for path, leaf in trees.flatten_paths(variables["params"]["backbone"]).items()
        if "lora_" not in path and "/task/" not in path
    }
    frozen = jax.jit(plain.apply)({"params": trees.unflatten_paths(kept)}, IMAGE)
    # Variables and image are arguments: as constants, XLA would fold products at compile time.
    features = jax.jit(lambda v, x, w: model.apply(v, x, w, method="features"))
    for omega in ([0.6, 1.0, 1.4], [50.0, 1e-3, 7.0]):
        for ours, theirs in zip(
            features(variables, IMAGE, jnp.asarray(omega)), frozen, strict=True
        ):
            assert ours.shape == (T, *theirs.shape[1:])
            for t in range(T):
                np.testing.assert_array_equal(ours[t], theirs[0])


def test_frozen_and_trainable_cover_every_parameter_and_adapters_train_alone():
    model = make_model()
    params = variables_of(model)["params"]
    parts = trees.split_tree(params, sinewich.path_rules())
    assert trees.count(parts["trainable"]) + trees.count(parts["frozen"]) == trees.count(params)
    for path in trees.flatten_paths(parts["trainable"]):
        assert path.startswith(("decoder/", "clock/")) or "lora_" in path or "/task/" in path
    norms = trees.split_tree(params, sinewich.path_rules(("norms",)))
    added = (
        trees.flatten_paths(norms["trainable"]).keys()
        - trees.flatten_paths(parts["trainable"]).keys()
    )
    assert added and all("norm" in path and path.startswith("backbone/") for path in added)


def test_gradients_reach_every_trained_parameter_that_is_read():
    model = make_model()
    variables = variables_of(model)
    parts = trees.split_tree(variables["params"], sinewich.path_rules())
    rest = {name: variables[name] for name in variables if name != "params"}

    @jax.jit
    def grads(trainable):
        def loss(trainable):
            params = trees.merge_trees(trainable, parts["frozen"])
            outputs, _ = model.apply(
                {"params": params, **rest}, IMAGE, train=True, mutable=["batch_stats"]
            )
            return sum(jnp.sum(jnp.sin(output)) for output in outputs.values())

        return jax.grad(loss)(trainable)

    # A LoRA's down factor stands still while its up factor is zero, the frequencies stand still
    # while every kernel equals its anchor, and nothing reads the shared MLP of the last block.
    silent = {
        path
        for path, grad in trees.flatten_paths(grads(parts["trainable"])).items()
        if not np.any(np.asarray(grad))
    }
    expected = {
        path for path in trees.flatten_paths(parts["trainable"]) if path.endswith("lora_down")
    }
    assert silent == expected | {"backbone/stage3_block0/fc1/lora_up"}


def test_vmap_and_map_over_tasks_agree():
    first, second = make_model(task_axis="vmap"), make_model(task_axis="map")
    variables = variables_of(first)
    outputs = [
        jax.jit(lambda v, model=model: model.apply(v, IMAGE))(variables)
        for model in (first, second)
    ]
    for task, _ in HEADS:
        np.testing.assert_array_equal(outputs[0][task], outputs[1][task])


def test_the_dial_moves_one_task_at_a_time():
    model = make_model()
    variables = variables_of(model)
    flat = trees.flatten_paths(variables["params"])
    flat.update(
        {p: 1.2 * leaf for p, leaf in flat.items() if "/task/" in p}  # away from the anchor
    )
    variables = {**variables, "params": trees.unflatten_paths(flat)}
    apply = jax.jit(lambda v, omega: model.apply(v, IMAGE, omega))
    before, after = (
        apply(variables, jnp.array(omega)) for omega in ([0.6, 1.0, 1.4], [0.6, 1.3, 1.4])
    )
    np.testing.assert_array_equal(before["semseg"], after["semseg"])
    np.testing.assert_array_equal(before["depth"], after["depth"])
    assert np.abs(np.asarray(before["normals"] - after["normals"])).max() > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (31, 45), (17, 9)])
def test_outputs_have_the_size_of_the_image(size):
    model = make_model()
    variables = shapes_of(model)
    shapes = jax.eval_shape(
        lambda v, x: model.apply(v, x),
        variables,
        jax.ShapeDtypeStruct((3, *size, 3), jnp.float32),
    )
    assert {task: value.shape for task, value in shapes.items()} == {
        task: (3, *size, channels) for task, channels in HEADS
    }


@pytest.mark.parametrize("kind", ["net", "free", "fixed"])
@pytest.mark.parametrize(("scope", "tables"), [("global", 1), ("stage", 3), ("layer", 4)])
def test_clock_tables_and_their_start(kind, scope, tables):
    layers = ("stage0/fc1", "stage0/fc2", "stage1/fc1", "decoder")
    clock = Clock(ClockSpec(T, kind=kind, scope=scope, token_dim=8), layers)
    variables = clock.init(jax.random.key(0))
    omega = clock.apply(variables)
    assert tuple(omega) == layers
    assert len({tuple(np.asarray(value)) for value in omega.values()}) == (
        tables if kind == "net" else 1
    )
    for value in omega.values():
        np.testing.assert_allclose(value, [0.6, 1.0, 1.4], atol=0.1 if kind == "net" else 1e-6)
    assert ("params" in variables) == (kind != "fixed")


def test_extreme_tokens_keep_frequencies_in_their_bounds():
    clock = Clock(ClockSpec(T, token_dim=8), ("decoder",))
    params = clock.init(jax.random.key(0))["params"]
    for factor in (-1e6, 1e6):
        moved = {**params, "tokens": factor * jnp.abs(params["tokens"])}
        omega = np.asarray(clock.apply({"params": moved})["decoder"])
        assert (omega >= 0.5 - 1e-6).all() and (omega <= 1.5 + 1e-6).all()


@pytest.mark.parametrize("base", ["sine", "shared", "independent"])
def test_decoder_bases_have_the_parameters_of_the_paper(base):
    """Swin-T with four tasks: 1,071,824 shared and 1,946,624 independent (specification 6.3)."""
    heads = (("semseg", 21), ("human_parts", 7), ("saliency", 1), ("normals", 3))
    decoder = Decoder((192, 384, 768, 768), heads, DecoderSpec(base=base))
    features = [
        jnp.zeros((4, 1, s, s, c)) for s, c in zip((4, 2, 1, 1), (192, 384, 768, 768), strict=True)
    ]
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), features, jnp.arange(1.0, 5.0)))
    expected = 1_946_624 if base == "independent" else 1_071_824
    assert trees.count(shapes["params"]) == expected


def test_equal_frequencies_give_equal_kernels_and_spread_ones_do_not():
    model = make_model()
    variables = variables_of(model)
    flat = trees.flatten_paths(variables["params"])
    flat.update({p: 1.1 * leaf for p, leaf in flat.items() if "/task/" in p})
    variables = {**variables, "params": trees.unflatten_paths(flat)}
    features = jax.jit(lambda v, w: model.apply(v, IMAGE, w, method="features"))
    equal = features(variables, jnp.full((T,), 1.0))[0]
    np.testing.assert_array_equal(equal[0], equal[1])
    report = jax.jit(lambda v: model.apply(v, method="diagnostics"))(variables)
    assert all(value < 0.9 for value in map(float, report["update_cosine"].values()))
    assert all(np.all((value > 0.5) & (value < 4)) for value in report["modulation_index"].values())


@pytest.mark.parametrize("kind", ["lora", "gain", "split", None])
def test_every_method_runs_with_the_same_decoder(kind):
    model = make_model(kind=kind)
    shapes = shapes_of(model)
    run = jax.jit(lambda v: model.apply(v, IMAGE, train=True, mutable=["batch_stats"]))
    outputs, _ = run(fake_params(shapes))
    assert all(np.isfinite(np.asarray(output)).all() for output in outputs.values())
    assert ("anchor" in shapes) is False


def test_wrong_words_are_named():
    with pytest.raises(ConfigError, match="did you mean 'net'"):
        ClockSpec(2, kind="nett")
    with pytest.raises(ConfigError, match="did you mean 'shared'"):
        DecoderSpec(base="share")
    with pytest.raises(ConfigError, match="rank=8 does not divide by 6 tasks"):
        TaskSpec(6, kind="split", rank=8)


def test_repeat_adds_the_gradients_of_its_copies():
    x = jnp.arange(6.0).reshape(2, 3)
    weights = jnp.arange(24.0).reshape(4, 2, 3)
    assert streams.repeat(x, 4).shape == (4, 2, 3)
    grad = jax.grad(lambda x: jnp.sum(weights * streams.repeat(x, 4)))(x)
    np.testing.assert_allclose(grad, weights.sum(axis=0))


def test_wrong_shapes_are_refused_when_traced():
    model = make_model()
    variables = shapes_of(model)
    apply = lambda image, omega: jax.eval_shape(model.apply, variables, image, omega)  # noqa: E731
    grey = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    colour = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(AssertionError, match=r"\(None, None, None, 3\)"):
        apply(grey, jnp.ones(T))
    with pytest.raises(AssertionError, match=r"expected \(3\)"):
        apply(colour, jnp.ones(T + 1))
