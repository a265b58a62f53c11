"""Texts as a data source: what an example holds, when a task runs out, and batches of it."""

from __future__ import annotations

import numpy as np
import pytest

import sinewich_jax.data as data
from sinewich_jax.data import DataSource, Text, TextSource
from sinewich_jax.errors import ConfigError, DataError
from tests.data.text.words import tiny_tokenizer

EXAMPLES = {
    "sst2": [("a fine film", 1), ("dull", 0), ("fine film s", 1), ("the cafe", 0), ("rain", 0)],
    "rte": [("it rain s", "rain", 1), ("a film", "a dull , dull , dull film", 0)],
    "sts": [("film", "film s", 4.5), ("dull", "fine", 1), ("a", "a", 5.0)],
}
COUNTS = {task: len(found) for task, found in EXAMPLES.items()}


@pytest.fixture
def tokenizer(tmp_path):
    return tiny_tokenizer(tmp_path)


@pytest.fixture
def source(tokenizer):
    def make(repeat: bool, tasks=("sst2", "rte", "sts")) -> TextSource:
        texts = data.from_texts(EXAMPLES).select(tasks)
        return TextSource(texts, tokenizer, max_tokens=8, repeat=repeat)

    return make


def test_it_is_a_data_source(source):
    made = source(True)
    assert isinstance(made, DataSource)
    assert made.tasks == ("sst2", "rte", "sts") and made.size is None and len(made) == 5
    assert made.channels == {"sst2": 2, "rte": 2, "sts": 1}
    assert made.class_names == {
        "sst2": ("negative", "positive"),
        "rte": ("not_entailment", "entailment"),
    }
    assert made.notes == {"cut": "1 of 2 texts of rte are cut at 8 tokens"}
    assert source(True, ["sts"]).notes == {}


def test_an_example_holds_one_text_of_every_task(source, tokenizer):
    example = source(False)[1]
    assert {key: value.shape for key, value in example["text"].items()} == {
        "ids": (3, 8),
        "mask": (3, 8),
        "segments": (3, 8),
    }
    assert [example["text"][k].dtype for k in ("ids", "mask", "segments")] == [
        np.int32,
        np.bool_,
        np.int32,
    ]
    for row, task in enumerate(EXAMPLES):
        *words, label = EXAMPLES[task][1]
        alone = tokenizer.encode([words[0]], words[1:] or None, 8)
        for name in ("ids", "mask", "segments"):
            np.testing.assert_array_equal(example["text"][name][row], getattr(alone, name)[0])
        assert example["labels"][task] == label and example["valid"][task]
    dtypes = {task: label.dtype for task, label in example["labels"].items()}
    assert dtypes == {"sst2": np.int32, "rte": np.int32, "sts": np.float32}
    assert all(np.shape(label) == () for label in example["labels"].values())


@pytest.mark.parametrize("repeat", [True, False])
def test_a_shorter_task_begins_again_or_is_masked(source, repeat):
    made = source(repeat)
    for index in range(len(made)):
        example = made[index]
        for row, task in enumerate(made.tasks):
            count = COUNTS[task]
            words = made.words(index, task)
            if repeat or index < count:
                assert example["valid"][task]
                *texts, label = EXAMPLES[task][index % count]
                assert words == Text(texts[0], texts[1] if texts[1:] else None, label)
                again = made[index % count]["text"]["ids"][row]
                np.testing.assert_array_equal(example["text"]["ids"][row], again)
            else:
                assert not example["valid"][task] and words is None
                assert example["labels"][task] == 0
                assert example["labels"][task].dtype == made[0]["labels"][task].dtype
                # One token, so that a softmax over the mask has something to stand on.
                assert example["text"]["mask"][row].tolist() == [True] + 7 * [False]
                assert example["text"]["ids"][row].tolist() == [2] + 7 * [0]
                assert not example["text"]["segments"][row].any()


def test_there_is_nothing_behind_the_end(source):
    made = source(True)
    for index in (5, -1):
        with pytest.raises(IndexError, match=f"no example {index}, expected 0 to 4"):
            made[index]
        with pytest.raises(IndexError):
            made.words(index, "sst2")
    assert len(list(made)) == 5


def test_examples_cannot_change_the_source(source):
    made = source(True)
    before = made[0]["text"]["ids"].copy()
    made[0]["text"]["ids"][:] = 9
    np.testing.assert_array_equal(made[0]["text"]["ids"], before)


@pytest.mark.parametrize(("limit", "found"), [(12, 12), (16, 16), (64, 16)])
def test_arrays_are_as_long_as_the_longest_text_needs(tokenizer, limit, found):
    """Rounded up to a multiple of eight; the limit, where that is less."""
    texts = {"sst2": [("a fine film", 1)], "rte": [("it rain s", "rain , , , rain", 1)]}
    encoded = tokenizer.encode(*[[text] for text in texts["rte"][0][:2]], 64)
    assert encoded.mask.sum() == 11

    example = TextSource(data.from_texts(texts), tokenizer, limit, repeat=True)[0]["text"]

    assert example["ids"].shape == example["mask"].shape == (2, found)
    np.testing.assert_array_equal(example["ids"][1], encoded.ids[0, :found])
    assert example["mask"].sum(axis=1).tolist() == [5, 11]


def test_too_few_tokens_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="max_tokens is 4, expected at least 5"):
        TextSource(data.from_texts(EXAMPLES), tokenizer, 4, True)


def test_a_text_that_nobody_can_see_is_named(tokenizer):
    unseen = {"rte": [("it rain s", "rain", 1), ("a film", "\u200b", 0)]}
    with pytest.raises(DataError, match=r"rte example 1 has '.u200b', in which .* no token"):
        TextSource(data.from_texts(unseen), tokenizer, max_tokens=8, repeat=True)


def test_batches_of_texts(source):
    batch = data.batches(source(True), batch_size=4, seed=1).batch_at(0)
    assert batch["text"]["ids"].shape == (4, 3, 8) and batch["labels"]["sts"].shape == (4,)
    assert batch["valid"]["rte"].dtype == bool and batch["valid"]["rte"].all()
    scored = list(data.eval_batches(source(False), batch_size=4))
    assert len(scored) == 2
    for task, count in COUNTS.items():
        assert sum(int(batch["valid"][task].sum()) for batch in scored) == count


def test_texts_go_with_their_labels_when_tasks_are_chosen(source):
    whole = source(True)
    chosen = data.SelectTasks(whole, ("sts", "sst2"))
    for index in range(len(whole)):
        one, other = chosen[index], whole[index]
        for name, array in one["text"].items():
            np.testing.assert_array_equal(array, other["text"][name][[2, 0]])
        assert list(one["labels"]) == ["sts", "sst2"]
    batch = data.batches(whole, ("rte",), batch_size=2, seed=0, shuffle=False).batch_at(0)
    assert batch["text"]["ids"].shape == (2, 1, 8)
    np.testing.assert_array_equal(batch["text"]["ids"][:, 0], whole._encoded[1].ids[:2])
