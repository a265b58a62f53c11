"""Dense prediction: tasks that say something about every pixel of an image."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from sinewich_jax.errors import DataError
from sinewich_jax.tasks.base import Task, check_shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseTask(Task):
    """One task over pixels.

    Its arrays are logits [B, H, W, C] at label resolution, labels [B, H, W] or [B, H, W, 3], masks
    bool [B, H, W], and a mean label map float32 [H, W, C]. A pixel whose mask is False counts
    nowhere, and an image without a valid pixel (a padded example) is no image.
    """

    @property
    def label_tail(self) -> tuple[int, ...]:
        """Axes of the label after height and width; () unless a task says otherwise."""
        return ()

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


def check_batch(task: DenseTask, logits: jax.Array, label: jax.Array, valid: jax.Array) -> None:
    """Refuses shapes that would broadcast silently; static, hence free under ``jit``.

    Args:
      task: the task that the arrays belong to.
      logits: [B, H, W, C].
      label: [B, H, W, *tail].
      valid: [B, H, W].

    Raises:
      SinewichError: the shapes do not belong together.
    """
    check_shapes(task, logits, label, valid, task.label_tail)
