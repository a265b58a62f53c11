"""The small NYUv2 in NumPy files."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.data.archives.layouts import detect, find_tree
from sinewich_jax.data.archives.mtan import NyuMtanReader
from sinewich_jax.errors import DataError
from tests.data.archives.test_pascal import half, sentence
from tests.data.archives.trees import mtan_truth, nyuv2, save


@pytest.fixture
def root(tmp_path):
    return nyuv2(tmp_path / "nyuv2")


def reader(path):
    return NyuMtanReader(find_tree("nyuv2_mtan", path))


def test_every_number_is_read_as_it_was_written(root):
    r = reader(root.parent)
    assert r.tasks == ("semseg", "normals", "depth") and r.splits == ("train", "val")
    assert r.channels == {"semseg": 13, "normals": 3, "depth": 1}
    assert r.ids("train") == [f"train/{i}" for i in range(11)] and r.ids("val")[1] == "val/1"
    for id in ("train/10", "val/1"):
        truth, sample = mtan_truth(int(id.split("/")[1])), r.read(id)
        np.testing.assert_array_equal(sample.image, truth["image"])
        label, valid = sample.labels, sample.valid
        np.testing.assert_array_equal(valid["semseg"], truth["label"] >= 0)
        np.testing.assert_array_equal(label["semseg"], np.maximum(truth["label"], 0))
        np.testing.assert_array_equal(label["depth"], truth["depth"][..., 0])
        np.testing.assert_array_equal(valid["depth"], truth["depth"][..., 0] > 0)
        np.testing.assert_allclose(label["normals"], truth["normal"], atol=1e-6)


def test_a_normal_whose_components_cancel_is_one(root):
    sample = reader(root).read("train/0")
    valid = sample.valid["normals"]
    assert not valid[:2].any() and valid[2:].all()
    assert abs(sample.labels["normals"][3, 4].sum()) < 1e-6


def test_it_is_told_by_its_normals(root):
    assert detect(root)[1] is NyuMtanReader
    for split in ("train", "val"):
        (root / split / "normal").rename(root.parent / split)
    assert reader(root).tasks == ("semseg", "depth")
    assert detect(root)[1].name == "cityscapes_mt"


def test_photographs_of_8_bits_and_a_little_overshoot(root):
    image = mtan_truth(0)["image"]
    save(root / "train/image/0.npy", image)
    np.testing.assert_array_equal(reader(root).read("train/0").image, image)
    save(root / "train/image/0.npy", np.full((24, 32, 3), 1.01))
    assert (reader(root).read("train/0").image == 255).all()


BAD = {
    "an image in 0..255": (
        lambda r: save(r / "train/image/0.npy", np.full((24, 32, 3), 255.0)),
        r"image/0\.npy has values from 255 to 255, expected \[0, 1\]",
    ),
    "an image with NaN": (
        lambda r: save(r / "train/image/0.npy", np.full((24, 32, 3), np.nan)),
        r"image/0\.npy has values from nan",
    ),
    "channels first": (
        lambda r: save(r / "train/image/0.npy", np.zeros((3, 24, 32))),
        r"image/0\.npy has shape \[3, 24, 32\], expected \[H, W, 3\]",
    ),
    "class 13": (
        lambda r: save(r / "train/label/0.npy", np.full((24, 32), 13)),
        r"label/0\.npy: the semseg label holds 13",
    ),
    "class -2": (
        lambda r: save(r / "train/label/0.npy", np.full((24, 32), -2)),
        r"label/0\.npy contains -2",
    ),
    "half a class": (
        lambda r: save(r / "train/label/0.npy", np.full((24, 32), 1.5)),
        r"label/0\.npy holds fractions",
    ),
    "a cut array": (
        lambda r: half(r / "train/depth/0.npy"),
        r"depth/0\.npy is not a NumPy array",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named(root, kind):
    break_it, message = BAD[kind]
    break_it(root)
    with pytest.raises(DataError, match=message) as caught:
        reader(root).read("train/0")
    sentence(caught.value)
