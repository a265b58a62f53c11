"""Text sets by name: which function opens them, and what of their files is refused."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import sinewich_jax.data as data
from sinewich_jax.data import Text, registry
from sinewich_jax.errors import ConfigError, DataError
from tests.helpers import data_root

# --- the registry -----------------------------------------------------------------------------


def test_each_kind_of_set_names_the_function_that_opens_it():
    assert {name for name in data.names() if data.is_text(name)} >= {"glue", "nlu", "phrases"}
    assert not data.is_text("scenes") and not data.is_text("nothing")
    with pytest.raises(ConfigError, match="'phrases' holds texts, open it with load_texts"):
        data.load("phrases")
    with pytest.raises(ConfigError, match=r"'scenes' holds images, open it with load$"):
        data.load_texts("scenes")
    with pytest.raises(ConfigError, match="did you mean 'phrases'"):
        data.load_texts("phrase")


def test_a_text_set_of_ones_own(monkeypatch):
    registry.names()
    monkeypatch.setattr(registry, "_OPENERS", dict(registry._OPENERS))
    monkeypatch.setattr(registry, "_TEXTS", set(registry._TEXTS))

    @data.register("letters", texts=True)
    def letters(split, data_dir=None):
        assert (split, data_dir) == ("val", "here")
        return data.from_texts({"cola": [("a", 1)], "sst2": [("b", 0)]})

    assert data.is_text("letters")
    assert data.load_texts("letters", "val", "here").tasks == ("cola", "sst2")
    assert data.load_texts("letters", "val", "here", ["sst2"]).tasks == ("sst2",)
    with pytest.raises(DataError, match="hold no task 'rte'"):
        data.load_texts("letters", "val", "here", ["rte"])
    with pytest.raises(
        DataError, match=r"'val\[:3\]' is a part.*open 'val' and take first\(size\)"
    ):
        data.load_texts("letters", "val[:3]")


# --- nlu --------------------------------------------------------------------------------------

COLA = [{"a": "He runs.", "y": 1}, {"a": "Runs he the.", "y": 0}]
SICK = [{"a": "A dog runs", "b": "No dog runs", "y": 0, "r": 3.5}]


def write(root: Path, name: str, entries, split: str = "train") -> Path:
    path = root / "nlu" / f"{name}.{split}.jsonl.gz"
    path.parent.mkdir(exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    write(tmp_path, "cola", COLA)
    write(tmp_path, "sick", SICK)
    return tmp_path


def test_files_of_lines(root, monkeypatch):
    texts = data.load_texts("nlu", "train", root)
    assert texts.tasks == ("cola", "sick", "sick_relatedness")
    assert texts["cola"] == (Text("He runs.", None, 1), Text("Runs he the.", None, 0))
    assert texts["sick"] == (Text("A dog runs", "No dog runs", 0),)
    assert texts["sick_relatedness"] == (Text("A dog runs", "No dog runs", 3.5),)
    monkeypatch.setenv("SINEWICH_DATA", str(root))
    assert data.load_texts("nlu", tasks=["sick_relatedness", "cola"]).tasks[0] == "sick_relatedness"


def test_the_manifest_names_the_classes(root):
    write(root, "snips", [{"a": "go", "y": 1}])
    manifest = root / "MANIFEST.json"
    labels = {"snips": {"labels": ["Stop", "Go"]}, "sick": {"labels": None}, "trec": {}}
    manifest.write_text(json.dumps({"nlu": labels}))
    texts = data.load_texts("nlu", "train", root, ["snips", "sick"])
    assert texts.task("snips").class_names == ("Stop", "Go")
    assert texts.task("sick").class_names == ("contradiction", "neutral", "entailment")
    manifest.write_text("{")
    with pytest.raises(DataError, match=r"MANIFEST\.json is not JSON"):
        data.load_texts("nlu", "train", root)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[1]", "holds a list, expected an object"),
        ({"y": 1}, r"lacks the field 'a' \(found: y\)"),
        ({"a": "x"}, r"lacks the field 'y' \(found: a\)"),
        ({"a": 3, "y": 1}, r"has 3 \(int\) for a text"),
        ({"a": "x", "y": "1"}, ": the cola label is '1'"),
        ({"a": "x", "y": 7}, ": the cola label is 7, expected"),
        ({"a": "x", "b": "y", "y": 1}, "has two texts, expected one"),
        ({"a": "  ", "y": 1}, "has the empty text"),
    ],
)
def test_bad_lines_are_named(root, line, words):
    path = write(root, "cola", [COLA[0], line])
    with pytest.raises(DataError, match=f"^line 2 of {path}.*{words}"):
        data.load_texts("nlu", "train", root, ["cola"])


def test_sick_without_relatedness(root):
    write(root, "sick", [{"a": "x", "b": "y", "y": 1}])
    assert data.load_texts("nlu", "train", root, ["sick"]).tasks == ("sick",)
    with pytest.raises(DataError, match=r"line 1 of .*sick\.train.* lacks the field 'r'"):
        data.load_texts("nlu", "train", root, ["sick_relatedness"])


def test_damaged_files_are_named(root):
    path = write(root, "cola", COLA * 100)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    latin = gzip.compress(b'{"a": "caf\xe9", "y": 1}\n')
    for content in (whole[:40], whole[:-4], bytes(flipped), b"plain", latin):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path}.*( cannot be read|is not JSON)"):
            data.load_texts("nlu", "train", root, ["cola"])
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="cola holds no example"):
        data.load_texts("nlu", "train", root, ["cola"])


def test_what_is_not_there(root, monkeypatch):
    with pytest.raises(DataError, match="nlu has no split 'dev', expected one of train, val, test"):
        data.load_texts("nlu", "dev", root)
    with pytest.raises(DataError, match=r"'rte' needs the file .*found: cola, sick, sick_rel"):
        data.load_texts("nlu", "train", root, ["rte"])
    with pytest.raises(DataError, match=r"no text task 'colla'.*did you mean 'cola'"):
        data.load_texts("nlu", "train", root, ["colla"])
    with pytest.raises(DataError, match="hold no task"):
        data.load_texts("nlu", "val", root)
    monkeypatch.delenv("SINEWICH_DATA", raising=False)
    with pytest.raises(DataError, match=r"data_dir .*SINEWICH_DATA.*neither is set"):
        data.load_texts("nlu")


@pytest.mark.slow
def test_real_texts():
    root = data_root()
    if not (root / "nlu").is_dir():
        pytest.skip(f"{root} holds no nlu/")
    tasks = ("cola", "sst2", "mrpc", "rte", "sts", "sick", "sick_relatedness", "trec", "clinc150")
    for split in ("train", "val", "test"):
        texts = data.load_texts("nlu", split, root, tasks)
        assert texts.tasks == tasks and min(map(len, texts.values())) >= 200
    assert len(texts["sick"]) == len(texts["sick_relatedness"]) == 2427
    assert len(texts.task("clinc150").class_names) == 150


# --- glue -------------------------------------------------------------------------------------

FEATURES = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "stsb": (("sentence1", "sentence2"), None),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
"""As in the builders of TFDS 4.9."""


def prepare(root: Path, task: str, fields=None, names=None, version="2.0.0") -> Path:
    """Writes what TFDS would prepare, with two examples a split."""
    import tensorflow_datasets as tfds

    from sinewich_jax.data import prepare as preparing

    usual, classes = FEATURES[task]
    texts, classes = fields or usual, names or classes
    splits = ["train", "validation", "test"]
    if task == "mnli":
        splits[1:2] = ["validation_matched", "validation_mismatched"]
    label = np.float32 if classes is None else tfds.features.ClassLabel(names=list(classes))

    class Glue(tfds.core.ShardBasedBuilder, skip_registration=True):
        name = "glue"
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=task)]  # noqa: RUF012

        def _info(self):
            features = {field: tfds.features.Text() for field in texts}
            features |= {"label": label, "idx": np.int32}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _shard_iterators_per_split(self, dl_manager):
            def examples(split):
                for index in range(2):
                    known = 2.5 + index if classes is None else classes[index]
                    words = {field: f"{field} café {split} {index}" for field in texts}
                    unknown = split.startswith("test")
                    yield index, {**words, "label": -1 if unknown else known, "idx": index}

            return {split: [lambda split=split: examples(split)] for split in splits}

    return preparing.prepare(
        lambda: Glue(data_dir=root, config=task, file_format="array_record"), progress=False
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("glue")
    for task in FEATURES:
        prepare(root, task)
    return root


def test_all_of_glue(prepared):
    texts = data.load_texts("glue", "val", prepared)
    assert texts.tasks == tuple(FEATURES)
    for task, (fields, classes) in FEATURES.items():
        split = "validation_matched" if task == "mnli" else "validation"
        for index, text in enumerate(texts[task]):
            words = tuple(f"{field} café {split} {index}" for field in fields)
            assert (text.first, text.second)[: len(words)] == words
            if classes is None:
                assert text.label == 2.5 + index
            else:
                ours = texts.task(task).class_names[text.label]
                same = {"not_equivalent": "not_paraphrase", "equivalent": "paraphrase"}
                assert ours == same.get(classes[index], classes[index])
    assert "tensorflow" not in sys.modules


def test_splits_of_glue(prepared):
    texts = data.load_texts("glue", "train", prepared, ["rte", "cola"])
    assert texts.tasks == ("rte", "cola")
    assert texts["cola"][0].first == "sentence café train 0"
    # RTE's ids are turned around.
    assert [text.label for text in texts["rte"]] == [1, 0]
    other = data.load_texts("glue", "val_mismatched", prepared, ["mnli"])
    assert other["mnli"][1].first == "premise café validation_mismatched 1"
    with pytest.raises(DataError, match="glue/cola has no split 'val_mismatched'"):
        data.load_texts("glue", "val_mismatched", prepared, ["cola"])
    with pytest.raises(DataError, match="test split of glue was published without labels; score"):
        data.load_texts("glue", "test", prepared)
    with pytest.raises(DataError, match=r"glue/cola has no split 'vla' \(did you mean 'val'"):
        data.load_texts("glue", "vla", prepared, ["cola"])


def test_what_of_glue_is_not_prepared(tmp_path):
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    how = rf"prepare it with tfds.builder\('glue/sst2', data_dir='{tmp_path}', file_format='array_"
    with pytest.raises(DataError, match=rf"glue/sst2 is not prepared in .*; {how}"):
        data.load_texts("glue", "train", tmp_path, ["sst2"])
    with pytest.raises(DataError, match=r"holds no task; prepare it with tfds.builder"):
        data.load_texts("glue", "train", tmp_path)
    with pytest.raises(DataError, match=r"glue has no task 'trec'"):
        data.load_texts("glue", "train", tmp_path, ["trec"])


def test_the_newest_version_is_read(tmp_path):
    for version in ("1.0.1", "10.0.0", "2.0.0"):
        prepare(tmp_path, "cola", version=version)
    texts = data.load_texts("glue", "train", tmp_path)
    assert texts.tasks == ("cola",)
    path = tmp_path / "glue" / "cola" / "10.0.0" / "dataset_info.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"10\.0\.0 is damaged; remove it and prepare it with"):
        data.load_texts("glue", "train", tmp_path)


def test_damaged_glue_is_one_sentence(tmp_path):
    path = prepare(tmp_path, "cola")
    info = path / "dataset_info.json"
    kept = info.read_text()
    info.write_text(kept.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="holds tfrecord files, expected array_record; remove it"):
        data.load_texts("glue", "train", tmp_path)
    info.write_text(kept.replace('"validation"', '"dev"'))
    with pytest.raises(DataError, match=r"cannot be read .*validation"):
        data.load_texts("glue", "val", tmp_path)
    info.write_text(kept)
    (shard,) = path.glob("*train*")
    whole = shard.read_bytes()
    for content in (b"", whole[:-65536] + b"x" * 65536):
        shard.write_bytes(content)
        with pytest.raises(DataError, match=r"2\.0\.0 cannot be read"):
            data.load_texts("glue", "train", tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r"2\.0\.0 cannot be read"):
        data.load_texts("glue", "train", tmp_path)


def test_glue_of_another_form_is_refused(tmp_path):
    prepare(tmp_path, "rte", names=("yes", "no"))
    with pytest.raises(DataError, match="has the classes yes, no, expected not_entailment, ent"):
        data.load_texts("glue", "train", tmp_path, ["rte"])
    prepare(tmp_path, "cola", fields=("text",))
    with pytest.raises(DataError, match=r"cola.* lacks 'sentence' \(found: .*text"):
        data.load_texts("glue", "train", tmp_path, ["cola"])
