"""phrases: English of a small grammar, four tasks out of one meaning; nothing to download.

A meaning is who does what to which thing, where, and what they are like; each of the five parts has
four values, and each value two words of the same sense. Of one meaning are made

* ``cola``: the sentence, or one with two neighbours exchanged or a verb of the wrong number;
* ``sst2``: the sentence and what it was like, one time in four by way of a "not";
* ``mrpc``: the sentence and it again in other words, or with a "never" too many or too few, or with
  one of the first four parts changed;
* ``sts``: the sentence and another, the score being how many of the five parts they share; the rest
  is changed or left vague.

Bags of words decide none of them. What a small network learns first is order, number, "not" and
"never", and what is vague; which words mean the same takes longer. An example is a pure function
of (split, index), and no sentence stands in two splits, because who meets which thing tells them
apart; only a vague one, the second of a pair, may.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from sinewich_jax.data.text.texts import Text, Texts
from sinewich_jax.data.text.tokens import Tokenizer, word_level
from sinewich_jax.errors import DataError, did_you_mean

SIZES = {"train": 2000, "val": 200, "test": 400}
"""Examples of each task, by split."""

TASKS = ("cola", "sst2", "mrpc", "sts")

_STREAM = 0x5048_5241  # tells these draws from any other use of Philox
_SPLITS = {"train": ((0, 0), (1, 1)), "val": ((0, 1),), "test": ((1, 0),)}
"""Parities of (who, thing); so each part alone has another value in the same split."""

_WHO = (
    (("child", "children"), ("kid", "kids")),
    (("doctor", "doctors"), ("physician", "physicians")),
    (("thief", "thieves"), ("robber", "robbers")),
    (("teacher", "teachers"), ("tutor", "tutors")),
)
"""One and several of them, in two words each."""

_DOES = (
    ("see", "spot"),
    ("buy", "purchase"),
    ("repair", "mend"),
    ("find", "discover"),
)
_THING = (
    ("car", "automobile"),
    ("couch", "sofa"),
    ("stone", "rock"),
    ("present", "gift"),
)
_PLACE = (
    ("garden", "yard"),
    ("shop", "store"),
    ("forest", "wood"),
    ("road", "street"),
)
_LIKE = (("old", "elderly"), ("rich", "wealthy"), ("slim", "thin"), ("brave", "bold"))
_GOOD = ("lovely", "great", "fine", "charming", "wonderful", "clever", "pleasant", "superb")
_BAD = ("awful", "dull", "poor", "dreadful", "terrible", "stupid", "tiresome", "bleak")

_Option = TypeVar("_Option")


class Meaning(NamedTuple):
    """What a sentence says: for each part, which of its values."""

    who: int
    does: int
    thing: int
    place: int
    like: int


_COUNTS = Meaning(*map(len, (_WHO, _DOES, _THING, _PLACE, _LIKE)))


class _Dice:
    """Draws for one example: raw Philox words, which stay the same over releases of NumPy."""

    def __init__(self, split: str, index: int):
        place = list(SIZES).index(split)
        self._bits = np.random.Philox(key=[_STREAM, place], counter=[0, index, 0, 0])

    def below(self, count: int) -> int:
        return int(self._bits.random_raw()) % count

    def one_of(self, options: Sequence[_Option]) -> _Option:
        return options[self.below(len(options))]


def texts(split: str, tasks: Sequence[str] = TASKS) -> Texts:
    """All examples of a split.

    Args:
      split: a key of :data:`SIZES`.
      tasks: some of :data:`TASKS`, in the order wanted.

    Raises:
      DataError: another split or task (the nearest is offered).
    """
    if split not in SIZES:
        raise DataError(f"phrases has no split {split!r}{did_you_mean(split, SIZES)}")
    for task in tasks:
        if task not in TASKS:
            raise DataError(f"phrases has no task {task!r}{did_you_mean(task, TASKS)}")
    made = [example(split, index) for index in range(SIZES[split])]
    return Texts({task: [one[task] for one in made] for task in tasks})


def example(split: str, index: int) -> dict[str, Text]:
    """One text of each task out of one meaning; a pure function of its arguments."""
    dice = _Dice(split, index)
    meaning = _draw(dice, split)
    plural = bool(dice.below(2))
    return {
        "cola": _judged(dice, meaning, plural),
        "sst2": _felt(dice, meaning, plural),
        "mrpc": _retold(dice, split, meaning, plural),
        "sts": _compared(dice, split, meaning, plural),
    }


@functools.cache
def tokenizer() -> Tokenizer:
    """The words of this data set as tokens, with [PAD], [UNK], [CLS] and [SEP]."""
    return word_level(words(), "phrases")


def words() -> list[str]:
    """The tokens by id, special ones first."""
    groups = [*_DOES, *_THING, *_PLACE, *_LIKE, _GOOD, _BAD]
    groups += [pair for who in _WHO for pair in who]
    words = {word for group in groups for word in group}
    words |= {f"{verb}s" for verbs in _DOES for verb in verbs}
    words |= {"the", "in", "and", "it", "was", "not", "never", "one", "ones"}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)]


def _draw(dice: _Dice, split: str) -> Meaning:
    while True:
        meaning = Meaning(*map(dice.below, _COUNTS))
        if _belongs(meaning, split):
            return meaning


def _changed(dice: _Dice, split: str, meaning: Meaning, parts: Iterable[str]) -> Meaning:
    """Other values for some parts."""
    while True:
        new = {}
        for part in parts:
            count = getattr(_COUNTS, part)
            new[part] = (getattr(meaning, part) + 1 + dice.below(count - 1)) % count
        if _belongs(changed := meaning._replace(**new), split):
            return changed


def _belongs(meaning: Meaning, split: str) -> bool:
    return (meaning.who % 2, meaning.thing % 2) in _SPLITS[split]


def _sentence(
    dice: _Dice,
    meaning: Meaning,
    plural: bool,
    *,
    agrees: bool = True,
    never: bool = False,
    vague: Collection[str] = (),
) -> str:
    """A meaning in words drawn from those of its sense; the place stands first or last."""
    verb = dice.one_of(_DOES[meaning.does])
    who = ("one", "ones") if "who" in vague else dice.one_of(_WHO[meaning.who])
    words = [
        "the",
        *([] if "like" in vague else [dice.one_of(_LIKE[meaning.like])]),
        who[plural],
        *(["never"] if never else []),
        f"{verb}s" if plural != agrees else verb,
        *(["it"] if "thing" in vague else ["the", dice.one_of(_THING[meaning.thing])]),
    ]
    where = [] if "place" in vague else ["in", "the", dice.one_of(_PLACE[meaning.place])]
    return " ".join(where + words if dice.below(2) else words + where)


def _judged(dice: _Dice, meaning: Meaning, plural: bool) -> Text:
    """Acceptable, or not: neighbours exchanged, or singular and plural at odds."""
    fault = dice.one_of((None, None, "order", "number"))
    words = _sentence(dice, meaning, plural, agrees=fault != "number").split()
    if fault == "order":
        place = dice.below(len(words) - 1)
        words[place : place + 2] = reversed(words[place : place + 2])
    return Text(" ".join(words), None, int(fault is None))


def _felt(dice: _Dice, meaning: Meaning, plural: bool) -> Text:
    positive, negated = dice.below(2), dice.below(4) == 0
    feeling = dice.one_of(_GOOD if positive != negated else _BAD)
    sentence = _sentence(dice, meaning, plural)
    return Text(f"{sentence} and it was {'not ' if negated else ''}{feeling}", None, positive)


def _retold(dice: _Dice, split: str, meaning: Meaning, plural: bool) -> Text:
    never = bool(dice.below(2))
    fault = dice.one_of((None, None, "never", "fact"))
    facts = [dice.one_of(Meaning._fields[:4])] if fault == "fact" else []
    first = _sentence(dice, meaning, plural, never=never)
    again = _changed(dice, split, meaning, facts)
    second = _sentence(dice, again, plural, never=never != (fault == "never"))
    return Text(first, second, int(fault is None))


def _compared(dice: _Dice, split: str, meaning: Meaning, plural: bool) -> Text:
    """Parts that are not shared are vague every other time; what is done is never vague."""
    shared = dice.below(len(meaning) + 1)
    lost = sorted(Meaning._fields, key=lambda _: dice.below(2**32))[shared:]
    vague = {part for part in lost if part != "does" and dice.below(2)}
    other = _changed(dice, split, meaning, [part for part in lost if part not in vague])
    first = _sentence(dice, meaning, plural)
    return Text(first, _sentence(dice, other, plural, vague=vague), float(shared))
