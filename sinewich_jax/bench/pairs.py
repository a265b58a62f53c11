"""Two programs timed in turn: on a busy machine a ratio of neighbours says what seconds do not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

Run = Callable[[], object]


class Pairs(NamedTuple):
    """Times of two programs, pair by pair.

    Attributes:
      first_s: seconds of each run of the first program.
      second_s: seconds of the run of the second one right beside it.
    """

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Second over first, of each pair."""
        return tuple(b / a for a, b in zip(self.first_s, self.second_s, strict=True))

    def summary(self, unit: float = 1.0) -> dict[str, float | int | list[float]]:
        """Median times in ms of one of ``unit`` steps, the median ratio, its quartiles, the count.

        Args:
          unit: steps in one run.
        """
        ratios = self.ratios
        lower, middle, upper = quartiles(ratios)
        return {
            "reference_ms": round(1e3 * statistics.median(self.first_s) / unit, 3),
            "ms": round(1e3 * statistics.median(self.second_s) / unit, 3),
            "ratio": round(middle, 4),
            "quartiles": [round(lower, 4), round(upper, 4)],
            "pairs": len(ratios),
        }


def quartiles(values: tuple[float, ...]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; of a single value three times that."""
    if len(values) == 1:
        return values * 3
    return tuple(statistics.quantiles(values, method="inclusive"))


def interleaved(first: Run, second: Run, pairs: int, seconds: float = float("inf")) -> Pairs:
    """Runs two programs in turn, each pair in the other order than the one before.

    Args:
      first: the reference. Both have to be warm, and to return when their work is done.
      second: what is compared with it.
      pairs: how many; at least one.
      seconds: no pair is begun after so long.
    """
    times: dict[Run, list[float]] = {first: [], second: []}
    begin = time.perf_counter()
    for number in range(pairs):
        for run in (first, second) if number % 2 == 0 else (second, first):
            start = time.perf_counter()
            run()
            times[run].append(time.perf_counter() - start)
        if time.perf_counter() - begin > seconds:
            break
    return Pairs(tuple(times[first]), tuple(times[second]))
