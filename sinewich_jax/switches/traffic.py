"""Where a protocol sends samples, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.switches.dispatch import LEVELS, group_routes
from sinewich_jax.switches.router import Router

Array = Any
ORACLE = "oracle"
PROTOCOLS = (ORACLE, "per_sample", "top1", "batch_mean", "batch_top1")
"""The true task's switch; each sample's own votes, or its first; those of a batch of one task."""


def check_protocols(protocols: Sequence[str]) -> None:
    """Refuses words that are no protocol.

    Raises:
      ConfigError: naming the first of them.
    """
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ConfigError(f"no protocol is {protocol!r}{did_you_mean(protocol, PROTOCOLS)}")


class Sent(NamedTuple):
    """Where the samples of a batch go.

    Attributes:
      weights: (B, T) of the switches; a row of zeros is the base.
      chosen: int (B,), the task whose head answers: the one of largest weight, the best guess
        where a sample goes to the base.
      unknown: bool (B,), beyond the router's threshold.
      asked: whether the router's features were needed, one more pass a sample.
    """

    weights: np.ndarray
    chosen: np.ndarray
    unknown: np.ndarray
    asked: bool

    @property
    def away(self) -> np.ndarray:
        """Samples that go to the base, bool (B,)."""
        return ~self.weights.any(axis=1)


def send(router: Router, features: Array, task: int, protocol: str, *, abstain: bool) -> Sent:
    """Routes a batch of one task.

    Args:
      router: whose tasks are numbered in the order of its names.
      features: (B, e).
      task: the number of the true task, which only the oracle is told.
      protocol: of :data:`PROTOCOLS`.
      abstain: sends unknown samples to the base; the oracle knows all.
    """
    size = len(features)
    if protocol == ORACLE:
        true = np.full(size, task)
        weights = np.eye(len(router.names), dtype=np.float32)[true]
        return Sent(weights, true, np.zeros(size, bool), asked=False)
    routing = router(features, protocol, abstain=abstain)
    weights, guesses = np.asarray(routing.weights), np.asarray(routing.votes)
    known = weights.any(axis=1)
    chosen = np.where(known, weights.argmax(axis=1), guesses.argmax(axis=1))
    return Sent(weights, chosen, np.asarray(routing.unknown), asked=True)


class Traffic:
    """Counts where batches were sent.

    Attributes:
      confusion: int64 (T, T), true task by chosen task; samples that went to the base are in none.
      away: int64 (T,), how many of each task those are.
      seen: int64 (T,), samples of each task.
    """

    def __init__(self, tasks: int, levels: int = LEVELS) -> None:
        """Starts at nothing.

        Args:
          tasks: how many there are.
          levels: how routes are told apart, see
            :func:`~sinewich_jax.switches.dispatch.group_routes`.
        """
        self.confusion = np.zeros((tasks, tasks), np.int64)
        self.away = np.zeros(tasks, np.int64)
        self.seen = np.zeros(tasks, np.int64)
        self._levels = levels
        self._unknown = self._passes = 0
        self._routes: list[np.ndarray] = []

    def add(self, task: int, sent: Sent) -> None:
        """Counts a batch of one task."""
        size, here = len(sent.chosen), ~sent.away
        self.seen[task] += size
        self.away[task] += size - int(np.count_nonzero(here))
        np.add.at(self.confusion[task], sent.chosen[here], 1)
        self._unknown += int(np.count_nonzero(sent.unknown))
        found = group_routes(sent.weights, self._levels)
        self._passes += found.forwards + size * sent.asked
        self._routes.append(found.counts)

    @property
    def task_accuracy(self) -> float:
        """How often the chosen task is the true one."""
        return float(np.trace(self.confusion) / self.seen.sum())

    @property
    def unknown(self) -> float:
        """The fraction of samples beyond the router's threshold."""
        return float(self._unknown / self.seen.sum())

    @property
    def trees(self) -> int:
        """Distinct merged trees, the base among them."""
        return len(np.unique(np.concatenate(self._routes), axis=0))

    @property
    def multiplier(self) -> float:
        """Forward passes a sample, that of the router's features and padding included."""
        return float(self._passes / self.seen.sum())
