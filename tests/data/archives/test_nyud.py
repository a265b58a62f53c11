"""NYUD_MT: three releases of the same numbers, the unit of depth, and bad files."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.data.archives import units
from sinewich_jax.data.archives.layouts import find_tree
from sinewich_jax.data.archives.nyud import SEMSEG_NAMES, NyudReader
from sinewich_jax.errors import DataError
from tests.data.archives.test_pascal import half, hdf5, same, sentence
from tests.data.archives.trees import (
    NYUD_IDS,
    RELEASES,
    nyud,
    nyud_truth,
    pack,
    save,
    to_bytes,
)

STEP = 2 / 255
LINE = {"mtinet": "MTI-Net / MTLoRA", "atrc": "ATRC / InvPT", "astmt": "ASTMT"}


def reader(path, **options):
    return NyudReader(find_tree("nyud_mt", path), **options)


@pytest.fixture
def root(tmp_path):
    return nyud(tmp_path / "NYUD_MT")


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_gives_the_numbers_it_was_written_with(tmp_path, release):
    r = reader(nyud(tmp_path / "NYUDv2", release))
    assert r.layout.endswith(f"release of {LINE[release]}")
    assert r.tasks == ("semseg", "normals", "depth", "edge") and r.splits == ("train", "val")
    assert r.channels == {"semseg": 40, "normals": 3, "depth": 1, "edge": 1}
    assert r.notes == {"depth unit of the files": "m"}
    for id in NYUD_IDS:
        truth, sample = nyud_truth(id), r.read(id)
        labels, valid = sample.labels, sample.valid
        assert sample.resized == () and sample.available == r.tasks
        np.testing.assert_array_equal(valid["semseg"], truth["semseg"] > 0)
        expected = np.where(truth["semseg"] > 0, truth["semseg"].astype(int) - 1, 0)
        np.testing.assert_array_equal(labels["semseg"], expected)
        np.testing.assert_array_equal(labels["depth"], truth["depth"])
        np.testing.assert_array_equal(valid["depth"], truth["depth"] > 0)
        assert (~valid["depth"]).mean() == 4 / 48
        np.testing.assert_array_equal(labels["edge"], truth["edge"])
        assert valid["edge"].all() and valid["normals"].all()
        error = np.abs(labels["normals"] - truth["normals"]).max()
        # Floats are kept, a PNG rounds to half a step, a JPEG adds a few of its own.
        assert error <= {"mtinet": 1e-6, "atrc": 0.75 * STEP, "astmt": 6 * STEP}[release]
        tolerance = 0 if release == "atrc" else 3
        assert np.abs(sample.image.astype(int) - truth["image"]).max() <= tolerance


def test_the_classes():
    assert len(SEMSEG_NAMES) == 40 == len(set(SEMSEG_NAMES))
    assert SEMSEG_NAMES[0] == "wall" and SEMSEG_NAMES[19] == "floor mat"
    assert SEMSEG_NAMES[27] == "shower curtain" and SEMSEG_NAMES[39] == "otherprop"


def test_a_zero_vector_is_no_normal(root):
    normals = nyud_truth("0001")["normals"].copy()
    normals[:5] = 0
    normals[6, 7] = np.nan
    save(root / "normals/0001.npy", normals)
    sample = reader(root).read("0001")
    valid = sample.valid["normals"]
    assert not valid[:5].any() and not valid[6, 7] and (~valid).sum() == 5 * 64 + 1
    assert not sample.labels["normals"][~valid].any()


def test_zero_in_8_bits_is_no_normal(tmp_path):
    root = nyud(tmp_path / "NYUDv2", "atrc")
    pixels = to_bytes(nyud_truth("0001")["normals"])
    pixels[:5] = (127, 128, 127)
    save(root / "normals/0001.png", pixels)
    valid = reader(root).read("0001").valid["normals"]
    assert not valid[:5].any() and valid[5:].all()


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_is_read_like_its_folder(tmp_path, release, mode, monkeypatch):
    monkeypatch.setenv("SINEWICH_CACHE", str(tmp_path / "cache"))
    root = nyud(tmp_path / "a/NYUD_MT", release)
    pack(root, tmp_path / "NYUD_MT.tgz", mode)
    with find_tree("nyud_mt", tmp_path / "NYUD_MT.tgz") as tree:
        packed, plain = NyudReader(tree), reader(root)
        assert packed.layout == plain.layout and packed.notes == plain.notes
        for id in NYUD_IDS:
            same(packed.read(id), plain.read(id))


# --- the unit of depth ------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["mtinet", "astmt"])
def test_millimetres_are_told_from_metres(tmp_path, release):
    metres = reader(nyud(tmp_path / "m", release))
    millimetres = reader(nyud(tmp_path / "mm", release, scale=1000))
    assert metres.depth_unit == "m" and millimetres.depth_unit == "mm"
    a, b = metres.read("0002"), millimetres.read("0002")
    np.testing.assert_allclose(b.labels["depth"], a.labels["depth"], rtol=2e-7)
    np.testing.assert_array_equal(b.valid["depth"], a.valid["depth"])


def test_a_unit_that_cannot_be_told_is_refused_and_can_be_said(tmp_path):
    root = nyud(tmp_path / "NYUD_MT", scale=6)  # the median is about 32
    with pytest.raises(DataError, match=r"depth has a median depth of 3\d.*say depth_unit=") as e:
        reader(root).read("0001")
    sentence(e.value)
    assert reader(root).read("0001", tasks=("semseg",)).available == ("semseg",)
    said = {unit: reader(root, depth_unit=unit).read("0001") for unit in ("m", "mm")}
    depth = nyud_truth("0001")["depth"] * np.float32(6)
    np.testing.assert_array_equal(said["m"].labels["depth"], depth)
    np.testing.assert_allclose(said["mm"].labels["depth"], depth / 1000, rtol=1e-6)
    with pytest.raises(DataError, match=r"depth_unit is 'km', expected one of auto, m, mm"):
        reader(root, depth_unit="km")


@pytest.mark.parametrize(
    ("median", "unit"), [(19.9, "m"), (20.0, None), (50.0, None), (50.1, "mm"), (2.5, "m")]
)
def test_the_bounds_of_the_guess(median, unit):
    maps = [np.array([[0.0, np.nan, -5.0], [median, median, median]])]
    if unit is None:
        with pytest.raises(DataError, match="may be metres"):
            units.decide(maps, "here")
    else:
        assert units.decide(maps, "here") == unit


def test_nothing_valid_tells_nothing(root):
    for id in NYUD_IDS:
        save(root / f"depth/{id}.npy", np.zeros((48, 64), np.float32))
    with pytest.raises(DataError, match=r"no valid depth in its first 16 files"):
        reader(root).read("0001")


def test_only_the_first_16_files_are_looked_at(root):
    # Ids beyond the lists count as well: the guess must not depend on the split.
    for number in range(4, 30):
        value = 3.0 if number <= 16 else 3000.0
        save(root / f"depth/{number:04d}.npy", np.full((200, 200), value, np.float32))
    assert reader(root).depth_unit == "m"


def test_whole_millimetres(root):
    for id in NYUD_IDS:
        save(root / f"depth/{id}.npy", np.full((48, 64, 1), 2345, np.uint16))
    sample = reader(root).read("0001")
    np.testing.assert_allclose(sample.labels["depth"], np.full((48, 64), 2.345), rtol=1e-6)


# --- partial and bad --------------------------------------------------------------------------


def test_folders_may_be_absent(root):
    for folder in ("normals", "edge", "depth"):
        (root / folder).rename(root.parent / folder)
    r = reader(root)
    assert r.tasks == ("semseg",) and r.notes == {} and r.read("0001").available == ("semseg",)


def test_releases_may_be_mixed_by_folder_but_not_inside_one(root):
    (root / "edge").rename(root.parent / "edge")
    for id in NYUD_IDS:
        save(root / f"edge/{id}.png", nyud_truth(id)["edge"] * np.uint8(255))
    r = reader(root)
    assert "a mixture of releases" in r.layout and ".png" in r.layout
    np.testing.assert_array_equal(r.read("0001").labels["edge"], nyud_truth("0001")["edge"])
    save(root / "edge/0001.npy", nyud_truth("0001")["edge"])
    with pytest.raises(DataError, match=r"edge holds 1 \.npy and 3 \.png files, expected one kind"):
        reader(root)


BAD = {
    "a cut png": (
        lambda r: half(r / "segmentation/0001.png"),
        r"n/0001\.png is damaged",
    ),
    "a cut array": (lambda r: half(r / "depth/0001.npy"), r"depth/0001\.npy is not a NumPy array"),
    "a pickle": (
        lambda r: np.save(r / "normals/0001.npy", np.array([{}], object), allow_pickle=True),
        r"normals/0001\.npy is not a NumPy array",
    ),
    "class 41": (
        lambda r: save(r / "segmentation/0001.png", np.full((48, 64), 41, np.uint8)),
        r"segmentation/0001\.png contains 41, expected 0 for no label or 1 to 40",
    ),
    "edges of 255": (
        lambda r: save(r / "edge/0001.npy", np.full((48, 64), 255, np.uint8)),
        r"edge/0001\.npy has values up to 255, expected 0 and 1",
    ),
    "flat normals": (
        lambda r: save(r / "normals/0001.npy", np.zeros((48, 64), np.float32)),
        r"normals/0001\.npy holds float32 of shape \[48, 64\], expected numbers in 3 dim",
    ),
    "normals of another scale": (
        lambda r: save(r / "normals/0001.npy", np.full((48, 64, 3), 127.0, np.float32)),
        r"normals/0001\.npy has a component of 127",
    ),
    "depth of three channels": (
        lambda r: save(r / "depth/0001.npy", np.ones((48, 64, 3), np.float32)),
        r"depth/0001\.npy has shape \(48, 64, 3\), expected \[H, W\]",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named(root, kind):
    break_it, message = BAD[kind]
    break_it(root)
    with pytest.raises(DataError, match=message) as caught:
        reader(root).read("0001")
    sentence(caught.value)


@pytest.mark.parametrize("folder", ["segmentation", "depth"])
def test_a_v73_mat(tmp_path, folder):
    root = nyud(tmp_path / "NYUD_MT", "astmt")
    hdf5(root / f"{folder}/0001.mat")
    with pytest.raises(DataError, match=rf"{folder}/0001\.mat is a MATLAB v7\.3"):
        reader(root, depth_unit="m").read("0001")


def test_a_list_naming_a_missing_image(root):
    (root / "images/0003.jpg").unlink()
    with pytest.raises(DataError, match=r"line 1 of .*val\.txt names '0003', but .*0003\.jpg is"):
        reader(root).ids("val")
