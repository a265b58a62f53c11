"""The data set on disk: what is read is what was rendered, and half a data set is never read."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sinewich_jax.data.scenes import TASKS, builder, render, sample_scene
from sinewich_jax.errors import DataError

COUNTS = {"train": 5, "val": 2, "test": 2}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return builder.prepare(tmp_path_factory.mktemp("data"), 16, 24, COUNTS, progress=False)


def test_round_trip(path):
    source = builder.open(path, "train")
    assert len(source) == 5 and source.size == (16, 24) and source.tasks == TASKS
    for index in (0, 4, 2):
        example, truth = source[index], render(sample_scene(index), 16, 24)
        assert set(example) == {"image", "labels", "valid"}
        np.testing.assert_array_equal(example["image"], truth["image"])
        assert tuple(example["labels"]) == TASKS
        for task in TASKS:
            made, expected = example["labels"][task], truth["labels"][task]
            assert made.dtype == expected.dtype and made.shape == expected.shape
            assert example["valid"][task].shape == (16, 24) and example["valid"][task].all()
            if task != "normals":
                np.testing.assert_array_equal(made, expected)
        made, expected = (x["labels"]["normals"].astype(float) for x in (example, truth))
        np.testing.assert_allclose(np.linalg.norm(made, axis=-1), 1.0, atol=1e-6)
        sine = np.linalg.norm(np.cross(made, expected), axis=-1)
        assert np.degrees(np.arcsin(sine)).max() < 0.05


def test_splits_are_disjoint_seed_ranges(path):
    seeds = {s: [builder.open(path, s).seed(i) for i in range(n)] for s, n in COUNTS.items()}
    assert seeds["train"] == [0, 1, 2, 3, 4]
    assert seeds["val"] == [1_000_000, 1_000_001]
    assert seeds["test"] == [2_000_000, 2_000_001]


def test_sub_splits(path):
    source = builder.open(path, "train[2:4]")
    assert [source.seed(i) for i in range(len(source))] == [2, 3]


def test_head_widths_fit_the_labels(path):
    source = builder.open(path, "train")
    for task, names in source.class_names.items():
        assert len(names) == source.channels[task]
        assert max(source[i]["labels"][task].max() for i in range(5)) < source.channels[task]
    assert set(source.channels) == set(TASKS)


def test_preparing_again_changes_nothing(path, monkeypatch):
    def fail(*_):
        raise AssertionError("rendered again")

    monkeypatch.setattr(builder.Scenes, "_example", fail)
    files = {f: f.stat().st_mtime_ns for f in path.iterdir()}
    root = path.parents[2]
    assert builder.prepare(root, 16, 24, COUNTS, progress=False) == path
    assert {f: f.stat().st_mtime_ns for f in path.iterdir()} == files


def test_other_counts_are_another_directory(path):
    root = path.parents[2]
    other = builder.prepare(root, 16, 24, {"train": 1}, progress=False)
    assert other != path and len(builder.open(other, "train")) == 1


def test_an_interrupted_preparation_is_never_read(tmp_path, monkeypatch):
    whole = builder.Scenes._example

    def interrupted(self, seed):
        if seed == 2:
            raise KeyboardInterrupt
        return whole(self, seed)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(builder.Scenes, "_example", interrupted)
        builder.prepare(tmp_path, 16, 16, {"train": 4}, progress=False)
    expected = tmp_path / "scenes" / "16x16_train4" / "1.0.0"
    with pytest.raises(DataError, match="holds no prepared scenes"):
        builder.open(expected, "train")
    assert builder.prepare(tmp_path, 16, 16, {"train": 4}, progress=False) == expected
    assert len(builder.open(expected, "train")) == 4


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_scenes_that_a_cache_cleaner_has_cut_are_named(tmp_path, damage):
    path = builder.prepare(tmp_path, 16, 16, {"train": 2}, progress=False)
    (shard,) = path.glob("*array_record*")
    shard.write_bytes(shard.read_bytes()[:1000]) if damage == "cut" else shard.unlink()
    with pytest.raises(DataError, match=rf"scenes in {path} are damaged .* delete that folder"):
        builder.open(path, "train")


def test_two_processes_that_prepare_at_once_both_succeed(tmp_path, monkeypatch):
    whole, inner = builder.Scenes._example, []

    def slow(self, seed):
        if not inner:  # While the first is at work, a second one prepares the same scenes.
            inner.append(True)
            builder.prepare(tmp_path, 16, 16, {"train": 2}, progress=False)
        return whole(self, seed)

    monkeypatch.setattr(builder.Scenes, "_example", slow)
    path = builder.prepare(tmp_path, 16, 16, {"train": 2}, progress=False)
    assert inner and len(builder.open(path, "train")) == 2


def test_progress_is_one_bar_on_stderr(tmp_path, capsys):
    builder.prepare(tmp_path, 16, 16, {"train": 2}, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "rendering train scenes" in err and "2/2" in err
    assert "Downloading" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 64, None), "too small"),
        ((64, 64, {}), "no split"),
        ((64, 64, {"training": 5}), "no split 'training'"),
        ((64, 64, {"train": 0}), "of 0 scenes"),
        ((64, 64, {"train": 1_000_001}), "of 1000001 scenes"),
    ],
)
def test_bad_requests(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message):
        builder.prepare(tmp_path, *arguments)
    assert not any(tmp_path.iterdir())


def test_an_unknown_split_is_named(path):
    with pytest.raises(DataError, match="no split 'dev': use one of"):
        builder.open(path, "dev")


def test_no_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from sinewich_jax.data.scenes import builder\n"
        f"path = builder.prepare({str(tmp_path)!r}, 16, 16, {{'train': 1}}, progress=False)\n"
        "builder.open(path, 'train')[0]\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
