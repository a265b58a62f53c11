"""Saliency: which object is looked at first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.tasks import counting
from sinewich_jax.tasks.base import Metric, State, Task, register
from sinewich_jax.tasks.binary import Binary
from sinewich_jax.tasks.charts import Chart, Curve
from sinewich_jax.tasks.dense import check_batch

IOU_THRESHOLDS = np.linspace(0.2, 0.9, 15)
F_THRESHOLDS = np.linspace(0.05, 0.95, 19)
BETA_SQUARED = 0.3
_EPS = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saliency(Binary):
    """Foreground or background; the class weight balances every batch."""

    primary: str = "max_miou"

    def metric(self) -> SaliencyMetric:
        """IoU and F over thresholds."""
        return SaliencyMetric(self)


@dataclasses.dataclass(frozen=True)
class SaliencyMetric(Metric):
    """Threshold sweeps over the probability.

    * ``max_miou`` (the published "mIoU" of about 0.62 to 0.66): foreground IoU of each image at 15
      thresholds 0.2 ... 0.9 (p > t; 1 if mask and label are both empty), mean over images, best
      threshold.
    * ``maxf`` (the "maxF" column of ATRC and InvPT, 0.82 to 0.85): counts pooled over the set at
      0.05 ... 0.95 (p >= t), F with beta^2 = 0.3, best threshold. Probabilities are thresholded as
      they are; some published code applies a second sigmoid.
    * ``maxf_beta1`` (MTI-Net): precision and recall averaged over images at the 15 thresholds, F
      with beta = 1, best threshold.
    * ``miou2``: IoU of foreground and of background at 0.5, pooled over the set, mean of the two.
    """

    task: Saliency

    def empty(self) -> State:
        """Zeros."""
        n, m = len(IOU_THRESHOLDS), len(F_THRESHOLDS)
        return {
            "iou": np.zeros(n),
            "precision": np.zeros(n),
            "recall": np.zeros(n),
            "images": np.zeros((), np.int64),
            "hits": np.zeros(m, np.int64),
            "claims": np.zeros(m, np.int64),
            "confusion": np.zeros((2, 2), np.int64),
        }

    def update(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> State:
        """Per-image scores summed over images, and pooled counts."""
        check_batch(self.task, logits, label, valid)
        probability = self.task.predict(logits)
        positive = valid & (label >= 0.5)
        sweep = counting.counts_above
        hits = sweep(probability, positive, IOU_THRESHOLDS).astype(jnp.float32)
        claims = sweep(probability, valid, IOU_THRESHOLDS).astype(jnp.float32)
        truth = jnp.sum(positive, axis=(1, 2), dtype=jnp.float32)[:, None]
        seen = jnp.any(valid, axis=(1, 2))
        union = claims + truth - hits
        iou = jnp.where(union > 0, hits / jnp.maximum(union, 1.0), 1.0)
        guess = (probability > 0.5).astype(jnp.int32)
        cells = counting.histograms(2 * positive.astype(jnp.int32) + guess, valid, 4)
        return {
            "iou": jnp.sum(jnp.where(seen[:, None], iou, 0.0), axis=0),
            "precision": jnp.sum(hits / (claims + _EPS), axis=0),
            "recall": jnp.sum(hits / (truth + _EPS), axis=0),
            "images": jnp.sum(seen, dtype=jnp.int32),
            "hits": jnp.sum(sweep(probability, positive, F_THRESHOLDS, inclusive=True), axis=0),
            "claims": jnp.sum(sweep(probability, valid, F_THRESHOLDS, inclusive=True), axis=0),
            "confusion": jnp.sum(cells, axis=0).reshape(2, 2),
        }

    def chart(self, state: Mapping[str, Any]) -> Chart | None:
        """Precision against recall of the pooled counts, with the threshold of the best F."""
        true = int(np.asarray(state["confusion"])[1].sum())
        if not true:
            return None
        precision = counting.ratio(state["hits"], state["claims"])
        recall = counting.ratio(state["hits"], true)
        f = counting.f_score(precision, recall, BETA_SQUARED)
        best = int(np.argmax(f))
        text = f"F {f[best]:.3f} at {F_THRESHOLDS[best]:.2f}"
        return Curve("salient pixels, beta^2 = 0.3", recall, precision, best, text)

    def compute(self, state: State) -> dict[str, float]:
        """max_miou, maxf, maxf_beta1, miou2, as fractions."""
        images = int(state["images"])
        if images == 0:
            return dict.fromkeys(("max_miou", "maxf", "maxf_beta1", "miou2"), float("nan"))
        confusion = np.asarray(state["confusion"], np.float64)
        both = np.diag(confusion)
        pooled = counting.f_score(
            counting.ratio(state["hits"], state["claims"]),
            counting.ratio(state["hits"], confusion[1].sum()),
            BETA_SQUARED,
        )
        single = counting.f_score(
            np.asarray(state["precision"]) / images, np.asarray(state["recall"]) / images, eps=_EPS
        )
        return {
            "max_miou": float(np.max(state["iou"]) / images),
            "maxf": float(pooled.max()),
            "maxf_beta1": float(single.max()),
            "miou2": float(counting.ratio(both, confusion.sum(0) + confusion.sum(1) - both).mean()),
        }


@register("saliency")
def saliency() -> Task:
    """Saliency with the loss weight common in the literature."""
    return Saliency(name="saliency", weight=5.0)
