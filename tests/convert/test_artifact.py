"""jax.export artefacts: one task, any batch, no library needed to run them."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from sinewich_jax import convert
from sinewich_jax.convert import artifact
from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.errors import CheckpointError, ConfigError
from sinewich_jax.nn.clock import ClockSpec
from sinewich_jax.nn.decoder import DecoderSpec
from sinewich_jax.nn.mobilenet import MobileNetV2
from sinewich_jax.nn.sinewich import MultiTaskModel
from tests.convert import models

SIZE = (30, 22)  # no multiple of anything: padding and cropping are in the artefact


def photos(batch: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (batch, *SIZE, 3), np.uint8)


def whole_model(model: MultiTaskModel, variables, images: np.ndarray) -> dict[str, np.ndarray]:
    mean, std = model.backbone.image_mean, model.backbone.image_std
    normalised = ((images / 255.0 - np.array(mean)) / np.array(std)).astype(np.float32)
    return jax.jit(lambda v, x: model.apply(v, x))(variables, normalised)


@pytest.mark.parametrize(
    ("base", "features"),
    [
        ("sine", "stage"),
        ("independent", "stage"),
        pytest.param("shared", "stage", marks=pytest.mark.slow),
        pytest.param("sine", "merged", marks=pytest.mark.slow),
    ],
)
def test_a_predictor_computes_its_task_as_the_model_does(base, features):
    model, variables = models.make("sine", features, base)
    images = photos(2)
    golden = whole_model(model, variables, images)
    for task, channels in models.HEADS:
        output = convert.predictor(model, variables, task)(images)
        assert output.shape == (2, *SIZE, channels) and output.dtype == np.float32
        scale = np.abs(golden[task]).max()
        np.testing.assert_allclose(output, golden[task], rtol=0, atol=1e-5 * scale)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    pytest.importorskip("flatbuffers")
    model, variables = models.make("sine")
    path = tmp_path_factory.mktemp("artefacts") / "normals.stablehlo"
    function = convert.predictor(model, variables, "normals")
    convert.save_artifact(path, function, SIZE, {"task": "normals"})
    return path, whole_model(model, variables, photos(3))["normals"]


def test_an_artefact_gives_the_same_for_any_batch(saved):
    path, golden = saved
    call = convert.load_artifact(path)
    for batch in (3, 1):
        output = call(photos(3)[:batch])
        np.testing.assert_allclose(output, golden[:batch], rtol=0, atol=1e-5 * np.abs(golden).max())
    facts = json.loads(path.with_name("normals.stablehlo.json").read_text())
    assert facts["task"] == "normals" and facts["platforms"] == ["cpu", "cuda", "tpu"]
    assert facts["input"]["shape"] == ["batch", *SIZE, 3]
    assert facts["output"] == {"shape": ["batch", *SIZE, 3], "dtype": "float32"}


def test_an_artefact_needs_jax_alone(saved, tmp_path):
    path, golden = saved
    np.save(tmp_path / "in.npy", photos(3))
    code = (
        "import sys, numpy as np\n"
        "from jax import export\n"
        "call = export.deserialize(bytearray(open(sys.argv[1], 'rb').read())).call\n"
        "np.save(sys.argv[3], call(np.load(sys.argv[2])))\n"
        "assert not {'flax', 'sinewich_jax'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(path), *(f"{tmp_path}/{n}.npy" for n in ("in", "o"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    output = np.load(tmp_path / "o.npy")
    np.testing.assert_allclose(output, golden, rtol=0, atol=1e-5 * np.abs(golden).max())


def test_a_backbone_that_does_not_fold_runs_whole():
    model = MultiTaskModel(MobileNetV2(), models.HEADS, ClockSpec(3), DecoderSpec((4, 4, 4, 4)))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, 3))))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: (0.1 * rng.random(s.shape)).astype(s.dtype), dict(shapes))
    images = photos(1)
    output = jax.jit(convert.predictor(model, variables, "depth"))(images)
    golden = whole_model(model, variables, images)["depth"]
    np.testing.assert_allclose(output, golden, rtol=0, atol=1e-5 * np.abs(golden).max())


@pytest.mark.slow
def test_the_difference_is_measured():
    model, variables = models.make("sine")
    good = convert.predictor(model, variables, "depth")
    measured = [
        artifact.difference(function, model, variables, "depth", photos(1))
        for function in (good, lambda image: 1.01 * good(image), lambda image: np.nan * good(image))
    ]
    assert measured[0] < 1e-5 and 0.009 < measured[1] < 0.011 and np.isnan(measured[2])


def test_refusals(tmp_path):
    model, variables = models.make("sine")
    with pytest.raises(ConfigError, match="no task 'edge'"):
        convert.predictor(model, variables, "edge")
    flat = flatten_paths(variables["params"])
    flat["decoder/base_bias"] = flat["decoder/base_bias"][:, :1]
    with pytest.raises(CheckpointError, match=r"'params/base_bias'|'base_bias' has shape \(3, 1\)"):
        convert.predictor(model, {**variables, "params": unflatten_paths(flat)}, "depth")
    with pytest.raises(CheckpointError, match="found nothing"):
        convert.load_artifact(tmp_path / "absent.stablehlo")
    (tmp_path / "x.stablehlo").write_bytes(b"no artefact")
    with pytest.raises(CheckpointError, match="is no artefact that jax"):
        convert.load_artifact(tmp_path / "x.stablehlo")


def test_without_flatbuffers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'sinewich-jax\[export\]'"):
        artifact.save_artifact(tmp_path / "x.stablehlo", lambda x: x.astype("float32"), SIZE)
    assert not list(tmp_path.iterdir())
