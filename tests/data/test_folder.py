"""A folder of files becomes a data source; nothing is written; every bad file is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from sinewich_jax.data import from_folder, read_image
from sinewich_jax.data.files import image_size
from sinewich_jax.data.resize import nearest_index
from sinewich_jax.errors import DataError

SIZES = {"a": (8, 10), "b": (8, 10), "c": (6, 12)}
NAMES = {"semseg": ["sky", "sea", "sand", "rock"]}


def save(path, array, **options):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        save(tmp_path / f"images/{name}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        semseg = rng.integers(0, 4, size, dtype=np.uint8)
        semseg[0, 0] = 255
        save(tmp_path / f"semseg/{name}.png", semseg)
        save(tmp_path / f"saliency/{name}.png", np.uint8(255) * rng.integers(0, 2, size, np.uint8))
        (tmp_path / "depth").mkdir(exist_ok=True)
        depth = rng.uniform(1, 4, size).astype(np.float32)
        depth[1, 1] = 0
        np.save(tmp_path / f"depth/{name}.npy", depth)
        vectors = rng.standard_normal((*size, 3))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors[2, 2] = 0
        save(tmp_path / f"normals/{name}.png", np.rint((vectors + 1) * 127.5).astype(np.uint8))
    (tmp_path / "classes.json").write_text(json.dumps(NAMES))
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("b\na\n\n")
    (tmp_path / "splits/val.txt").write_text("c")
    (tmp_path / "images/.hidden").write_text("passed over")
    return tmp_path


def listing(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_everything_is_read_and_nothing_written(root):
    before = listing(root)
    source = from_folder(root)
    assert source.tasks == ("semseg", "saliency", "depth", "normals")
    assert source.ids == ("a", "b", "c") and source.size is None
    assert source.channels == {"semseg": 4, "saliency": 1, "depth": 1, "normals": 3}
    assert source.class_names["semseg"] == tuple(NAMES["semseg"])
    for index, name in enumerate(source.ids):
        example = source[index]
        assert example["image"].shape == (*SIZES[name], 3)
        assert np.argwhere(~example["valid"]["semseg"]).tolist() == [[0, 0]]
        assert np.argwhere(~example["valid"]["depth"]).tolist() == [[1, 1]]
        assert np.argwhere(~example["valid"]["normals"]).tolist() == [[2, 2]]
        assert example["valid"]["saliency"].all()  # 255 means yes, not "no label"
        assert set(np.unique(example["labels"]["saliency"])) == {0, 1}
        mask = example["valid"]["normals"]
        length = np.linalg.norm(example["labels"]["normals"][mask], axis=-1)
        np.testing.assert_allclose(length, 1, atol=1e-6)
    assert listing(root) == before


def test_splits_keep_their_order(root):
    assert from_folder(root, split="train").ids == ("b", "a")
    assert from_folder(root, split="train").size == (8, 10)
    assert from_folder(root, split="val").ids == ("c",)


def test_a_byte_order_mark_is_no_part_of_an_id(root):
    (root / "splits/val.txt").write_bytes(b"\xef\xbb\xbfc\n")
    assert from_folder(root, split="val").ids == ("c",)


def test_whole_numbers_are_depth_where_their_unit_is_said(root):
    np.save(root / "depth/a.npy", np.full((8, 10), 1500, np.uint16))
    source = from_folder(root, tasks=("depth",), depth_unit="mm")
    assert (source[source.ids.index("a")]["labels"]["depth"] == np.float32(1.5)).all()


def test_resize_brings_all_to_one_size(root):
    source = from_folder(root, resize=(4, 5))
    assert source.size == (4, 5)
    plain, small = from_folder(root)[2], source[2]
    assert small["image"].shape == (4, 5, 3)
    at = np.ix_(nearest_index(6, 4), nearest_index(12, 5))
    for task in ("semseg", "saliency", "depth"):
        np.testing.assert_array_equal(small["labels"][task], plain["labels"][task][at])
        np.testing.assert_array_equal(small["valid"][task], plain["valid"][task][at])


def test_masks_beside_a_task(root):
    save(root / "saliency_valid/b.png", np.eye(8, 10, dtype=np.uint8))
    source = from_folder(root, tasks=("saliency",))
    assert source[0]["valid"]["saliency"].all()
    np.testing.assert_array_equal(source[1]["valid"]["saliency"], np.eye(8, 10) > 0)


def test_missing_labels_are_an_error_or_count_nowhere(root):
    (root / "semseg/b.png").unlink()
    (root / "normals/b.png").unlink()
    with pytest.raises(
        DataError, match=r"1 of 3 images have no semseg label, first .*semseg/b\.png"
    ):
        from_folder(root)
    assert len(from_folder(root, tasks=("depth",))) == 3
    example = from_folder(root, allow_missing=True)[1]
    assert not example["valid"]["semseg"].any() and example["valid"]["saliency"].all()
    assert example["labels"]["normals"].shape == (8, 10, 3)


@pytest.mark.parametrize(("unit", "factor"), [(None, 1e-3), ("mm", 1e-3), ("cm", 1e-2), (0.5, 0.5)])
def test_depth_in_16_bit_png(root, unit, factor):
    values = np.arange(80, dtype=np.uint16).reshape(8, 10) * 700
    (root / "depth/a.npy").unlink()
    save(root / "depth/a.png", values)
    example = from_folder(root, tasks=("depth",), depth_unit=unit)[0]
    np.testing.assert_allclose(example["labels"]["depth"], values * factor, rtol=1e-6)
    assert not example["valid"]["depth"][0, 0] and example["valid"]["depth"].sum() == 79


def test_palette_maps_are_class_numbers(root):
    numbers = np.arange(80, dtype=np.uint8).reshape(8, 10) % 4
    image = Image.frombytes("P", (10, 8), numbers.tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    image.save(root / "semseg/a.png")
    example = from_folder(root, tasks=("semseg",))[0]
    np.testing.assert_array_equal(example["labels"]["semseg"], numbers)


def test_photographs_are_turned_as_they_are_looked_at(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to look at it
    save(tmp_path / "x.jpg", pixels, exif=exif)
    got = read_image(tmp_path / "x.jpg")
    assert got.shape == (16, 8, 3) and image_size(tmp_path / "x.jpg") == (16, 8)
    assert got[:6].min() > 200 and got[10:].max() < 50


def test_grey_and_alpha_become_rgb(tmp_path):
    save(tmp_path / "g.png", np.full((4, 5), 7, np.uint8))
    save(tmp_path / "a.png", np.full((4, 5, 4), 9, np.uint8))
    assert (read_image(tmp_path / "g.png") == 7).all()
    assert read_image(tmp_path / "a.png").shape == (4, 5, 3)


def damage(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rename(root, old, new):
    (root / old).rename(root / new)


READ = {
    "not an image": (
        lambda r: (r / "images/a.png").write_text("hello"),
        r"images/a\.png is not an",
    ),
    "half an image": (lambda r: damage(r / "images/a.png"), r"images/a\.png is damaged"),
    "half a label": (lambda r: damage(r / "semseg/a.png"), r"semseg/a\.png is damaged"),
    "half an array": (lambda r: damage(r / "depth/a.npy"), r"depth/a\.npy is not a NumPy array"),
    "16-bit image": (
        lambda r: save(r / "images/a.png", np.zeros((8, 10), np.uint16)),
        r"images/a\.png has pixels of mode I;16",
    ),
    "label of another size": (
        lambda r: save(r / "semseg/a.png", np.zeros((4, 5), np.uint8)),
        r"semseg/a\.png is 4 x 5 .* image is 8 x 10",
    ),
    "mask of another size": (
        lambda r: save(r / "semseg_valid/a.png", np.zeros((4, 5), np.uint8)),
        r"semseg_valid/a\.png is 4 x 5",
    ),
    "class out of range": (
        lambda r: save(r / "semseg/a.png", np.full((8, 10), 4, np.uint8)),
        r"semseg/a\.png.* holds 4 at row 0, column 0",
    ),
    "colours for classes": (
        lambda r: save(r / "semseg/a.png", np.zeros((8, 10, 3), np.uint8)),
        r"semseg/a\.png has 3 channels",
    ),
    "8-bit depth": (
        lambda r: (
            save(r / "depth/a.png", np.ones((8, 10), np.uint8)),
            (r / "depth/a.npy").unlink(),
        ),
        r"depth/a\.png is an 8-bit depth map",
    ),
    "whole numbers without a unit": (
        lambda r: np.save(r / "depth/a.npy", np.full((8, 10), 900, np.uint16)),
        r"depth/a\.npy holds uint16 values.*depth_unit=\"mm\"",
    ),
    "words for metres": (
        lambda r: np.save(r / "depth/a.npy", np.full((8, 10), "far")),
        r"depth/a\.npy holds <U3 values, expected depth as real numbers",
    ),
    "flat normals": (
        lambda r: save(r / "normals/a.png", np.zeros((8, 10), np.uint8)),
        r"normals of .*normals/a\.png has shape \(8, 10\)",
    ),
}


@pytest.mark.parametrize("case", READ)
def test_a_bad_file_is_named_when_it_is_read(root, case):
    break_it, message = READ[case]
    break_it(root)
    source = from_folder(root)
    with pytest.raises(DataError, match=message):
        source[0]


OPEN = {
    "no folder": (lambda r: None, {"path": "nowhere"}, "nowhere is not a folder"),
    "no images folder": (lambda r: rename(r, "images", "photos"), {}, "images is not there"),
    "two images of one id": (
        lambda r: (r / "images/a.jpg").write_bytes(b""),
        {},
        r"a\.png and a\.jpg have the same id",
    ),
    "another file type": (
        lambda r: (r / "images/z.webp").write_bytes(b""),
        {},
        r"z\.webp is not one of \.jpg, \.jpeg, \.png",
    ),
    "no such task folder": (
        lambda r: rename(r, "saliency", "salency"),
        {"tasks": ("saliency",)},
        "'saliency' has no folder .*did you mean 'salency'",
    ),
    "no such task": (lambda r: None, {"tasks": ("colour",)}, "no label is known by the name"),
    "no such split": (lambda r: None, {"split": "test"}, r"test\.txt is not there .*train, val"),
    "unknown id": (
        lambda r: (r / "splits/val.txt").write_text("c\nd\n"),
        {"split": "val"},
        r"line 2 of .*val\.txt names 'd'",
    ),
    "split in another encoding": (
        lambda r: (r / "splits/val.txt").write_bytes("cité\n".encode("latin-1")),
        {"split": "val"},
        r"val\.txt is not UTF-8 text",
    ),
    "one number for a size": (lambda r: None, {"resize": 64}, r"resize is 64, expected \(height"),
    "empty split": (lambda r: (r / "splits/val.txt").write_text("\n"), {"split": "val"}, "no id"),
    "unknown classes": (lambda r: (r / "classes.json").unlink(), {}, "classes of semseg"),
    "broken classes": (lambda r: (r / "classes.json").write_text("{"), {}, "is not JSON"),
    "other classes": (lambda r: (r / "classes.json").write_text("[1]"), {}, "no class names"),
}


@pytest.mark.parametrize("case", OPEN)
def test_a_bad_folder_is_refused_at_once(root, case):
    break_it, options, message = OPEN[case]
    break_it(root)
    with pytest.raises(DataError, match=message):
        from_folder(**{"path": root, **options})


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        from_folder(tmp_path)


def test_a_folder_of_photographs_alone(root):
    source = from_folder(root, tasks=())
    assert source.tasks == () and source[0]["labels"] == {}
    for task in ("semseg", "saliency", "depth", "normals"):
        rename(root, task, f"old_{task}")
    with pytest.raises(DataError, match="no label folder"):
        from_folder(root)


def test_stated_classes_win_over_the_file(root):
    (root / "classes.json").write_text(json.dumps({**NAMES, "human_parts": ["x"] * 3}))
    assert from_folder(root, channels={"semseg": 9}).channels["semseg"] == 9
    source = from_folder(root, class_names={"semseg": list("abcde")})
    assert source.class_names["semseg"] == tuple("abcde")


@pytest.mark.parametrize("unit", ["inch", 0, -1.0])
def test_unknown_depth_units_are_refused(root, unit):
    with pytest.raises(DataError, match="depth_unit"):
        from_folder(root, tasks=("depth",), depth_unit=unit)[0]
