"""Cityscapes: three layouts, three meanings of depth."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.data.archives.cityscapes import SEMSEG_NAMES, CityscapesReader, train_ids
from sinewich_jax.data.archives.layouts import detect, find_tree
from sinewich_jax.errors import DataError
from tests.data.archives.test_pascal import sentence
from tests.data.archives.trees import BASELINE, CITY_SIZE, FX, city_truth, cityscapes, save

FORMS = {
    "official": "train/bochum/bochum_000001_000019",
    "small": "train/1",
    "numpy": "train/1",
}


def reader(path, form="official", **options):
    if form == "numpy":
        options.setdefault("classes", 19)
    return CityscapesReader(find_tree("cityscapes_mt", path), **options)


def disparity(number):
    """(pixels at 2048 columns, where it was measured and is not 0)."""
    packed = city_truth(number)["packed"]
    return (packed.astype(np.float64) - 1) / 256, packed > 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("target", "scale"), [("disparity_px", 1), ("disparity_norm", 1 / 256)])
def test_disparity_is_the_same_in_every_layout(tmp_path, form, target, scale):
    r = reader(cityscapes(tmp_path / "cityscapes", form), form, target=target)
    assert r.tasks == ("semseg", "depth") and r.splits == ("train", "val")
    assert len(r.ids("train")) == 2 and r.ids("train")[1] == FORMS[form]
    assert r.notes == {"depth means": target}
    sample = r.read(FORMS[form])
    np.testing.assert_array_equal(sample.image, city_truth(1)["image"])
    truth, measured = disparity(1)
    np.testing.assert_array_equal(sample.valid["depth"], measured)
    expected = np.where(measured, truth * scale, 0)
    np.testing.assert_allclose(sample.labels["depth"], expected, rtol=1e-6)
    assert sample.labels["depth"].dtype == np.float32


def test_metres_from_the_camera(tmp_path):
    sample = reader(cityscapes(tmp_path / "c"), target="depth_m").read(FORMS["official"])
    truth, measured = disparity(1)
    np.testing.assert_array_equal(sample.valid["depth"], measured)
    np.testing.assert_allclose(
        sample.labels["depth"][measured], BASELINE * FX / truth[measured], rtol=1e-6
    )


@pytest.mark.parametrize("form", ["official", "small"])
def test_the_nineteen_classes(tmp_path, form):
    r = reader(cityscapes(tmp_path / "c", form))
    assert r.channels == {"semseg": 19, "depth": 1} and r.class_names["semseg"] == SEMSEG_NAMES
    sample, ids = r.read(FORMS[form]), city_truth(1)["ids"]
    expected = train_ids(ids, "here")
    np.testing.assert_array_equal(sample.valid["semseg"], expected != 255)
    np.testing.assert_array_equal(sample.labels["semseg"], np.where(expected == 255, 0, expected))


def test_some_label_ids_by_hand():
    # road, sidewalk, sky, person, car, bicycle; unlabelled, ego vehicle, parking, caravan
    ids = np.array([[7, 8, 23, 24, 26, 33, 0, 1, 9, 29]])
    assert train_ids(ids, "x").tolist() == [[0, 1, 10, 11, 13, 18, 255, 255, 255, 255]]
    assert len(SEMSEG_NAMES) == 19 and SEMSEG_NAMES[10] == "sky" and SEMSEG_NAMES[13] == "car"
    with pytest.raises(DataError, match="x contains 34, expected label ids from 0 to 33"):
        train_ids(np.array([[34]]), "x")


@pytest.mark.parametrize("classes", [2, 7, 19])
def test_numpy_files_are_told_their_classes(tmp_path, classes):
    path = cityscapes(tmp_path / "c", "numpy", classes)
    r = reader(path, "numpy", classes=classes)
    assert r.channels["semseg"] == classes
    label, valid = (getattr(r.read("train/1"), k)["semseg"] for k in ("labels", "valid"))
    truth = city_truth(1)["ids"].astype(int) % (classes + 1) - 1
    np.testing.assert_array_equal(valid, truth >= 0)
    np.testing.assert_array_equal(label, np.maximum(truth, 0))
    for wrong in (None, 13):
        with pytest.raises(DataError, match=r"set channels\.semseg .* to 2, 7 or 19") as caught:
            reader(path, "numpy", classes=wrong)
        sentence(caught.value)


def test_which_layout_it_is(tmp_path):
    for form in FORMS:
        path = cityscapes(tmp_path / form, form)
        assert detect(path)[1] is CityscapesReader
        assert ("official" in reader(path, form).layout) == (form == "official")


def test_labels_may_be_absent(tmp_path):
    root = cityscapes(tmp_path / "c")
    (root / "disparity").rename(tmp_path / "disparity")
    assert reader(root).tasks == ("semseg",) and reader(root).notes == {}
    (tmp_path / "disparity").rename(root / "disparity")
    (root / "camera").rename(tmp_path / "camera")
    assert reader(root).read(FORMS["official"]).available == ("semseg", "depth")
    assert reader(root, target="depth_m").read(FORMS["official"]).available == ("semseg",)


def test_what_cannot_be_asked_for(tmp_path):
    small = cityscapes(tmp_path / "s", "small")
    with pytest.raises(DataError, match=r"'depth_m' needs the camera's baseline .*'disparity_px'"):
        reader(small, target="depth_m")
    with pytest.raises(DataError, match="target is 'disparity'"):
        reader(small, target="disparity")
    with pytest.raises(DataError, match=r"has 19 classes, but channels\.semseg is 7"):
        reader(small, classes=7)
    save(small / "train/depth/0.png", city_truth(0)["packed"])
    with pytest.raises(DataError, match=r"\.png and \.tif files in depth, expected one kind"):
        reader(small)


ID = FORMS["official"]
BAD = {
    "8-bit disparity": (
        lambda r: save(r / f"disparity/{ID}_disparity.png", np.ones(CITY_SIZE, np.uint8)),
        r"disparity\.png holds uint8 pixels of shape \[16, 32\], expected 16 bits",
    ),
    "a label id too many": (
        lambda r: save(r / f"gtFine/{ID}_gtFine_labelIds.png", np.full(CITY_SIZE, 99, np.uint8)),
        r"labelIds\.png contains 99",
    ),
    "no camera in the file": (
        lambda r: (r / f"camera/{ID}_camera.json").write_text('{"intrinsic": {"fx": 2262}}'),
        r"camera\.json does not say the camera",
    ),
    "a camera without a base": (
        lambda r: (r / f"camera/{ID}_camera.json").write_text(
            '{"intrinsic": {"fx": 2262}, "extrinsic": {"baseline": 0}}'
        ),
        r"camera\.json has baseline 0 and fx 2262, expected both above 0",
    ),
    "no JSON": (
        lambda r: (r / f"camera/{ID}_camera.json").write_bytes(b"\xff\xfe{"),
        r"camera\.json does not say the camera",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named(tmp_path, kind):
    root = cityscapes(tmp_path / "c")
    break_it, message = BAD[kind]
    break_it(root)
    with pytest.raises(DataError, match=message) as caught:
        reader(root, target="depth_m").read(ID)
    sentence(caught.value)
