"""Text tasks: classes of texts or of pairs of texts, and how alike two texts are.

One example is one text or a pair of texts and has one label, so that arrays have no axis but the
batch: logits [B, C], label [B], valid bool [B] (False for a padded example, which counts nowhere).
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.tasks import losses
from sinewich_jax.tasks.base import Task, check_classes, check_shapes, register
from sinewich_jax.tasks.text_metrics import ClassMetric, CorrelationMetric

Array = TypeVar("Array", np.ndarray, jax.Array)

Label = int | float | np.generic | np.ndarray
"""One label or prediction: a number, or an array without axes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """One task over texts.

    Attributes:
      pair: an example is two texts.
    """

    weight: float = 1.0
    higher_is_better: bool = True
    pair: bool = False

    @abc.abstractmethod
    def words(self, value: Label) -> str:
        """A label or a prediction for people: the name of its class, or a number."""

    @abc.abstractmethod
    def strays(self, label: Array) -> Array:
        """Marks labels that the task does not have.

        Args:
          label: numbers [...], NumPy or JAX.

        Returns:
          bool [...].
        """

    @abc.abstractmethod
    def _expected(self) -> tuple[str, str]:
        """What a label is: the letters of its NumPy kinds, and the words for a message."""

    def check_label(self, label: Label, where: str) -> None:
        """Refuses a label that this task cannot train on.

        Args:
          label: one label.
          where: file and line or index, for the message.

        Raises:
          DataError: names ``where``, what was found and what was expected.
        """
        value = np.asarray(label)
        kinds, expected = self._expected()
        if value.shape or value.dtype.kind not in kinds or self.strays(value):
            raise DataError(
                f"{where}: the {self.name} label is {value.tolist()!r}, expected {expected}; "
                "correct the label or leave the example out"
            )

    def best_constant(self, mean_label: np.ndarray) -> np.ndarray:
        """The mean label itself, float32 [C]: there is nothing to average over."""
        return np.asarray(mean_label, np.float32)


def _known(task: TextTask, labels: Iterable[Label], valids: Iterable[Any]) -> np.ndarray:
    """The valid ones among ``labels``, [N] with N > 0."""
    known = [label for label, valid in zip(labels, valids, strict=True) if valid]
    if not known:
        raise DataError(f"the mean label of {task.name} needs a valid label; none found")
    return np.asarray(known)


