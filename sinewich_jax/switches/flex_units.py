"""The learned numbers of a FlexSwitch-style switch, what they make of a task vector, and back.

The equations are in :mod:`sinewich_jax.switches.flex`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.core import quantise
from sinewich_jax.core.select import keep_count, kth_largest
from sinewich_jax.core.ternary import pack_bits
from sinewich_jax.switches.leaf import LeafSwitch

Array = Any

_LEAST = 1e-3  # of a first threshold, in root mean squares: softplus has no inverse at 0
_TINY = 1e-30  # an unchanged leaf has nothing to divide by


class Units(NamedTuple):
    """What is learned, for all U leaves side by side.

    Attributes:
      threshold: float32 (U,); t = rms(tau) softplus(threshold).
      scale: float32 (U,); c = exp(scale).
      widths: float32 (U, widths), the logits z.
    """

    threshold: Array
    scale: Array
    widths: Array


class Known(NamedTuple):
    """What is fixed of one leaf; its levels too: what is kept always has the largest entry in it.

    Attributes:
      tau: float32, the task vector.
      rms: float32 (), its root mean square.
      levels: uint8 (widths, *shape), the level of every entry at each width.
    """

    tau: Array
    rms: Array
    levels: Array


def know(tau: np.ndarray, widths: Sequence[int]) -> Known:
    """The constants of a leaf of at least one entry."""
    magnitudes = np.abs(tau)
    planes = [
        quantise.levels(magnitudes, quantise.step_size(magnitudes, bits), bits) for bits in widths
    ]
    rms = np.sqrt(np.mean(np.square(tau), dtype=np.float64))
    return Known(tau, np.float32(rms), np.stack(planes).astype(np.uint8))


def start(known: Sequence[Known], density: float, widths: int) -> Units:
    """Thresholds that keep about ``density``, scales of least squares, no preferred width."""
    thresholds = np.ones(len(known), np.float32)
    for i, leaf in enumerate(known):
        if leaf.rms > 0:
            count = keep_count(leaf.tau.size, density)
            last = kth_largest(np.abs(leaf.tau), count) / leaf.rms
            thresholds[i] = max(_LEAST, 0.999 * last)  # a little below, so that it is kept
    raw = jnp.asarray(np.log(np.expm1(thresholds)))  # the inverse of softplus
    return Units(raw, jnp.zeros(len(known)), jnp.zeros((len(known), widths)))


def stored_bits(bits: int) -> int:
    """Bits that an active entry takes: levels that are all 1 need no planes (2 bits are 1)."""
    return 1 if quantise.top_level(bits) == 1 else bits


def changes(
    units: Units, known: Mapping[str, Known], widths: Sequence[int], temperature: Array
) -> tuple[dict[str, Array], Array]:
    """The change tau' of each leaf by its path, and the bits a parameter of all of them.

    Hard values with soft gradients: an entry that is not kept says what keeping it would do.
    """
    likeliest = jax.nn.one_hot(jnp.argmax(units.widths, axis=1), len(widths))
    pi = quantise.straight_through(likeliest, jax.nn.softmax(units.widths / temperature))
    scales, thresholds = jnp.exp(units.scale), jax.nn.softplus(units.threshold)
    moved, densities = {}, []
    for i, (path, (tau, rms, levels)) in enumerate(known.items()):
        magnitudes, axes = jnp.abs(tau), tuple(range(1, levels.ndim))
        softness = jnp.maximum(temperature * rms, _TINY)
        gate = quantise.hard_gate(magnitudes, rms * thresholds[i], softness)
        whole = levels.astype(jnp.float32)
        # A leaf of which nothing is kept has a knob too, or it could not come back.
        kept = jax.lax.stop_gradient(jnp.where(jnp.any(gate > 0), gate, 1))
        knobs = pi[i] * quantise.best_knob(magnitudes, kept * whole, axes)
        value = jnp.sum(knobs.reshape((-1,) + (1,) * tau.ndim) * whole, axis=0)
        moved[path] = scales[i] * jnp.sign(tau) * gate * value
        densities.append(jnp.mean(gate * (whole > 0), axis=axes))
    bits = quantise.size(jnp.stack(densities), np.float32([stored_bits(b) for b in widths]))
    sizes = np.float32([leaf.tau.size for leaf in known.values()])
    return moved, sizes / sizes.sum() @ jnp.sum(pi * bits, axis=1)


def export(
    units: Units, known: Mapping[str, Known], widths: Sequence[int]
) -> dict[str, LeafSwitch]:
    """The leaves with hard gates and their likeliest widths, in NumPy.

    The knob is that of least squares times the learned scale c. Without c the norm of what was
    dropped is missing: at few bits the student then is hardly better than the base.
    """
    packed = {}
    thresholds = np.asarray(jax.nn.softplus(units.threshold))
    for i, (path, leaf) in enumerate(known.items()):
        place = int(np.argmax(units.widths[i]))
        planes = stored_bits(widths[place]) - 1
        magnitudes = np.abs(leaf.tau)
        whole = leaf.levels[place] * (magnitudes > leaf.rms * thresholds[i])
        knob = np.exp(units.scale[i]) * quantise.best_knob(magnitudes, whole.astype(np.float32))
        bits = whole.ravel()
        packed[path] = LeafSwitch(
            mask=pack_bits(bits),
            sign=pack_bits((bits > 0) & (leaf.tau.ravel() > 0)),
            knob=np.asarray(knob, np.float32),
            levels=pack_bits(bits >> np.arange(planes, dtype=np.uint8)[:, None] & 1),
            shape=leaf.tau.shape,
        )
    return packed
