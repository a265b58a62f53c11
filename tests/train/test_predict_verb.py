"""``sinewich predict``: photographs of any size, files that our folders read, clear refusals."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sinewich_jax import cli, data
from sinewich_jax.errors import ConfigError
from sinewich_jax.train import predict
from tests.train.runs import CONFIG, save_run

SIZES = {"wide": (40, 70), "tall": (75, 50), "as_trained": (32, 32)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "scenes_debug"
    return folder, *save_run(folder, CONFIG)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos") / "images", np.random.default_rng(0)
    folder.mkdir()
    for name, size in SIZES.items():
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_photographs(run, photos, tmp_path, capsys):
    (tmp_path / "classes.json").write_text(json.dumps({"semseg": [f"c{i}" for i in range(21)]}))
    out = tmp_path / "out"
    words = [str(run[0]), str(photos), "--out", str(out), "--classes", f"{tmp_path}/classes.json"]
    assert cli.main(["predict", *words]) == 0
    assert "3 images at a shorter side of 32 pixels, step 7" in capsys.readouterr().out
    for name, size in SIZES.items():
        with Image.open(out / "semseg" / f"{name}.png") as image:
            assert image.size == size[::-1]
        assert np.load(out / "depth" / f"{name}.npy").shape == size
        assert (out / "panels" / f"{name}.png").stat().st_size > 0
    # The folder that was written is a folder of labels for the photographs.
    (out / "images").mkdir()
    for name in SIZES:
        (out / "images" / f"{name}.png").symlink_to(photos / f"{name}.png")
    source = data.from_folder(out, tasks=("semseg", "depth"))
    assert len(source) == 3 and source[0]["labels"]["depth"].dtype == np.float32


def test_at_the_size_of_training_it_is_the_model_itself(run, photos):
    folder, made, _ = run
    with Image.open(photos / "as_trained.png") as image:
        pixels = np.asarray(image)
    predictor = predict.Predictor(folder)
    got = predictor(pixels)
    experiment = made.experiment
    logits = jax.jit(experiment.model.apply)(
        predictor._made.variables, experiment.normalise(jnp.asarray(pixels)[None])
    )
    for task in experiment.tasks:
        np.testing.assert_allclose(
            got[task.name], task.predict(logits[task.name])[0], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("side", "seen"), [(None, (32, 56)), pytest.param(20, (20, 35), marks=pytest.mark.slow)]
)
def test_the_network_looks_at_the_shorter_side_that_was_asked_for(run, photos, side, seen):
    predictor = predict.Predictor(run[0], ["depth"], side)
    sizes = []
    forward = predictor._forward
    predictor._forward = lambda v, image: sizes.append(image.shape[1:3]) or forward(v, image)
    with Image.open(photos / "wide.png") as image:
        got = predictor(np.asarray(image))
    assert sizes == [seen] and got.keys() == {"depth"} and got["depth"].shape == SIZES["wide"]


def test_unknown_tasks_and_images_are_named(run, photos, tmp_path, capsys):
    with pytest.raises(ConfigError, match="did you mean 'depth'"):
        predict.Predictor(run[0], ["dept"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "wide.jpg").write_bytes(b"no image")
    cases = {
        "does not exist": [tmp_path / "absent.png"],
        "holds no image": [tmp_path / "empty"],
        "would both be written as 'wide'": [photos, tmp_path / "wide.jpg"],
        "is not an image": [tmp_path / "wide.jpg"],
    }
    for message, paths in cases.items():
        words = ["predict", str(run[0]), *map(str, paths), "--out", str(tmp_path / "out")]
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err
