"""Swin: parity with the original code and with transformers, and what must not change a result."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.convert.tables import centre_table
from sinewich_jax.core.random import sample_keys
from sinewich_jax.core.trees import count, flatten_paths
from sinewich_jax.errors import ConfigError
from sinewich_jax.nn import windows
from sinewich_jax.nn.layers import Drop, drop_path
from sinewich_jax.nn.swin import Swin, swin
from sinewich_jax.nn.task_kernel import TaskSpec
from tests.helpers import fake_params
from tests.nn import official_swin as official
from tests.nn.helpers import assert_untouched, omegas, perturbed, random_frozen, shapes_of

# --- parity -------------------------------------------------------------------------------------


def like(fixture: dict[str, np.ndarray], **overrides) -> Swin:
    config = json.loads(str(fixture["meta_json"]))["config"]
    names = {"window": "window_size", "heads": "num_heads"}
    fields = {k: config[names.get(k, k)] for k in ("embed_dim", "depths", "heads", "window")}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Swin(**fields, **overrides)


def run(model: Swin, fixture: dict[str, np.ndarray], image: np.ndarray) -> list[np.ndarray]:
    params = official.ours(fixture, model.window)
    shapes = shapes_of(model, image)["params"]
    assert {k: v.shape for k, v in flatten_paths(params).items()} == {
        k: v.shape for k, v in flatten_paths(shapes).items()
    }
    features = jax.jit(lambda params, image: model.apply({"params": params}, image))(params, image)
    return [np.asarray(feature[0]) for feature in features]


def assert_close(got: np.ndarray, golden: np.ndarray) -> None:
    assert got.shape == golden.shape
    np.testing.assert_allclose(got, golden, rtol=0, atol=1e-4 * np.abs(golden).max())


@pytest.mark.parametrize("name", ["swin_w7", "swin_nonsquare"])
@pytest.mark.parametrize("features", ["stage", "merged"])
def test_equals_the_original_code(name, features):
    """224 px with window 7; 32 x 64, where the window shrinks to 2 and to 1 in late stages."""
    fixture = official.load(name)
    model = like(fixture, features=features)
    outputs = run(model, fixture, fixture["in/image"].transpose(0, 2, 3, 1))
    prefix, compared = ("pre_merge/stage" if features == "stage" else "stage"), 0
    for stage, output in enumerate(outputs):
        # stage 3 has no merging, so there both are the same thing
        key = f"{prefix}{stage}" if stage < 3 else "stage3"
        if key in fixture:
            assert_close(output, official.nhwc(fixture[key], output.shape[1]))
            compared += 1
    assert compared == (3 if (name, features) == ("swin_w7", "stage") else 4)
    assert model.channels == tuple(output.shape[-1] for output in outputs)


def test_equals_transformers_on_odd_sizes():
    """58 x 91: neither a multiple of patch, window or two; the window never shrinks."""
    fixture = official.load("swin_padded")
    image = fixture["in/image"].transpose(0, 2, 3, 1)
    outputs = run(like(fixture, partition="always"), fixture, image)
    for stage, output in enumerate(outputs):
        assert_close(output, fixture[f"hidden/{stage + 1}"].transpose(0, 2, 3, 1))


@pytest.mark.parametrize("partition", ["fit", pytest.param("always", marks=pytest.mark.slow)])
def test_equals_transformers_at_448(partition):
    """All stages are larger than a window there, so both partitions mean the same."""
    fixture, golden = official.load("swin_w7"), official.load("swin_448")
    small = fixture["in/image"]
    row = np.concatenate([small, small[..., ::-1]], axis=-1)
    image = np.concatenate([row, row[..., ::-1, :]], axis=-2).transpose(0, 2, 3, 1)
    outputs = run(like(fixture, partition=partition), fixture, image)
    assert [output.shape[1] for output in outputs] == [112, 56, 28, 14]
    for stage, (output, stride) in enumerate(zip(outputs, golden["strides"], strict=True)):
        expected = golden[f"pre_merge/stage{stage}"].transpose(0, 2, 3, 1)
        assert_close(output[:, ::stride, ::stride], expected)


# --- masks, tables, counts ----------------------------------------------------------------------


@pytest.mark.parametrize(("size", "masks"), [(224, 5), (448, 6)])
def test_number_of_masks(monkeypatch, size, masks):
    asked, shift_mask = [], windows.shift_mask

    def spy(*arguments):
        asked.append(arguments)
        return shift_mask(*arguments)

    monkeypatch.setattr(windows, "shift_mask", spy)
    shapes_of(swin("swin_t"), jnp.zeros((1, size, size, 3)))
    assert len(asked) == masks
    assert all(np.any(shift_mask(*arguments)) for arguments in asked)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_mask_is_the_originals(stage):
    golden = official.load("swin_w7")[f"param/layers.{stage}.blocks.1.attn_mask"]
    side = 56 // 2**stage
    np.testing.assert_array_equal(windows.shift_mask(side, side, 7, 3), golden)


@pytest.mark.parametrize("side", [112, 56, 28, 14])
def test_masks_at_448_keep_apart_what_the_roll_brought_together(side):
    """A pair is masked exactly if one token crossed an edge of the map and the other did not."""
    wrapped = np.arange(side) >= side - 3
    flags = np.stack(np.broadcast_arrays(wrapped[:, None], wrapped[None, :]), axis=-1)
    flags = flags.reshape(side // 7, 7, side // 7, 7, 2).transpose(0, 2, 1, 3, 4)
    flags = flags.reshape(-1, 49, 2)
    apart = np.any(flags[:, :, None] != flags[:, None, :], axis=-1)
    mask = windows.shift_mask(side, side, 7, 3)
    np.testing.assert_array_equal(mask, np.where(apart, -100.0, 0.0))


def test_relative_position_index():
    index = windows.relative_position_index(7, 7)
    assert index[0, :9].tolist() == [84, 83, 82, 81, 80, 79, 78, 71, 70]
    key = "param/layers.0.blocks.0.attn.relative_position_index"
    np.testing.assert_array_equal(index, official.load("swin_w7")[key])
    # a smaller window reads the centre of the table
    table = centre_table(np.arange(9.0)[:, None], 4)[:, 0]
    np.testing.assert_array_equal(
        table[windows.relative_position_index(2, 4)], windows.relative_position_index(2, 2)
    )


@pytest.mark.parametrize(
    ("name", "published", "width"),
    [
        ("swin_t", 27_519_354, 768),
        ("swin_s", 48_837_258, 768),
        ("swin_b", 86_743_224, 1024),
        ("swin_l", 194_995_476, 1536),
    ],
)
def test_parameter_counts(name, published, width):
    """The published counts have no head but the final norm, which a pyramid does not have."""
    shapes = shapes_of(swin(name), jnp.zeros((1, 32, 32, 3)))
    assert count(shapes["params"]) == published - 2 * width


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'swin_t'"):
        swin("swint")
    with pytest.raises(ConfigError, match="did you mean 'fit'"):
        shapes_of(swin("tiny", partition="fitt"), jnp.zeros((1, 32, 32, 3)))


# --- sizes and dtypes ---------------------------------------------------------------------------

SMALL = dict(patch_size=2, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4)


@pytest.mark.parametrize("partition", ["fit", "always"])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (16, 16), (17, 33)])
def test_any_size(size, partition):
    model = swin("tiny", partition=partition)
    image = jnp.ones((1, *size, 3))
    shapes = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image)[0],
    )
    expected = [tuple(-(-side // stride) for side in size) for stride in (2, 4, 8, 16)]
    assert [s.shape for s in shapes] == [
        (1, 1, *hw, c) for hw, c in zip(expected, model.channels, strict=True)
    ]


def test_one_pixel_is_finite():
    model = Swin(**SMALL)
    image = jnp.ones((1, 1, 1, 3))
    features = jax.jit(model.apply)(fake_params(shapes_of(model, image)), image)
    assert all(bool(jnp.isfinite(f).all()) for f in features)


def test_bfloat16_computes_with_float32_parameters():
    model = Swin(**SMALL, dtype=jnp.bfloat16)
    image = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    shapes = shapes_of(model, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    variables = fake_params(shapes, scale=0.3)
    low = jax.jit(model.apply)(variables, image)
    high = jax.jit(Swin(**SMALL).apply)(variables, image)
    for a, b in zip(low, high, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * float(jnp.abs(b).max()))


# --- scan and remat -----------------------------------------------------------------------------

DEEP = dict(patch_size=2, embed_dim=8, depths=(5,), heads=(2,), window=4, drop_path_rate=0.4)


@functools.cache
def deep_results(scan: bool, remat: bool) -> tuple[list, dict]:
    """Features and gradients of a deep first stage with an odd number of blocks."""
    model = Swin(**DEEP, scan=scan, remat=remat)
    image = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
    variables = fake_params(shapes_of(model, image), scale=0.2)
    keys = sample_keys(0, 0, jnp.arange(3))

    def loss(variables):
        features = model.apply(variables, image, None, keys)
        return sum(jnp.mean(jnp.square(f)) for f in features), features

    (_, features), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    return features, flatten_paths(gradients)


@pytest.mark.parametrize(
    ("scan", "remat"),
    [
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        (True, True),
    ],
)
def test_scan_and_remat_change_nothing(scan, remat):
    features, gradients = deep_results(scan, remat)
    plain_features, plain_gradients = deep_results(False, False)
    for a, b in zip(features, plain_features, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert list(gradients) == list(plain_gradients)
    for path, gradient in plain_gradients.items():
        assert float(jnp.abs(gradient).max()) > 0, path
        np.testing.assert_allclose(
            gradients[path], gradient, atol=1e-5 * float(jnp.abs(gradient).max()) + 1e-7
        )


# --- drop path ----------------------------------------------------------------------------------


def test_drop_path_without_a_drop_is_the_identity():
    x = jnp.arange(6.0).reshape(2, 3)
    assert drop_path(x, None) is x
    keys = sample_keys(0, 0, jnp.arange(2))
    np.testing.assert_array_equal(drop_path(x, Drop(0.0, keys)), x)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    dropped = drop_path(x, Drop(0.3, sample_keys(0, 0, jnp.arange(4000))))
    np.testing.assert_array_equal(dropped, jnp.broadcast_to(dropped[:, :1, :1], x.shape))
    values = np.unique(dropped)
    np.testing.assert_allclose(values, [0.0, 1 / 0.7], rtol=1e-6)
    # Standard error of the mean: sqrt(0.3 / 0.7 / 4000) = 0.0104; four of them.
    assert abs(float(dropped.mean()) - 1.0) < 0.042


def test_drop_path_rates_grow_linearly_over_all_blocks():
    rates = swin("swin_t", drop_path_rate=0.2).rates
    np.testing.assert_allclose(rates, np.arange(12) * 0.2 / 11, rtol=1e-6)


@pytest.fixture(scope="module")
def dropping():
    model = Swin(**SMALL, drop_path_rate=0.6)
    image = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
    variables = fake_params(shapes_of(model, image), scale=0.3)
    keys = sample_keys(7, 3, jnp.arange(8))
    apply = jax.jit(lambda v, image, keys: model.apply(v, image, None, keys))
    return apply, variables, image, keys, apply(variables, image, keys)


def test_drop_path_follows_the_example_not_its_place(dropping):
    apply, variables, image, keys, features = dropping
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled = apply(variables, image[order], keys[order])
    for a, b in zip(features, shuffled, strict=True):
        np.testing.assert_allclose(a[:, order], b, rtol=1e-6, atol=1e-6)
    other = apply(variables, image, sample_keys(7, 4, jnp.arange(8)))
    assert not np.allclose(features[-1], other[-1])


def test_drop_path_does_not_depend_on_the_sharding(dropping):
    apply, variables, image, keys, features = dropping
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = apply(variables, *jax.device_put((image, keys), rows))
    for a, b in zip(features, sharded, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_no_keys_switch_drop_path_off(dropping):
    _, variables, image, _, _ = dropping
    off = jax.jit(Swin(**SMALL, drop_path_rate=0.6).apply)(variables, image)
    never = jax.jit(Swin(**SMALL).apply)(variables, image)
    for a, b in zip(off, never, strict=True):
        np.testing.assert_array_equal(a, b)


# --- task streams -------------------------------------------------------------------------------


# Four stages; tasks part in plain and in shifted blocks, alone in their stage and behind another.
FOUR = dict(
    patch_size=2, embed_dim=24, depths=(1, 2, 1, 1), heads=(1, 2, 4, 8), window=4, mlp_ratio=2.0
)


def adapted(**overrides) -> Swin:
    return Swin(**{**FOUR, "lora_rank": 2, "task": TaskSpec(3, rank=6), **overrides})


@pytest.fixture(scope="module")
def image() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (2, 32, 48, 3))


# What reads frequencies needs XLA as users have it: without optimisation the last bit may differ.
OPTIMISED = [pytest.param(task, marks=pytest.mark.slow) for task in (dict(), dict(start="zero"))]


@pytest.mark.parametrize("axis", ["vmap", "map"])
@pytest.mark.parametrize("task", [*OPTIMISED, dict(kind="lora")])
def test_untouched_model_is_the_frozen_backbone_bit_for_bit(image, axis, task):
    model = adapted(task=TaskSpec(3, rank=6, **task), task_axis=axis)
    assert_untouched(jax.jit(model.apply), jax.jit(Swin(**FOUR).apply), model, image)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["vmap", "map"])
def test_untouched_model_is_the_frozen_backbone_without_jit_too(image, axis):
    model = Swin(**SMALL, lora_rank=2, task=TaskSpec(6, rank=6), task_axis=axis)
    assert_untouched(model.apply, Swin(**SMALL).apply, model, image)


def test_task_axis_and_a_loop_agree_and_tasks_differ(image):
    model = adapted()
    variables = perturbed(random_frozen(model, image)[0])
    omega = omegas(model)
    together = jax.jit(model.apply)(variables, image, omega)
    mapped = jax.jit(adapted(task_axis="map").apply)(variables, image, omega)
    one = adapted(task=TaskSpec(1, rank=6))
    alone = jax.jit(one.apply)
    for task in (0, 2):
        single = alone(variables, image, {name: w[task : task + 1] for name, w in omega.items()})
        for a, b, c in zip(together, mapped, single, strict=True):
            np.testing.assert_allclose(a[task], c[0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
            assert float(jnp.abs(a[0] - a[1]).max()) > 1e-2


def test_unknown_task_axis_offers_the_nearest(image):
    with pytest.raises(ConfigError, match="did you mean 'vmap'"):
        shapes_of(adapted(task_axis="vmapp"), image)
