"""Surface normals in camera axes: x right, y down, z forward, so a visible normal has z < 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import ConfigError
from sinewich_jax.tasks import baseline, counting, losses, pictures
from sinewich_jax.tasks.base import Metric, State, Task, register
from sinewich_jax.tasks.charts import Bars, Chart
from sinewich_jax.tasks.dense import DenseTask, check_batch

ANGLE_BINS = 3600
"""Bins of the angle histogram over 0 to 180 degrees: the median is exact to 0.05 degrees."""

WITHIN = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}
"""Published angle limits in degrees, by the name of their metric."""

LENGTH_TOLERANCE = 0.05
"""How far a label's length may be from 1; 8-bit normals are off by up to 0.014."""

_TINY = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normals(DenseTask):
    """Regression of unit vectors.

    Attributes:
      loss_kind: "l1" or "cosine".
      reduction: of the L1 loss, "entry" (MTI-Net, MTLoRA) or "pixel" (ATRC, InvPT; three times as
        much).
    """

    channels: int = 3
    primary: str = "mean_deg"
    higher_is_better: bool = False
    unit: str = "deg"
    loss_kind: str = "l1"
    reduction: str = "entry"

    def __post_init__(self) -> None:
        """Checks the options."""
        if self.channels != 3:
            raise ConfigError(f"{self.name} has {self.channels} channels; a normal takes three")
        if self.loss_kind not in ("l1", "cosine"):
            raise ConfigError(
                f"{self.name}: loss_kind is {self.loss_kind!r}, expected 'l1' or 'cosine'"
            )
        if self.reduction not in ("entry", "pixel"):
            raise ConfigError(
                f"{self.name}: reduction is {self.reduction!r}, expected 'entry' or 'pixel'"
            )

    @property
    def label_tail(self) -> tuple[int, ...]:
        """Three components."""
        return (3,)

    def loss(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
        """L1 or cosine distance of the normalised prediction, mean over the valid pixels."""
        check_batch(self, logits, label, valid)
        if self.loss_kind == "cosine":
            return losses.normals_cosine(logits, label, valid)
        return losses.normals_l1(logits, label, valid, self.reduction)

    def predict(self, logits: jax.Array) -> jax.Array:
        """Unit vectors, float32 [..., H, W, 3]; a zero output stays zero."""
        return unit(logits.astype(jnp.float32))

    def metric(self) -> AngleMetric:
        """Angles over the set."""
        return AngleMetric(self)

    def picture(self, values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """(n + 1) / 2 as RGB after turning y up and z to the viewer, the usual look.

        A wall that faces the camera is light blue, floors are green.
        """
        outward = np.asarray(values, np.float64) * (1.0, -1.0, -1.0)
        return pictures.hatch(pictures.to_uint8((outward + 1.0) / 2.0), valid)

    def error_picture(
        self, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray | None = None
    ) -> np.ndarray:
        """The angle between the two, full red at 60 degrees."""
        p, n = np.asarray(prediction, np.float64), np.asarray(label, np.float64)
        lengths = [np.linalg.norm(v, axis=-1) for v in (p - n, p + n)]
        angle = np.degrees(2.0 * np.arctan2(*lengths))
        return pictures.hatch(pictures.error_ramp(angle / 60.0), valid)

    def mean_label(self, labels: Iterable[np.ndarray], valids: Iterable[np.ndarray]) -> np.ndarray:
        """Mean vector at each pixel; its direction is the prediction."""
        mean = baseline.pixel_means(
            zip(labels, valids, strict=True), lambda x: x.astype(np.float64)
        )
        return mean.astype(np.float32)

    def _value_fault(self, values: np.ndarray) -> tuple[np.ndarray, str]:
        expected = "a unit vector"
        if values.dtype.kind != "f":
            return np.ones(len(values), bool), expected + " as floating point"
        length = np.linalg.norm(values.astype(np.float64), axis=-1)
        return ~(np.abs(length - 1.0) <= LENGTH_TOLERANCE), expected


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors of length one along the last axis; zero stays zero."""
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(length, _TINY)


def angles(prediction: jax.Array, label: jax.Array) -> jax.Array:
    """Angle between unit vectors, 2 atan2(|p - n|, |p + n|), in degrees.

    Unlike acos(p . n) it is accurate near 0 and 180. A zero prediction is 90 degrees off.

    Args:
      prediction: float32 [..., 3].
      label: float32 [..., 3].
    """
    apart = jnp.linalg.norm(prediction - label, axis=-1)
    along = jnp.linalg.norm(prediction + label, axis=-1)
    return jnp.degrees(2.0 * jnp.arctan2(apart, along))


@dataclasses.dataclass(frozen=True)
class AngleMetric(Metric):
    """Angle statistics over all valid pixels of the set, in degrees.

    ``mean_deg`` is the column that several papers print as "rmse" or "normals"; ``rmse_deg`` is the
    true root mean square. ``median_deg`` comes from a histogram of 0.05 degrees. ``within_*`` are
    the fractions of pixels below 11.25, 22.5 and 30 degrees.
    """

    task: Normals

    def empty(self) -> State:
        """Zeros."""
        counts = {"pixels": np.zeros((), np.int64), "histogram": np.zeros(ANGLE_BINS, np.int64)}
        within = {name: np.zeros((), np.int64) for name in WITHIN}
        return {"sum": np.zeros(()), "square": np.zeros(())} | counts | within

    def update(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> State:
        """Sums and a histogram of the angles."""
        check_batch(self.task, logits, label, valid)
        target = jnp.where(valid[..., None], label.astype(jnp.float32), 0.0)
        angle = angles(self.task.predict(logits), unit(target))
        bins = jnp.clip((angle * (ANGLE_BINS / 180.0)).astype(jnp.int32), 0, ANGLE_BINS - 1)
        state = {
            "sum": jnp.sum(jnp.where(valid, angle, 0.0)),
            "square": jnp.sum(jnp.where(valid, angle**2, 0.0)),
            "pixels": jnp.sum(valid, dtype=jnp.int32),
            "histogram": jnp.sum(counting.histograms(bins, valid, ANGLE_BINS), axis=0),
        }
        for name, limit in WITHIN.items():
            state[name] = jnp.sum(valid & (angle < limit), dtype=jnp.int32)
        return state

    def chart(self, state: Mapping[str, Any]) -> Chart | None:
        """The angles, in bins of two and a half degrees."""
        histogram = np.asarray(state["histogram"], np.float64)
        if not histogram.any():
            return None
        shares = histogram.reshape(-1, ANGLE_BINS // 72).sum(axis=1) / histogram.sum()
        marks = tuple((limit, f"{limit:g}") for limit in WITHIN.values())
        edges = np.linspace(0.0, 180.0, 73)
        return Bars("share of pixels by angle", "angle, degrees", edges, shares, marks)

    def compute(self, state: State) -> dict[str, float]:
        """mean_deg, median_deg, rmse_deg in degrees; within_* as fractions."""
        pixels = int(state["pixels"])
        if pixels == 0:
            keys = ("mean_deg", "median_deg", "rmse_deg", *WITHIN)
            return dict.fromkeys(keys, float("nan"))
        return {
            "mean_deg": float(state["sum"]) / pixels,
            "median_deg": _median(np.asarray(state["histogram"], np.float64)),
            "rmse_deg": float(np.sqrt(float(state["square"]) / pixels)),
        } | {name: float(state[name]) / pixels for name in WITHIN}


def _median(histogram: np.ndarray) -> float:
    """The median of a histogram over 0 to 180 degrees, linear inside its bin."""
    reached = np.cumsum(histogram)
    half = reached[-1] / 2.0
    index = int(np.searchsorted(reached, half))
    before = reached[index] - histogram[index]
    return float((index + (half - before) / histogram[index]) * 180.0 / len(histogram))


@register("normals")
def normals() -> Task:
    """Surface normals with the loss weight common in the literature."""
    return Normals(name="normals", weight=10.0)
