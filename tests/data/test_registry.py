"""Data sets by name, parts of splits, views, and where the data is looked for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import sinewich_jax.data as data
from sinewich_jax.data import registry
from sinewich_jax.data.views import Cached, Resized, SelectTasks, Subset, parse_split, part
from sinewich_jax.errors import ConfigError, DataError


@pytest.fixture
def tiny(monkeypatch):
    """A registered data set that counts how often it is read."""
    registry.names()  # so that the built-in sets are in the copy
    monkeypatch.setattr(registry, "_OPENERS", dict(registry._OPENERS))
    reads: list[int] = []
    rng = np.random.default_rng(0)
    whole = data.from_arrays(
        {
            "image": rng.integers(0, 256, (10, 8, 6, 3), dtype=np.uint8),
            "semseg": rng.integers(0, 3, (10, 8, 6), dtype=np.uint8),
            "depth": rng.uniform(1, 2, (10, 8, 6)),
        }
    )

    class Slow:
        tasks, size, channels = whole.tasks, whole.size, whole.channels
        class_names = whole.class_names

        def __len__(self):
            return len(whole)

        def __getitem__(self, index):
            reads.append(index)
            return whole[index]

    @registry.register("tiny")
    def tiny(split, data_dir=None, colour="red"):
        assert split in ("train", "val") and colour == "red"
        return Slow()

    return reads


def test_size_takes_the_first_examples(tiny):
    assert len(data.load("tiny", "train", size=4)) == 4
    assert len(data.load("tiny", "train[2:9]", size=3)) == 3
    with pytest.raises(DataError, match=r"'tiny' has 10 examples, 11 were asked for.*train_size"):
        data.load("tiny", "train", size=11)


def test_looking_over_reads_all_of_a_small_source_and_some_of_a_large_one(tiny):
    source = data.load("tiny", "train", cache_mb=0)
    tiny.clear()
    data.look_over(source)
    assert tiny == list(range(10))
    tiny.clear()
    data.look_over(source, most=4)
    assert tiny == [0, 3, 6, 9]


def test_each_set_says_which_split_is_scored():
    assert data.default_eval_split("scenes") == "val"
    assert data.default_eval_split("ccp") == data.default_eval_split("kitchen") == "test"
    with pytest.raises(ConfigError, match="scenes"):
        data.default_eval_split("scens")


def test_built_in_sets():
    assert set(data.names()) >= {"ccp", "folder", "kitchen", "scenes"}


def test_load_brings_tasks_and_size_to_what_was_asked(tiny):
    source = data.load("tiny", "train[20%:9]", tasks=("depth",), image_size=(4, 3))
    assert len(source) == 7 and source.tasks == ("depth",) and source.size == (4, 3)
    assert source.channels == {"depth": 1}
    example = source[0]
    assert example["image"].shape == (4, 3, 3) and list(example["labels"]) == ["depth"]
    assert tiny == [2]


def test_examples_are_kept_after_their_first_reading(tiny):
    source = data.load("tiny")
    first, again = source[3], source[3]
    assert first is again and tiny == [3] and not again["image"].flags.writeable
    source = data.load("tiny", cache_mb=0)
    assert source[3] is not source[3] and tiny == [3, 3, 3]


def test_a_full_cache_reads_through(tiny):
    source = Cached(data.load("tiny", cache_mb=0).source, limit=600)
    for _ in range(2):
        for index in range(3):
            source[index]
    assert tiny == [0, 1, 2, 1, 2]


def test_unknown_names_and_options_offer_the_nearest(tiny):
    with pytest.raises(ConfigError, match="did you mean 'kitchen'"):
        data.load("kichen")
    with pytest.raises(ConfigError, match="did you mean 'colour'"):
        data.load("tiny", color="red")
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("tiny")(lambda split: None)
    with pytest.raises(DataError, match="'normals' has no labels"):
        data.load("tiny", tasks=("normals",))


def test_parts_of_splits():
    source = range(10)

    def length(start, stop):
        return part(FakeSource(source), start, stop)

    assert parse_split("train") == ("train", None, None)
    assert parse_split("train[:5]") == ("train", None, "5")
    assert parse_split("all[80%:]") == ("all", "80%", None)
    assert [length("2", "50%")[i] for i in range(3)] == [2, 3, 4]
    for bad in ("train[5]", "train[:-1]", "train[a:]", "train[1:2:3]", ""):
        with pytest.raises(DataError, match="not understood"):
            parse_split(bad)
    for start, stop in (("5", "5"), ("0", "11"), ("7", "3")):
        with pytest.raises(DataError, match="10 examples is empty or reaches"):
            length(start, stop)


class FakeSource(list):
    tasks, size, channels, class_names = (), None, {}, {}


def test_views_pass_on_what_the_source_says(tiny):
    source = data.load("tiny")
    for view in (Subset(source, [3, 1]), Resized(source, (4, 4)), SelectTasks(source, ["semseg"])):
        assert isinstance(view, data.DataSource)
        assert view.channels["semseg"] == source.channels["semseg"]
    assert len(Subset(source, [3, 1])) == 2
    np.testing.assert_array_equal(Subset(source, [3, 1])[1]["image"], source[1]["image"])


@pytest.mark.parametrize("name", ["ccp", "kitchen"])
def test_absent_data_names_the_key_and_the_variable(name, monkeypatch, tmp_path):
    monkeypatch.delenv("SINEWICH_DATA", raising=False)
    with pytest.raises(DataError, match=r"data_dir .*SINEWICH_DATA.*neither is set"):
        data.load(name)
    monkeypatch.setenv("SINEWICH_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=rf"data_dir .*SINEWICH_DATA.*there is no {tmp_path}/dense/"
    ):
        data.load(name)
    with pytest.raises(DataError, match="no split 'val', expected one of train, test"):
        data.load(name, "val")


def test_folder_needs_its_folder():
    with pytest.raises(DataError, match="data_dir"):
        data.load("folder", "train")


def test_importing_data_imports_nothing_heavy():
    code = (
        "import sys, sinewich_jax.data as d; d.names(); d.from_arrays; d.Augment; d.batches\n"
        "heavy = {'grain', 'tensorflow', 'tensorflow_datasets', 'orbax', 'matplotlib', 'jax'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    for name in data.__all__:
        assert getattr(data, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = data.nothing


def test_scenes_by_name(tmp_path):
    sizes = {"data_dir": tmp_path, "image_size": (16, 24), "size": 3, "progress": False}
    source = data.load("scenes", "train", **sizes)
    assert len(source) == 3 and source.size == (16, 24)
    expected = {"semseg": 8, "human_parts": 7, "saliency": 1, "normals": 3, "depth": 1, "edge": 1}
    assert source.channels == expected
    assert source.class_names["semseg"][0] == "wall"
    batch = data.batches(source, ("depth", "semseg"), batch_size=2).batch_at(0)
    assert batch["image"].shape == (2, 16, 24, 3) and list(batch["labels"]) == ["depth", "semseg"]
    assert len(data.load("scenes", "train[:2]", **sizes | {"size": 1})) == 1
    with pytest.raises(DataError, match="say size=N"):
        data.load("scenes", "pretrain", **sizes | {"size": None})
    with pytest.raises(DataError, match=r"no split 'trian' \(did you mean 'train'"):
        data.load("scenes", "trian")


def test_scenes_in_a_place_that_cannot_be_written_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be rendered into .*file.*SINEWICH_CACHE"):
        registry.load("scenes", "val", data_dir=tmp_path / "file" / "x", image_size=(8, 8))
