"""The synthetic texts: the same for everyone, apart by split, and worth learning."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

import sinewich_jax.data as data
from sinewich_jax.data.text import phrases
from sinewich_jax.errors import DataError


@pytest.fixture(scope="module")
def splits() -> dict[str, data.Texts]:
    return {split: data.load_texts("phrases", split) for split in phrases.SIZES}


def test_sizes_and_tasks(splits):
    for split, size in (("train", 2000), ("val", 200), ("test", 400)):
        assert splits[split].tasks == ("cola", "sst2", "mrpc", "sts")
        assert {len(found) for found in splits[split].values()} == {size}
    assert data.is_text("phrases") and data.default_eval_split("phrases") == "val"


def test_an_example_is_a_function_of_split_and_index(splits):
    for split, texts in splits.items():
        for index in (199, 0, 7):
            assert phrases.example(split, index) == {task: texts[task][index] for task in texts}
    # Frozen: other draws would be another data set of the same name.
    assert phrases.example("val", 3)["sts"] == FROZEN


FROZEN = data.Text(
    "the elderly child discovers the sofa in the road", "the brave child finds the couch", 3.0
)


def test_no_sentence_stands_in_two_splits(splits):
    seen: dict[str, str] = {}
    for split, texts in splits.items():
        for task, found in texts.items():
            for text in found:
                second = text.second if task == "mrpc" else None  # those of sts may be vague
                for sentence in filter(None, (text.first, second)):
                    assert seen.setdefault(sentence, split) == split, sentence


def test_labels_are_balanced(splits):
    for task in ("cola", "sst2", "mrpc"):
        share = np.mean([text.label for text in splits["train"][task]])
        assert abs(share - 0.5) < 0.05
    counts = collections.Counter(text.label for text in splits["train"]["sts"])
    assert set(counts) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0} and min(counts.values()) > 250


def test_every_word_has_a_token(splits):
    tokenizer = phrases.tokenizer()
    assert tokenizer.vocabulary < 200 and phrases.tokenizer() is tokenizer
    tokenizer.check(tokenizer.vocabulary, "the encoder")
    unknown = 1
    for texts in splits.values():
        for task, found in texts.items():
            seconds = [text.second for text in found] if texts.task(task).pair else None
            encoded = tokenizer.encode([text.first for text in found], seconds, 24)
            assert encoded.cut == 0 and not (encoded.ids == unknown).any()
    assert tokenizer.encode(["the zebra"], None, 4).ids[0, 2] == unknown
    assert tokenizer.encode(["The CHILD"], None, 4).ids.tolist()[0][1:3] != [unknown] * 2


def bag_of_words(splits, task: str) -> float:
    """Test accuracy of a logistic regression that counts words."""

    def counted(text: data.Text) -> str:
        return text.first if text.second is None else f"{text.first} {text.second}"

    words = CountVectorizer(token_pattern=r"\S+")
    train, test = splits["train"][task], splits["test"][task]
    model = LogisticRegression(max_iter=500)
    model.fit(words.fit_transform(map(counted, train)), [text.label for text in train])
    return model.score(words.transform(map(counted, test)), [text.label for text in test])


def test_words_alone_tell_something_and_not_all(splits):
    assert 0.65 < bag_of_words(splits, "sst2") < 0.85
    assert bag_of_words(splits, "cola") < 0.65
    assert bag_of_words(splits, "mrpc") < 0.75


def test_what_sts_scores_is_what_is_shared():
    """A sentence and another of which nothing is vague share as many parts as the score says."""
    senses = {word: (part, value) for part, value, word in named_words()}
    for index in range(200):
        text = phrases.example("train", index)["sts"]
        first, second = (
            {senses[word] for word in one.split() if word in senses}
            for one in (text.first, text.second)
        )
        assert len(first & second) == text.label


def named_words():
    for part, values in (("thing", phrases._THING), ("place", phrases._PLACE)):
        yield from ((part, value, word) for value, pair in enumerate(values) for word in pair)
    for value, pair in enumerate(phrases._LIKE):
        yield from (("like", value, word) for word in pair)
    for value, pair in enumerate(phrases._DOES):
        yield from (("does", value, word + end) for word in pair for end in ("", "s"))
    for value, pair in enumerate(phrases._WHO):
        yield from (("who", value, word) for forms in pair for word in forms)


def test_unknown_splits_and_tasks():
    with pytest.raises(DataError, match=r"no split 'trian' \(did you mean 'train'\?\)"):
        data.load_texts("phrases", "trian")
    with pytest.raises(DataError, match=r"phrases has no task 'rte'"):
        data.load_texts("phrases", tasks=["rte"])
