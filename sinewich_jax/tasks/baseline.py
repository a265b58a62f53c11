"""The mean-label-map baseline: what a model would score that never looks at the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from sinewich_jax.errors import DataError

PROBABILITY_FLOOR = 1e-6
"""Keeps the logit of a pixel that never (or always) holds a class finite."""


def pixel_means(
    examples: Iterable[tuple[np.ndarray, np.ndarray]],
    encode: Callable[[np.ndarray], np.ndarray],
    prior: float = 0.0,
) -> np.ndarray:
    """Mean of the encoded labels at every pixel, over the examples in which it is valid.

    A pixel that is never valid gets the mean of all pixels. With a ``prior`` n0 every pixel is
    drawn towards that mean m: (sum + n0 m) / (n + n0); n0 = 1 decides ties and changes no majority.

    Args:
      examples: pairs of a label map, all of equal size, and its mask, bool [H, W].
      encode: label map -> float [H, W, C].
      prior: n0 above.

    Returns:
      float64 [H, W, C].

    Raises:
      DataError: no label, none valid, or labels of unequal size.
    """
    total, count = None, None
    for index, (label, valid) in enumerate(examples):
        valid = np.asarray(valid, bool)
        coded = np.where(valid[..., None], encode(np.asarray(label)), 0.0)
        if total is None:
            total, count = np.zeros(coded.shape), np.zeros(valid.shape)
        if coded.shape != total.shape:
            raise DataError(
                f"the mean label needs labels of equal size, but label {index} has shape "
                f"{label.shape} after {total.shape[0]} x {total.shape[1]} pixels; resize or crop"
            )
        total += coded
        count += valid
    if total is None or not count.any():
        raise DataError("the mean label needs at least one label with a valid pixel; none found")
    overall = total.sum((0, 1)) / count.sum()
    count = count[..., None]
    mean = (total + prior * overall) / np.maximum(count + prior, 1e-300)
    return np.where(count > 0, mean, overall)


def logit(probability: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) with p kept inside [PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR]."""
    p = np.clip(probability, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return np.log(p) - np.log1p(-p)
