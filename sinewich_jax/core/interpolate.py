"""Interpolation along one axis: kernels, and the few neighbours that make each output position.

Half-pixel centres, ``x_in = (x_out + 0.5) * n_in / n_out - 0.5``, neighbours clamped to the border.
Both kernels are written out because libraries disagree on the cubic one: OpenCV and torch have
a = -0.75, ``jax.image.resize(..., "cubic")`` has a = -0.5. Plain NumPy; who resizes maps in two
dimensions (images, label maps, relative position tables) applies them to one axis after the other.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

Method = Literal["linear", "cubic"]

CUBIC_A = -0.75
"""Slope parameter of the cubic convolution kernel (Keys 1981), the value OpenCV and torch use."""


def cubic_weight(distance: np.ndarray, a: float = CUBIC_A) -> np.ndarray:
    """The cubic convolution kernel.

    ``(a+2)|d|^3 - (a+3)|d|^2 + 1`` for ``|d| <= 1``, ``a(|d|^3 - 5|d|^2 + 8|d| - 4)`` for
    ``1 < |d| < 2``, else 0 (Keys, "Cubic convolution interpolation", 1981).

    Args:
      distance: distance from the sample in pixels, any shape.
      a: slope at ``|d| = 1``.

    Returns:
      The weight, same shape; the weights of the four neighbours of any point sum to 1.
    """
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def linear_weight(distance: np.ndarray) -> np.ndarray:
    """The triangle kernel ``max(0, 1 - |d|)``."""
    return np.maximum(0.0, 1.0 - np.abs(distance))


def taps(
    n_in: int, n_out: int, method: Method, antialias: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Which input positions make each output position along one axis, and how much of each.

    Args:
      n_in: input length.
      n_out: output length.
      method: ``"linear"`` or ``"cubic"``.
      antialias: widen the kernel by ``n_in / n_out`` when shrinking.

    Returns:
      ``(index, weight)``: int64 [n_out, K], clamped to the border, and float64 [n_out, K], rows
      summing to 1.
    """
    kernel, radius = {"linear": (linear_weight, 1), "cubic": (cubic_weight, 2)}[method]
    ratio = n_in / n_out
    stretch = max(1.0, ratio) if antialias else 1.0
    reach = math.ceil(radius * stretch)
    centre = (np.arange(n_out) + 0.5) * ratio - 0.5
    offset = np.arange(1 - reach, reach + 1)
    index = np.floor(centre).astype(np.int64)[:, None] + offset
    weight = kernel((index - centre[:, None]) / stretch)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, n_in - 1), weight
