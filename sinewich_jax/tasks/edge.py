"""Edges: object and part boundaries, a pixel wide."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import ConfigError
from sinewich_jax.tasks import counting
from sinewich_jax.tasks.base import Metric, State, Task, register
from sinewich_jax.tasks.binary import Binary
from sinewich_jax.tasks.charts import Chart, Curve
from sinewich_jax.tasks.dense import check_batch

THRESHOLDS = np.linspace(0.01, 0.99, 99)
TOLERANCE_OF_DIAGONAL = 0.0075
"""Matching distance as a fraction of the image diagonal, as for PASCAL boundaries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edge(Binary):
    """Boundary or not; rare positives get the fixed weight 0.95.

    Attributes:
      tolerance: matching distance in pixels; None means max(1, 0.0075 x image diagonal).
    """

    primary: str = "f"
    positive_weight: float | None = 0.95
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Checks the tolerance."""
        super().__post_init__()
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ConfigError(
                f"{self.name}: tolerance is {self.tolerance} pixels, expected 0 or more, or None "
                "for the default"
            )

    def pixels(self, height: int, width: int) -> float:
        """The matching distance in an image of this size, in pixels."""
        if self.tolerance is not None:
            return self.tolerance
        return max(1.0, TOLERANCE_OF_DIAGONAL * math.hypot(height, width))

    def metric(self) -> EdgeMetric:
        """F by dilation matching."""
        return EdgeMetric(self)


def spread(scores: jax.Array, radius: float) -> jax.Array:
    """Largest score within a Euclidean distance: grey dilation with a disc.

    Args:
      scores: float32 [B, H, W], not negative (outside the image counts as 0).
      radius: pixels.

    Returns:
      float32 [B, H, W].
    """
    reach = math.floor(radius)
    height, width = scores.shape[1:]
    padded = jnp.pad(scores, ((0, 0), (reach, reach), (reach, reach)))
    best = scores
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dy * dy + dx * dx <= radius * radius:
                top, left = reach + dy, reach + dx
                best = jnp.maximum(best, padded[:, top : top + height, left : left + width])
    return best


@dataclasses.dataclass(frozen=True)
class EdgeMetric(Metric):
    """Boundary F by dilation matching: not SEISM, so never to be mixed with published odsF.

    At each of 99 thresholds (p > t) a predicted pixel is right if a true edge lies within the
    tolerance, and a true pixel is found if a predicted one does; no thinning, no suppression, no
    one-to-one matching. Counts are pooled over the set.

    * ``f``: best F over thresholds (optimal data-set scale); ``precision``, ``recall`` and
      ``threshold`` belong to it.
    * ``f_image``: every image at its own best threshold, counts then pooled (optimal image scale).
    * ``ap``: average precision, the area under precision against recall in steps.
    """

    task: Edge

    def empty(self) -> State:
        """Zeros."""
        n = len(THRESHOLDS)
        return {
            "right": np.zeros(n, np.int64),
            "claims": np.zeros(n, np.int64),
            "found": np.zeros(n, np.int64),
            "truth": np.zeros((), np.int64),
            "image_best": np.zeros(3, np.int64),
            "images": np.zeros((), np.int64),
        }

    def update(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> State:
        """Counts at every threshold, pooled and at each image's best."""
        check_batch(self.task, logits, label, valid)
        probability = jnp.where(valid, self.task.predict(logits), 0.0)
        truth = valid & (label >= 0.5)
        radius = self.task.pixels(*label.shape[1:])
        # Thresholding commutes with the maximum filter: one dilation serves all thresholds.
        near_truth = spread(truth.astype(jnp.float32), radius) > 0
        near_claim = spread(probability, radius)
        right = counting.counts_above(probability, valid & near_truth, THRESHOLDS)
        claims = counting.counts_above(probability, valid, THRESHOLDS)
        found = counting.counts_above(near_claim, truth, THRESHOLDS)
        size = jnp.sum(truth, axis=(1, 2), dtype=jnp.int32)[:, None]
        best = _best_threshold(right, claims, found, size)
        picked = [jnp.take_along_axis(x, best, axis=1) for x in (right, claims, found)]
        return {
            "right": jnp.sum(right, axis=0),
            "claims": jnp.sum(claims, axis=0),
            "found": jnp.sum(found, axis=0),
            "truth": jnp.sum(size),
            "image_best": jnp.stack([jnp.sum(x) for x in picked]),
            "images": jnp.sum(jnp.any(valid, axis=(1, 2)), dtype=jnp.int32),
        }

    def chart(self, state: Mapping[str, Any]) -> Chart | None:
        """Precision against recall, with the threshold of the best F."""
        if not int(state["truth"]):
            return None
        precision = counting.ratio(state["right"], state["claims"])
        recall = counting.ratio(state["found"], state["truth"])
        f = counting.f_score(precision, recall)
        best = int(np.argmax(f))
        text = f"F {f[best]:.3f} at {THRESHOLDS[best]:.2f}"
        return Curve("edges by dilation matching", recall, precision, best, text)

    def compute(self, state: State) -> dict[str, float]:
        """f, precision, recall, threshold, f_image, ap; fractions."""
        if int(state["images"]) == 0:
            keys = ("f", "precision", "recall", "threshold", "f_image", "ap")
            return dict.fromkeys(keys, float("nan"))
        precision = counting.ratio(state["right"], state["claims"])
        recall = counting.ratio(state["found"], state["truth"])
        f = counting.f_score(precision, recall)
        best = int(np.argmax(f))
        right, claims, found = np.asarray(state["image_best"])
        # Recall grows as the threshold falls; each step is credited with the precision it has.
        steps = np.diff(recall[::-1], prepend=0.0)
        return {
            "f": float(f[best]),
            "precision": float(precision[best]),
            "recall": float(recall[best]),
            "threshold": float(THRESHOLDS[best]),
            "f_image": float(
                counting.f_score(
                    counting.ratio(right, claims), counting.ratio(found, state["truth"])
                )
            ),
            "ap": float(np.sum(steps * precision[::-1])),
        }


def _best_threshold(
    right: jax.Array, claims: jax.Array, found: jax.Array, truth: jax.Array
) -> jax.Array:
    """Index [B, 1] of each image's best F, the highest threshold among equals."""
    precision = right / jnp.maximum(claims, 1)
    recall = found / jnp.maximum(truth, 1)
    f = 2.0 * precision * recall / jnp.maximum(precision + recall, 1e-12)
    return f.shape[1] - 1 - jnp.argmax(f[:, ::-1], axis=1, keepdims=True)


@register("edge")
def edge() -> Task:
    """Edges with the loss weights common in the literature."""
    return Edge(name="edge", weight=50.0)
