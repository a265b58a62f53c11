"""MobileNetV2: the real weights against their golden outputs, and where adapters act."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core.trees import flatten_paths, merge_trees, split_tree
from sinewich_jax.errors import CheckpointError, ConfigError
from sinewich_jax.nn import mobilenet
from sinewich_jax.nn.convolutions import DepthwiseConv
from sinewich_jax.nn.mobilenet import MobileNetV2, load_mobilenet, stages
from sinewich_jax.nn.quantised import load_quantised
from sinewich_jax.nn.task_kernel import TaskSpec
from tests.helpers import data_root
from tests.nn.helpers import assert_untouched, omegas, perturbed, random_frozen, shapes_of

TASKS = 3
# A small relative with the same structure: an expansion of one, residuals, four strides.
SMALL = ((1, 6, 1, 1), (2, 8, 2, 2), (2, 10, 2, 2), (2, 12, 1, 2), (2, 14, 1, 1), (2, 16, 1, 2))
WEIGHTS = "weights/mobilenet_v2_imagenet_int8.npz"


def small(**overrides) -> MobileNetV2:
    return MobileNetV2(**{"settings": SMALL, "stem": 6, **overrides})


def adapted(**overrides) -> MobileNetV2:
    return small(**{"lora_rank": 2, "task": TaskSpec(TASKS, rank=3), **overrides})


@pytest.fixture(scope="module")
def image() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (2, 64, 96, 3))


@pytest.fixture(scope="module")
def start(image) -> tuple[dict, dict]:
    return random_frozen(adapted(), image)


def test_stages_of_the_paper():
    rows = stages()
    assert [len(row) for row in rows] == [3, 3, 7, 4]
    assert [row[-1].features for row in rows] == [24, 32, 96, 320]
    assert rows[0][0] == (32, 32, 16, 1)
    assert rows[3][-1] == (160, 960, 320, 1)
    assert MobileNetV2().channels == (24, 32, 96, 320)


def test_settings_must_reach_stride_32():
    with pytest.raises(ConfigError, match="end at stride 16 with 3 stages"):
        stages(((1, 4, 1, 1), (2, 4, 1, 2), (2, 4, 1, 2), (2, 4, 1, 2)))


def test_parameter_count_is_the_published_one():
    """3,504,872 of the paper's 1000-way network, less the batch norms that are folded.

    Here: convolutions and one bias a channel; the file says 3,489,097 with 1001 classes.
    """
    model = MobileNetV2(num_classes=1001)
    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), method="classify")
    )["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3_489_097


def test_adapters_sit_only_where_they_are_stated(image):
    model = adapted()
    flat = flatten_paths(shapes_of(model, image)["params"])
    lora = {re.sub(r"/lora_(up|down)$", "", k) for k in flat if "lora_" in k}
    task = {k.split("/task/")[0] for k in flat if "/task/" in k}
    depths = [len(row) for row in stages(SMALL, 6)]
    assert depths == [3, 2, 2, 1]
    last = {f"stage{i}_block{depth - 1}/project" for i, depth in enumerate(depths)}
    pointwise = {
        k.removesuffix("/kernel")
        for k in flat
        if re.fullmatch(r"stage\d_block\d/(expand|project)/kernel", k)
    }
    assert task == last
    assert "stage0_block0/expand" not in pointwise  # an expansion of one has no expand
    assert lora == pointwise - {"stage3_block0/project"}  # nothing reads the shared stream there
    assert model.task_layers == tuple(f"stage{i}/project" for i in range(4))


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (32, 65)])
def test_any_size_gives_ceil_shapes(size):
    model = small()
    image = jnp.zeros((1, *size, 3))
    features = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image)[0])
    expected = []
    height, width = size
    for _ in range(5):
        height, width = -(-height // 2), -(-width // 2)
        expected.append((height, width))
    assert [f.shape for f in features] == [
        (1, 1, *hw, c) for hw, c in zip(expected[1:], model.channels, strict=True)
    ]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 9), (7, 4), (1, 3)])
def test_depthwise_is_the_grouped_convolution(stride, size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 5))
    layer = DepthwiseConv(5, stride=stride)
    params = {
        "kernel": jax.random.normal(jax.random.key(1), (3, 3, 1, 5)),
        "bias": jnp.arange(5.0),
    }
    expected = jax.lax.conv_general_dilated(
        x,
        params["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )
    got = layer.apply({"params": params}, x)
    np.testing.assert_allclose(got, expected + params["bias"], atol=1e-5)


@pytest.mark.parametrize("axis", ["vmap", "map"])
@pytest.mark.parametrize("begin", ["anchored", "zero"])
def test_untouched_model_is_the_frozen_network_bit_for_bit(image, axis, begin):
    model = adapted(task=TaskSpec(TASKS, start=begin, rank=3), task_axis=axis)
    assert_untouched(jax.jit(model.apply), jax.jit(small().apply), model, image)


@pytest.mark.slow
def test_untouched_model_is_the_frozen_network_without_jit_too(image):
    assert_untouched(adapted().apply, small().apply, adapted(), image)


def test_vmap_equals_map_and_tasks_differ(image, start):
    variables = perturbed(start[0])
    omega = omegas(adapted())
    together = jax.jit(adapted().apply)(variables, image, omega)
    one_by_one = jax.jit(adapted(task_axis="map").apply)(variables, image, omega)
    for a, b in zip(together, one_by_one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert float(jnp.abs(a[0] - a[1]).max()) > 1e-3


def test_gradients_reach_every_adapter(image, start):
    model = adapted()
    # LoRA's up factors start at zero, which hides the down factors' gradient: move them first.
    variables = perturbed(start[0])
    rules = ((r".*/lora_(up|down)|.*/task/.*", "trainable"), (r".*", "frozen"))
    parts = split_tree(variables["params"], rules)

    def loss(trainable):
        params = merge_trees(trainable, parts["frozen"])
        features = model.apply({**variables, "params": params}, image, omegas(model))
        return sum(jnp.mean(jnp.square(f - 1.0)) for f in features)

    gradients = flatten_paths(jax.jit(jax.grad(loss))(parts["trainable"]))
    assert len(gradients) == 2 * (7 + 8 - 1 + 4)  # expand, project but the last, task
    assert [k for k, g in gradients.items() if not float(jnp.abs(g).max()) > 0] == []


def test_one_stream_when_all_tasks_share_the_kernel(image):
    model = adapted(task=TaskSpec(TASKS, kind="lora", rank=3))
    features = jax.eval_shape(lambda: model.init_with_output(jax.random.key(1), image)[0])
    assert [f.shape[0] for f in features] == [1, 1, 1, 1]


def test_diagnostics_name_every_task_layer(start):
    model = adapted()
    report = jax.jit(lambda v: model.apply(v, omegas(model), method="diagnostics"))(start[0])
    assert set(report) == set(model.task_layers)
    for values in report.values():
        assert values["modulation_index"].shape == (TASKS,)
        assert float(values["modulation_index"][0]) > 0
    assert small().apply({"params": {}}, None, method="diagnostics") == {}


def test_bfloat16_keeps_float32_parameters(image):
    model = adapted(dtype=jnp.bfloat16)
    shapes = shapes_of(model, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    features = jax.eval_shape(lambda v: model.apply(v, image, omegas(model)), shapes)
    assert {f.dtype for f in features} == {jnp.dtype(jnp.bfloat16)}


def test_classify_without_a_classifier_says_what_to_do(image, start):
    with pytest.raises(ConfigError, match="num_classes=0"):
        small().apply({"params": start[1]}, image, method="classify")


# --- the real weights ---------------------------------------------------------------------------


def test_input_scaling_is_the_quantised_networks():
    pixels = np.arange(256, dtype=np.float64)
    ours = (pixels / 255 - MobileNetV2.image_mean[0]) / MobileNetV2.image_std[0]
    np.testing.assert_allclose(ours, (pixels - 127) * 0.007843137718737125, atol=1e-12)


@pytest.mark.slow
def test_imagenet_weights_give_the_golden_outputs():
    root = data_root()
    golden = np.load(root / "weights/golden_mobilenet_v2.npz")
    params = load_mobilenet(root / WEIGHTS, classifier=True)
    mean, std = (np.asarray(v, np.float32) for v in (MobileNetV2.image_mean, MobileNetV2.image_std))
    image = (golden["image_u8"].astype(np.float32) / 255 - mean) / std
    model = MobileNetV2(num_classes=mobilenet.CLASSES)
    run = jax.jit(lambda params, image: model.apply({"params": params}, image, method="classify"))
    logits, pooled = run(params, image)
    probabilities = jax.nn.softmax(logits)
    np.testing.assert_allclose(probabilities, golden["probs"], atol=1e-4)
    # The logits are known up to a constant: that is what the probabilities determine.
    centred = np.log(golden["probs"]) - np.log(golden["probs"]).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits - logits.mean(axis=1, keepdims=True), centred, atol=1e-3)
    np.testing.assert_allclose(pooled, golden["pooled_feature"], atol=1e-3)


def test_loaded_tree_is_the_frozen_part_of_the_model():
    params = load_mobilenet(data_root() / WEIGHTS)
    model = MobileNetV2()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    ours = {k: (v.shape, v.dtype) for k, v in flatten_paths(params).items()}
    theirs = {k: (v.shape, v.dtype) for k, v in flatten_paths(shapes["params"]).items()}
    assert ours == theirs


def test_another_networks_weights_are_refused():
    root = data_root()
    with pytest.raises(CheckpointError, match="MobileNetV2"):
        load_mobilenet(root / "weights/bodypix_mobilenet_v1_075_int8.npz")
    with pytest.raises(CheckpointError, match="not a quantised network"):
        load_mobilenet(root / "weights/golden_mobilenet_v2.npz")


def test_quantised_reader_applies_zero_point_and_scale(tmp_path):
    description = {
        "layers": [
            {"op": "QUANTIZE"},
            {"op": "DWCONV", "key": "000", "stride": 2},
            {"op": "CONV", "key": "001", "stride": 1},
        ]
    }
    arrays = {
        "json": np.frombuffer(json.dumps(description).encode(), np.uint8),
        "000_w": np.array([[[[3, 130]]]], np.uint8),
        "000_scale": np.array([0.5, 2.0], np.float32),
        "000_zp": np.array([1, 128], np.int32),
        "000_b": np.array([1.0, 2.0], np.float32),
        "001_w": np.array([[[[-4], [6]]]], np.int8),
        "001_scale": np.array([0.25], np.float32),
        "001_zp": np.array([0], np.int32),
        "001_b": np.array([0.0], np.float32),
    }
    np.savez(tmp_path / "net.npz", **arrays)
    depthwise, full = load_quantised(tmp_path / "net.npz")
    np.testing.assert_array_equal(depthwise.kernel, [[[[1.0, 4.0]]]])
    np.testing.assert_array_equal(full.kernel, [[[[-1.0], [1.5]]]])
    assert (depthwise.stride, depthwise.depthwise, full.depthwise) == (2, True, False)
    assert full.kernel.dtype == np.float32
    del arrays["001_zp"]
    np.savez(tmp_path / "net.npz", **arrays)
    with pytest.raises(CheckpointError, match="001_zp"):
        load_quantised(tmp_path / "net.npz")
