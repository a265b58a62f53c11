"""Examples of text tasks, checked once: what a text is, and what a collection of them can do."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sinewich_jax.data.source import ClassNames
from sinewich_jax.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from sinewich_jax.tasks.text import TextTask

_SAMPLE_STREAM = 0x5445_5854  # tells these draws from any other use of the same seed


class Text(NamedTuple):
    """One example.

    Attributes:
      first: the text, or the first of a pair.
      second: the second text of a pair, None for a task over single texts.
      label: a class (int), or a score (float).
    """

    first: str
    second: str | None
    label: int | float


def task_of(name: str, class_names: Sequence[str] | None = None) -> TextTask:
    """The registered text task of a name, with the classes of a data set where it names them.

    Raises:
      DataError: no text task has that name (the nearest is offered), or it has no classes.
    """
    # On first use: tasks bring JAX, and looking over the names of data sets shall not.
    from sinewich_jax import tasks
    from sinewich_jax.tasks.text import Similarity, TextTask

    if name in tasks.names():
        task = tasks.make(name)
        if isinstance(task, Similarity) and class_names is not None:
            raise DataError(
                f"{name} is given {len(class_names)} classes, but its labels are scores"
            )
        if isinstance(task, TextTask):
            return task if class_names is None else tasks.make(name, class_names=class_names)
    known = [one for one in tasks.names() if isinstance(tasks.make(one), TextTask)]
    raise DataError(f"there is no text task {name!r}{did_you_mean(name, known)}")


class Texts(Mapping[str, tuple[Text, ...]]):
    """Task name to its examples; immutable, and right: everything is checked when it is made."""

    def __init__(
        self,
        examples: Mapping[str, Iterable[Text]],
        class_names: ClassNames | None = None,
        where: Callable[[str, int], str] = "{} example {}".format,
    ):
        """Checks and keeps the examples; :func:`from_texts` is for texts in plain tuples.

        Args:
          examples: by the name of a registered text task.
          class_names: by task, the names of its classes by id, where they are not the task's own.
          where: names an example in errors, called with its task and its index from 0.

        Raises:
          DataError: an unknown task, a task without an example, a text that is none (not a str,
            empty, blank, half a surrogate pair), a missing or surplus second text, or a label that
            the task does not know; names the example.
        """
        if not examples:
            raise DataError("the texts hold no task, expected at least one")
        names = class_names or {}
        for name in names:
            if name not in examples:
                raise DataError(f"class_names has {name!r}, which these texts do not hold")
        self._made = {name: task_of(name, names.get(name)) for name in examples}
        self._examples: dict[str, tuple[Text, ...]] = {}
        for name, task in self._made.items():
            found = enumerate(examples[name])
            self._examples[name] = tuple(_check(task, text, where, i) for i, text in found)
            if not self._examples[name]:
                raise DataError(f"{name} holds no example, expected at least one")

    def _with(self, examples: dict[str, tuple[Text, ...]]) -> Texts:
        """Some of these examples, which are right already."""
        new = Texts.__new__(Texts)
        new._examples, new._made = examples, {name: self._made[name] for name in examples}
        return new

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(self._examples)

    def task(self, name: str) -> TextTask:
        """The task of a name, with the classes of these texts."""
        return self._made[name]

    def __getitem__(self, task: str) -> tuple[Text, ...]:
        """The examples of a task; KeyError for one that is not here (:meth:`select` explains)."""
        return self._examples[task]

    def __iter__(self) -> Iterator[str]:
        """Names of the tasks, in order."""
        return iter(self._examples)

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self._examples)

    def __repr__(self) -> str:
        """Numbers of examples, not the texts."""
        return f"Texts({', '.join(f'{name}: {len(found)}' for name, found in self.items())})"

    def select(self, tasks: Sequence[str]) -> Texts:
        """The texts of some tasks, in the order asked for.

        Raises:
          DataError: none is asked for, or one that is not here (the nearest is offered).
        """
        if not tasks:
            raise DataError(f"no task was asked for, expected some of {', '.join(self)}")
        for task in tasks:
            if task not in self:
                near = did_you_mean(task, self)
                raise DataError(f"these texts hold no task {task!r}{near}")
        return self._with({task: self[task] for task in tasks})

    def first(self, size: int) -> Texts:
        """The first ``size`` examples of each task.

        Raises:
          ConfigError: ``size`` is no whole number from 1.
          DataError: a task has fewer.
        """
        size = self._check_size(size)
        return self._with({task: found[:size] for task, found in self.items()})

    def sample(self, size: int, seed: int) -> Texts:
        """``size`` examples of each task, drawn without replacement.

        Examples are put in the order of random keys, the raw 64 bits of a Philox generator keyed by
        the seed, and the first ``size`` are taken. So a seed always draws the same, a smaller
        sample begins a larger one, and tasks with as many examples draw the same positions: two
        labels of the same texts stay together.

        Args:
          size: examples of each task.
          seed: of the draw, from 0 to 2**32 - 1.

        Returns:
          The drawn texts, in the order they were drawn.

        Raises:
          ConfigError: a size or seed that is none.
          DataError: a task has fewer examples.
        """
        size = self._check_size(size)
        seed = _whole("seed", seed, 0)
        if seed >= 2**32:
            raise ConfigError(f"seed is {seed}, expected a whole number from 0 to 2**32 - 1")

        def draw(found: tuple[Text, ...]) -> tuple[Text, ...]:
            keys = np.random.Philox(key=[seed, _SAMPLE_STREAM]).random_raw(len(found))
            return tuple(found[i] for i in np.argsort(keys, kind="stable")[:size])

        return self._with({task: draw(found) for task, found in self.items()})

    def _check_size(self, size: int) -> int:
        size = _whole("size", size, 1)
        for task, found in self.items():
            if size > len(found):
                raise DataError(
                    f"{task} has {len(found)} examples, {size} were asked for; ask for fewer, or "
                    "leave the task out"
                )
        return size


def from_texts(
    examples: Mapping[str, Iterable[Sequence[Any]]], class_names: ClassNames | None = None
) -> Texts:
    """Your own texts, checked.

    Args:
      examples: by the name of a registered text task (see `sinewich_jax.tasks.text`),
        ``(text, label)`` each, or ``(text, text, label)`` where the task is over pairs::

            from_texts({"sst2": [("a fine film", 1)], "rte": [("It rains.", "It is wet.", 1)]})

      class_names: by task, the names of its classes by id, where they are not the task's own.

    Returns:
      The texts.

    Raises:
      DataError: names the task and the index of the example, what was found, what was expected.
    """
    if not isinstance(examples, Mapping):
        raise DataError(
            f"the texts are a {type(examples).__name__}, expected a mapping of task to examples"
        )
    return Texts({task: _texts(task, given) for task, given in examples.items()}, class_names)


def _texts(task: str, given: Iterable[Sequence[Any]]) -> Iterator[Text]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise DataError(
            f"the texts of {task} are a {type(given).__name__}, expected examples one by one"
        )
    for index, example in enumerate(given):
        if isinstance(example, str) or not isinstance(example, Sequence):
            found = f"a {type(example).__name__}"
        elif len(example) not in (2, 3):
            found = f"{len(example)} entries"
        else:
            yield Text(example[0], None if len(example) == 2 else example[1], example[-1])
            continue
        raise DataError(
            f"{task} example {index} is {found}, expected (text, label) or (text, text, label)"
        )


def _check(task: TextTask, text: Text, where: Callable[[str, int], str], index: int) -> Text:
    first, second, label = text
    place = where(task.name, index)
    check_text(task, first, second, place)
    task.check_label(label, place)
    return Text(first, second, label if isinstance(label, int | float) else label.item())


def check_text(task: TextTask, first: Any, second: Any, place: str) -> None:
    """Refuses what is no text of a task.

    Args:
      task: over single texts, or over pairs.
      first: the text.
      second: the second one of a pair; None for a single text.
      place: names the example.

    Raises:
      DataError: one text for a pair or the reverse, no str, an empty or blank one, half a surrogate
        pair; names ``place``.
    """
    if task.pair and second is None:
        raise DataError(f"{place} has one text, expected two, as {task.name} is over pairs")
    if not task.pair and second is not None:
        raise DataError(f"{place} has two texts, expected one, as {task.name} is over single ones")
    for one in (first,) if second is None else (first, second):
        if not isinstance(one, str):
            raise DataError(f"{place} has {one!r} ({type(one).__name__}) for a text, expected str")
        if not one.strip():
            raise DataError(f"{place} has the empty text {one!r}, expected words; leave it out")
        if not one.isascii():
            _check_characters(one, place)


def check_several(texts: Any) -> None:
    """Refuses one bare text in place of several, which would be read letter by letter.

    Raises:
      DataError: ``texts`` is a str.
    """
    if isinstance(texts, str):
        raise DataError(f"the texts are the one text {texts!r}, expected a list of texts")


def _check_characters(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place} has half a surrogate pair at character {error.start} of its text, expected "
            "Unicode; replace it"
        ) from None


def _whole(name: str, value: Any, least: int) -> int:
    try:
        value = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}, expected a whole number") from None
    if value < least:
        raise ConfigError(f"{name} is {value}, expected a whole number from {least}")
    return value
