"""Texts of several tasks as a data source, encoded once.

An example holds one text of *every* task, so that a batch of N tasks is one product of the encoder
with N times as many rows::

    {"text": {"ids": int32 [T, L], "mask": bool [T, L], "segments": int32 [T, L]},
     "labels": {task: int32 or float32 []},
     "valid": {task: bool []}}

T tasks in the order of ``tasks``, L tokens: as many as the longest text has, rounded up.
"""

from __future__ import annotations

import numpy as np

from sinewich_jax.data.source import Example, head_info
from sinewich_jax.data.text.texts import Text, Texts
from sinewich_jax.data.text.tokens import Encoded, Tokenizer
from sinewich_jax.tasks.text import Similarity, TextTask

ROUNDED_TO = 8
"""L is a multiple of it, where the limit is not smaller."""


class TextSource:
    """Random access to examples of texts; a `sinewich_jax.data.DataSource`.

    It is as long as the task with the most texts. A task with fewer begins again with ``repeat``;
    without it, that task's ``valid`` is False behind its last text, and a text of one token with
    label 0 stands in.

    Attributes:
      tasks: names of the tasks; row t of an example's arrays is task t.
      max_tokens: the most tokens that a text can have.
      size: None: texts have no height and width.
      channels: per task, the width its prediction head needs (classes, or 1 for a score).
      class_names: per task over classes, their names.
      notes: what happened on reading: how many texts were cut, by task.
    """

    def __init__(self, texts: Texts, tokenizer: Tokenizer, max_tokens: int, repeat: bool):
        """Encodes all texts.

        Args:
          texts: what to hold; its order of tasks is kept.
          tokenizer: that of the encoder.
          max_tokens: the most tokens of a text; longer texts are cut, and noted. Where all are
            shorter, so are the arrays: padding costs what words cost.
          repeat: begin shorter tasks again (training), or mask what they lack (evaluation).

        Raises:
          ConfigError: ``max_tokens`` is too small for a text and its special tokens.
          DataError: a text in which the tokenizer finds no token; names task and example.
        """
        made = {name: texts.task(name) for name in texts}
        self.tasks, self.max_tokens = texts.tasks, max_tokens
        self.size: tuple[int, int] | None = None
        self.channels, self.class_names = head_info(made)
        self._texts, self._repeat, self._padding = texts, repeat, tokenizer.padding
        self._labels = {
            name: np.array([text.label for text in found], _dtype(made[name]))
            for name, found in texts.items()
        }
        self._encoded = _trimmed(
            [_encode(name, texts[name], tokenizer, max_tokens) for name in texts]
        )
        self._length = max(map(len, texts.values()))
        cut = [
            f"{encoded.cut} of {len(texts[name])} texts of {name}"
            for name, encoded in zip(texts, self._encoded, strict=True)
            if encoded.cut
        ]
        self.notes = {"cut": f"{', '.join(cut)} are cut at {max_tokens} tokens"} if cut else {}

    def __len__(self) -> int:
        """Number of examples: texts of the task that has the most."""
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Example ``index``: the text of that number of every task."""
        places = [self._place(index, task) for task in self.tasks]
        rows = [self._row(e, place) for e, place in zip(self._encoded, places, strict=True)]
        ids, mask, segments = map(np.stack, zip(*rows, strict=True))
        return {
            "text": {"ids": ids, "mask": mask, "segments": segments},
            "labels": {
                task: labels.dtype.type(0) if place is None else labels[place]
                for (task, labels), place in zip(self._labels.items(), places, strict=True)
            },
            "valid": {
                task: np.bool_(place is not None)
                for task, place in zip(self.tasks, places, strict=True)
            },
        }

    def words(self, index: int, task: str) -> Text | None:
        """The text that stands in an example for a task, for reports; None where it has run out."""
        place = self._place(index, task)
        return None if place is None else self._texts[task][place]

    def _place(self, index: int, task: str) -> int | None:
        if not 0 <= index < self._length:
            raise IndexError(f"there is no example {index}, expected 0 to {self._length - 1}")
        count = len(self._texts[task])
        if self._repeat:
            return index % count
        return index if index < count else None

    def _row(self, encoded: Encoded, place: int | None) -> tuple[np.ndarray, ...]:
        """Tokens of a text; where there is none, the first token of the first text."""
        if place is not None:
            return tuple(array[place] for array in encoded[:3])
        mask = np.arange(encoded.ids.shape[1]) == 0
        ids = np.where(mask, encoded.ids[0], np.int32(self._padding))
        return ids, mask, encoded.segments[0] * mask


def _encode(task: str, found: tuple[Text, ...], tokenizer: Tokenizer, max_tokens: int) -> Encoded:
    firsts = [text.first for text in found]
    seconds = None if found[0].second is None else [str(text.second) for text in found]
    return tokenizer.encode(firsts, seconds, max_tokens, f"{task} example {{}}".format)


def _trimmed(encoded: list[Encoded]) -> list[Encoded]:
    """Without the columns in which no task has a token, but for those that round up."""
    longest = max(int(one.mask.sum(axis=1).max()) for one in encoded)
    width = -(-longest // ROUNDED_TO) * ROUNDED_TO
    return [Encoded(*(array[:, :width].copy() for array in one[:3]), one.cut) for one in encoded]


def _dtype(task: TextTask) -> type[np.number]:
    return np.float32 if isinstance(task, Similarity) else np.int32
