"""``sinewich export``: from a run's directory to a file, without data, and how it fails."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from sinewich_jax import cli, convert, storage
from sinewich_jax.convert import artifact, fold
from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import CheckpointError
from sinewich_jax.train import build, trained, workdir
from tests.train import fake
from tests.train.runs import CONFIG, save_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "scenes_debug"
    return folder, *save_run(folder, CONFIG)


def test_a_run_is_read_without_its_data_or_optimizer(run):
    folder, made, state = run
    got = trained.read_trained(folder)
    assert (got.step, got.skipped, got.config) == (7, [], CONFIG)
    assert {"params", "batch_stats", "anchor"} <= got.variables.keys()
    read = flatten_paths(got.variables["params"])
    for path, leaf in flatten_paths(state.params).items():
        np.testing.assert_array_equal(read[path], leaf)
    for path, leaf in flatten_paths(made.placed.constants["params"]).items():
        np.testing.assert_array_equal(read[path], leaf)


def test_a_run_in_which_everything_trains(tmp_path):
    experiment = fake.make_experiment(switching=False, rules=((".*", "trainable"),))
    config = fake.make_config()
    _, state = save_run(tmp_path / "run", config, experiment)
    got = trained.read_trained(tmp_path / "run", experiment)
    np.testing.assert_array_equal(
        got.variables["params"]["up"]["kernel"], state.params["up"]["kernel"]
    )


@pytest.mark.slow
def test_weights(run, tmp_path, capsys):
    folder, _, _ = run
    out = tmp_path / "new" / "depth.safetensors"
    command = ["export", str(folder), "--task", "depth", "--out", str(out), "--names", "hf4"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "scenes_debug, step 7: task depth, hf4 names, frequency" in text
    assert "stage0, stage1, stage2: the task's own MLP" in text and f"written: {out}" in text
    got, back = trained.read_trained(folder), convert.read_folded(out)
    folded = convert.fold_task(got.experiment.model, got.variables, "depth")
    for ours, theirs in ((back.params, folded.params), (back.branches, folded.branches)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[path], leaf) for path, leaf in theirs.items())
    assert float(re.search(r"adapter model: (\S+) of the largest", text)[1]) < 1e-5
    metadata = storage.load_safetensors(out)[1]
    assert metadata["source"] == "scenes_debug, step 7" and metadata["task"] == "depth"

    # ... and what was exported can be a backbone again
    assert cli.main(["import-backbone", str(out), "--out", str(tmp_path)]) == 0
    config = dataclasses.replace(CONFIG, backbone_weights=str(tmp_path / "tiny.safetensors"))
    unoptimised = {"xla_backend_optimization_level": 0}
    init = jax.jit(build.experiment(config).init, compiler_options=unoptimised)
    params = init()["params"]["backbone"]
    np.testing.assert_array_equal(
        params["stage3_block1"]["fc1"]["kernel"], back.params["stage3_block1/fc1/kernel"]
    )


@pytest.mark.slow
def test_artefact(run, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    folder, _, _ = run
    out = tmp_path / "depth.stablehlo"
    assert cli.main(["export", str(folder), "--task", "depth", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "images of 32 x 32 pixels, any batch" in text and "the whole model" not in text
    assert float(re.search(r"adapter model: (\S+) of the largest output", text)[1]) < 1e-5
    images = np.random.default_rng(4).integers(0, 256, (2, 32, 32, 3), np.uint8)
    got = trained.read_trained(folder)
    model, normalise = got.experiment.model, got.experiment.normalise
    golden = jax.jit(lambda v, x: model.apply(v, normalise(x)))(got.variables, images)["depth"]
    made = convert.load_artifact(out)(images)
    np.testing.assert_allclose(made, golden, rtol=0, atol=1e-5 * float(np.abs(golden).max()))
    facts = json.loads((tmp_path / "depth.stablehlo.json").read_text())
    assert facts["source"] == "scenes_debug, step 7" and facts["metric_unit"] == "m"


@pytest.mark.slow
def test_what_does_not_fold_goes_out_whole_as_a_program_alone(tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    folder, out = tmp_path / "run", tmp_path / "depth.stablehlo"
    save_run(folder, dataclasses.replace(CONFIG, method="tadformer"))
    weights = tmp_path / "depth.safetensors"
    assert cli.main(["export", str(folder), "--task", "depth", "--out", str(weights)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no plain Swin computes what task 'depth' does; export the whole model" in line
    assert not weights.exists()
    assert cli.main(["export", str(folder), "--task", "depth", "--out", str(out)]) == 0
    assert "take part in the attention of this model: the program computes the whole model" in (
        capsys.readouterr().out
    )
    got = trained.read_trained(folder)
    images = np.random.default_rng(4).integers(0, 256, (2, 32, 32, 3), np.uint8)
    gap = artifact.difference(
        convert.load_artifact(out), got.experiment.model, got.variables, "depth", images
    )
    assert gap < 1e-5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "dpeth", "--out", "x.safetensors"], "no task 'dpeth' (did you mean 'depth'?)"),
        (["--task", "depth", "--out", "x.onnx"], "ends in '.onnx', expected .safetensors"),
        (
            ["--task", "depth", "--out", "x.safetensors", "--names", "tim"],
            "unknown names 'tim' (did you mean 'timm'?)",
        ),
        (
            ["--task", "depth", "--out", "x.stablehlo", "--image-size", "0", "4"],
            "--image-size is [0, 4], expected two positive numbers",
        ),
    ],
)
def test_bad_words_are_one_line_and_leave_nothing(run, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(run[0]), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not list(tmp_path.iterdir())


def test_no_run_no_checkpoint(tmp_path, capsys):
    flags = ["--task", "depth", "--out", str(tmp_path / "x.safetensors")]
    assert cli.main(["export", str(tmp_path / "absent"), *flags]) == 2
    assert "expected the work directory of a training run" in capsys.readouterr().err
    workdir.prepare(tmp_path / "run", CONFIG)
    workdir.claim(tmp_path / "run", CONFIG)
    with pytest.raises(CheckpointError, match="holds no checkpoint; train it first"):
        trained.read_trained(tmp_path / "run")


def test_an_artefact_needs_a_size(run, tmp_path, capsys, monkeypatch):
    got = trained.read_trained(run[0])
    free = got._replace(config=dataclasses.replace(got.config, image_size=None))
    monkeypatch.setattr(trained, "read_trained", lambda folder: free)
    flags = ["--task", "depth", "--out", str(tmp_path / "x.stablehlo")]
    assert cli.main(["export", str(run[0]), *flags]) == 2
    assert "give --image-size H W" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fold_that_went_wrong_is_not_written(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fold, "difference", lambda *_: float("nan"))
    out = tmp_path / "x.safetensors"
    assert cli.main(["export", str(run[0]), "--task", "depth", "--out", str(out)]) == 2
    assert "differs from the adapter model by nan" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("gap", [pytest.param(3e-4, marks=pytest.mark.slow), float("nan")])
def test_a_program_that_went_wrong_is_not_written(run, tmp_path, capsys, monkeypatch, gap):
    monkeypatch.setattr(artifact, "difference", lambda *_: gap)
    out = tmp_path / "x.stablehlo"
    assert cli.main(["export", str(run[0]), "--task", "depth", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the program of task 'depth' differs from the adapter model by {gap:.1e}" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_wrong_program_is_noticed(run, tmp_path, capsys, monkeypatch):
    right = artifact.predictor

    def wrong(*model):
        function = right(*model)
        return lambda image: 1.001 * function(image)

    monkeypatch.setattr(artifact, "predictor", wrong)
    out = tmp_path / "x.stablehlo"
    assert cli.main(["export", str(run[0]), "--task", "depth", "--out", str(out)]) == 2
    assert "task 'depth' differs from the adapter model by 1.0e-03" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
