"""The losses of multi-task learning, as functions of logits, labels and a validity mask.

All of them compute in float32 whatever they are given, average over what is valid (pixels, texts)
in the whole batch, are 0 with zero gradient when nothing is, and never read a label where it is
invalid (it may hold 255 or NaN there). Formulas of the dense ones: ASTMT (Maninis et al. 2019),
MTI-Net (Vandenhende et al. 2020) and ATRC (Bruggemann et al. 2021).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

NORM_FLOOR = 1e-4
"""Length below which a predicted normal counts as short; bounds the gradient by 1 / NORM_FLOOR."""


def masked_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of ``values`` where ``valid``, 0 when nothing is valid.

    Args:
      values: float32, any shape; finite also where invalid.
      valid: bool, the same shape.
    """
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    return jnp.sum(jnp.where(valid, values, 0.0)) / count


def cross_entropy(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
    """Softmax cross-entropy, mean over what is valid.

    Args:
      logits: [B, ..., C].
      label: integer [B, ...], class ids below C where valid.
      valid: bool [B, ...].
    """
    logits = logits.astype(jnp.float32)
    classes = jnp.arange(logits.shape[-1])
    # A comparison instead of a gather: its gradient needs no scatter, also when sharded.
    chosen = classes == jnp.where(valid, label, 0).astype(jnp.int32)[..., None]
    picked = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    return masked_mean(jax.nn.logsumexp(logits, axis=-1) - picked, valid)


def balanced_bce(
    logits: jax.Array,
    label: jax.Array,
    valid: jax.Array,
    positive_weight: float | None = None,
) -> jax.Array:
    """Class-balanced binary cross-entropy with logits.

    With w the weight of the positives, by default the fraction of negatives among the valid pixels
    of the batch: L = [w sum_pos softplus(-z) + (1 - w) sum_neg softplus(z)] / #valid.

    Args:
      logits: [B, H, W].
      label: [B, H, W], positive where >= 0.5.
      valid: bool [B, H, W].
      positive_weight: a fixed w in [0, 1]; None balances the batch.
    """
    logits = logits.astype(jnp.float32)
    positive = (label >= 0.5) & valid
    if positive_weight is None:
        weight = masked_mean(1.0 - positive.astype(jnp.float32), valid)
    else:
        weight = jnp.float32(positive_weight)
    costs = jnp.where(
        positive, weight * jax.nn.softplus(-logits), (1.0 - weight) * jax.nn.softplus(logits)
    )
    return masked_mean(costs, valid)


def soft_unit(vectors: jax.Array, floor: float = NORM_FLOOR) -> jax.Array:
    """v / sqrt(|v|^2 + floor^2): unit length for all but tiny vectors, smooth everywhere.

    The published v / (|v| + 1e-12) has a gradient of order 1e9 at a zero prediction; this one is
    bounded by 1 / floor there and differs by (floor / |v|)^2 / 2 elsewhere.

    Args:
      vectors: float32 [..., 3].
      floor: length below which the result shrinks towards zero.
    """
    return vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + floor**2)


def normals_l1(
    logits: jax.Array, label: jax.Array, valid: jax.Array, reduction: str = "entry"
) -> jax.Array:
    """L1 distance between the normalised prediction and the unit normal.

    Args:
      logits: [B, H, W, 3].
      label: [B, H, W, 3], unit vectors where valid.
      valid: bool [B, H, W].
      reduction: "entry" averages over the three components as well (MTI-Net, MTLoRA); "pixel" sums
        them (ATRC, InvPT), exactly three times as much.
    """
    target = jnp.where(valid[..., None], label.astype(jnp.float32), 0.0)
    distance = jnp.sum(jnp.abs(soft_unit(logits.astype(jnp.float32)) - target), axis=-1)
    return masked_mean(distance, valid) / (3.0 if reduction == "entry" else 1.0)


def normals_cosine(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
    """One minus the mean cosine between prediction and normal (MTAN, LibMTL).

    Args:
      logits: [B, H, W, 3].
      label: [B, H, W, 3], unit vectors where valid.
      valid: bool [B, H, W].
    """
    target = jnp.where(valid[..., None], label.astype(jnp.float32), 0.0)
    cosine = jnp.sum(soft_unit(logits.astype(jnp.float32)) * target, axis=-1)
    return masked_mean(1.0 - cosine, valid)


def depth_l1(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean absolute error of the raw output in metres: no activation, no logarithm.

    Args:
      logits: [B, H, W].
      label: [B, H, W], metres.
      valid: bool [B, H, W].
    """
    return masked_mean(jnp.abs(_error(logits, label, valid)), valid)


def depth_l2(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean squared error of the raw output, square metres: the square of the published RMSE.

    Where the network cannot tell a thin object from the wall behind it, the absolute error asks for
    the nearer guess of the two (the median), the squared one for their mean.

    Args:
      logits: [B, H, W].
      label: [B, H, W], metres.
      valid: bool [B, H, W].
    """
    return squared_error(logits, label, valid)


def squared_error(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean squared difference of output and label.

    Args:
      logits: [B, ...].
      label: [B, ...], numbers in units of the output.
      valid: bool [B, ...].
    """
    return masked_mean(_error(logits, label, valid) ** 2, valid)


def _error(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
    target = jnp.where(valid, label.astype(jnp.float32), 0.0)
    # Outside the mask zero and not the raw output, whose square could overflow.
    return jnp.where(valid, logits.astype(jnp.float32) - target, 0.0)
