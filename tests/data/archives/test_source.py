"""Preparing an archive and reading it back: nothing is lost, nothing is touched."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

import sinewich_jax.data as data
from sinewich_jax.data.archives import builder, source
from sinewich_jax.data.archives.layouts import find_tree, reader_class
from sinewich_jax.data.prepare import quiet
from sinewich_jax.data.views import Cached
from sinewich_jax.errors import ConfigError, DataError
from tests.data.archives.trees import (
    PASCAL_IDS,
    RELEASES,
    cityscapes,
    make_read_only,
    make_writable,
    nyud,
    nyuv2,
    pack,
    pascal,
    save,
    state,
)

MAKERS = {
    "pascal_mt": pascal,
    "nyud_mt": nyud,
    "nyuv2_mtan": nyuv2,
    "cityscapes_mt": cityscapes,
}
LISTED = ("pascal_mt", "nyud_mt")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SINEWICH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SINEWICH_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(params=list(MAKERS))
def archive(request, tmp_path):
    """(name, folder) of each data set."""
    return request.param, MAKERS[request.param](tmp_path / "data" / request.param.upper())


def load(name, path, split="train", **options):
    return data.load(name, split, data_dir=path, progress=False, cache_mb=0, **options)


def check_same(example, sample, exact_normals):
    np.testing.assert_array_equal(example["image"], sample.image)
    assert list(example["labels"]) == list(example["valid"])
    for task, label in example["labels"].items():
        np.testing.assert_array_equal(example["valid"][task], sample.valid[task])
        assert label.dtype == sample.labels[task].dtype
        if task == "normals" and not exact_normals:
            # float16 turns a vector by less than 0.05 degrees.
            np.testing.assert_allclose(label, sample.labels[task], atol=5e-4)
        else:
            np.testing.assert_array_equal(label, sample.labels[task])


def test_what_is_prepared_is_what_was_read(archive):
    name, path = archive
    reader = reader_class(name)(find_tree(name, path))
    for split in ("train", "val"):
        opened = load(name, path, split)
        assert isinstance(opened, data.DataSource) and opened.tasks == reader.tasks
        assert opened.channels == reader.channels and opened.class_names == reader.class_names
        assert len(opened) == len(reader.ids(split))
        for index, id in enumerate(reader.ids(split)):
            assert opened.source.id(index) == id
            assert opened.source.available(index) == reader.tasks
            check_same(opened[index], reader.read(id), exact_normals=name == "pascal_mt")


def test_the_photograph_is_kept_bit_for_bit(tmp_path):
    path = pascal(tmp_path / "PASCAL_MT")
    opened = load("pascal_mt", path)
    stored = opened.source._records[1]["image"]
    assert stored == (path / f"JPEGImages/{PASCAL_IDS[1]}.jpg").read_bytes()


def test_sizes_are_raw(tmp_path):
    many = load("pascal_mt", pascal(tmp_path / "PASCAL_MT"))
    assert many.size is None and [many[i]["image"].shape[:2] for i in (0, 1)] == [
        (40, 50),
        (50, 38),
    ]
    one = load("nyud_mt", nyud(tmp_path / "NYUD_MT"))
    assert one.size == (48, 64)
    resized = load("pascal_mt", tmp_path, image_size=(16, 24), tasks=("edge", "normals"))
    assert resized.size == (16, 24) and resized.tasks == ("edge", "normals")
    batch = data.batches(resized, resized.tasks, batch_size=2).batch_at(0)
    assert batch["labels"]["normals"].shape == (2, 16, 24, 3)


@pytest.mark.parametrize("kind", ["tar", "tgz"])
def test_folder_and_tar_give_identical_arrays(archive, kind, tmp_path):
    name, path = archive
    target = tmp_path / f"{reader_class(name).names[0]}.{kind}"
    pack(path, target, {"tar": "w", "tgz": "w:gz"}[kind])
    folder, tar = load(name, path), load(name, target)
    assert folder.source.path != tar.source.path and len(folder) == len(tar) >= 2
    for index in range(len(tar)):
        a, b = folder[index], tar[index]
        np.testing.assert_array_equal(a["image"], b["image"])
        for part in ("labels", "valid"):
            assert a[part].keys() == b[part].keys()
            for task in a[part]:
                np.testing.assert_array_equal(a[part][task], b[part][task])


def test_the_releases_give_identical_arrays(tmp_path):
    opened = {r: load("nyud_mt", nyud(tmp_path / r / "NYUD_MT", r)) for r in RELEASES}
    first = opened["mtinet"]
    for release, other in opened.items():
        for index in range(2):
            a, b = first[index], other[index]
            for task in first.tasks:
                np.testing.assert_array_equal(a["valid"][task], b["valid"][task])
                atol = {"mtinet": 0, "atrc": 0.007, "astmt": 0.05}[release]
                atol = atol if task == "normals" else 0
                np.testing.assert_allclose(a["labels"][task], b["labels"][task], atol=atol, rtol=0)


def test_nothing_of_the_users_changes(archive, tmp_path, cache):
    name, path = archive
    pack(path, tmp_path / f"data/{reader_class(name).names[-1]}.tar.gz", "w:gz")
    make_read_only(tmp_path / "data")
    before = state(tmp_path / "data")
    try:
        opened = [load(name, path, s) for s in ("train", "val")]
        opened += [load(name, tmp_path / f"data/{reader_class(name).names[-1]}.tar.gz")]
        for one in opened:
            assert one[0]["image"].ndim == 3
        assert state(tmp_path / "data") == before
    finally:
        make_writable(tmp_path / "data")
    assert {entry.name for entry in cache.iterdir()} == {"archives"}


def test_a_split_is_prepared_once_and_anew_when_a_file_changes(archive):
    name, path = archive
    first = load(name, path).source.path
    before = state(first)
    again = load(name, path)
    assert again.source.path == first and state(first) == before
    if name in LISTED:
        list_file = next(path.rglob("train.txt"))
        list_file.write_text(list_file.read_text().splitlines()[1] + "\n")
    else:
        next(
            path.glob("leftImg8bit/train/*/*.png" if name == "cityscapes_mt" else "train/image/*")
        ).unlink()
    changed = load(name, path)
    assert changed.source.path != first and len(changed) == len(again) - 1
    assert state(first) == before


def test_a_prepared_tar_is_not_unpacked_again(archive, tmp_path, monkeypatch):
    from sinewich_jax.data.archives import tar

    name, path = archive
    target = pack(path, tmp_path / f"{reader_class(name).names[0]}.tgz", "w:gz")
    first = load(name, target)
    unpacked = []
    monkeypatch.setattr(tar, "_uncompressed", lambda path: unpacked.append(path))
    assert load(name, target).source.path == first.source.path == load(name, tmp_path).source.path
    assert unpacked == []


def test_options_are_prepared_apart(tmp_path):
    path = nyud(tmp_path / "NYUD_MT", scale=6)
    with pytest.raises(DataError, match="say depth_unit="):
        load("nyud_mt", path)
    metres, millimetres = (load("nyud_mt", path, depth_unit=unit) for unit in ("m", "mm"))
    np.testing.assert_allclose(
        metres[0]["labels"]["depth"], millimetres[0]["labels"]["depth"] * 1000, rtol=1e-6
    )
    assert metres.source.notes == {"depth unit of the files": "m"}


def test_resized_labels_are_told(tmp_path, caplog):
    path = nyud(tmp_path / "NYUD_MT")
    save(path / "segmentation/0001.png", np.ones((24, 32), np.uint8))
    with caplog.at_level(logging.WARNING, "sinewich_jax"):
        opened = load("nyud_mt", path)
    assert [record.message for record in caplog.records] == [
        "1 semseg labels of nyud_mt train were not of their image's size and were resized to it"
    ]
    assert opened[0]["labels"]["semseg"].shape == (48, 64)


@pytest.mark.parametrize(
    ("target", "power"), [("disparity_px", 1), ("disparity_norm", 1), ("depth_m", -1)]
)
def test_a_zoom_multiplies_disparity_and_divides_metres(tmp_path, target, power):
    path = cityscapes(tmp_path / "cityscapes")
    opened = data.load(*("cityscapes_mt", "train", path, ("depth",)), progress=False, target=target)
    assert opened.notes == {"depth means": target}
    plain = opened[0]
    zoomed = data.batches(
        *(opened, ("depth",)), batch_size=2, augment=data.Augment(scale=(1.5, 1.5)), shuffle=False
    ).batch_at(0)
    label, valid = zoomed["labels"]["depth"][0], zoomed["valid"]["depth"][0]
    known = plain["labels"]["depth"][plain["valid"]["depth"]]
    ratio = label[valid][:, None] / known[None] / 1.5**power
    assert (np.abs(ratio - 1).min(axis=1) < 1e-5).all() and valid.any()


# --- partial labels ---------------------------------------------------------------------------


def test_a_missing_label_is_a_warning_unless_its_task_is_wanted(tmp_path, caplog):
    path = pascal(tmp_path / "PASCAL_MT")
    lost = path / f"sal_distill/{PASCAL_IDS[1]}.png"
    lost.unlink()
    with caplog.at_level(logging.WARNING, "sinewich_jax"):
        opened = load("pascal_mt", path)
    (record,) = caplog.records
    assert record.message == (
        f"1 saliency files of pascal_mt train are missing, first {lost}; they count nowhere"
    )
    assert opened.source.available(1) == ("semseg", "human_parts", "normals", "edge")
    assert opened[0]["valid"]["saliency"].all() and not opened[1]["valid"]["saliency"].any()
    caplog.clear()
    assert load("pascal_mt", path, tasks=("semseg", "edge")).tasks == ("semseg", "edge")
    assert load("pascal_mt", path, "val", tasks=("saliency",)).tasks == ("saliency",)
    assert not caplog.records
    for _ in range(2):  # before it is prepared, and from what is
        with pytest.raises(DataError, match=r"1 saliency files of .*first .*allow_missing"):
            load("pascal_mt", path, tasks=("saliency",))
        allowed = load("pascal_mt", path, tasks=("saliency",), allow_missing=True)
        assert not allowed[1]["valid"]["saliency"].any()


def test_missing_labels_are_told_before_the_work(tmp_path, cache):
    path = pascal(tmp_path / "PASCAL_MT")
    (path / f"sal_distill/{PASCAL_IDS[1]}.png").unlink()
    with pytest.raises(DataError, match="allow_missing"):
        load("pascal_mt", path, tasks=("saliency",))
    with pytest.raises(DataError, match=r"'depth' has no labels in this copy of pascal_mt, which"):
        load("pascal_mt", path, tasks=("depth",))
    assert not cache.exists()


def test_only_semseg(tmp_path):
    path = pascal(tmp_path / "PASCAL_MT")
    for folder in ("human_parts", "sal_distill", "normals_distill", "pascal-context"):
        (path / folder).rename(tmp_path / folder)
    opened = load("pascal_mt", path)
    assert opened.tasks == ("semseg",) and list(opened[0]["labels"]) == ["semseg"]
    with pytest.raises(DataError, match="'edge' has no labels"):
        load("pascal_mt", path, tasks=("semseg", "edge"))


# --- bad input --------------------------------------------------------------------------------


def test_a_damaged_file_is_named_and_nothing_half_done_stays(tmp_path, cache):
    path = nyud(tmp_path / "NYUD_MT")
    bad = path / "segmentation/0002.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"^.*/segmentation/0002\.png is damaged"):
        load("nyud_mt", path)
    assert not list(cache.rglob("*.array_record*")) + list(cache.rglob("dataset_info.json"))
    bad.write_bytes(whole)
    assert len(load("nyud_mt", path)) == 2


@pytest.mark.parametrize("name", LISTED)
def test_a_missing_image_is_named_before_anything_is_written(name, cache, tmp_path):
    path = MAKERS[name](tmp_path / name.upper())
    image = sorted(next(path.glob("*mages")).iterdir())[1]
    image.unlink()
    with pytest.raises(DataError, match=rf"line 2 of .*train\.txt names .*{image.name} is not"):
        load(name, path)
    assert not cache.exists() and len(load(name, path, "val")) == 1


def test_unknown_splits_options_and_folders(archive, tmp_path):
    name, path = archive
    with pytest.raises(DataError, match=r"no split 'vla' in .*did you mean 'val'"):
        load(name, path, "vla")
    with pytest.raises(ConfigError, match="has no option 'depth_units'"):
        load(name, path, depth_units="m")
    with pytest.raises(DataError, match="holds no"):
        load(name, _empty(tmp_path))
    with pytest.raises(DataError, match=r"data_dir .*SINEWICH_DATA, but neither is set"):
        load(name, None)
    with pytest.raises(DataError, match="is no prepared archive"):
        source.open(tmp_path, "train")


def _empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SINEWICH_CACHE", str(tmp_path / "file" / "x"))
    with pytest.raises(DataError, match=r"nyud_mt cannot be prepared in .*file.*SINEWICH_CACHE"):
        load("nyud_mt", nyud(tmp_path / "NYUD_MT"))


def test_a_split_is_written_in_shards_in_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "SHARD", 4)
    opened = load("nyuv2_mtan", nyuv2(tmp_path / "nyuv2"))
    assert len(list(opened.source.path.glob("*array_record*"))) == 3 and len(opened) == 11
    assert [opened.source.id(index) for index in range(11)] == [f"train/{i}" for i in range(11)]
    whole = load("nyuv2_mtan", tmp_path / "nyuv2", "train[3:9]")
    np.testing.assert_array_equal(whole[2]["image"], opened[5]["image"])


def test_a_split_is_never_gathered(tmp_path, monkeypatch):
    """TFDS would sort a split in memory, and beyond a limit through TensorFlow's files."""
    from tensorflow_datasets.core import shuffle

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    assert len(load("nyuv2_mtan", nyuv2(tmp_path / "nyuv2"))) == 11


