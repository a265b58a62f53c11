"""Bottleneck adapters on a Swin: T at once, what each placement reads, what is trained."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core import trees
from sinewich_jax.core.random import sample_keys
from sinewich_jax.errors import ConfigError
from sinewich_jax.nn import sinewich
from sinewich_jax.nn.blocks import Maps
from sinewich_jax.nn.bottleneck import PLACES, BottleneckBlock, BottleneckSpec
from sinewich_jax.nn.clock import ClockSpec
from sinewich_jax.nn.decoder import DecoderSpec
from sinewich_jax.nn.layers import Drop
from sinewich_jax.nn.swin import Swin
from tests.helpers import fake_params
from tests.nn.helpers import shapes_of
from tests.tiers import cases

T = 3
# Tasks part in a plain and in a shifted block, alone in their stage and behind another.
SMALL = dict(patch_size=2, embed_dim=8, depths=(1, 2), heads=(1, 2), window=4, mlp_ratio=2.0)
IMAGE = np.random.default_rng(0).standard_normal((4, 16, 24, 3)).astype(np.float32)


def adapted(placement, tasks=T, start=None, **options):
    return Swin(**SMALL, task=BottleneckSpec(tasks, 5, placement, start), **options)


@functools.cache
def filled(placement):
    """Variables with every leaf at random, so that tasks differ."""
    return fake_params(shapes_of(adapted(placement), IMAGE), scale=0.3)


def run(model, variables, image=IMAGE, keys=None):
    return jax.jit(lambda v, x, keys: model.apply(v, x, None, keys))(variables, image, keys)


def only(variables, task):
    """The variables with the adapters of one task."""
    keep = lambda path, leaf: leaf[task : task + 1] if "/task/" in path else leaf  # noqa: E731
    return trees.map_paths(keep, variables)


# --- tasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", cases(PLACES, fast=("pfeiffer",)))
def test_stacked_adapters_equal_a_loop_over_single_ones(placement):
    """And so do tasks one after another (``map``)."""
    together = run(adapted(placement), filled(placement))
    mapped = run(adapted(placement, task_axis="map"), filled(placement))
    single = adapted(placement, tasks=1)
    alone = [run(single, only(filled(placement), task)) for task in range(T)]
    for stage, (a, b) in enumerate(zip(together, mapped, strict=True)):
        loop = np.concatenate([features[stage] for features in alone])
        assert a.shape == (T, *loop.shape[1:])
        np.testing.assert_allclose(a, loop, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert np.abs(a[0] - a[1]).max() > 1e-2


def test_an_unknown_task_axis_offers_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'map'"):
        shapes_of(adapted("houlsby", task_axis="mapp"), IMAGE)


# --- start --------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", cases(PLACES, fast=("pfeiffer",)))
def test_a_zero_start_is_the_network_without_adapters(placement):
    """Shared LoRA, its dropout and drop path included; houlsby's larger product may round."""
    shared = dict(lora_rank=2, lora_dropout=0.5, drop_path_rate=0.5)
    model, keys = adapted(placement, start="zero", **shared), sample_keys(7, 3, jnp.arange(4))
    noise = trees.flatten_paths(fake_params(shapes_of(model, IMAGE), scale=0.3))
    up = {path: 0 * leaf for path, leaf in noise.items() if "/task/" in path and "/up_" in path}
    kept = {path: leaf for path, leaf in noise.items() if "/task/" not in path}
    golden = run(Swin(**SMALL, **shared), trees.unflatten_paths(kept), keys=keys)
    found = run(model, trees.unflatten_paths(noise | up), keys=keys)
    for ours, theirs in zip(found, golden, strict=True):
        tolerance = 1e-5 * np.abs(theirs).max() if placement == "houlsby" else 0
        theirs = np.broadcast_to(theirs, ours.shape)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_starts_are_the_placements_unless_given():
    for spec, start, scale in (
        (BottleneckSpec(T), "bert", 1.0),
        (BottleneckSpec(T, placement="parallel"), "zero", 4.0),
        (BottleneckSpec(T, placement="parallel", start="houlsby", scale=0.0), "houlsby", 0.0),
    ):
        assert (spec.settings.start, spec.settings.scale) == (start, scale)
    block = BottleneckBlock(8, 2, task=BottleneckSpec(T, 5, "pfeiffer", "zero"))
    maps = Maps(jnp.ones((1, 2, 2, 8)))
    made = jax.jit(lambda: block.init(jax.random.key(0), maps, {}, method="split"))()
    task = made["params"]["task"]["mlp"]
    assert np.any(task["down_kernel"]) and not np.any(task["up_kernel"])


