"""Frequency switching: one low-rank kernel, and a sine that turns it into a kernel per task.

    M      = A W B^T                     fused first: one shared (k, k, in, out) kernel
    M_t    = sin(omega_t * M)            element by element; full rank although M is not
    M~_t   = lowpass(M_t) / gain         a Gaussian over the channel plane, optional

Fusing before the sine is essential: ``sin(A) sin(W) sin(B)^T`` keeps the rank of the factors.
Whether the tasks really get different kernels depends on the modulation index
``mu_t = omega_t * std(M)``: well below one the sine is a straight line and all tasks share one
direction. The start decides this in practice, so there are two: the published zero start (A = 0)
and the anchored start, ``sin(omega_t M) - sin(omega_t M_0)`` with M = M_0 at first, which is
exactly the frozen network and switches from the first step.

Kernels are HWIO, as ``jax.lax.conv_general_dilated`` takes them. A task axis is ``jax.vmap`` over
``omega``, with the kernel un-batched. Arithmetic is in float32 at least, whatever the factors are.
Source: Free Sinewich (arXiv 2603.21111); exact shapes, gain and the anchor are our reconstruction.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from sinewich_jax.core import trig
from sinewich_jax.core.lowpass import LowPass, gaussian_lowpass, gaussian_taps
from sinewich_jax.core.spectrum import (
    at_least_float32,
    effective_rank,
    gaussian_cosine_law,
    gaussian_update_cosine_law,
    kernel_cosine,
    kernel_matrix,
    mean_pairwise_cosine,
    modulation_index,
    numeric_rank,
    stable_rank,
)
from sinewich_jax.errors import SinewichError

__all__ = [
    "KERNEL_SIZES",
    "LowPass",
    "anchor_factors",
    "anchored",
    "awb_kernel",
    "centre_tap",
    "effective_rank",
    "fold",
    "gaussian_cosine_law",
    "gaussian_lowpass",
    "gaussian_taps",
    "gaussian_update_cosine_law",
    "kernel_cosine",
    "kernel_matrix",
    "mean_pairwise_cosine",
    "modulate",
    "modulation_index",
    "numeric_rank",
    "stable_rank",
    "zero_factors",
]

KERNEL_SIZES = (1, 3, 5, 7)
"""The spatial sizes k that ``W`` may have."""


# --- the kernel ---------------------------------------------------------------------------------


def awb_kernel(up: jax.Array, conv: jax.Array | None, down: jax.Array) -> jax.Array:
    """``M[u, v, i, o] = sum_ab A[o, a] W[u, v, b, a] B[i, b]``: the factors fused to one kernel.

    Convolving with M is the same as projecting down with B, convolving with W in the r channels and
    projecting up with A.

    Args:
      up: A (out, r).
      conv: W, depthwise (k, k, r) or full (k, k, r, r) in HWIO; None for k = 1 without W.
      down: B (in, r).

    Returns:
      M (k, k, in, out), in the dtype of the factors, float32 at least.
    """
    _check_factors(up, conv, down)
    dtype = at_least_float32(up, down, *(() if conv is None else (conv,)))
    up, down = up.astype(dtype), down.astype(dtype)
    if conv is None:
        return jnp.einsum("ir,or->io", down, up, precision="highest")[None, None]
    rule = "uvr,ir,or->uvio" if conv.ndim == 3 else "uvba,ib,oa->uvio"
    return jnp.einsum(rule, conv.astype(dtype), down, up, precision="highest")


def modulate(
    kernel: jax.Array,
    omega: jax.Array | float,
    gain: float = 1.0,
    lowpass: LowPass | tuple | None = None,
) -> jax.Array:
    """``M~_t = lowpass(sin(omega_t * M)) / gain``: the kernel of the task with frequency omega_t.

    Every entry is at most ``1 / gain`` in size, whatever training does to M.

    Args:
      kernel: M (k, k, in, out).
      omega: a scalar; ``jax.vmap(modulate, (None, 0))`` gives the kernels of all tasks.
      gain: usually ``sqrt(in * k * k)``.
      lowpass: None, or :class:`LowPass`, or ``(size, sigma)``.

    Returns:
      (k, k, in, out), float32 at least; cast it to the compute dtype afterwards.
    """
    omega, kernel = _operands(omega, kernel)
    return _filtered(trig.sin(omega * kernel), gain, lowpass)


def anchored(
    kernel: jax.Array,
    anchor: jax.Array,
    omega: jax.Array | float,
    gain: float = 1.0,
    lowpass: LowPass | tuple | None = None,
) -> jax.Array:
    """``modulate(M) - modulate(M_0)``: nothing at the start, and yet at full modulation.

    Computed as ``2 cos(omega (M + M_0) / 2) sin(omega (M - M_0) / 2)``, which is the same by the
    sum rule but exactly 0.0 where ``M == M_0``, however a compiler reorders or fuses it, and loses
    no digits while M is still near its anchor. ``d/dM = omega cos(omega M)`` does not vanish there.

    Args:
      kernel: M (k, k, in, out), trained.
      anchor: M_0 (k, k, in, out), frozen; the start of M.
      omega: a scalar; vmap over it for all tasks.
      gain: as in :func:`modulate`.
      lowpass: as in :func:`modulate`.

    Returns:
      (k, k, in, out), float32 at least.
    """
    if kernel.shape != anchor.shape:
        raise SinewichError(
            f"kernel and anchor need one shape, found {kernel.shape} and {anchor.shape}"
        )
    omega, kernel, anchor = _operands(omega, kernel, anchor)
    half = omega / 2
    difference = 2 * trig.cos(half * (kernel + anchor)) * trig.sin(half * (kernel - anchor))
    return _filtered(difference, gain, lowpass)


def fold(frozen: jax.Array, update: jax.Array, scale: float = 1.0) -> jax.Array:
    """The frozen kernel with ``scale`` times a task's update added: one task as plain weights.

    Args:
      frozen: a dense kernel (in, out), or (k0, k0, in, out) with k0 odd.
      update: (k, k, in, out), from :func:`modulate` or :func:`anchored`.
      scale: the adapter's scale.

    Returns:
      (in, out) if ``frozen`` is dense and k = 1, else (K, K, in, out) with K = max(k0, k); the
      smaller of the two sits in the centre, which is right for "same" padding and stride 1.
    """
    dense = frozen.ndim == 2 and update.shape[0] == 1
    if frozen.ndim == 2:
        frozen = frozen[None, None]
    if frozen.shape[2:] != update.shape[2:] or frozen.shape[0] % 2 == 0:
        raise SinewichError(
            f"cannot fold an update {update.shape} into a kernel {frozen.shape}: channels must "
            f"agree and the spatial size must be odd"
        )
    size = max(frozen.shape[0], update.shape[0])
    folded = _centred(frozen, size) + scale * _centred(update, size)
    return folded[0, 0] if dense else folded


# --- where the factors start --------------------------------------------------------------------


def zero_factors(
    key: jax.Array, out_dim: int, in_dim: int, rank: int
) -> tuple[jax.Array, jax.Array]:
    """The published start: A (out, r) zero, B (in, r) uniform(-1/sqrt(in), 1/sqrt(in)).

    The model is then the frozen one for every omega, and ``d loss / d omega = 0``: the frequencies
    do not move before A does. (The bound is kaiming-uniform with a = sqrt(5), as LoRA uses it.)
    """
    bound = 1 / math.sqrt(in_dim)
    return jnp.zeros((out_dim, rank)), jax.random.uniform(key, (in_dim, rank), None, -bound, bound)


def anchor_factors(
    key: jax.Array, out_dim: int, in_dim: int, rank: int, std: float
) -> tuple[jax.Array, jax.Array]:
    """The anchored start: normal factors of ``M_0``, scaled so that ``std(A B^T)`` is ``std``.

    With frequencies of mean one, ``std`` is the mean modulation index mu itself (mu = 2 is the
    measured optimum on real images); in general pass ``std = mu / mean(omega)``. Only the key need
    be stored: the same key gives the same anchor.

    Args:
      key: a PRNG key.
      out_dim: rows of A.
      in_dim: rows of B.
      rank: r.
      std: the standard deviation of the entries of ``A B^T``, met up to rounding.

    Returns:
      A (out, r) and B (in, r), float32.
    """
    up_key, down_key = jax.random.split(key)
    up = jax.random.normal(up_key, (out_dim, rank))
    down = jax.random.normal(down_key, (in_dim, rank))
    factor = jnp.sqrt(std / jnp.std(awb_kernel(up, None, down)))
    return factor * up, factor * down


def centre_tap(size: int, rank: int, *, full: bool = False) -> jax.Array:
    """The W at the start: the identity at the centre tap, so that ``A W B^T`` is ``A B^T`` there.

    Args:
      size: k, one of :data:`KERNEL_SIZES`.
      rank: r.
      full: (k, k, r, r) instead of depthwise (k, k, r).

    Returns:
      W, float32.
    """
    _check_size(size)
    identity = jnp.eye(rank) if full else jnp.ones(rank)
    return _centred(identity[None, None], size)


# --- shared by the above ------------------------------------------------------------------------


def _filtered(kernel: jax.Array, gain: float, lowpass: LowPass | tuple | None) -> jax.Array:
    return (kernel if lowpass is None else gaussian_lowpass(kernel, *lowpass)) / gain


def _operands(omega: jax.Array | float, *kernels: jax.Array) -> list[jax.Array]:
    if jnp.ndim(omega) != 0:
        raise SinewichError(
            f"omega must be a scalar, found shape {jnp.shape(omega)}; use jax.vmap over the tasks"
        )
    dtype = at_least_float32(*kernels)
    return [jnp.asarray(x, dtype) for x in (omega, *kernels)]


def _centred(kernel: jax.Array, size: int) -> jax.Array:
    margin = (size - kernel.shape[0]) // 2
    return jnp.pad(kernel, [(margin, margin)] * 2 + [(0, 0)] * (kernel.ndim - 2))


def _check_size(size: int) -> None:
    if size not in KERNEL_SIZES:
        raise SinewichError(f"the kernel size must be one of {KERNEL_SIZES}, found {size}")


def _check_factors(up: jax.Array, conv: jax.Array | None, down: jax.Array) -> None:
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[1]:
        raise SinewichError(
            f"the factors must be up (out, r) and down (in, r), found {up.shape} and {down.shape}"
        )
    if conv is None:
        return
    rank = up.shape[1]
    if conv.ndim not in (3, 4) or conv.shape[0] != conv.shape[1] or {*conv.shape[2:]} != {rank}:
        raise SinewichError(
            f"conv must be (k, k, {rank}) or (k, k, {rank}, {rank}) for factors of rank {rank}, "
            f"found {conv.shape}"
        )
    _check_size(conv.shape[0])
