"""A trained run answers about texts of its user."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax import storage, tasks
from sinewich_jax.data.text.texts import check_several, check_text
from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.train import trained

BATCH = 32
"""Texts that go through the encoder together."""

Given = str | tuple[str, str | None]


class Answers(NamedTuple):
    """What a run says of N texts.

    Attributes:
      values: by task, as its labels are: class ids int32 (N,), or scores float32 (N,).
      probabilities: by task over classes, float32 (N, classes).
      cut: how many of the texts were longer than the run reads.
    """

    values: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]
    cut: int


class TextPredictor:
    """The model of a run on text tasks, ready to answer.

        predictor = TextPredictor("runs/glue_adapters", ["sst2"])
        answers = predictor(["a fine film", "a dull one"])
        [predictor.tasks[0].words(value) for value in answers.values["sst2"]]

    Args:
      workdir: the work directory of a run that has saved at least once.
      names: tasks to answer; None takes all.
      experiment: the model and its tasks; None builds what the run's config names.

    Attributes:
      tasks: what is answered.
      max_tokens: longer texts are cut, as in the run.
      step: optimizer steps behind the weights.

    Raises:
      ConfigError: a task that the run does not have, tasks over single texts beside tasks over
        pairs, or a run on images.
      CheckpointError: no run, or no whole checkpoint, in ``workdir``.
    """

    def __init__(
        self, workdir: str | Path, names: Sequence[str] | None = None, experiment: Any = None
    ) -> None:
        made = trained.read_trained(workdir, experiment)
        trained.check_inputs(made.experiment, "text", "a predictor of texts")
        self.tasks: tuple[tasks.TextTask, ...] = trained.tasks_of(made.experiment, names)
        for task in self.tasks:
            if task.pair != self.tasks[0].pair:
                single, pair = sorted((task, self.tasks[0]), key=lambda one: one.pair)
                raise ConfigError(
                    f"{single.name} is over single texts and {pair.name} over pairs, which no "
                    "text serves both; name the tasks that are wanted"
                )
        self.max_tokens: int = made.config.text.max_tokens
        self.step = made.step
        self._made = made

    def __call__(
        self,
        texts: Sequence[Given],
        where: Callable[[int], str] = "text {}".format,
        advance: Callable[[int], object] = lambda done: None,
    ) -> Answers:
        """Answers about texts.

        Args:
          texts: N texts, or pairs of them where the tasks are over pairs.
          where: names a text in errors, called with its number from 0.
          advance: called with the number of texts that have been answered about.

        Returns:
          The answers of every task about every text.

        Raises:
          DataError: no text, an empty one, what is neither a text nor two, one where a pair is
            expected, or the reverse.
        """
        check_several(texts)
        pairs = [_pair(text, where(number)) for number, text in enumerate(texts)]
        if not pairs:
            raise DataError("there is no text to answer about, expected at least one")
        for number, (first, second) in enumerate(pairs):
            check_text(self.tasks[0], first, second, where(number))
        firsts, seconds = zip(*pairs, strict=True)
        encoded = self._made.experiment.tokenizer.encode(
            firsts, seconds if self.tasks[0].pair else None, self.max_tokens, where
        )
        found = []
        for start in range(0, len(pairs), BATCH):
            # The last batch is filled up: another shape would be compiled anew.
            rows = np.minimum(np.arange(start, start + BATCH), len(pairs) - 1)
            answers = self._forward(self._made.variables, [array[rows] for array in encoded[:3]])
            found.append(jax.device_get(answers))
            advance(min(start + BATCH, len(pairs)))
        values, shares = jax.tree.map(lambda *p: np.concatenate(p)[: len(pairs)], *found)
        return Answers(values, shares, encoded.cut)

    @functools.cached_property
    def _forward(self) -> Any:
        model = self._made.experiment.model
        rows = len(self._made.experiment.tasks)

        @jax.jit
        def forward(
            variables: Mapping[str, Any], encoded: Sequence[jax.Array]
        ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
            # Every task of the run reads the same text.
            text = {
                name: jnp.repeat(array[:, None], rows, axis=1)
                for name, array in zip(("ids", "mask", "segments"), encoded, strict=True)
            }
            logits = model.apply(variables, text)
            return (
                {task.name: task.predict(logits[task.name]) for task in self.tasks},
                {
                    task.name: jax.nn.softmax(logits[task.name])
                    for task in self.tasks
                    if task.channels > 1
                },
            )

        return forward


def _pair(given: Any, where: str) -> tuple[Any, Any]:
    if isinstance(given, str):
        return given, None
    if not isinstance(given, Sequence) or isinstance(given, bytes) or len(given) != 2:
        raise DataError(f"{where} is {given!r:.60}, expected a text or a pair of texts")
    return tuple(given)


def answers_path(folder: Path, task: str, name: str) -> Path:
    """Where the answers of a task about the file ``name`` are written."""
    return folder / task / f"{name}.jsonl"


def save_answers(
    folder: Path,
    name: str,
    task: tasks.TextTask,
    texts: Sequence[tuple[str, str | None]],
    answers: Answers,
) -> Path:
    """Writes what a run said of some texts, a line of JSON each.

    Args:
      folder: gets ``<task>/<name>.jsonl``.
      name: of the file, without ending.
      task: the task.
      texts: N texts or pairs.
      answers: about them.

    Returns:
      The file; its lines hold ``a`` (and ``b``), the answer ``y``, and for classes their ``name``
      and the probability ``p`` of the answer.
    """
    values, shares = answers.values[task.name], answers.probabilities.get(task.name)
    lines = []
    for row, (first, second) in enumerate(texts):
        line: dict[str, Any] = {"a": first} if second is None else {"a": first, "b": second}
        line["y"] = values[row].item()
        if shares is not None:
            line |= {"name": task.words(values[row]), "p": float(f"{shares[row].max():.6g}")}
        lines.append(json.dumps(line, ensure_ascii=False))
    path = answers_path(folder, task.name, name)
    storage.write_text(path, "".join(f"{line}\n" for line in lines))
    return path