@pytest.mark.parametrize("placement", PLACES)
def test_a_dropped_half_takes_its_adapter_along(placement):
    block = BottleneckBlock(8, 2, task=BottleneckSpec(T, 5, placement))
    pixels = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
    split = functools.partial(block.apply, method="split")
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), Maps(pixels), {}, method="split"))
    drop = Drop(0.999, sample_keys(0, 0, jnp.arange(2)))  # of two examples, both
    streams, shared = jax.jit(split)(fake_params(shapes, scale=0.3), Maps(pixels), {}, drop)
    np.testing.assert_array_equal(shared.pixels, pixels)
    np.testing.assert_array_equal(streams, np.stack([pixels] * T))


# --- placements ---------------------------------------------------------------------------------

# A block of two channels. Whatever comes in, attention adds A. The norm gives (1, -1) or (-1, 1),
# and the MLP adds H only where the first channel is the larger, plus C everywhere.
A, H, C = np.array([0.5, 0.25]), np.array([3.0, 2.0]), np.array([0.125, -1.0])
UP, BIAS = np.array([2.0, -3.0]), np.array([0.5, 1.0])


def by_hand(placement, down, scale=None, attention=0.0):
    """The stream of two tasks for the pixel (2, 1); the second's adapters add nothing."""
    block = BottleneckBlock(
        2, 1, window=1, mlp_ratio=0.5, task=BottleneckSpec(2, 1, placement, scale=scale)
    )
    maps = Maps(jnp.array([2.0, 1.0]).reshape(1, 1, 1, 2))
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), maps, {}, method="split"))
    params = trees.flatten_paths(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes["params"]))
    one = np.array([1.0, 0.0])  # the first task alone
    params |= {"norm2/scale": np.ones(2), "proj/bias": A, "fc2/bias": C}
    params |= {"fc1/kernel": np.array([[10.0], [0.0]]), "fc2/kernel": H[None] / 10}  # gelu(10) = 10
    params["task/mlp/down_kernel"] = one[:, None, None] * np.array(down)[:, None]
    params["task/mlp/up_kernel"] = one[:, None, None] * UP
    params["task/mlp/up_bias"] = one[:, None] * BIAS
    if placement == "houlsby":
        params["task/attention/up_bias"] = one[:, None] * np.array([attention, 0.0])
    variables = {"params": trees.unflatten_paths(params)}
    streams, shared = block.apply(variables, maps, {}, method="split")
    untouched = np.array([2, 1]) + A + H + C
    np.testing.assert_allclose(streams[1].ravel(), untouched, rtol=1e-4)
    np.testing.assert_allclose(shared.pixels.ravel(), untouched, rtol=1e-4)
    return streams[0].ravel() - untouched


def swish(v):
    return v / (1 + np.exp(-v))


def test_pfeiffer_reads_what_the_mlp_gives():
    read = (H + C) @ [0.5, 1.0]
    found = by_hand("pfeiffer", [0.5, 1.0], scale=2.0)
    np.testing.assert_allclose(found, 2 * (read * UP + BIAS), rtol=1e-4)
    np.testing.assert_allclose(by_hand("pfeiffer", [-0.5, -1.0]), BIAS, rtol=1e-4)  # relu


