"""Auto-Switch: from features to the weights of task switches, or to the base where none fits.

``thetahat(x) = theta + sum_i w_i(x) lambda_i (S_A^i o S_P^i)`` (arXiv 2412.00054, equation 6) with
the weights of :mod:`sinewich_jax.switches.voting`. The published evaluations see a batch of one
task at a time: images take the mean of the batch's votes, texts its arg-max. That is easier than
serving, where every sample comes alone; ``"per_sample"`` is the default here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.arrays import namespace, widen
from sinewich_jax.errors import ConfigError, DataError, did_you_mean
from sinewich_jax.switches.queries import QuerySet
from sinewich_jax.switches.voting import METRICS, QUANTILE, WEIGHTINGS, abstention_threshold, poll

Array = Any
MODES = ("per_sample", "top1", "batch_mean", "batch_top1")
FIELDS = ("features", "tasks", "names", "k", "metric", "weighting")
FIELDS += ("projection", "threshold", "extractor")
"""What a router is stored as: arrays, numbers and words."""


def route(weights: Array, mode: str = "per_sample") -> Array:
    """Weights of switches from votes.

    Args:
      weights: (B, T) votes; a row of zeros abstains: it stays as it is and is not in any mean.
      mode: ``"per_sample"`` takes the votes; ``"top1"`` the task with the most, the first among
        equal; ``"batch_mean"`` the mean over the batch for all of it (published for images);
        ``"batch_top1"`` the task with the highest mean (published for texts).

    Returns:
      (B, T), in the dtype of the votes.

    Raises:
      ConfigError: another mode.
    """
    if mode not in MODES:
        raise ConfigError(f"the mode is {mode!r}{did_you_mean(str(mode), MODES)}")
    if mode == "per_sample":
        return weights
    xp = namespace(weights)
    heard = (weights != 0).any(axis=1, keepdims=True)
    if mode != "top1":
        mean = weights.sum(axis=0, keepdims=True) / xp.maximum(heard.sum(), 1)
        weights = xp.broadcast_to(mean, weights.shape).astype(weights.dtype)
    if mode != "batch_mean":
        best = weights.argmax(axis=1, keepdims=True) == xp.arange(weights.shape[1])
        weights = best.astype(weights.dtype)
    return xp.where(heard, weights, 0)


class Routing(NamedTuple):
    """Where samples go.

    Attributes:
      weights: (B, T) of the switches; a row of zeros is the base model.
      unknown: bool (B,), farther from all examples than these are from each other.
      votes: (B, T) before abstaining and before any mode: the best guess even where unknown.
      distance: (B,), to the k-th neighbour; what ``unknown`` was decided by.
    """

    weights: Array
    unknown: Array
    votes: Array
    distance: Array


class Router(NamedTuple):
    """A query set and how it is asked. Make one with :meth:`fit`.

    Attributes:
      queries: the examples, already projected where there is a projection.
      k: neighbours.
      metric: ``"l2"`` or ``"cosine"``.
      weighting: ``"uniform"`` or ``"distance"``.
      projection: float32 (e, r) for incoming features, or None.
      threshold: the distance beyond which a sample is unknown, or None for never.
      extractor: says in words where features come from, for whoever opens a stored router.
    """

    queries: QuerySet
    k: int = 10
    metric: str = "l2"
    weighting: str = "uniform"
    projection: Array | None = None
    threshold: float | None = None
    extractor: str = ""

    @classmethod
    def fit(
        cls,
        queries: QuerySet,
        k: int = 10,
        *,
        metric: str = "l2",
        weighting: str = "uniform",
        projection: Array | None = None,
        quantile: float | None = QUANTILE,
        extractor: str = "",
    ) -> Router:
        """A router whose threshold is a quantile of leave-one-out distances.

        Args:
          queries: in the space of the features, not projected.
          k: neighbours: 10 for images, 5 for texts in the published code.
          metric: see :func:`~sinewich_jax.switches.voting.votes`.
          weighting: see there.
          projection: (e, r), as of :func:`~sinewich_jax.switches.metric.fit_metric`.
          quantile: of the examples that the threshold still accepts; None for no threshold.
          extractor: free text.

        Raises:
          ConfigError: options that do not exist, or a threshold from a single example.
          DataError: a projection of another width.
        """
        if projection is not None:
            queries = queries.project(_fitting(projection, np.shape(queries.features)[1]))
        threshold = None
        if quantile is not None:
            threshold = abstention_threshold(queries, k, metric=metric, quantile=quantile)
        router = cls(queries, k, metric, weighting, projection, threshold, extractor)
        return cls.from_fields(router.to_fields())

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks, in the order of the columns of weights."""
        return self.queries.names

    def __call__(
        self, features: Array, mode: str = "per_sample", *, abstain: bool = True
    ) -> Routing:
        """Routes samples by their features.

        Args:
          features: (B, e), NumPy or JAX, of the model that the examples went through.
          mode: see :func:`route`. Unknown samples are in no mean of a batch.
          abstain: gives unknown samples weight 0 everywhere, which is the base model. Features
            that are not finite have no neighbours and weight 0 either way.

        Raises:
          ConfigError: another mode, or ``abstain`` of a router without a threshold.
          DataError: features of another width.
        """
        if abstain and self.threshold is None:
            raise ConfigError(
                "this router has no threshold to abstain by; fit it with a quantile, or pass "
                "abstain=False"
            )
        if self.projection is not None:
            features = _project(features, _fitting(self.projection, np.shape(features)[-1]))
        found = poll(self.queries, features, self.k, metric=self.metric, weighting=self.weighting)
        xp = namespace(found.votes)
        limit = math.inf if self.threshold is None else self.threshold
        # Not "farther than": what is not finite compares false, and is unknown.
        unknown = ~((found.distance <= limit) & xp.isfinite(found.distance))
        weights = xp.where(unknown[:, None], 0, found.votes) if abstain else found.votes
        return Routing(route(weights, mode), unknown, found.votes, found.distance)

    def to_fields(self) -> dict[str, Any]:
        """The router as plain values by the names of :data:`FIELDS`, to be stored in a bank."""
        return {
            "features": np.asarray(self.queries.features, np.float32),
            "tasks": np.asarray(self.queries.tasks, np.int32),
            "names": self.queries.names,
            "k": int(self.k),
            "metric": self.metric,
            "weighting": self.weighting,
            "projection": (
                None if self.projection is None else np.asarray(self.projection, np.float32)
            ),
            "threshold": None if self.threshold is None else float(self.threshold),
            "extractor": self.extractor,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Router:
        """The inverse of :meth:`to_fields`; fields that are absent take their defaults.

        Raises:
          ConfigError: a field that does not exist or that holds something else.
          DataError: arrays that are no query set, or a projection into another space.
        """
        for name in fields:
            if name not in FIELDS:
                raise ConfigError(f"a router has no field {name!r}{did_you_mean(name, FIELDS)}")
        for name in FIELDS[:3]:
            if name not in fields:
                raise ConfigError(f"the stored router has no {name!r}; store it with to_fields")
        queries = QuerySet.checked(*(fields[name] for name in FIELDS[:3]))
        rest = {name: fields[name] for name in FIELDS[3:] if name in fields}
        router = cls(queries, **rest)
        _check_options(router)
        return router


def _check_options(router: Router) -> None:
    if isinstance(router.k, bool) or not isinstance(router.k, int | np.integer) or router.k < 1:
        raise ConfigError(
            f"k is {router.k!r}, the number of neighbours; expected a whole number from 1"
        )
    for option, known in (("metric", METRICS), ("weighting", WEIGHTINGS)):
        value = getattr(router, option)
        if value not in known:
            raise ConfigError(f"{option} is {value!r}{did_you_mean(str(value), known)}")
    threshold = router.threshold
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ConfigError(f"threshold is {threshold}; expected a distance, or None for never")
    if not isinstance(router.extractor, str):
        raise ConfigError(f"extractor is {router.extractor!r}; expected words")
    width = router.queries.features.shape[1]
    shape = None if router.projection is None else np.shape(router.projection)
    if shape is not None and (len(shape) != 2 or shape[1] != width):
        raise DataError(
            f"the projection has shape {shape}, and the query set features of width {width}; "
            f"expected (e, {width})"
        )


def _fitting(projection: Array, width: int) -> Array:
    """The projection, if features of a width can go through it."""
    shape = np.shape(projection)
    if len(shape) != 2 or shape[0] != width:
        raise DataError(
            f"the projection has shape {shape}, and features have width {width}; expected "
            f"({width}, r)"
        )
    return projection


def _project(features: Array, projection: Array) -> Array:
    xp = namespace(features, projection)
    features, projection = widen(features, xp), xp.asarray(projection)
    if xp is np:
        with np.errstate(invalid="ignore", over="ignore"):
            return features @ projection
    return xp.matmul(features, projection, precision="highest")
