"""Import: parity with the original and with transformers, every key accounted for, refusals."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from sinewich_jax import convert, storage
from sinewich_jax.config import Config
from sinewich_jax.convert import geometry
from sinewich_jax.convert.names import FAMILIES, rules
from sinewich_jax.core.trees import unflatten_paths
from sinewich_jax.errors import CheckpointError, ConfigError
from sinewich_jax.nn.swin import PRESETS, Swin, swin
from sinewich_jax.train import build
from tests.convert import foreign
from tests.nn import official_swin


def features(imported: convert.Imported, image: np.ndarray, **overrides) -> list[np.ndarray]:
    model = imported.swin.clone(**overrides)
    variables = {"params": unflatten_paths(imported.params)}
    return [np.asarray(feature[0]) for feature in jax.jit(model.apply)(variables, image)]


def assert_close(got: np.ndarray, golden: np.ndarray) -> None:
    np.testing.assert_allclose(got, golden, rtol=0, atol=1e-4 * np.abs(golden).max())


# --- parity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_file_gives_the_same_weights(tmp_path, family, kind):
    state = foreign.named(foreign.official_state(), family)
    path = tmp_path / "weights"
    if kind == "safetensors":
        storage.save_safetensors(path, state)
    else:
        path.write_bytes(foreign.torch_file(state, "model"))
    made = convert.read_backbone(path)
    golden = convert.convert_state(foreign.official_state())
    assert made.family.name == family and made.unmatched == () and made.resized == ()
    assert len(made.params) + len(made.left_out) > 100
    assert made.params.keys() == golden.params.keys()
    for name, value in golden.params.items():
        np.testing.assert_array_equal(made.params[name], value)
    head = {"official": "head.weight", "timm": "head.fc.weight"}.get(family, "classifier.weight")
    assert head in made.left_out


def test_all_four_stages_equal_the_original_code():
    """The names are tested above to be equivalent, so one run stands for all of them."""
    fixture = official_swin.load("swin_w7")
    made = convert.convert_state(foreign.official_state())
    outputs = features(made, fixture["in/image"].transpose(0, 2, 3, 1), features="merged")
    assert len(outputs) == 4
    for stage, output in enumerate(outputs):
        assert_close(output, official_swin.nhwc(fixture[f"stage{stage}"], output.shape[1]))


@pytest.mark.parametrize(("suffix", "family"), [("safetensors", "hf4"), ("bin", "hf5")])
def test_what_transformers_wrote(suffix, family):
    made = convert.read_backbone(foreign.FIXTURES / f"transformers_swin.{suffix}")
    assert made.family == (family, "swin.", (2, 2)) and made.preset is None
    golden = dict(np.load(foreign.FIXTURES / "transformers_swin.npz"))
    outputs = features(made, golden["image"].transpose(0, 2, 3, 1), partition="always")
    for stage, output in enumerate(outputs):
        assert_close(output, golden[f"stage{stage}"].transpose(0, 2, 3, 1))


# --- a whole import -----------------------------------------------------------------------------


def state_of(preset: str, seed: int = 0, **overrides) -> dict[str, np.ndarray]:
    """A random official state dict of a preset."""
    rng = np.random.default_rng(seed)
    model = swin(preset, **overrides)
    shapes = geometry.parameter_shapes(model)
    state = {}
    for rule in rules("official", model.depths):
        ours = 0.1 * rng.standard_normal(shapes[rule.ours]).astype(np.float32)
        state.update(zip(rule.theirs, rule.write(ours), strict=True))
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, np.ndarray]:
    return state_of("tiny")


def saved(tmp_path: pathlib.Path, state: dict[str, np.ndarray]) -> pathlib.Path:
    path = tmp_path / "theirs.safetensors"
    storage.save_safetensors(path, state)
    return path


def test_a_config_accepts_what_was_imported(tmp_path, tiny_state):
    extra = {"ema.decay": np.ones(()), "head.weight": np.ones((3, 192), np.float32)}
    path = saved(tmp_path, {**tiny_state, **extra})
    made = convert.read_backbone(path)
    out = convert.save_backbone(tmp_path / "new" / "folder", made)
    assert out.name == "tiny.safetensors"

    config = Config(backbone="tiny", backbone_weights=str(out), rank=6)
    experiment = build.experiment(config)
    # Whatever else the start holds is not compiled.
    start = jax.jit(lambda: experiment.init()["params"]["backbone"]["stage2_block1"]["qkv"])()
    np.testing.assert_array_equal(
        start["kernel"], tiny_state["layers.2.blocks.1.attn.qkv.weight"].T
    )
    leaves, metadata = storage.load_safetensors(out)
    assert {leaf.dtype.name for leaf in leaves.values()} == {"float32"}
    assert metadata["source"] == "theirs.safetensors" and metadata["preset"] == "tiny"
    assert metadata["sha256"] == made.sha256 and len(made.sha256) == 64
    assert metadata["family"] == "official"
    assert json.loads(metadata["unmatched"]) == ["ema.decay"]
    assert json.loads(metadata["left_out"]) == ["head.weight"]
    with pytest.raises(CheckpointError, match="this library's own names already"):
        convert.read_backbone(out)


def test_another_window_is_resized_to_the_presets(tmp_path):
    wide = state_of("tiny", window=6)
    made = convert.read_backbone(saved(tmp_path, wide))
    assert made.preset == "tiny" and made.swin.window == 4 and len(made.resized) == 8
    assert made.resized[0] == "stage0_block0/bias_table: window 6 to 4"
    key = "layers.1.blocks.1.attn.relative_position_bias_table"
    np.testing.assert_array_equal(
        made.params["stage1_block1/bias_table"], convert.resize_table(wide[key], 4)
    )


def test_smaller_windows_within_one_file(tiny_state):
    """The original code makes smaller tables for maps that are smaller than a window."""
    key = "layers.3.blocks.0.attn.relative_position_bias_table"
    small = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32)
    centred = convert.convert_state({**tiny_state, key: small}, smaller="centre")
    table = centred.params["stage3_block0/bias_table"].reshape(7, 7, 8)
    np.testing.assert_array_equal(table[2:5, 2:5].reshape(9, 8), small)
    assert not table[:2].any() and len(centred.resized) == 1
    resized = convert.convert_state({**tiny_state, key: small})
    np.testing.assert_array_equal(
        resized.params["stage3_block0/bias_table"], convert.resize_table(small, 4)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_number_types_become_float32(tiny_state, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    made = convert.convert_state({name: value.astype(kind) for name, value in tiny_state.items()})
    golden = convert.convert_state(tiny_state)
    for name, value in made.params.items():
        assert value.dtype == np.float32 and value.flags.c_contiguous
        np.testing.assert_allclose(value, golden.params[name], rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_told_by_their_shapes(name):
    assert geometry.preset_of(Swin(**{**PRESETS[name], "window": 11})) == name
    assert geometry.preset_of(Swin(**{**PRESETS[name], "embed_dim": 7})) is None


# --- refusals -----------------------------------------------------------------------------------

BODY = "layers.0.blocks.0."


def without(*keys: str):
    return lambda state: {name: value for name, value in state.items() if name not in keys}


def put(key: str, value: np.ndarray):
    return lambda state: {**state, key: value}


ZERO = np.zeros
QKV = BODY + "attn.qkv.weight"
TABLE = BODY + "attn.relative_position_bias_table"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(QKV), f"lacks 1 parameters .* the first is '{QKV}'"),
        (without("patch_embed.norm.weight"), "has nothing where a Swin has|lacks 1 parameters"),
        (put(QKV, ZERO((72, 12), np.float32)), r"of shape \(72, 12\), expected \(72, 24\)"),
        (put(QKV, ZERO((72, 24, 1), np.float32)), r"of shape \(72, 24, 1\), expected \(72, 24\)"),
        (put(QKV, ZERO((72, 24), np.int8)), "of type int8, expected floating-point"),
        (put(QKV, np.full((72, 24), np.nan, np.float32)), "not finite"),
        (put(QKV, np.full((72, 24), 1e300)), "not finite"),
        (put(TABLE, ZERO((48, 1), np.float32)), r"table has shape \(48, 1\)"),
        (put(TABLE, ZERO((49, 5), np.float32)), "has 5 heads for 24 channels"),
        (put(TABLE, ZERO((49, 2), np.float32)), r"heads \(2, 2, 4, 8\), expected heads \(1, 2"),
        (put("patch_embed.proj.weight", ZERO((24, 1, 2, 2))), "patches of 2 x 2 pixels and 1 ch"),
        (put("patch_embed.proj.weight", ZERO((24, 3))), r"has shape \(24, 3\) where a Swin has"),
        (put("patch_embed.proj.weight", ZERO((0, 3, 2, 2))), "where a Swin has its patch_embed"),
        (put("absolute_pos_embed", ZERO((1, 4, 24))), "absolute position embeddings"),
        (put(BODY + "attn.lora_A", ZERO((2, 2), np.float32)), "lora_A' inside the network"),
        (put("layers.0.blocks.2.norm1.weight", ZERO(24, np.float32)), "lacks 12 parameters"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_state, change, words):
    with pytest.raises(CheckpointError, match=words) as error:
        convert.convert_state(change(tiny_state), "weights.pth", swin=swin("tiny"))
    message = str(error.value)
    assert not message.endswith(".") and "\n" not in message


def test_unknown_keys_beside_the_network_are_reported(tiny_state):
    extra = {"decoder.weight": ZERO(3), "layers.0.blocks.0.counter": np.array(3), "scaler": ZERO(1)}
    made = convert.convert_state({**tiny_state, **extra})
    assert made.unmatched == tuple(sorted(extra))


def test_plain_values_of_a_torch_file_are_reported(tmp_path, tiny_state):
    items, storages = {}, {}
    for index, (name, value) in enumerate(tiny_state.items()):
        strides = np.empty(value.shape, "i1").strides
        items[name] = foreign.tensor(str(index), "Float", value.size, value.shape, strides)
        storages[str(index)] = value.tobytes()
    items["epoch"] = foreign.number(3)
    path = tmp_path / "flat.pth"
    path.write_bytes(foreign.archive(foreign.mapping(items), storages))
    assert convert.read_backbone(path).unmatched == ("epoch",)


def test_the_wrong_preset(tmp_path, tiny_state):
    path = saved(tmp_path, tiny_state)
    words = r"embed_dim 24, .*heads .* \(it is 'tiny'\), expected embed_dim 96, .* as 'swin_t' has"
    with pytest.raises(CheckpointError, match=words):
        convert.read_backbone(path, "swin_t")
    with pytest.raises(ConfigError, match=r"unknown backbone 'swin_x' \(did you mean"):
        convert.read_backbone(path, "swin_x")
    shallow = {k: v for k, v in tiny_state.items() if "layers.2.blocks.1." not in k}
    with pytest.raises(CheckpointError, match=r"depths \(2, 2, 1, 2\), expected depths \(2, 2, 2"):
        convert.read_backbone(saved(tmp_path, shallow), "tiny")


def test_adapters_of_another_library_are_named(tmp_path, tiny_state):
    wrapped = {
        name.replace("qkv.", "qkv.linear.").replace("fc1.", "fc1.linear."): value
        for name, value in tiny_state.items()
    }
    with pytest.raises(CheckpointError, match=r"'layers.*linear.*' inside the network"):
        convert.read_backbone(saved(tmp_path, wrapped))


def test_a_geometry_without_a_backbone_cannot_be_saved(tmp_path):
    made = convert.read_backbone(foreign.FIXTURES / "transformers_swin.bin")
    with pytest.raises(CheckpointError, match=r"embed_dim 8, .* the geometry of no backbone"):
        convert.save_backbone(tmp_path, made)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; choose another --out"):
        convert.save_backbone(tmp_path / "file", dataclasses.replace(made, preset="tiny"))
