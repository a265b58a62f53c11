"""What a metric has to show beside its numbers: plain data, drawn by :mod:`sinewich_jax.report`."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Counts of pairs (label, prediction).

    Attributes:
      title: what is shown.
      counts: int [n, n], a row a label.
      names: of the classes; None numbers them.
    """

    title: str
    counts: np.ndarray
    names: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Bars:
    """One value an interval.

    Attributes:
      title: what is shown.
      axis: name and unit of the intervals.
      edges: float [n + 1], rising.
      heights: float [n]; NaN where nothing was counted.
      marks: (position, text) of thin upright lines.
      log: intervals of equal ratio are equally wide.
    """

    title: str
    axis: str
    edges: np.ndarray
    heights: np.ndarray
    marks: tuple[tuple[float, str], ...] = ()
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Curve:
    """Precision against recall, both in [0, 1].

    Attributes:
      title: what is shown.
      recall: float [n].
      precision: float [n].
      best: index of the point to mark, with the text beside it.
      text: says what is marked.
    """

    title: str
    recall: np.ndarray
    precision: np.ndarray
    best: int
    text: str


Chart = Matrix | Bars | Curve
