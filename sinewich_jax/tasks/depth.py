"""Depth: metres along the optical axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import ConfigError
from sinewich_jax.tasks import baseline, losses, pictures
from sinewich_jax.tasks.base import Metric, State, Task, register
from sinewich_jax.tasks.charts import Bars, Chart
from sinewich_jax.tasks.dense import DenseTask, check_batch

RANGE_EDGES = 2.0 ** np.arange(-3, 9.01, 0.25)
"""Distances between which errors are gathered, an eighth to 512; what lies beyond is in no bin."""

CLAMP = 1e-9
"""Smallest prediction inside a logarithm, in metres."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth(DenseTask):
    """Regression of metric depth on the raw output.

    Attributes:
      loss_kind: "l1" (MTI-Net, ATRC, MTLoRA), or "l2", which is what the RMSE measures.
      clamp: clamp predictions at 1e-9 m for every metric, as MTLoRA and InvPT do; by default only
        the logarithm is clamped, as in ATRC.
      picture_range: depths in metres that pictures show as brightest (near) and darkest (far).
    """

    channels: int = 1
    primary: str = "rmse"
    higher_is_better: bool = False
    unit: str = "m"
    loss_kind: str = "l1"
    clamp: bool = False
    picture_range: tuple[float, float] = (0.5, 8.0)

    def __post_init__(self) -> None:
        """Checks head width and range."""
        if self.channels != 1:
            raise ConfigError(f"{self.name} has {self.channels} channels; depth takes one")
        if self.loss_kind not in ("l1", "l2"):
            raise ConfigError(
                f"{self.name}: loss_kind is {self.loss_kind!r}, expected 'l1' or 'l2'"
            )
        near, far = self.picture_range
        if not 0 <= near < far:
            raise ConfigError(
                f"{self.name}: picture_range is {self.picture_range}, expected 0 <= near < far"
            )

    def loss(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
        """Mean absolute (metres) or squared (square metres) error over the valid pixels."""
        check_batch(self, logits, label, valid)
        error = losses.depth_l2 if self.loss_kind == "l2" else losses.depth_l1
        return error(logits[..., 0], label, valid)

    def predict(self, logits: jax.Array) -> jax.Array:
        """The output as it is, float32 [..., H, W], metres."""
        return logits[..., 0].astype(jnp.float32)

    def metric(self) -> DepthMetric:
        """Errors pooled over the set."""
        return DepthMetric(self)

    def fit_range(self, labels: Iterable[np.ndarray], valids: Iterable[np.ndarray]) -> Depth:
        """This task with the picture range of some data: the 2nd to the 98th percentile.

        Args:
          labels: depth maps, metres.
          valids: bool masks.
        """
        depths = [label[valid] for label, valid in zip(labels, valids, strict=True)]
        near, far = np.percentile(np.concatenate(depths), (2, 98))
        return dataclasses.replace(self, picture_range=(float(near), float(max(far, near + 1e-3))))

    def picture(self, values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """Near bright, far dark, on the fixed ``picture_range``."""
        near, far = self.picture_range
        closeness = (far - np.asarray(values, np.float64)) / (far - near)
        return pictures.hatch(pictures.depth_ramp(closeness), valid)

    def error_picture(
        self, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray | None = None
    ) -> np.ndarray:
        """|error|, full red at a quarter of the picture range."""
        near, far = self.picture_range
        error = np.abs(np.asarray(prediction, np.float64) - np.asarray(label, np.float64))
        return pictures.hatch(pictures.error_ramp(error / (0.25 * (far - near))), valid)

    def mean_label(self, labels: Iterable[np.ndarray], valids: Iterable[np.ndarray]) -> np.ndarray:
        """Mean depth at each pixel."""
        mean = baseline.pixel_means(
            zip(labels, valids, strict=True), lambda x: x.astype(np.float64)[..., None]
        )
        return mean.astype(np.float32)

    def _value_fault(self, values: np.ndarray) -> tuple[np.ndarray, str]:
        expected = "a finite number of metres above 0"
        if values.dtype.kind != "f":
            return np.ones(len(values), bool), expected + " as floating point"
        return ~(np.isfinite(values) & (values > 0)), expected


@dataclasses.dataclass(frozen=True)
class DepthMetric(Metric):
    """Errors pooled over all valid pixels of the set; no cap, no median scaling, no crop.

    With prediction z and label y, in metres: ``rmse`` = sqrt(mean (z - y)^2), ``abs_rel`` =
    mean |z - y| / y, ``sq_rel`` = mean (z - y)^2 / y, ``log_rmse`` = sqrt(mean (ln max(z, 1e-9) -
    ln y)^2).
    """

    task: Depth

    def empty(self) -> State:
        """Zeros."""
        sums = ("square", "relative", "square_relative", "log_square")
        bins = len(RANGE_EDGES) - 1
        return {name: np.zeros(()) for name in sums} | {
            "pixels": np.zeros((), np.int64),
            "range_square": np.zeros(bins),
            "range_pixels": np.zeros(bins, np.int64),
        }

    def update(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> State:
        """Sums over valid pixels."""
        check_batch(self.task, logits, label, valid)
        z = self.task.predict(logits)
        positive = jnp.maximum(z, CLAMP)
        if self.task.clamp:
            z = positive
        y = jnp.where(valid, label.astype(jnp.float32), 1.0)
        error = z - y

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(valid, values, 0.0))

        return {
            "square": total(error**2),
            "relative": total(jnp.abs(error) / y),
            "square_relative": total(error**2 / y),
            "log_square": total((jnp.log(positive) - jnp.log(y)) ** 2),
            "pixels": jnp.sum(valid, dtype=jnp.int32),
            **_by_range(error, y, valid),
        }

    def chart(self, state: Mapping[str, Any]) -> Chart | None:
        """RMSE by the distance of what is seen."""
        pixels = np.asarray(state["range_pixels"], np.float64)
        if not pixels.any():
            return None
        square = np.asarray(state["range_square"], np.float64)
        rmse = np.sqrt(np.where(pixels > 0, square / np.maximum(pixels, 1), np.nan))
        seen = np.flatnonzero(pixels)
        first, last = seen[0], seen[-1] + 1
        unit = self.task.unit
        return Bars(
            f"RMSE by distance, {unit}",
            f"distance, {unit}",
            RANGE_EDGES[first : last + 1],
            rmse[first:last],
            log=True,
        )

    def compute(self, state: State) -> dict[str, float]:
        """rmse (m), abs_rel, sq_rel (m), log_rmse."""
        pixels = int(state["pixels"])
        if pixels == 0:
            return dict.fromkeys(("rmse", "abs_rel", "sq_rel", "log_rmse"), float("nan"))
        return {
            "rmse": float(np.sqrt(float(state["square"]) / pixels)),
            "abs_rel": float(state["relative"]) / pixels,
            "sq_rel": float(state["square_relative"]) / pixels,
            "log_rmse": float(np.sqrt(float(state["log_square"]) / pixels)),
        }


def _by_range(error: jax.Array, label: jax.Array, valid: jax.Array) -> State:
    """Squared errors and pixels between :data:`RANGE_EDGES`."""
    length = len(RANGE_EDGES) - 1
    bins = jnp.searchsorted(jnp.asarray(RANGE_EDGES, jnp.float32), label, side="right") - 1
    inside = valid & (bins >= 0) & (bins < length)
    index = jnp.where(inside, bins, length).reshape(len(label), -1)

    # One sum an image, so that a sharded batch needs no communication before the last.
    def total(index: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.zeros(length, values.dtype).at[index].add(values, mode="drop")

    square = jax.vmap(total)(index, (error**2).reshape(index.shape))
    pixels = jax.vmap(total)(index, jnp.ones_like(index, jnp.int32))
    return {"range_square": jnp.sum(square, axis=0), "range_pixels": jnp.sum(pixels, axis=0)}


@register("depth")
def depth() -> Task:
    """Depth in metres."""
    return Depth(name="depth", weight=1.0)