# --- classes -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(TextTask):
    """One class a text, or a pair of texts: int32 labels, cross-entropy, a confusion matrix."""

    primary: str = "accuracy"

    def __post_init__(self) -> None:
        """Checks the counts."""
        check_classes(self, 65535, "class ids")

    def loss(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
        """Softmax cross-entropy, mean over the valid examples of the batch."""
        check_shapes(self, logits, label, valid)
        return losses.cross_entropy(logits, label, valid)

    def predict(self, logits: jax.Array) -> jax.Array:
        """The most likely class, int32 [...]."""
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def metric(self) -> ClassMetric:
        """Accuracy, F1 and Matthews correlation from a confusion matrix."""
        return ClassMetric(self)

    def mean_label(self, labels: Iterable[Label], valids: Iterable[Any]) -> np.ndarray:
        """Log-frequency of each class, float32 [C].

        One example more than there are, spread evenly, keeps a class that never occurs finite.
        """
        counts = np.bincount(_known(self, labels, valids), minlength=self.channels)
        return np.log((counts + 1 / self.channels) / (counts.sum() + 1)).astype(np.float32)

    def words(self, value: Label) -> str:
        """The name of the class; its number where the classes have no names."""
        return str(int(value)) if self.class_names is None else self.class_names[int(value)]

    def strays(self, label: Array) -> Array:
        """Marks what is no class id."""
        return (label < 0) | (label >= self.channels)

    def _expected(self) -> tuple[str, str]:
        return "iu", f"a whole number, a class id from 0 to {self.channels - 1}"


# --- likeness ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity(TextTask):
    """A number for a text, or for how alike a pair of texts is: float32 labels in [low, high].

    The network's output o is the place in that range: the prediction is low + (high - low) o, and
    the loss is squared error in o. So a head that starts near 0 starts inside (or beside) the
    range, and loss and gradient are of order one, as those of a cross-entropy, whatever the scale
    of the labels: one learning rate and equal task weights serve both.

    Attributes:
      low: the least label.
      high: the greatest label.
    """

    channels: int = 1
    primary: str = "spearman"
    low: float = 0.0
    high: float = 5.0

    def __post_init__(self) -> None:
        """Checks head width and range."""
        if self.channels != 1:
            raise ConfigError(f"{self.name} has {self.channels} channels; a similarity takes one")
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(
                f"{self.name}: low and high are {self.low} and {self.high}, expected finite "
                "numbers low < high"
            )

    def loss(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
        """Squared error in units of the range, mean over the valid examples of the batch."""
        check_shapes(self, logits, label, valid)
        place = (label.astype(jnp.float32) - self.low) / (self.high - self.low)
        return losses.squared_error(logits[..., 0], place, valid)

    def predict(self, logits: jax.Array) -> jax.Array:
        """The label, float32 [...]; not cut to the range, which would make ties."""
        return self.low + (self.high - self.low) * logits[..., 0].astype(jnp.float32)

    def metric(self) -> CorrelationMetric:
        """Correlation of predictions and labels."""
        return CorrelationMetric(self)

    def mean_label(self, labels: Iterable[Label], valids: Iterable[Any]) -> np.ndarray:
        """The mean label's place in the range, float32 [1]."""
        mean = _known(self, labels, valids).mean(dtype=np.float64)
        return np.array([(mean - self.low) / (self.high - self.low)], np.float32)

    def words(self, value: Label) -> str:
        """The number with two digits."""
        return f"{float(value):.2f}"

    def strays(self, label: Array) -> Array:
        """Marks what lies outside the range; NaN does."""
        return ~((label >= self.low) & (label <= self.high))

    def _expected(self) -> tuple[str, str]:
        return "iuf", f"a number from {self.low:g} to {self.high:g}"


# --- the tasks -----------------------------------------------------------------------------------


def _classes(name: str, names: str | int, **fields: Any) -> Classification:
    """A task with its classes in the order of their ids, or only their number."""
    if isinstance(names, int):
        return Classification(name=name, channels=names, **fields)
    split = tuple(names.split())
    return Classification(name=name, channels=len(split), class_names=split, **fields)


_SENTIMENT = "negative positive"
_SNIPS = (
    "AddToPlaylist BookRestaurant GetWeather PlayMusic RateBook SearchCreativeWork "
    "SearchScreeningEvent"
)

# Where there are very many classes, the data set names them.
for _task in (
    _classes("cola", "unacceptable acceptable", primary="matthews"),
    _classes("sst2", _SENTIMENT),
    _classes("mrpc", "not_paraphrase paraphrase", pair=True),
    _classes("rte", "not_entailment entailment", pair=True),
    Similarity(name="sts", pair=True),
    _classes("sick", "contradiction neutral entailment", pair=True),
    Similarity(name="sick_relatedness", pair=True, low=1.0),
    _classes("trec", "DESC ENTY ABBR HUM LOC NUM"),
    _classes("subj", "subjective objective"),
    _classes("mr", _SENTIMENT),
    _classes("cr", _SENTIMENT),
    _classes("mpqa", _SENTIMENT),
    _classes("snips", _SNIPS),
    _classes("clinc150", 150),
    _classes("banking77", 77),
    # The rest of GLUE, with class ids in the order of TensorFlow Datasets.
    _classes("qqp", "not_duplicate duplicate", pair=True),
    _classes("qnli", "entailment not_entailment", pair=True),
    _classes("mnli", "entailment neutral contradiction", pair=True),
    _classes("wnli", "not_entailment entailment", pair=True),
    Similarity(name="stsb", pair=True),
):
    register(_task.name)(lambda task=_task: task)
