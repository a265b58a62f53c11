"""The Clock Net as a module: frequencies for every layer that switches."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core import clock
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn.layers import trunc_normal

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ClockSpec:
    """Where frequencies come from and how many tables of them there are.

    Attributes:
      num_tasks: T.
      kind: ``net`` (learned tokens read by one linear map), ``free`` (T learned scalars) or
        ``fixed`` (constants); all three start at the same evenly spread frequencies.
      scope: ``global`` (one table for the model), ``stage`` or ``layer``.
      scale: initial s; frequencies stay within ``(s (c - 1), s (c + 1))``.
      shift: initial c.
      token_dim: width of the task tokens.
    """

    num_tasks: int
    kind: str = "net"
    scope: str = "global"
    scale: float = 0.5
    shift: float = 2.0
    token_dim: int = 24

    def __post_init__(self) -> None:
        """Rejects words that name no clock."""
        if self.kind not in clock.KINDS:
            raise ConfigError(f"unknown clock {self.kind!r}{did_you_mean(self.kind, clock.KINDS)}")
        if self.scope not in clock.SCOPES:
            raise ConfigError(
                f"unknown frequency_scope {self.scope!r}{did_you_mean(self.scope, clock.SCOPES)}"
            )

    @property
    def mean_frequency(self) -> float:
        """Mean of the initial frequencies."""
        return self.scale * self.shift


def _ones_around(mean: float, std: float) -> nn.initializers.Initializer:
    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return mean + std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return init


class Clock(nn.Module):
    """Frequencies (T,) for each of ``layers``.

    Attributes:
      spec: kind, scope and range.
      layers: names of the layers that switch; the part before the first slash is the stage.
    """

    spec: ClockSpec
    layers: tuple[str, ...]

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """One (T,) array a layer; layers of one scope share the same array."""
        spec = self.spec
        stages = {layer: layer.split("/")[0] for layer in self.layers}
        table_of = clock.assign_clocks(spec.scope, stages)
        if spec.kind == "net":
            # Mean and standard deviation one, as the tokens of the method's ancestor.
            shape = (spec.num_tasks, spec.token_dim)
            tokens = self.param("tokens", _ones_around(1.0, 1.0), shape)
        tables = {}
        for name in dict.fromkeys(table_of.values()):
            key = name.replace("/", "_")
            if spec.kind == "net":
                tables[name] = clock.frequencies(
                    tokens,
                    self.param(f"weights_{key}", trunc_normal, (spec.token_dim,)),
                    clock.positive(
                        self._scalar(f"scale_{key}", clock.positive_inverse, spec.scale)
                    ),
                    clock.above_one(
                        self._scalar(f"shift_{key}", clock.above_one_inverse, spec.shift)
                    ),
                    clock.spread_offsets(spec.num_tasks),
                )
                continue
            start = clock.spread_frequencies(spec.num_tasks, spec.scale, spec.shift)
            if spec.kind == "free":
                start = self.param(f"omega_{key}", lambda _, start=start: start)
            tables[name] = start
        return {layer: tables[table] for layer, table in table_of.items()}

    def _scalar(self, name: str, inverse, value: float) -> Array:
        return self.param(name, lambda _: inverse(value).astype(jnp.float32))
