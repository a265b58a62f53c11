"""The Clock Net as a module: frequencies for every layer that switches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core import clock
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn.layers import trunc_normal
from sinewich_jax.nn.tokens import task_tokens

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
      token_dim: width of the task tokens, where they are the clock's own.
      hidden: width of a hidden layer of each net; None for the published single layer. With it
        the decoder has no net of its own and reads the table of the last task layer.
      offsets: where each task starts, ``o_t`` in ``s (tanh(o_t) + c)``; None spreads them evenly.
    """

    num_tasks: int
    kind: str = "net"
    scope: str = "global"
    scale: float = 0.5
    shift: float = 2.0
    token_dim: int = 24
    hidden: int | None = None
    offsets: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Rejects words that name no clock."""
        if self.offsets is not None and len(self.offsets) != self.num_tasks:
            raise ConfigError(
                f"config key 'clock_offsets' has {len(self.offsets)} numbers, expected one for "
                f"each of the {self.num_tasks} tasks"
            )
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

    def spread(self) -> Array:
        """The offsets ``o_t``, (T,)."""
        if self.offsets is None:
            return clock.spread_offsets(self.num_tasks)
        return jnp.asarray(self.offsets, jnp.float32)


class Clock(nn.Module):
    """Frequencies (T,) for each of ``layers``.

    Attributes:
      spec: kind, scope and range.
      layers: names of the layers that switch; the part before the first slash is the stage.
    """

    spec: ClockSpec
    layers: tuple[str, ...]

    @nn.compact
    def __call__(self, lifted: Sequence[Array] | None = None) -> dict[str, Array]:
        """The frequencies.

        Args:
          lifted: the tokens at the width of every stage, (T, C_i) each, if the tasks' tokens live
            in the backbone; None for tokens of the clock's own.

        Returns:
          One (T,) array a layer; layers of one scope share the same array.
        """
        spec = self.spec
        stages = {layer: layer.split("/")[0] for layer in self.layers}
        table_of = clock.assign_clocks(spec.scope, stages)
        if spec.hidden and "decoder" in table_of and len(self.layers) > 1:
            table_of["decoder"] = table_of[self.layers[-2]]
        if spec.kind == "net" and lifted is None:
            shape = (spec.num_tasks, spec.token_dim)
            lifted = [self.param("tokens", task_tokens, shape)]
        tables = {}
        for name in dict.fromkeys(table_of.values()):
            key = name.replace("/", "_")
            if spec.kind == "net":
                tables[name] = self._net(key, _tokens_of(name, lifted))
                continue
            start = spec.scale * (jnp.tanh(spec.spread()) + spec.shift)
            if spec.kind == "free":
                start = self.param(f"omega_{key}", lambda _, start=start: start)
            tables[name] = start
        return {layer: tables[table] for layer, table in table_of.items()}

    def _net(self, key: str, tokens: Array) -> Array:
        spec, width = self.spec, tokens.shape[1]
        shape = (width, spec.hidden) if spec.hidden else (width,)
        readout = None
        weights = self.param(f"weights_{key}", trunc_normal, shape)
        if spec.hidden:
            readout = self.param(f"readout_{key}", trunc_normal, (spec.hidden,))
        return clock.frequencies(
            tokens,
            weights,
            clock.positive(self._scalar(f"scale_{key}", clock.positive_inverse, spec.scale)),
            clock.above_one(self._scalar(f"shift_{key}", clock.above_one_inverse, spec.shift)),
            spec.spread(),
            readout,
        )

    def _scalar(self, name: str, inverse, value: float) -> Array:
        return self.param(name, lambda _: inverse(value).astype(jnp.float32))


def _tokens_of(table: str, lifted: Sequence[Array]) -> Array:
    """The tokens that a table reads: those of its stage; the decoder's are those of the last."""
    stage = table.split("/")[0].removeprefix("stage")
    if len(lifted) == 1 or table == "global":
        return lifted[0]
    return lifted[int(stage)] if stage.isdigit() else lifted[-1]
