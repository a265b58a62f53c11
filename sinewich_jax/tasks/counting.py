"""Counting on the device: histograms per image, and confusion counts at many thresholds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def histograms(bins: jax.Array, keep: jax.Array, length: int) -> jax.Array:
    """Counts of integer bins, one histogram an image.

    One an image and not one a batch, so that a batch sharded over devices needs no communication
    before the final sum.

    Args:
      bins: integer [B, ...]; anything outside [0, length) is dropped.
      keep: bool [B, ...], what to count.
      length: number of bins.

    Returns:
      int32 [B, length].
    """

    def one(bins: jax.Array, keep: jax.Array) -> jax.Array:
        index = jnp.where(keep & (bins >= 0), bins, length).reshape(-1)
        return jnp.zeros(length, jnp.int32).at[index].add(1, mode="drop")

    return jax.vmap(one)(bins, keep)


def counts_above(
    scores: jax.Array, keep: jax.Array, thresholds: np.ndarray, inclusive: bool = False
) -> jax.Array:
    """How many kept scores lie above each threshold, per image.

    Args:
      scores: float32 [B, H, W].
      keep: bool [B, H, W].
      thresholds: ascending [T].
      inclusive: count score >= t instead of score > t.

    Returns:
      int32 [B, T].
    """
    # The bin of a score is the number of thresholds below it.
    edges = jnp.asarray(thresholds, jnp.float32)
    side = "right" if inclusive else "left"
    bins = jnp.searchsorted(edges, scores, side=side)
    counts = histograms(bins, keep, len(thresholds) + 1)
    return jnp.cumsum(counts[:, :0:-1], axis=1)[:, ::-1]


def f_score(
    precision: np.ndarray, recall: np.ndarray, beta_squared: float = 1.0, eps: float = 0.0
) -> np.ndarray:
    """F = (1 + b^2) P R / (b^2 P + R), 0 where both are 0 (NumPy, float64).

    Args:
      precision: P in [0, 1].
      recall: R in [0, 1].
      beta_squared: weight of recall; saliency papers use 0.3.
      eps: added to the denominator, for parity with published code.
    """
    below = beta_squared * precision + recall + eps
    return np.where(
        below > 0, (1 + beta_squared) * precision * recall / np.maximum(below, 1e-300), 0.0
    )


def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b in float64, 0 where b is 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.where(b > 0, a / np.maximum(b, 1e-300), 0.0)
