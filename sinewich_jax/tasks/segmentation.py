"""Tasks over classes: semantic segmentation and human parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import DataError
from sinewich_jax.tasks import baseline, counting, losses, pictures
from sinewich_jax.tasks.base import Metric, State, Task, check_classes, register
from sinewich_jax.tasks.charts import Chart, Matrix
from sinewich_jax.tasks.dense import DenseTask, check_batch

# fmt: off
PASCAL_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
    "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
    "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
PART_CLASSES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")

Array = TypeVar("Array", np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(DenseTask):
    """One class a pixel: cross-entropy, intersection over union.

    Attributes:
      skip_background_only: an image whose valid pixels are all class 0 is left out of loss and
        metric; the convention of human parts, where most photographs show nobody.
    """

    primary: str = "miou"
    higher_is_better: bool = True
    skip_background_only: bool = False

    def __post_init__(self) -> None:
        """Checks the counts."""
        check_classes(self, 255, "uint8 class ids")

    def counted(self, label: Array, valid: Array) -> Array:
        """The mask of what takes part.

        Args:
          label: integer [..., H, W], NumPy or JAX.
          valid: bool [..., H, W].

        Returns:
          bool [..., H, W].
        """
        if not self.skip_background_only:
            return valid
        return valid & ((label > 0) & valid).any(axis=(-2, -1), keepdims=True)

    def loss(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
        """Softmax cross-entropy, mean over the counted pixels of the batch."""
        check_batch(self, logits, label, valid)
        return losses.cross_entropy(logits, label, self.counted(label, valid))

    def predict(self, logits: jax.Array) -> jax.Array:
        """The most likely class, uint8 [..., H, W]."""
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    def metric(self) -> ConfusionMetric:
        """Intersection over union from a confusion matrix."""
        return ConfusionMetric(self)

    def picture(self, values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """Each class in its colour."""
        return pictures.hatch(pictures.palette(self.channels)[values], valid)

    def error_picture(
        self, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray | None = None
    ) -> np.ndarray:
        """Wrong pixels red."""
        wrong = (np.asarray(prediction) != np.asarray(label)).astype(np.float64)
        return pictures.hatch(pictures.error_ramp(wrong), valid)

    def mean_label(self, labels: Iterable[np.ndarray], valids: Iterable[np.ndarray]) -> np.ndarray:
        """Log-probability of each class at each pixel."""

        def one_hot(label: np.ndarray) -> np.ndarray:
            return (label[..., None] == np.arange(self.channels)).astype(np.float64)

        pairs = zip(labels, valids, strict=True)
        mean = baseline.pixel_means(
            ((label, self.counted(label, valid)) for label, valid in pairs), one_hot, prior=1.0
        )
        return np.log(np.maximum(mean, baseline.PROBABILITY_FLOOR)).astype(np.float32)

    def best_constant(self, mean_label: np.ndarray) -> np.ndarray:
        """Log-frequency of each class over all pixels."""
        frequency = np.exp(np.asarray(mean_label, np.float64)).mean(axis=(0, 1))
        return np.log(frequency / frequency.sum()).astype(np.float32)

    def _value_fault(self, values: np.ndarray) -> tuple[np.ndarray, str]:
        expected = f"a whole number, a class id from 0 to {self.channels - 1}"
        if values.dtype.kind not in "iu":
            return np.ones(len(values), bool), expected
        return (values < 0) | (values >= self.channels), expected


@dataclasses.dataclass(frozen=True)
class ConfusionMetric(Metric):
    """Intersection over union of the whole set, from one confusion matrix [label, prediction].

    ``miou`` is the published convention: IoU_c = TP / (TP + FP + FN) with counts summed over the
    set, mean over all classes, a class that occurs nowhere counting as 0. ``miou_present`` leaves
    such classes out. Also ``pixel_accuracy`` and ``iou/<class>``.
    """

    task: Segmentation

    def empty(self) -> State:
        """Zeros."""
        n = self.task.channels
        scalar = np.zeros((), np.int64)
        return {"confusion": np.zeros((n, n), np.int64), "images": scalar, "strays": scalar}

    def update(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> State:
        """Counts of (label, prediction) pairs."""
        check_batch(self.task, logits, label, valid)
        n = self.task.channels
        valid = self.task.counted(label, valid)
        label = label.astype(jnp.int32)
        pairs = label * n + jnp.argmax(logits.astype(jnp.float32), axis=-1)
        counts = counting.histograms(pairs, valid, n * n)
        return {
            "confusion": jnp.sum(counts, axis=0).reshape(n, n),
            "images": jnp.sum(jnp.any(valid, axis=(1, 2)), dtype=jnp.int32),
            "strays": jnp.sum(valid & ((label < 0) | (label >= n)), dtype=jnp.int32),
        }

    def chart(self, state: Mapping[str, Any]) -> Chart | None:
        """The confusion matrix."""
        counts = np.asarray(state["confusion"])
        names = self.task.class_names
        return Matrix("pixels of a class by prediction", counts, names) if counts.any() else None

    def compute(self, state: State) -> dict[str, float]:
        """miou, miou_present, pixel_accuracy and iou/<class>, as fractions.

        Raises:
          DataError: valid pixels held class ids that the task does not have.
        """
        if int(state["strays"]):
            raise DataError(
                f"{int(state['strays'])} valid pixels of {self.task.name} hold a class id "
                f"outside 0 to {self.task.channels - 1}; correct the labels or mark the "
                "pixels invalid"
            )
        confusion = np.asarray(state["confusion"], np.float64)
        hits = np.diag(confusion)
        union = confusion.sum(0) + confusion.sum(1) - hits
        total = confusion.sum()
        iou = hits / np.maximum(union, 1e-8) if total else np.full(len(hits), np.nan)
        class_names = self.task.class_names or tuple(str(c) for c in range(len(hits)))
        return {
            "miou": float(iou.mean()),
            "miou_present": float(iou[union > 0].mean()) if total else float("nan"),
            "pixel_accuracy": float(hits.sum() / total) if total else float("nan"),
        } | {f"iou/{name}": float(value) for name, value in zip(class_names, iou, strict=True)}


@register("semseg")
def semseg() -> Task:
    """Semantic segmentation; 21 PASCAL classes unless told otherwise."""
    return Segmentation(name="semseg", channels=21, weight=1.0, class_names=PASCAL_CLASSES)


@register("human_parts")
def human_parts() -> Task:
    """Parts of the body in six groups; images without a person are skipped."""
    return Segmentation(
        name="human_parts",
        channels=7,
        weight=2.0,
        class_names=PART_CLASSES,
        skip_background_only=True,
    )
