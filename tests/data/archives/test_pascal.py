"""PASCAL_MT: what each label is made from, and every way in which a file can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sinewich_jax.data.archives import parts
from sinewich_jax.data.archives.edges import edges
from sinewich_jax.data.archives.layouts import detect, find_tree
from sinewich_jax.data.archives.pascal import NORMALS_HOLD, PascalReader
from sinewich_jax.errors import DataError
from tests.data.archives import trees
from tests.data.archives.trees import PASCAL_IDS, PASCAL_SIZES, pack, pascal, save, write_list

FIRST, SECOND, THIRD = PASCAL_IDS


@pytest.fixture
def root(tmp_path):
    return pascal(tmp_path / "PASCAL_MT")


def reader(path):
    return PascalReader(find_tree("pascal_mt", path))


def read(path, id=FIRST, tasks=None):
    return reader(path).read(id, tasks)


def test_what_it_says_about_itself(root):
    r = reader(root)
    assert r.tasks == ("semseg", "human_parts", "saliency", "normals", "edge")
    assert r.splits == ("train", "val")
    assert r.ids("train") == [FIRST, SECOND] and r.ids("val") == [THIRD]
    wanted = {"semseg": 21, "human_parts": 7, "saliency": 1, "normals": 3, "edge": 1}
    assert r.channels == wanted
    assert r.class_names["semseg"][15] == "person" and len(r.class_names["human_parts"]) == 7
    assert len(set(NORMALS_HOLD)) == 170 and {284, 72, 59} < set(NORMALS_HOLD)


def test_the_known_numbers_of_the_first_image(root):
    sample = read(root)
    labels, valid = sample.labels, sample.valid
    assert sample.image.shape == (40, 50, 3) and sample.available == tuple(labels)
    assert set(np.unique(labels["human_parts"])) == {0, 1, 2, 6} and valid["human_parts"].all()
    assert set(np.unique(labels["semseg"][valid["semseg"]])) == {0, 15}
    assert (~valid["semseg"]).sum() == 50 and not labels["semseg"][~valid["semseg"]].any()
    assert valid["normals"].mean() == pytest.approx(0.62, abs=1e-12)
    assert labels["edge"].sum() == 69 and valid["edge"].all()
    assert labels["saliency"].sum() == 100 and valid["saliency"].all()  # 128 counts, 127 not
    for task, label in labels.items():
        assert label.dtype == (np.float32 if task == "normals" else np.uint8)
        assert valid[task].dtype == bool and label.shape[:2] == valid[task].shape == (40, 50)


def test_parts_lie_where_they_were_painted(root):
    label = read(root).labels["human_parts"]
    assert (label[5:8, 5:15] == 1).all() and (label[8:12, 5:15] == 2).all()
    assert (label[12:15, 5:15] == 6).all() and label.astype(bool).sum() == 100


def test_an_image_without_a_person_is_not_labelled_for_parts(root):
    sample = read(root, SECOND)
    assert "human_parts" in sample.available
    assert not sample.valid["human_parts"].any() and not sample.labels["human_parts"].any()
    assert sample.valid["human_parts"].shape == PASCAL_SIZES[1]


def test_normals_are_unit_face_the_viewer_and_hold_on_some_classes(root):
    sample = read(root)
    label, valid = sample.labels["normals"], sample.valid["normals"]
    expected = np.zeros((40, 50), bool)
    expected[:, 25:] = expected[20:, :12] = True
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_allclose(np.linalg.norm(label[valid], axis=-1), 1, atol=1e-6)
    assert not label[~valid].any() and (label[valid][:, 2] < 0).all()
    truth = trees.smooth_normals(40, 50, _after_the_image())
    assert np.abs(label - truth)[valid].max() < 0.006  # half a step of 8 bits, made unit


def _after_the_image():
    rng = np.random.default_rng(0)
    rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return rng


def test_a_vector_too_short_is_no_normal(root):
    pixels = trees.to_bytes(trees.smooth_normals(40, 50, np.random.default_rng(1)))
    pixels[:, 30] = 128  # as near to zero as 8 bits get
    save(root / f"normals_distill/{FIRST}.png", pixels)
    valid = read(root).valid["normals"]
    assert not valid[:, 30].any() and valid[:, 31].all()


def test_edges_come_from_the_context_classes(root):
    context = np.full((40, 50), trees.OTHER)
    context[:, 25:] = trees.PERSON
    context[20:, :12] = trees.CHAIR
    np.testing.assert_array_equal(read(root).labels["edge"], edges(context))


def test_voc_labels_come_first(root):
    trees.save_palette(root / f"semseg/pascal-context/{FIRST}.png", np.full((40, 50), 9, np.uint8))
    assert 9 not in read(root).labels["semseg"]
    (root / f"semseg/VOC12/{FIRST}.png").unlink()
    assert (read(root).labels["semseg"] == 9).all()


def test_parts_of_several_people_later_ones_on_top(root):
    size = (40, 50)
    full = np.ones(size, np.uint8)
    objects = [
        ("person", 15, full, [("hair", full), ("lfoot", trees.box(size, slice(0, 9), slice(9)))]),
        ("person", 15, full, []),
        ("cow", 10, full, [("head", full)]),
        ("person", 15, full, [("rhand", trees.box(size, slice(5, 20), slice(3)))]),
    ]
    save(root / f"human_parts/{FIRST}.mat", trees.anno(objects), key="anno")
    label = read(root).labels["human_parts"]
    expected = np.ones(size, np.uint8)
    expected[0:9, :9] = 6
    expected[5:20, :3] = 4
    np.testing.assert_array_equal(label, expected)


def test_an_annotation_without_objects(root):
    save(root / f"human_parts/{FIRST}.mat", trees.anno([]), key="anno")
    assert not read(root).valid["human_parts"].any()


def test_every_part_name_has_its_group():
    groups = [
        "hair head lear rear lebrow rebrow leye reye mouth nose",
        "neck torso",
        "luarm ruarm",
        "llarm rlarm lhand rhand",
        "luleg ruleg",
        "llleg rlleg lfoot rfoot",
    ]
    assert len(parts.GROUP_OF) == 24
    for number, names in enumerate(groups, 1):
        assert {parts.GROUP_OF[name] for name in names.split()} == {number}


def test_labels_of_another_size_are_brought_to_the_image(root):
    trees.save_palette(
        root / f"semseg/VOC12/{FIRST}.png", np.kron([[1, 2]], np.ones((20, 25), int)).astype("u1")
    )
    smooth = trees.smooth_normals(20, 25, np.random.default_rng(3))
    save(root / f"normals_distill/{FIRST}.png", trees.to_bytes(smooth))
    sample = read(root)
    assert set(sample.resized) == {"semseg", "normals"} and "normals" not in sample.encoded
    np.testing.assert_array_equal(
        sample.labels["semseg"], np.kron([[1, 2]], np.ones((40, 25), int))
    )
    valid = sample.valid["normals"]
    np.testing.assert_allclose(
        np.linalg.norm(sample.labels["normals"][valid], axis=-1), 1, atol=1e-6
    )
    assert 0.5 < valid.mean() < 0.7


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("name", ["PASCALContext", "whatever"])
def test_a_tar_is_read_like_its_folder(root, tmp_path, mode, name, monkeypatch):
    monkeypatch.setenv("SINEWICH_CACHE", str(tmp_path / "cache"))
    path = pack(root, tmp_path / "x.bin", mode, prefix=name)
    with find_tree("pascal_mt", path) as tree:
        packed, plain = PascalReader(tree), reader(root)
        assert packed.tasks == plain.tasks and packed.ids("train") == plain.ids("train")
        for id in PASCAL_IDS:
            same(packed.read(id), plain.read(id))


def same(a, b):
    np.testing.assert_array_equal(a.image, b.image)
    assert a.encoded == b.encoded and a.available == b.available
    for task in b.labels:
        np.testing.assert_array_equal(a.labels[task], b.labels[task])
        np.testing.assert_array_equal(a.valid[task], b.valid[task])


def test_labels_may_be_absent(root):
    for folder in ("human_parts", "sal_distill", "normals_distill", "pascal-context"):
        (root / folder).rename(root.parent / folder)
    assert reader(root).tasks == ("semseg",)
    (root / f"semseg/VOC12/{FIRST}.png").unlink()
    r = reader(root)
    sample = r.read(FIRST)
    assert sample.available == () and not sample.valid["semseg"].any()
    assert r.absent(r.ids("train")) == {
        "semseg": {"count": 1, "first": f"{root}/semseg/VOC12/{FIRST}.png"}
    }


def test_normals_need_the_context_map(root):
    (root / f"pascal-context/trainval/{FIRST}.mat").unlink()
    sample = read(root)
    assert set(sample.available) == {"semseg", "human_parts", "saliency"}
    assert not sample.valid["normals"].any() and not sample.valid["edge"].any()


# --- finding it -------------------------------------------------------------------------------


def test_where_it_is_looked_for(root, tmp_path, monkeypatch):
    for path in (root, root.parent):
        assert find_tree("pascal_mt", path).where("x") == str(root / "x")
    monkeypatch.setenv("SINEWICH_DATA", str(root.parent))
    assert find_tree("pascal_mt").where("x") == str(root / "x")
    monkeypatch.delenv("SINEWICH_DATA")
    with pytest.raises(DataError, match=r"PASCAL_MT or PASCALContext .*data_dir.*neither is set"):
        find_tree("pascal_mt")
    beside = tmp_path / "tars"
    beside.mkdir()
    pack(root, beside / "pascalcontext.TAR", prefix="PASCALContext")
    with find_tree("pascal_mt", beside) as tree:
        assert PascalReader(tree).ids("val") == [THIRD]
    tree, kind = detect(beside / "pascalcontext.TAR")
    assert kind is PascalReader
    tree.close()


def test_not_there_or_there_twice(root, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty holds no pascal_mt, expected PASCAL_MT or"):
        find_tree("pascal_mt", empty)
    with pytest.raises(DataError, match=r"does not exist, expected a folder or a tar"):
        find_tree("pascal_mt", empty / "deeper")
    with pytest.raises(DataError, match=r"none of the layouts that are known \(pascal_mt"):
        detect(empty)
    pascal(tmp_path / "PASCALContext")
    with pytest.raises(DataError, match=r"more than one pascal_mt .*PASCALContext.*PASCAL_MT"):
        find_tree("pascal_mt", tmp_path)


# --- bad input --------------------------------------------------------------------------------


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_noise(path):
    save(path, np.random.default_rng(0).integers(0, 21, (40, 50), dtype=np.uint8))
    half(path)


def hdf5(path):
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b"\0")
    path.write_bytes(header + b"\x89HDF\r\n\x1a\n" + bytes(100))


def parts_with(*objects):
    return lambda r: save(r / f"human_parts/{FIRST}.mat", trees.anno(list(objects)), key="anno")


ONE = np.ones((40, 50), np.uint8)
OTHER_STRUCT = trees.structs(("imname", "things"), [("x", 1)])
BAD = {
    "a cut image": (lambda r: half(r / f"JPEGImages/{FIRST}.jpg"), rf"{FIRST}\.jpg is damaged"),
    "a png cut in its header": (
        lambda r: half(r / f"semseg/VOC12/{FIRST}.png"),
        rf"VOC12/{FIRST}\.png is not an image that can be read",
    ),
    "a png cut in its pixels": (
        lambda r: cut_noise(r / f"semseg/VOC12/{FIRST}.png"),
        rf"VOC12/{FIRST}\.png is damaged",
    ),
    "cut normals": (
        lambda r: half(r / f"normals_distill/{FIRST}.png"),
        rf"normals_distill/{FIRST}\.png is damaged",
    ),
    "a v7.3 annotation": (
        lambda r: hdf5(r / f"human_parts/{FIRST}.mat"),
        rf"human_parts/{FIRST}\.mat is a MATLAB v7\.3 .*expected version 5.*save\(FILE, '-v7'\)",
    ),
    "a v7.3 map": (
        lambda r: hdf5(r / f"pascal-context/trainval/{FIRST}.mat"),
        rf"trainval/{FIRST}\.mat is a MATLAB v7\.3",
    ),
    "a cut mat": (
        lambda r: half(r / f"human_parts/{FIRST}.mat"),
        rf"human_parts/{FIRST}\.mat is not a MATLAB file that can be read",
    ),
    "an empty mat": (
        lambda r: (r / f"human_parts/{FIRST}.mat").write_bytes(b""),
        rf"human_parts/{FIRST}\.mat is not a MATLAB file that can be read",
    ),
    "another variable": (
        lambda r: save(r / f"pascal-context/trainval/{FIRST}.mat", ONE, key="Labels"),
        r"holds no variable 'LabelMap'",
    ),
    "fractions for classes": (
        lambda r: save(r / f"pascal-context/trainval/{FIRST}.mat", ONE / 2, key="LabelMap"),
        r"holds fractions or NaN, expected whole class numbers",
    ),
    "a class too many": (
        lambda r: trees.save_palette(r / f"semseg/VOC12/{FIRST}.png", ONE * np.uint8(21)),
        rf"VOC12/{FIRST}\.png: the semseg label holds 21 at row 0",
    ),
    "colours for classes": (
        lambda r: save(r / f"semseg/VOC12/{FIRST}.png", np.zeros((40, 50, 3), np.uint8)),
        rf"VOC12/{FIRST}\.png has 3 channels, expected one",
    ),
    "colours for saliency": (
        lambda r: save(
            r / f"sal_distill/{FIRST}.png", np.arange(6000, dtype=np.uint8).reshape(40, 50, 3)
        ),
        rf"sal_distill/{FIRST}\.png holds uint8 pixels of shape \[40, 50, 3\], expected 8-bit grey",
    ),
    "grey for normals": (
        lambda r: save(r / f"normals_distill/{FIRST}.png", ONE),
        rf"normals_distill/{FIRST}\.png holds uint8 pixels of shape \[40, 50\], expected 8-bit RGB",
    ),
    "an unknown part": (
        parts_with(("person", 15, ONE, [("tail", ONE)])),
        rf"human_parts/{FIRST}\.mat names a part 'tail', expected one of hair, head",
    ),
    "masks of two sizes": (
        parts_with(("person", 15, ONE, [("head", ONE), ("torso", ONE[:9])])),
        r"the mask of 'torso' in .* has shape \[9, 50\], expected \[40, 50\]",
    ),
    "no struct": (
        lambda r: save(r / f"human_parts/{FIRST}.mat", ONE, key="anno"),
        r"holds no struct 'anno'",
    ),
    "another struct": (
        lambda r: save(
            r / f"human_parts/{FIRST}.mat",
            trees.structs(("imname", "things"), [("x", 1)]),
            key="anno",
        ),
        r"has the fields imname, things, expected 'objects' among them",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named(root, kind):
    break_it, message = BAD[kind]
    break_it(root)
    with pytest.raises(DataError, match=message) as caught:
        read(root)
    sentence(caught.value)


def sentence(error):
    text = str(error)
    assert "\n" not in text and not text.endswith(".")


def test_a_list_naming_a_missing_image(root):
    (root / f"JPEGImages/{SECOND}.jpg").unlink()
    with pytest.raises(DataError, match=rf"line 2 of .*train\.txt names '{SECOND}', but .*JPEGI"):
        reader(root).ids("train")


@pytest.mark.parametrize("bad", ["../../etc/passwd", "a\\b", ".hidden", "/etc/passwd"])
def test_a_list_with_a_path(root, bad):
    write_list(root / "ImageSets/Context/train.txt", [FIRST, bad])
    with pytest.raises(DataError, match=r"line 2 of .*train\.txt is .*expected an id without a pa"):
        reader(root).ids("train")


def test_lists_of_other_editors(root):
    text = f"\ufeff{FIRST} \r\n\r\n{SECOND}"
    (root / "ImageSets/Context/train.txt").write_bytes(text.encode("utf-8"))
    assert reader(root).ids("train") == [FIRST, SECOND]


def test_no_such_split_and_an_empty_one(root):
    with pytest.raises(DataError, match=r"there is no split 'vall' in .*did you mean 'val'"):
        reader(root).ids("vall")
    write_list(root / "ImageSets/Context/val.txt", [])
    with pytest.raises(DataError, match=r"val\.txt lists no id"):
        reader(root).ids("val")


def test_a_grey_photograph_and_grey_as_three_channels(root):
    Image.fromarray(ONE * np.uint8(90)).save(root / f"JPEGImages/{FIRST}.jpg")
    triple = np.repeat(ONE[..., None] * np.uint8(200), 3, axis=-1)
    save(root / f"sal_distill/{FIRST}.png", triple)
    sample = read(root)
    assert sample.image.shape == (40, 50, 3) and sample.labels["saliency"].all()
