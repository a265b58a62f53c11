"""Bottleneck adapters in a stage's last block: one a task, T stacked on one axis.

A block of Swin normalises before its halves, not behind them, so that BERT's placements
(:mod:`sinewich_jax.core.adapters`) do not carry over as they are. With A_t(v) = s (f(v D_t + d_t)
U_t + u_t), which has no residual in it, a = proj(attention(norm1(i))), x = i + a and
h = MLP(norm2(x)), the stream of task t is

    pfeiffer   x + h + A_t(h)                      the adapter reads what the MLP gives
    parallel   x + h + A_t(norm2(x))               ... what the MLP reads, beside it
    houlsby    x_t + h_t + A_t(h_t)                as pfeiffer, on a stream of the task's own:
               x_t = i + a + B_t(a), h_t = MLP(norm2(x_t))

There is no second use of a norm. Stochastic depth drops a half together with its adapter. With
``pfeiffer`` and ``parallel`` the MLP does not depend on the task and runs once; with ``houlsby``
tasks part behind the projection of attention, and norm2 and the MLP run once a task. The shared
stream, which goes on to the next stage, has no adapters. Where a block carries the shared LoRA, the
maps above have it.

Names differ: the code of Adapters Strike Back (Steitz and Roth 2024, arXiv 2406.06820) has the same
``houlsby``, calls our ``pfeiffer`` "intermediate", and lets its own Pfeiffer adapter read x + h and
its parallel one x.

Parameter names: ``task/{attention, mlp}/{down_kernel, down_bias, up_kernel, up_bias}`` with a
leading axis T, 2 d m + m + d numbers a task and place; ``attention`` with ``houlsby`` only.
Sources: Houlsby et al. (arXiv 1902.00751), Pfeiffer et al. (arXiv 2005.00247) and, for the parallel
placement, He et al. (arXiv 2110.04366).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core import adapters as core
from sinewich_jax.core.adapters import Bottleneck
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn.bert import ACTIVATIONS
from sinewich_jax.nn.blocks import Maps, SwinBlock
from sinewich_jax.nn.fusion import PLACEMENTS, STARTS, Adapters, Placement
from sinewich_jax.nn.layers import Drop, drop_path
from sinewich_jax.nn.streams import each_task

Array = jax.Array
Dtype = Any

PLACES = {"pfeiffer": ("mlp",), "houlsby": ("attention", "mlp"), "parallel": ("mlp",)}
"""The halves of a block that have an adapter, by placement."""


@dataclasses.dataclass(frozen=True)
class BottleneckSpec:
    """How tasks with a bottleneck adapter each differ.

    Activation, and scale and start where they are None, are those of the placement on an encoder
    of texts (:data:`~sinewich_jax.nn.fusion.PLACEMENTS`).

    Attributes:
      num_tasks: T.
      hidden: m, width of the bottlenecks.
      placement: one of :data:`PLACES`; the module docstring says what each means.
      start: one of :data:`~sinewich_jax.nn.fusion.STARTS`. ``zero`` leaves the network as it is:
        bit for bit with ``pfeiffer`` and ``parallel``; but for rounding with ``houlsby``, whose
        streams go through the MLP in one product of another shape.
      scale: s, the multiplier of what an adapter adds.
    """

    num_tasks: int
    hidden: int = 48
    placement: str = "pfeiffer"
    start: str | None = None
    scale: float | None = None
    reads_frequencies: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        """Rejects unknown words and an empty bottleneck."""
        if self.placement not in PLACES:
            raise ConfigError(
                f"unknown placement {self.placement!r}{did_you_mean(self.placement, PLACES)}"
            )
        if self.start is not None and self.start not in STARTS:
            raise ConfigError(f"unknown start {self.start!r}{did_you_mean(self.start, STARTS)}")
        if self.hidden < 1:
            raise ConfigError(
                f"hidden, the width of the bottlenecks, is {self.hidden}; expected at least 1"
            )

    @property
    def streams(self) -> int:
        """One a task."""
        return self.num_tasks

    @property
    def settings(self) -> Placement:
        """Those of the placement on an encoder of texts, but for what was given."""
        given = {"start": self.start, "scale": self.scale}
        kept = {name: value for name, value in given.items() if value is not None}
        return PLACEMENTS[self.placement]._replace(**kept)

    def update(self, x: Array, adapter: Bottleneck) -> Array:
        """What one task's adapter adds, (..., d), from what it reads, (..., d)."""
        settings = self.settings
        return core.bottleneck(x, adapter, ACTIVATIONS[settings.activation], settings.scale).up


class TaskAdapters(nn.Module):
    """The adapters of all tasks in one block.

    Attributes:
      spec: how many there are, where they stand and how they start.
      width: d, channels of the block.
      dtype: of the result.
    """

    spec: BottleneckSpec
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self) -> dict[str, Bottleneck]:
        """The adapters of each place, with a leading axis T."""
        spec, start = self.spec, self.spec.settings.start
        found = {
            place: Adapters(spec.num_tasks, self.width, spec.hidden, start, name=place)()
            for place in PLACES[spec.placement]
        }
        return jax.tree.map(lambda leaf: leaf.astype(self.dtype), found)


class BottleneckBlock(SwinBlock):
    """A stage's last block with an adapter for each task.

    Attributes:
      task: placement and size of the adapters.
      task_axis: ``vmap`` (all tasks at once) or ``map`` (one after another, less memory).
    """

    task: BottleneckSpec | None = None
    task_axis: str = "vmap"

    def setup(self) -> None:
        """Declares the block and the adapters of its tasks."""
        super().setup()
        self.adapters = TaskAdapters(self.task, self.dim, self.dtype, name="task")

    def split(
        self, maps: Maps, omega: Mapping[str, Array | None], drop: Drop | None = None
    ) -> tuple[Array, Maps]:
        """The block for every task, and for the stream that all share.

        Args:
          maps: what came in.
          omega: not read.
          drop: stochastic depth and the shared LoRA's dropout; the same for every task.

        Returns:
          (T, B, H, W, C), and what goes on to the next stage.

        Raises:
          ConfigError: an unknown ``task_axis``.
        """
        attended = self.attention(maps, drop)
        projected = self.project(attended, drop)
        x = self.add(maps.pixels, projected, drop, 0)
        made = self.feed_forward(x, drop)
        tokens = self.carry(maps.tokens, self.gather(attended))
        shared = Maps(self.add(x, made, drop, 1), tokens)

        first, late = drop and drop.fold(0), drop and drop.fold(1)
        update = self.task.update
        # Modules cannot be called under JAX's transforms; a pure function of their variables can.
        pure, variables = self.clone(parent=None, name=None), self.variables

        def after_one_mlp(read: Array, own: dict[str, Bottleneck]) -> Array:
            return x + drop_path(made + update(read, own["mlp"]), late)

        def from_attention_on(projected: Array, own: dict[str, Bottleneck]) -> Array:
            adapted = projected + update(projected, own["attention"])
            x = maps.pixels + drop_path(adapted, first)
            made = pure.apply(variables, x, drop, method="feed_forward")
            return x + drop_path(made + update(made, own["mlp"]), late)

        if self.task.placement == "houlsby":
            stream, read = from_attention_on, projected
        else:
            stream = after_one_mlp
            read = made if self.task.placement == "pfeiffer" else self.norm2(x)
        return each_task(stream, read, self.adapters(), self.task_axis), shared

    def task_diagnostics(self, omega: Mapping[str, Array | None]) -> dict[str, Any]:
        """None: no frequency is read, and an update that is not linear has no cosine."""
        return {}
