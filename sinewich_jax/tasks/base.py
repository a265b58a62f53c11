"""What every task is: :class:`Task`, :class:`Metric`, and the registry that makes them by name."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from sinewich_jax.errors import ConfigError, DataError, SinewichError, did_you_mean
from sinewich_jax.tasks.charts import Chart

State = dict[str, Any]
"""A metric's sums: named arrays, int32/float32 from ``update``, int64/float64 from ``merge``."""


class Metric(abc.ABC):
    """A metric as a sum: states of batches and hosts are added, and only ``compute`` divides.

    So the result does not depend on how a set is cut into batches, a batch of one is a batch like
    any other, and there is nothing to reset.
    """

    @abc.abstractmethod
    def empty(self) -> State:
        """The neutral element of :meth:`merge`, NumPy int64/float64."""

    @abc.abstractmethod
    def update(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> State:
        """The state of one batch; pure, and jittable with ``self`` closed over.

        Args:
          logits: [B, H, W, C], any float dtype; computed with in float32.
          label: as in the batch: [B, H, W] or [B, H, W, 3].
          valid: bool [B, H, W]; a pixel that is False counts nowhere, and an image without a valid
            pixel (a padded example) is no image.

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
        """The sum of two states, on the host in int64 and float64 (associative, commutative).

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
        return {name: _wide(a[name]) + _wide(b[name]) for name in a}


def _wide(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """One dense-prediction task; immutable, hashable, and free of parameters.

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

    @property
    def label_tail(self) -> tuple[int, ...]:
        """Axes of the label after height and width; () unless a task says otherwise."""
        return ()

    @abc.abstractmethod
    def loss(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
        """The unweighted loss of a batch.

        Args:
          logits: [B, H, W, C] at label resolution, any float dtype; computed with in float32.
          label: [B, H, W] or [B, H, W, 3]; its values are not looked at where invalid.
          valid: bool [B, H, W].

        Returns:
          float32 scalar, 0 with zero gradient when no pixel is valid.
        """

    @abc.abstractmethod
    def predict(self, logits: jax.Array) -> jax.Array:
        """The prediction in label form, from ``logits`` [..., H, W, C]."""

    @abc.abstractmethod
    def metric(self) -> Metric:
        """A metric for this task."""

    @abc.abstractmethod
    def picture(self, values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """A label or a prediction as an image.

        Args:
          values: [H, W] or [H, W, 3] in label form.
          valid: bool [H, W]; invalid pixels are hatched dark grey. None: all valid.

        Returns:
          uint8 [H, W, 3].
        """

    @abc.abstractmethod
    def error_picture(
        self, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray | None = None
    ) -> np.ndarray:
        """Where and how much a prediction is wrong, as uint8 [H, W, 3]; dark is right.

        Args:
          prediction: [H, W] or [H, W, 3], as from ``predict``.
          label: the same shape.
          valid: bool [H, W] or None.
        """

    @abc.abstractmethod
    def mean_label(self, labels: Iterable[np.ndarray], valids: Iterable[np.ndarray]) -> np.ndarray:
        """The best constant prediction a label set offers: the baseline that looks at no image.

        Args:
          labels: maps of equal size, [H, W] or [H, W, 3] each (a stacked array will do).
          valids: their masks, bool [H, W] each.

        Returns:
          float32 [H, W, C] in the form of logits, so that the task's own metric scores it.
        """

    def best_constant(self, mean_label: np.ndarray) -> np.ndarray:
        """The output that, given everywhere, costs least: where the bias of a head should start.

        Args:
          mean_label: float32 [H, W, C], from :meth:`mean_label`.

        Returns:
          float32 [C]; here the mean over pixels, which is right for values.
        """
        return np.asarray(mean_label, np.float32).mean(axis=(0, 1))

    @abc.abstractmethod
    def _value_fault(self, values: np.ndarray) -> tuple[np.ndarray, str]:
        """Marks the forbidden entries among ``values`` [N, *tail]; says what was expected."""

    def check_label(
        self,
        label: np.ndarray,
        valid: np.ndarray,
        where: str,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Refuses a label that this task cannot train on.

        Args:
          label: one label, [H, W] or [H, W, 3].
          valid: bool [H, W].
          where: file or index, for the message.
          size: (height, width) of the image, when known.

        Raises:
          DataError: names ``where``, what was found and what was expected.
        """
        label, valid = np.asarray(label), np.asarray(valid)
        tail = self.label_tail
        shape = "(height, width" + "".join(f", {n}" for n in tail) + ")"
        if label.ndim != 2 + len(tail) or label.shape[2:] != tail:
            raise DataError(
                f"{where}: the {self.name} label has shape {label.shape}, expected {shape}"
                + ("; save it with one channel" if label.ndim == 3 and not tail else "")
            )
        if size is not None and label.shape[:2] != tuple(size):
            raise DataError(
                f"{where}: the {self.name} label is {_by(label.shape)} pixels (height x width) but "
                f"the image is {_by(size)}; resize the label (nearest) to the image"
            )
        if valid.dtype != bool or valid.shape != label.shape[:2]:
            raise DataError(
                f"{where}: the mask of {self.name} is {valid.dtype} of shape {valid.shape}, "
                f"expected bool of shape {label.shape[:2]}"
            )
        places = np.argwhere(valid)
        bad, expected = self._value_fault(label[valid])
        if bad.any():
            first = int(np.argmax(bad))
            row, column = places[first]
            found = np.array2string(np.asarray(label[row, column]), precision=4, separator=", ")
            raise DataError(
                f"{where}: the {self.name} label holds {found} at row {row}, column {column} "
                f"({int(bad.sum())} such pixels), expected {expected}; correct the value or mark "
                "the pixel invalid"
            )


def _by(shape: Iterable[int]) -> str:
    height, width = tuple(shape)[:2]
    return f"{height} x {width}"


def check_batch(task: Task, logits: jax.Array, label: jax.Array, valid: jax.Array) -> None:
    """Refuses shapes that would broadcast silently; static, hence free under ``jit``.

    Args:
      task: the task that the arrays belong to.
      logits: [B, H, W, C].
      label: [B, H, W, *tail].
      valid: [B, H, W].

    Raises:
      SinewichError: the shapes do not belong together.
    """
    pixels = logits.shape[:-1]
    wanted = (pixels, (*pixels, *task.label_tail), pixels)
    if logits.shape[-1:] != (task.channels,) or wanted[1:] != (label.shape, valid.shape):
        raise SinewichError(
            f"{task.name} got logits {logits.shape}, label {label.shape} and mask {valid.shape}; "
            f"expected {(*pixels, task.channels)}, {wanted[1]} and {pixels}"
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


def names() -> tuple[str, ...]:
    """The registered tasks, in the order in which they are listed everywhere."""
    return tuple(_REGISTRY)


def make(name: str, **overrides: Any) -> Task:
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
        raise ConfigError(f"there is no task {name!r}{did_you_mean(name, _REGISTRY)}")
    task = _REGISTRY[name]()
    fields = [field.name for field in dataclasses.fields(task)]
    for key in overrides:
        if key not in fields:
            raise ConfigError(f"the task {name} has no field {key!r}{did_you_mean(key, fields)}")
    if overrides.get("class_names") is not None:
        overrides["class_names"] = tuple(str(n) for n in overrides["class_names"])
        overrides.setdefault("channels", len(overrides["class_names"]))
    elif overrides.get("channels", task.channels) != task.channels:
        overrides.setdefault("class_names", None)
    return dataclasses.replace(task, **overrides)
