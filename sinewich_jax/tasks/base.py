"""What every task is: :class:`Task`, :class:`Metric`, and the registry that makes them by name."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sinewich_jax.errors import ConfigError, SinewichError, did_you_mean
from sinewich_jax.tasks.charts import Chart

State = dict[str, Any]
"""What a metric keeps of a set: named arrays, as :class:`Metric` says."""


class Metric(abc.ABC):
    """A metric as a sum: states of batches and hosts are added, and only ``compute`` divides.

    So the result does not depend on how a set is cut into batches, a batch of one is a batch like
    any other, and there is nothing to reset. What is no sum (a rank correlation) overrides
    :meth:`empty` and :meth:`join`.
    """

    @abc.abstractmethod
    def empty(self) -> State:
        """The neutral element of :meth:`merge`, NumPy int64/float64."""

    @abc.abstractmethod
    def update(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> State:
        """The state of one batch; pure, and jittable with ``self`` closed over.

        Args:
          logits: [B, ..., C], any float dtype; computed with in float32.
          label: as in the batch.
          valid: bool [B, ...]; what is False counts nowhere, and an example that holds nothing
            valid (a padded one) is no example.

        Returns:
          int32 counts and float32 sums.
        """

    @abc.abstractmethod
    def compute(self, state: State) -> dict[str, float]:
        """The metric values of everything merged into ``state``; NaN where nothing was counted."""

    def chart(self, state: Mapping[str, Any]) -> Chart | None:
        """What there is to see beside the numbers; None for nothing, or nothing counted."""
        return None

    def merge(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> State:
        """Two states as one, on the host (associative; what is computed does not see the order).

        Args:
          a: a state from ``update``, ``merge`` or ``empty``.
          b: another one of the same metric.

        Returns:
          A new state of NumPy arrays.

        Raises:
          SinewichError: the two come from different metrics.
        """
        if a.keys() != b.keys():
            raise SinewichError(
                f"{type(self).__name__}.merge got states with the entries {sorted(a)} and "
                f"{sorted(b)}; merge only states of the same metric"
            )
        return {name: self.join(np.asarray(a[name]), np.asarray(b[name])) for name in a}

    def join(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """One entry of two states as one: their sum, in int64 or float64."""
        return _wide(a) + _wide(b)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """One task; immutable, hashable, and free of parameters.

    What its arrays look like is for its kind to say: pixels of images in
    :class:`~sinewich_jax.tasks.dense.DenseTask`, texts in
    :class:`~sinewich_jax.tasks.text.TextTask`.

    Attributes:
      name: key of the task in batches, heads and result tables.
      channels: width C of the prediction head.
      weight: weight of the loss in the fixed multi-task sum.
      primary: key of the metric that stands for the task in Delta m.
      higher_is_better: direction of the primary metric.
      unit: unit of the primary metric, "" for a fraction.
      class_names: one name a class, for tasks over classes.
    """

    name: str
    channels: int
    weight: float
    primary: str
    higher_is_better: bool
    unit: str = ""
    class_names: tuple[str, ...] | None = None

    @abc.abstractmethod
    def loss(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
        """The unweighted loss of a batch.

        Args:
          logits: [B, ..., C], any float dtype; computed with in float32.
          label: [B, ...], with axes of its own behind; its values are not looked at where invalid.
          valid: bool [B, ...].

        Returns:
          float32 scalar, 0 with zero gradient when nothing is valid.
        """

    @abc.abstractmethod
    def predict(self, logits: jax.Array) -> jax.Array:
        """The prediction in label form, from ``logits`` [..., C]."""

    @abc.abstractmethod
    def metric(self) -> Metric:
        """A metric for this task."""

    @abc.abstractmethod
    def mean_label(self, labels: Iterable[np.ndarray], valids: Iterable[np.ndarray]) -> np.ndarray:
        """The best constant prediction a label set offers: the baseline that looks at no input.

        Args:
          labels: one an example, of equal shape (a stacked array will do).
          valids: their masks.

        Returns:
          float32 [..., C] in the form of one example's logits, so that the task's own metric
          scores it.

        Raises:
          DataError: no label is valid.
        """

    @abc.abstractmethod
    def best_constant(self, mean_label: np.ndarray) -> np.ndarray:
        """The output that, given everywhere, costs least: where the bias of a head should start.

        Args:
          mean_label: float32 [..., C], from :meth:`mean_label`.

        Returns:
          float32 [C].
        """


def check_shapes(
    task: Task,
    logits: jax.Array,
    label: jax.Array,
    valid: jax.Array,
    label_tail: tuple[int, ...] = (),
) -> None:
    """Refuses shapes that would broadcast silently; static, hence free under ``jit``.

    Args:
      task: the task that the arrays belong to.
      logits: [B, ..., C].
      label: [B, ..., *label_tail].
      valid: [B, ...].
      label_tail: axes that the label has beyond those of the mask.

    Raises:
      SinewichError: the shapes do not belong together.
    """
    places = logits.shape[:-1]
    wanted = (places, (*places, *label_tail), places)
    if logits.shape[-1:] != (task.channels,) or wanted[1:] != (label.shape, valid.shape):
        raise SinewichError(
            f"{task.name} got logits {logits.shape}, label {label.shape} and mask {valid.shape}; "
            f"expected {(*places, task.channels)}, {wanted[1]} and {places}"
        )


def check_classes(task: Task, most: int, ids: str) -> None:
    """Refuses a count of classes that labels cannot hold or that does not fit the names.

    Args:
      task: a task over classes, one channel each.
      most: how many classes its labels can tell apart.
      ids: what the labels are, for the message.

    Raises:
      ConfigError: says both counts.
    """
    if not 2 <= task.channels <= most:
        raise ConfigError(
            f"{task.name} has {task.channels} channels; labels are {ids}, so it takes 2 to {most} "
            "classes"
        )
    if task.class_names is not None and len(task.class_names) != task.channels:
        raise ConfigError(
            f"{task.name} has {task.channels} channels but {len(task.class_names)} class names; "
            "give one name a channel"
        )


_REGISTRY: dict[str, Callable[[], Task]] = {}


def register(name: str) -> Callable[[Callable[[], Task]], Callable[[], Task]]:
    """Registers a function that returns the default :class:`Task` under ``name``.

    Args:
      name: what ``make`` will know it by.

    Returns:
      The decorator.

    Raises:
      ConfigError: the name is taken.
    """

    def enter(factory: Callable[[], Task]) -> Callable[[], Task]:
        if name in _REGISTRY:
            raise ConfigError(f"a task named {name!r} is registered already; choose another name")
        _REGISTRY[name] = factory
        return factory

    return enter


def names(kind: type[Task] = Task) -> tuple[str, ...]:
    """The registered tasks, in the order in which they are listed everywhere.

    Args:
      kind: only tasks of this class, such as ``DenseTask`` or ``TextTask``.
    """
    return tuple(name for name, factory in _REGISTRY.items() if isinstance(factory(), kind))


def make(name: str, /, **overrides: Any) -> Task:
    """A task by name, with any of its fields replaced.

    Giving ``class_names`` sets ``channels``; giving only another number of ``channels`` drops the
    default class names.

    Args:
      name: one of :func:`names`.
      **overrides: fields of the task's dataclass, such as ``weight`` or ``channels``.

    Returns:
      The task.

    Raises:
      ConfigError: an unknown task or field (the nearest is offered), or a count that does not fit.
    """
    if name not in _REGISTRY:
        near = did_you_mean(name, _REGISTRY)
        raise ConfigError(
            f"there is no task {name!r}{near}; one of your own is known in Python, once "
            "tasks.register has been called"
        )
    task = _REGISTRY[name]()
    fields = [field.name for field in dataclasses.fields(task)]
    for key in overrides:
        if key not in fields:
            raise ConfigError(f"the task {name} has no field {key!r}{did_you_mean(key, fields)}")
    if isinstance(overrides.get("class_names"), str):
        raise ConfigError(
            f"class_names of {name} is {overrides['class_names']!r}, expected a sequence of names"
        )
    if overrides.get("class_names") is not None:
        overrides["class_names"] = tuple(str(n) for n in overrides["class_names"])
        overrides.setdefault("channels", len(overrides["class_names"]))
    elif overrides.get("channels", task.channels) != task.channels:
        overrides.setdefault("class_names", None)
    return dataclasses.replace(task, **overrides)


def with_class_names(
    given: Iterable[Task], class_names: Mapping[str, Sequence[str]]
) -> tuple[Task, ...]:
    """Tasks that call their classes as a data set does, for people to read.

    Args:
      given: the tasks.
      class_names: by task; read where there are as many as the task has classes.
    """
    return tuple(
        dataclasses.replace(task, class_names=tuple(class_names[task.name]))
        if len(class_names.get(task.name, ())) == task.channels
        else task
        for task in given
    )
