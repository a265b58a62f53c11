"""The clock: how each task gets its frequency.

A task owns a learnable token; one shared linear read-out turns it into a bounded scalar,

    omega_t = s * (tanh(w . relu(p_t) + o_t) + c),        s (c - 1) < omega_t < s (c + 1).

Keeping ``s > 0`` and ``c > 1`` keeps every frequency positive, which removes the sign ambiguity
``sin(-omega * M) = -sin(omega * M)``; both are therefore stored unconstrained and read through a
softplus. Only ratios of frequencies mean anything: ``(a * omega, M / a)`` is the same kernel.
Source: Free Sinewich (arXiv 2603.21111), "Clock Net"; the offsets ``o_t`` are ours and start the
tasks evenly spread, because random tokens alone leave them nearly equal.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from sinewich_jax.errors import ConfigError, SinewichError, did_you_mean

SCOPES = ("global", "stage", "layer")
"""How far one frequency table reaches: the whole model, one stage, one layer."""

KINDS = ("net", "free", "fixed")
"""Where frequencies come from: tokens through the clock net, T free scalars, T constants."""


def frequencies(
    tokens: jax.Array,
    weights: jax.Array,
    scale: jax.Array | float,
    shift: jax.Array | float,
    offset: jax.Array | float = 0.0,
    readout: jax.Array | None = None,
) -> jax.Array:
    """``omega_t = scale * (tanh(relu(p_t) @ weights + offset_t) + shift)``.

    With a ``readout`` the net has a hidden layer: ``tanh(relu(relu(p) @ weights) @ readout + o)``.

    Args:
      tokens: (T, C), the tokens ``p_t``.
      weights: (C,) or (C, 1), shared by the tasks; (C, h) with a readout.
      scale: ``s > 0``.
      shift: ``c > 1``.
      offset: (T,), constants ``o_t`` that spread the tasks at the start.
      readout: (h,), or None for the published single layer.

    Returns:
      (T,) frequencies between ``bounds(scale, shift)``.
    """
    if readout is not None:
        tokens, weights = jnp.matmul(jax.nn.relu(tokens), weights, precision="highest"), readout
    weights = jnp.asarray(weights)
    if weights.ndim == 2 and weights.shape[1] == 1:
        weights = weights[:, 0]
    if tokens.ndim != 2 or weights.shape != tokens.shape[1:]:
        raise SinewichError(
            f"the clock needs tokens (T, C) and weights (C,) or (C, 1), "
            f"found {tokens.shape} and {weights.shape}"
        )
    phase = jnp.matmul(jax.nn.relu(tokens), weights, precision="highest")
    return scale * (jnp.tanh(phase + offset) + shift)


def bounds(
    scale: jax.Array | float, shift: jax.Array | float
) -> tuple[jax.Array | float, jax.Array | float]:
    """The interval ``(s (c - 1), s (c + 1))`` that no frequency can leave (for ``s > 0``)."""
    return scale * (shift - 1), scale * (shift + 1)


def spread_offsets(tasks: int, extent: float = 0.8) -> jax.Array:
    """``atanh(linspace(-extent, extent, T))``: evenly spread frequencies while the net is silent.

    Args:
      tasks: T; a single task sits in the middle.
      extent: how much of the open range (-1, 1) of the tanh the tasks occupy.

    Returns:
      (T,) offsets ``o_t``, so that ``omega_t = s (c + linspace(-extent, extent, T)_t)``.
    """
    if tasks < 1 or not 0 <= extent < 1:
        raise SinewichError(
            f"spread offsets need at least one task and 0 <= extent < 1, found {tasks} and {extent}"
        )
    return jnp.arctanh(jnp.linspace(-extent, extent, tasks)) if tasks > 1 else jnp.zeros(1)


def spread_frequencies(
    tasks: int, scale: float, shift: float = 2.0, extent: float = 0.8
) -> jax.Array:
    """(T,) frequencies ``s (c + linspace(-extent, extent, T))``: where all three kinds start.

    Examples:
      >>> [round(float(omega), 2) for omega in spread_frequencies(3, scale=0.5)]
      [0.6, 1.0, 1.4]
    """
    return scale * (jnp.tanh(spread_offsets(tasks, extent)) + shift)


def positive(raw: jax.Array) -> jax.Array:
    """``softplus(raw) > 0``: how the scale ``s`` is stored."""
    return jax.nn.softplus(raw)


def positive_inverse(value: jax.Array | float) -> jax.Array:
    """The ``raw`` with ``positive(raw) == value``, for ``value > 0``."""
    value = jnp.asarray(value)
    return value + jnp.log(-jnp.expm1(-value))


def above_one(raw: jax.Array) -> jax.Array:
    """``1 + softplus(raw) > 1``: how the shift ``c`` is stored."""
    return 1 + jax.nn.softplus(raw)


def above_one_inverse(value: jax.Array | float) -> jax.Array:
    """The ``raw`` with ``above_one(raw) == value``, for ``value > 1``."""
    return positive_inverse(jnp.asarray(value) - 1)


def assign_clocks(scope: str, layers: Mapping[str, str]) -> dict[str, str]:
    """Which frequency table every adapted layer reads.

    Args:
      scope: one of :data:`SCOPES`.
      layers: the stage of each layer, ``{"stage0/block1/fc1": "stage0"}``.

    Returns:
      The name of the table of each layer: ``"global"``, its stage, or itself. The distinct values
      are the tables, each (T,), that a model has to hold.
    """
    if scope == "global":
        return dict.fromkeys(layers, "global")
    if scope == "stage":
        return dict(layers)
    if scope == "layer":
        return {layer: layer for layer in layers}
    raise ConfigError(f"unknown frequency scope {scope!r}{did_you_mean(scope, SCOPES)}")