# --- TFDS's own way ---------------------------------------------------------------------------


def test_tfds_finds_the_builders_and_their_manual_directory(tmp_path, monkeypatch):
    tfds = builder.tfds
    (tmp_path / "manual").mkdir()
    pack(nyud(tmp_path / "NYUD_MT"), tmp_path / "manual/NYUD_MT.tar")
    with quiet():
        made = tfds.builder("nyud_mt", data_dir=str(tmp_path / "out"), file_format="array_record")
        made.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=str(tmp_path / "manual"))
        )
    assert {name: split.num_examples for name, split in made.info.splits.items()} == {
        "train": 2,
        "val": 1,
    }
    ours = load("nyud_mt", tmp_path / "NYUD_MT")
    theirs = source.open(made.data_dir, "train[1:]")
    assert len(theirs) == 1
    for task in ours.tasks:
        np.testing.assert_array_equal(theirs[0]["labels"][task], ours[1]["labels"][task])


def test_masks_that_hold_everywhere_are_shared(tmp_path):
    opened = load("nyud_mt", nyud(tmp_path / "NYUD_MT"))
    valid = opened[0]["valid"]
    assert valid["edge"] is valid["normals"] and valid["edge"] is not valid["depth"]
    cached = Cached(opened.source)
    assert cached[0] is cached[0]


def test_neither_tensorflow_nor_torch_is_loaded(tmp_path):
    nyud(tmp_path / "NYUD_MT")
    code = (
        "import sys, sinewich_jax.data as d\n"
        f"s = d.load('nyud_mt', 'train', data_dir={str(tmp_path)!r}, progress=False)\n"
        "print(len(s), sorted({'tensorflow', 'torch', 'cv2'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "2 []"


def test_damaged_depth_in_an_unwanted_task_still_stops_preparing(tmp_path):
    path = nyud(tmp_path / "NYUD_MT")
    save(path / "depth/0001.npy", np.ones((2, 2, 2, 2), np.float32))
    with pytest.raises(DataError, match=r"depth/0001\.npy"):
        load("nyud_mt", path, tasks=("semseg",))
