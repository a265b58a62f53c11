"""A Gaussian low-pass over the channel plane of a kernel, the paper's last step after the sine.

Also reachable as ``core.sine.<name>``. Source: Free Sinewich (arXiv 2603.21111), 7 taps, sigma 1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import SinewichError

Padding = Literal["zero", "reflect"]


class LowPass(NamedTuple):
    """The options of :func:`gaussian_lowpass`; a plain ``(size, sigma)`` does as well."""

    size: int = 7
    sigma: float = 1.0
    padding: Padding = "zero"
    renormalise: bool = False


def gaussian_taps(size: int, sigma: float) -> np.ndarray:
    """The ``size`` taps ``exp(-x^2 / (2 sigma^2))``, normalised to sum one; float64.

    Examples:
      >>> [round(float(tap), 5) for tap in gaussian_taps(7, 1.0)[:4]]
      [0.00443, 0.05401, 0.24204, 0.39905]
    """
    if size < 1 or size % 2 == 0 or sigma <= 0:
        raise SinewichError(
            f"the low-pass needs an odd size and sigma > 0, found size {size} and sigma {sigma}"
        )
    x = np.arange(size) - size // 2
    taps = np.exp(-(x**2) / (2 * sigma**2))
    return taps / taps.sum()


def gaussian_lowpass(
    kernel: jax.Array,
    size: int = 7,
    sigma: float = 1.0,
    padding: Padding = "zero",
    renormalise: bool = False,
) -> jax.Array:
    """A separable Gaussian over the (in, out) plane, as if it were an image, tap by tap.

    Channels have no order, so this is a regulariser: it multiplies the Frobenius norm of an
    unordered kernel by ``sum(taps^2)`` (0.2823 for 7, 1.0) and lowers the effective rank.

    Args:
      kernel: (..., in, out).
      size: number of taps, odd.
      sigma: width in channels.
      padding: what lies beyond the plane: "zero", or "reflect" (mirror without the edge).
      renormalise: divide by ``sum(taps^2)``, to give that norm back.

    Returns:
      The same shape and dtype.
    """
    if padding not in ("zero", "reflect"):
        raise SinewichError(f"the low-pass padding must be 'zero' or 'reflect', found {padding!r}")
    taps = gaussian_taps(size, sigma)
    for axis in (-2, -1):
        kernel = _convolve(kernel, taps, axis, "constant" if padding == "zero" else "reflect")
    return kernel / float(np.sum(taps**2)) if renormalise else kernel


def _convolve(x: jax.Array, taps: np.ndarray, axis: int, mode: str) -> jax.Array:
    # A sum of shifts: XLA fuses it into one loop, where a banded matrix would cost n times more.
    width = [(0, 0)] * x.ndim
    width[axis] = (len(taps) // 2, len(taps) // 2)
    padded = jnp.pad(x, width, mode=mode)
    shifts = (
        float(tap) * jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis)
        for i, tap in enumerate(taps)
    )
    return sum(shifts, start=jnp.zeros_like(x))
