"""Weights out: names of other libraries, and back again unchanged."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from sinewich_jax import convert, storage
from sinewich_jax.convert import fold
from sinewich_jax.convert.names import FAMILIES
from sinewich_jax.errors import CheckpointError, ConfigError
from tests.convert import foreign, models


@pytest.mark.parametrize("family", FAMILIES)
def test_import_then_export_is_the_file_that_came(family):
    state = foreign.named(foreign.official_state(head=False), family)
    made = convert.convert_state(state)
    out = convert.foreign_state(made.swin, made.params, family)
    assert out.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(out[name], value)
        assert out[name].dtype == np.float32 and out[name].flags.c_contiguous


def test_what_transformers_wrote_comes_back_unchanged():
    path = foreign.FIXTURES / "transformers_swin.safetensors"
    made = convert.read_backbone(path)
    theirs = storage.load_safetensors(path)[0]
    out = convert.foreign_state(made.swin, made.params, "hf4")
    assert theirs.keys() - out.keys() == set(made.left_out)
    for name, value in out.items():
        np.testing.assert_array_equal(value, theirs[name])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["sine", "plain"])
def test_export_then_import_is_unchanged(tmp_path, family, kind):
    model, variables = models.make(kind)
    folded = convert.fold_task(model, variables, "normals")
    path = tmp_path / "normals.safetensors"
    convert.save_folded(path, folded, family, source="run 7, step 100")
    made = convert.read_backbone(path)
    assert made.family.name == family and made.unmatched == ()
    assert len(made.left_out) == (4 if kind == "sine" else 0)
    back = convert.read_folded(path)
    assert (back.task, back.frequencies, back.swin) == ("normals", folded.frequencies, folded.swin)
    for one, two in ((made.params, folded.params), (back.params, folded.params)):
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in two)
    assert back.branches.keys() == folded.branches.keys()
    for name, value in folded.branches.items():
        np.testing.assert_array_equal(back.branches[name], value)


def test_features_of_the_file_are_those_of_the_model(tmp_path):
    model, variables = models.make("sine")
    path = tmp_path / "depth.safetensors"
    convert.save_folded(path, convert.fold_task(model, variables, "depth"), "timm")
    back = convert.read_folded(path)
    assert fold.difference(back, model, variables, models.image()) < 1e-5


def test_the_header_says_where_it_comes_from(tmp_path):
    model, variables = models.make("sine")
    folded = convert.fold_task(model, variables, "depth")
    convert.save_folded(tmp_path / "x.safetensors", folded, "hf4", source="scenes, step 600")
    metadata = storage.load_safetensors(tmp_path / "x.safetensors")[1]
    assert metadata["format"] == "pt" and metadata["source"] == "scenes, step 600"
    assert (metadata["task"], metadata["family"]) == ("depth", "hf4")
    assert json.loads(metadata["frequencies"]) == folded.frequencies
    assert json.loads(metadata["branches"]) == ["stage0"]
    config = json.loads(metadata["config"])
    assert config["embed_dim"] == 8 and config["depths"] == [1, 2] and config["window_size"] == 4


def test_refusals(tmp_path):
    model, variables = models.make("sine")
    folded = convert.fold_task(model, variables, "depth")
    with pytest.raises(ConfigError, match=r"unknown names 'hf6' \(did you mean 'hf"):
        convert.save_folded(tmp_path / "x.safetensors", folded, "hf6")
    assert not list(tmp_path.iterdir())
    path = tmp_path / "x.safetensors"
    convert.save_folded(path, folded)
    state, metadata = storage.load_safetensors(path)
    storage.save_safetensors(path, state)
    with pytest.raises(CheckpointError, match="does not say which task"):
        convert.read_folded(path)
    del state["layers.0.blocks.0.task_mlp.fc2.bias"]
    storage.save_safetensors(path, state, metadata)
    with pytest.raises(CheckpointError, match=r"lacks 'layers\.0\.blocks\.0\.task_mlp\.fc2\.bias'"):
        convert.read_folded(path)


_TRANSFORMERS = """
import sys, numpy as np, torch, transformers
from safetensors.torch import load_file
folder, image, recipe = sys.argv[1:]
exec(open(recipe).read())
model = transformers.SwinModel.from_pretrained(folder, add_pooling_layer=False).eval()
state = load_file(folder + "/model.safetensors")
features = task_features(model, state, "layernorm_after", "swin.")
seen = []
for layer in model.encoder.layers:
    layer.blocks[-1].register_forward_hook(
        lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
with torch.no_grad():
    model(torch.from_numpy(np.load(image)))
(first,) = features.values()
np.savez(folder + "/out.npz", first, seen[-1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["hf4", "hf5"])
def test_transformers_reads_it_and_the_recipe_of_the_docs_gives_every_feature(tmp_path, family):
    """In a process of its own, because torch and JAX do not share threads well."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    model, variables = models.make("sine")
    folded = convert.fold_task(model, variables, "depth")
    convert.save_folded(tmp_path / "model.safetensors", folded, family)
    metadata = storage.load_safetensors(tmp_path / "model.safetensors")[1]
    (tmp_path / "config.json").write_text(metadata["config"])
    page = (pathlib.Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    (tmp_path / "recipe.py").write_text(re.search(r"```py\n(.*?)```", page, re.DOTALL)[1])
    image = models.image((64, 64))
    np.save(tmp_path / "image.npy", image.transpose(0, 3, 1, 2))
    places = [str(tmp_path / name) for name in ("", "image.npy", "recipe.py")]
    command = [sys.executable, "-c", _TRANSFORMERS, *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    golden = jax.jit(lambda v, x: model.apply(v, x, method="features"))(variables, image)
    theirs = np.load(tmp_path / "out.npz")
    for stage, feature in enumerate(golden):
        made = theirs[f"arr_{stage}"].reshape(feature[1].shape)
        np.testing.assert_allclose(made, feature[1], rtol=0, atol=1e-5 * np.abs(feature[1]).max())