def test_parallel_reads_what_the_mlp_reads():
    found = by_hand("parallel", [3.0, 1.0])
    np.testing.assert_allclose(found, 4 * ((3.0 - 1.0) * UP + BIAS), rtol=1e-4)


def test_houlsby_adapts_both_halves():
    found = by_hand("houlsby", [0.5, 1.0])
    np.testing.assert_allclose(found, swish((H + C) @ [0.5, 1.0]) * UP + BIAS, rtol=1e-4)
    # The adapter behind attention turns the pixel over, and the MLP no longer adds H.
    found = by_hand("houlsby", [0.5, 1.0], attention=-4.0)
    expected = np.array([-4, 0]) - H + swish(C @ [0.5, 1.0]) * UP + BIAS
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# --- parameters, gradients, dtype ---------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACES)
def test_count_of_parameters(placement):
    """2 d m + m + d an adapter and place: 74,544 at d = 768 and m = 48, as for BERT-base."""
    model = Swin(embed_dim=768, depths=(1,), heads=(12,), task=BottleneckSpec(T, 48, placement))
    flat = trees.flatten_paths(shapes_of(model, jnp.zeros((1, 28, 28, 3)))["params"])
    for place in PLACES[placement]:
        own = {path: leaf for path, leaf in flat.items() if f"block0/task/{place}/" in path}
        assert len(own) == 4 and all(len(leaf.shape) in (2, 3) for leaf in own.values())
        assert sum(leaf.size for leaf in own.values()) == T * 74_544
    places = {path.split("/task/")[1].split("/")[0] for path in flat if "/task/" in path}
    assert places == set(PLACES[placement])


@pytest.mark.parametrize("placement", PLACES)
def test_the_gradient_reaches_the_adapters_of_the_backbone_alone(placement):
    heads = (("semseg", 3), ("normals", 3), ("depth", 1))
    backbone = Swin(
        patch_size=2, embed_dim=4, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2), window=4,
        task=BottleneckSpec(T, 5, placement),
    )  # fmt: skip
    model = sinewich.MultiTaskModel(
        backbone, heads, ClockSpec(T), DecoderSpec(channels=(4, 4, 4, 4), hidden=8, base="shared")
    )
    image, keys = IMAGE[:1], jax.random.key(0)
    variables = fake_params(jax.eval_shape(lambda: model.init(keys, image)), scale=0.3)
    parts = trees.split_tree(variables["params"], sinewich.path_rules())

    @jax.jit
    def gradient(trainable):
        def loss(trainable):
            params = trees.merge_trees(trainable, parts["frozen"])
            features = model.apply({"params": params}, image, method="features")
            return sum(jnp.sum(jnp.sin(feature)) for feature in features)

        return jax.grad(loss)(trainable)

    grads = trees.flatten_paths(gradient({"backbone": parts["trainable"]["backbone"]}))
    assert len(grads) == 4 * 4 * len(PLACES[placement])
    for path, leaf in grads.items():
        assert "/task/" in path
        assert np.abs(leaf).reshape(T, -1).max(1).min() > 0, path
    assert model.apply(variables, method="diagnostics")["pairwise_cosine"] == {}


@pytest.mark.parametrize("placement", PLACES)
def test_bfloat16_computes_with_float32_parameters(placement):
    low = run(adapted(placement, dtype=jnp.bfloat16), filled(placement))
    high = run(adapted(placement), filled(placement))
    for a, b in zip(low, high, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * float(jnp.abs(b).max()))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(placement="pfeifer"), r"unknown placement 'pfeifer' \(did you mean 'pfeiffer'\?\)"),
        (dict(start="zeros"), r"unknown start 'zeros' \(did you mean 'zero'\?\)"),
        (dict(hidden=0), "hidden, the width of the bottlenecks, is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_is_said(wrong, words):
    with pytest.raises(ConfigError, match=words):
        BottleneckSpec(T, **wrong)
