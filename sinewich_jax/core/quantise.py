"""Few-bit numbers and soft gates that gradients can pass: what learned compression is made of.

A magnitude m becomes a whole number of steps (a *level*), a sign costs one bit more:

    b = 1:  level = 1 where m > 0                        (sign only)
    b > 1:  level = clip(round(m / s), 0, 2**(b-1) - 1),  s = max(kept m) / (2**(b-1) - 1)

Rounding and thresholds have no useful derivative. :func:`straight_through` lends them one: the
value of the hard function, the gradient of a soft one (Bengio, Leonard and Courville 2013,
arXiv 1308.3432). All functions take NumPy or JAX arrays, unless they say otherwise.
"""

from __future__ import annotations

from typing import Any

from sinewich_jax.core.arrays import namespace
from sinewich_jax.errors import ConfigError

Array = Any

MAX_BITS = 8


def top_level(bits: int) -> int:
    """The largest level of ``bits`` bits, one of which is the sign: ``2**(b-1) - 1``; 1 for b = 1.

    With 2 bits it is 1 as well: such a number is a sign or nothing.

    Raises:
      ConfigError: a width that is not a whole number from 1 to 8.
    """
    if not isinstance(bits, int) or not 1 <= bits <= MAX_BITS:
        raise ConfigError(
            f"the width is {bits!r} bits; expected a whole number from 1 to {MAX_BITS}"
        )
    return max(1, 2 ** (bits - 1) - 1)


def step_size(magnitudes: Array, bits: int, kept: Array | None = None) -> Array:
    """``s = max(kept m) / (2**(b-1) - 1)``: the largest kept magnitude is the highest level.

    Args:
      magnitudes: non-negative, any shape.
      bits: b, from 1 to 8.
      kept: bool of the same shape, the entries that count; None for all.

    Returns:
      A scalar; 0 where nothing is kept.
    """
    xp = namespace(magnitudes, kept)
    counted = magnitudes if kept is None else xp.where(kept, magnitudes, 0)
    return xp.max(counted, initial=0) / top_level(bits)


def levels(magnitudes: Array, step: Array, bits: int) -> Array:
    """``clip(round(m / s), 0, 2**(b-1) - 1)``; for one bit 1 wherever m > 0.

    ``s * level`` is within s / 2 of m wherever m is at most ``s * (2**(b-1) - 1)``, for b > 1.

    Args:
      magnitudes: non-negative, any shape.
      step: s, broadcasts against them; where it is 0 every level is 0.
      bits: b, from 1 to 8.

    Returns:
      Whole numbers in the dtype of the magnitudes.
    """
    xp = namespace(magnitudes, step)
    top = top_level(bits)
    if bits == 1:
        return (magnitudes > 0).astype(magnitudes.dtype)
    safe = xp.where(step > 0, step, 1)
    whole = xp.clip(xp.rint(magnitudes / safe), 0, top)
    return xp.where(step > 0, whole, 0).astype(magnitudes.dtype)


def best_knob(magnitudes: Array, whole: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """The scale k that minimises ``||m - k level||``: ``<m, level> / <level, level>``.

    For one bit this is the mean of the kept magnitudes, XNOR-Net's and BitDelta's scale.

    Args:
      magnitudes: non-negative, any shape.
      whole: levels, 0 for what is not kept; of the same shape or with leading axes.
      axis: what to sum over; None for everything.

    Returns:
      A scalar, or an array of the axes that are left; 0 where every level is.
    """
    xp = namespace(magnitudes, whole)
    power = xp.sum(whole * whole, axis=axis)
    overlap = xp.sum(magnitudes * whole, axis=axis)
    return xp.where(power > 0, overlap / xp.where(power > 0, power, 1), 0)


def straight_through(hard: Array, soft: Array) -> Array:
    """The value of ``hard`` with the gradient of ``soft``; JAX arrays.

    Exactly the value: ``hard + (soft - stop(soft))``, and the bracket is 0.
    """
    import jax

    return jax.lax.stop_gradient(hard) + (soft - jax.lax.stop_gradient(soft))


def quantise(x: Array, step: Array, bits: int) -> Array:
    """``sign(x) s level(|x|)``, and backwards the identity inside the range; JAX arrays.

    The gradient with respect to x is 1 where ``|x| <= s (2**(b-1) - 1)`` and 0 outside; with
    respect to s it is ``sign(x) (level - |x| / s)`` inside, and ``sign(x) (2**(b-1) - 1)`` outside
    (learned step sizes: Esser and others 2020, arXiv 1902.08153). For one bit the range ends at s.

    Args:
      x: real, any shape.
      step: s, a positive scalar.
      bits: b, from 1 to 8.

    Returns:
      An array like x.
    """
    import jax
    import jax.numpy as jnp

    top = top_level(bits)
    ratio = jnp.clip(x / step, -top, top)
    whole = jnp.sign(x) * levels(jnp.abs(jax.lax.stop_gradient(x)), step, bits)
    return step * straight_through(whole, ratio)


def soft_gate(magnitudes: Array, threshold: Array, width: Array) -> Array:
    """``sigmoid((m - t) / w)``: how surely an entry is above its threshold.

    Args:
      magnitudes: non-negative, any shape.
      threshold: t, in the unit of the magnitudes.
      width: w > 0, in the same unit: temperature times the root mean square, usually.

    Returns:
      From 0 to 1, one half at the threshold.
    """
    xp = namespace(magnitudes, threshold, width)
    return 0.5 + 0.5 * xp.tanh((magnitudes - threshold) / (2 * width))


def hard_gate(magnitudes: Array, threshold: Array, width: Array) -> Array:
    """``1[m > t]`` with the gradient of :func:`soft_gate`; JAX arrays."""
    hard = (magnitudes > threshold).astype(magnitudes.dtype)
    return straight_through(hard, soft_gate(magnitudes, threshold, width))


def entropy(density: Array) -> Array:
    """``H(p) = -p log2 p - (1-p) log2(1-p)`` bits; at 0 and 1 it is 0 and so is its gradient."""
    xp = namespace(density)
    inside = (density > 0) & (density < 1)
    p = xp.where(inside, density, 0.5)
    return xp.where(inside, -p * xp.log2(p) - (1 - p) * xp.log2(1 - p), 0)


def size(density: Array, bits: Array) -> Array:
    """``H(rho) + rho b``: bits an entry when a share rho of the entries holds b bits each.

    What no coder of independent entries can beat, and what ours comes close to; for whole leaves
    and plain numbers that is ``ternary.entropy_bits``. Here it can be differentiated in both, and
    ``bits`` may be the mean ``sum_b pi_b b`` over widths of probability pi_b.

    Args:
      density: rho, from 0 to 1.
      bits: b; broadcasts against rho.

    Returns:
      Bits an entry of the whole leaf, kept or not.
    """
    return entropy(density) + density * bits
