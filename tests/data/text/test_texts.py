"""Collections of texts: what is refused, once, and what is taken of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sinewich_jax.data as data
from sinewich_jax.data import Text, Texts
from sinewich_jax.errors import ConfigError, DataError


@pytest.fixture
def texts() -> Texts:
    return data.from_texts(
        {
            "sst2": [(f"film {n}", n % 2) for n in range(5)],
            "rte": [("It rains.", f"It is wet {n}.", 1) for n in range(3)],
            "sts": [("a", "b", 2), ("c", "d", np.float32(0.5)), ("e", "f", 5.0)],
        }
    )


def test_a_collection_is_a_mapping_in_order(texts):
    assert texts.tasks == tuple(texts) == ("sst2", "rte", "sts") and len(texts) == 3
    assert texts["sst2"][1] == Text("film 1", None, 1)
    assert texts["rte"][2] == ("It rains.", "It is wet 2.", 1)
    assert [type(text.label) for text in texts["sts"]] == [int, float, float]
    assert repr(texts) == "Texts(sst2: 5, rte: 3, sts: 3)"
    assert "cola" not in texts and texts == Texts(dict(texts))
    with pytest.raises(TypeError, match="does not support item assignment"):
        texts["sst2"] = ()


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ({}, "hold no task, expected at least one"),
        ({"colla": [("a", 1)]}, r"no text task 'colla' \(did you mean 'cola'\?\)"),
        ({"semseg": [("a", 1)]}, "no text task 'semseg'"),
        ({"cola": []}, "cola holds no example"),
        ({"cola": [("a", 1), ("", 0)]}, "cola example 1 has the empty text '', expected words"),
        ({"cola": [(" \t\n", 0)]}, "cola example 0 has the empty text"),
        ({"rte": [("a", " ", 0)]}, "rte example 0 has the empty text ' '"),
        ({"cola": [(b"a", 0)]}, r"cola example 0 has b'a' \(bytes\) for a text, expected str"),
        ({"rte": [("a", 7, 0)]}, r"rte example 0 has 7 \(int\) for a text"),
        ({"cola": [("ok", 1), ("a\ud800", 0)]}, "example 1 has half a surrogate.*character 1 of"),
        ({"rte": [("a", 0)]}, "rte example 0 has one text, expected two"),
        ({"cola": [("a", "b", 0)]}, "cola example 0 has two texts, expected one"),
        ({"cola": [("a", 2)]}, "cola example 0: the cola label is 2, expected .* 0 to 1"),
        ({"cola": [("a", -1)]}, "the cola label is -1"),
        ({"cola": [("a", 0.5)]}, "the cola label is 0.5, expected a whole number"),
        ({"cola": [("a", "1")]}, "the cola label is '1'"),
        ({"cola": [("a", True)]}, "the cola label is True"),
        ({"cola": [("a", None)]}, "the cola label is None"),
        ({"sts": [("a", "b", 5.5)]}, "the sts label is 5.5, expected a number from 0 to 5"),
        ({"sts": [("a", "b", float("nan"))]}, "the sts label is nan"),
        ({"cola": ["ab"]}, r"cola example 0 is a str, expected \(text, label\)"),
        ({"cola": [3]}, "cola example 0 is a int, expected"),
        ({"cola": [("a",)]}, "cola example 0 is 1 entries, expected"),
    ],
)
def test_what_is_refused(examples, words):
    with pytest.raises(DataError, match=words):
        data.from_texts(examples)


def test_a_place_is_named_as_its_reader_says():
    with pytest.raises(DataError, match=r"line 2 of sst2\.txt has the empty text"):
        Texts(
            {"sst2": [Text("a", None, 0), Text("", None, 0)]},
            where=lambda task, index: f"line {index + 1} of {task}.txt",
        )


def test_classes_of_the_texts_take_the_place_of_the_tasks_own():
    names = {"snips": ("stop", "go")}
    texts = data.from_texts({"cola": [("a", 1)], "snips": [("b", 1)]}, names)
    for some in (texts, texts.select(["snips"]), texts.first(1), texts.sample(1, 0)):
        assert some.task("snips").class_names == ("stop", "go")
        assert some.task("snips").channels == 2
    assert texts.task("cola").class_names == ("unacceptable", "acceptable")
    with pytest.raises(DataError, match=r"the snips label is 2, expected .* 0 to 1"):
        data.from_texts({"snips": [("b", 2)]}, names)
    with pytest.raises(DataError, match="class_names has 'snips', which these texts do not hold"):
        data.from_texts({"cola": [("a", 1)]}, names)
    with pytest.raises(DataError, match="sts is given 2 classes, but its labels are scores"):
        data.from_texts({"sts": [("a", "b", 1)]}, {"sts": ("low", "high")})


def test_selecting_keeps_the_order_asked_for(texts):
    assert texts.select(["sts", "sst2"]).tasks == ("sts", "sst2")
    with pytest.raises(DataError, match=r"hold no task 'sst' \(did you mean 'sst2'\?\)"):
        texts.select(["sst"])
    with pytest.raises(DataError, match="no task was asked for, expected some of sst2, rte, sts"):
        texts.select([])


def test_the_first_of_each_task(texts):
    assert [len(found) for found in texts.first(2).values()] == [2, 2, 2]
    assert texts.first(3)["sst2"] == texts["sst2"][:3]


@pytest.mark.parametrize("take", ["first", "sample"])
def test_sizes_that_are_refused(texts, take):
    def taken(size):
        return texts.first(size) if take == "first" else texts.sample(size, 0)

    with pytest.raises(DataError, match="rte has 3 examples, 4 were asked for; ask for fewer"):
        taken(4)
    for size, words in ((0, "size is 0, .* from 1"), (-1, "size is -1"), (1.5, "size is 1.5")):
        with pytest.raises(ConfigError, match=words):
            taken(size)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_seeds_that_are_refused(texts, seed):
    with pytest.raises(ConfigError, match=f"seed is {seed}, expected a whole number"):
        texts.sample(1, seed)


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    chosen=st.data(),
)
def test_samples_are_prefixes_of_a_permutation(counts, seed, chosen):
    names = ("cola", "sst2", "subj")[: len(counts)]
    texts = data.from_texts(
        {t: [(f"{t} {i}", i % 2) for i in range(n)] for t, n in zip(names, counts, strict=True)}
    )
    least = min(counts)
    small = chosen.draw(st.integers(1, least))
    large = chosen.draw(st.integers(small, least))
    fewer, more = texts.sample(small, seed), texts.sample(large, seed)
    for task in names:
        assert more[task][:small] == fewer[task]
        assert len(set(more[task])) == large and set(more[task]) <= set(texts[task])
    assert texts.sample(large, seed) == more


def test_seeds_draw_differently_and_tasks_of_one_length_alike():
    texts = data.from_texts({t: [(f"{i}", i % 2) for i in range(100)] for t in ("cola", "sst2")})
    drawn = [texts.sample(20, seed) for seed in range(4)]
    assert len({one["cola"] for one in drawn}) == 4
    assert all(one["cola"] == one["sst2"] for one in drawn)
    # Frozen: what a seed draws is part of what a published number means.
    assert [text.first for text in drawn[0]["cola"][:5]] == ["88", "39", "73", "10", "52"]
