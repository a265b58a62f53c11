"""What text tasks are scored by: agreement of classes, and correlation of numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import DataError
from sinewich_jax.tasks import counting
from sinewich_jax.tasks.base import Metric, State, check_shapes
from sinewich_jax.tasks.charts import Chart, Matrix

if TYPE_CHECKING:
    from sinewich_jax.tasks.text import Classification, Similarity


@dataclasses.dataclass(frozen=True)
class ClassMetric(Metric):
    """Agreement over the whole set, from one confusion matrix n [label, prediction].

    * ``accuracy``: the share of right predictions.
    * ``f1``: 2 TP / (2 TP + FP + FN), with two classes of class 1, with more the mean over the
      classes that occur among labels or predictions; 0 where nothing is or is called the class.
    * ``matthews``: correlation of label and prediction for any number of classes (Gorodkin 2004,
      R_K; with two classes Matthews 1975): with s examples, c of them right, t_k labels and p_k
      predictions of class k, (c s - sum t p) / sqrt((s^2 - sum t^2)(s^2 - sum p^2)); 0 where
      labels or predictions know one class only.

    The matrix grows with the square of the number of classes: 8 MB for a thousand.
    """

    task: Classification

    def empty(self) -> State:
        """Zeros."""
        n = self.task.channels
        return {"confusion": np.zeros((n, n), np.int64), "strays": np.zeros((), np.int64)}

    def update(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> State:
        """Counts of (label, prediction) pairs."""
        check_shapes(self.task, logits, label, valid)
        n, label = self.task.channels, label.astype(jnp.int32)
        stray = self.task.strays(label)
        # Two indices and not one histogram of pairs, whose numbers could leave int32. Row n is
        # outside and dropped.
        row = jnp.where(valid & ~stray, label, n)
        column = self.task.predict(logits.astype(jnp.float32))
        return {
            "confusion": jnp.zeros((n, n), jnp.int32).at[row, column].add(1, mode="drop"),
            "strays": jnp.sum(valid & stray, dtype=jnp.int32),
        }

    def chart(self, state: Mapping[str, Any]) -> Chart | None:
        """The confusion matrix."""
        counts = np.asarray(state["confusion"])
        names = self.task.class_names
        return Matrix("examples of a class by prediction", counts, names) if counts.any() else None

    def compute(self, state: State) -> dict[str, float]:
        """accuracy, f1 and matthews.

        Raises:
          DataError: valid examples held class ids that the task does not have.
        """
        if int(state["strays"]):
            raise DataError(
                f"{int(state['strays'])} valid examples of {self.task.name} hold a class id "
                f"outside 0 to {self.task.channels - 1}; correct the labels or leave the examples "
                "out"
            )
        confusion = np.asarray(state["confusion"], np.float64)
        total = confusion.sum()
        if not total:
            return dict.fromkeys(("accuracy", "f1", "matthews"), float("nan"))
        hits, true, claimed = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        f1 = counting.ratio(2 * hits, true + claimed)
        spread = math.sqrt((total**2 - true @ true) * (total**2 - claimed @ claimed))
        return {
            "accuracy": float(hits.sum() / total),
            "f1": float(f1[1] if len(f1) == 2 else f1[true + claimed > 0].mean()),
            "matthews": float(counting.ratio(hits.sum() * total - true @ claimed, spread)),
        }


@dataclasses.dataclass(frozen=True)
class CorrelationMetric(Metric):
    """Correlation of predictions and labels over the whole set, in float64 on the host.

    ``spearman`` is the correlation of ranks, equal values sharing their mean rank; ``pearson`` that
    of values; ``mse`` the mean squared error in squared units of the label. Ranks are known only
    when everything is, so a state holds the predictions themselves: nine bytes an example. A
    correlation with something constant, such as the mean label, is NaN.
    """

    task: Similarity

    def empty(self) -> State:
        """No example."""
        return {
            "prediction": np.zeros(0, np.float32),
            "label": np.zeros(0, np.float32),
            "valid": np.zeros(0, bool),
        }

    def update(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> State:
        """The batch as it is; what is invalid stays, for shapes are static."""
        check_shapes(self.task, logits, label, valid)
        prediction = self.task.predict(logits)
        return {"prediction": prediction, "label": label.astype(jnp.float32), "valid": valid}

    def join(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """One behind the other."""
        return np.concatenate([a, b])

    def compute(self, state: State) -> dict[str, float]:
        """spearman, pearson and mse.

        Raises:
          DataError: valid examples held labels outside the task's range.
        """
        from scipy import stats  # More than half a second to import.

        valid = np.asarray(state["valid"])
        prediction = np.asarray(state["prediction"], np.float64)[valid]
        label = np.asarray(state["label"], np.float32)[valid]
        strays = int(self.task.strays(label).sum())
        if strays:
            raise DataError(
                f"{strays} valid examples of {self.task.name} hold a label outside "
                f"{self.task.low:g} to {self.task.high:g}; correct the labels or leave the "
                "examples out"
            )
        if not len(label):
            return dict.fromkeys(("spearman", "pearson", "mse"), float("nan"))
        label = label.astype(np.float64)
        return {
            "spearman": _correlation(stats.rankdata(prediction), stats.rankdata(label)),
            "pearson": _correlation(prediction, label),
            "mse": float(((prediction - label) ** 2).mean()),
        }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two float64 [N]; NaN where one is constant or not finite."""
    if not all(np.isfinite(x).all() and np.ptp(x) > 0 for x in (a, b)):
        return math.nan
    a, b = (x - x.mean() for x in (a, b))
    return float(np.clip((a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)), -1.0, 1.0))
