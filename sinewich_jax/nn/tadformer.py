"""TADFormer's last block of a stage: task tokens steer the tasks' streams through small filters.

    a_t = gelu(q_t . k)                               token-to-pixel products, per head
    m_t = a_t o                                       o, the attention of all before ``proj``
    u_t = norm(m_t + o)                               the task's stream
    f_t = W o + b + s filter_t(u_t D) U^T             D and U are those of the shared LoRA

in ``proj`` inside each window, and likewise in ``fc1`` and ``fc2`` on the whole map, where the
task's stream is its own. The stage gives ``sigmoid(g) m_t + (1 - sigmoid(g)) z_t``, z_t being the
block's output and g one learned number.

``filter`` is a 3 x 3 depthwise convolution of the r channels. ``dynamic`` (the paper): its taps
are made from the mean of what it filters, normalised over the nine taps of each channel; one
generator a layer serves all tasks. ``static`` (the authors' release): fixed taps for each task and
layer.
Source: Baek et al. 2025 (arXiv 2501.04293) and the authors' release.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn.blocks import Maps, SwinBlock
from sinewich_jax.nn.layers import Dense, Drop, drop_path

Array = jax.Array

TARGETS = ("proj", "fc1", "fc2")
FILTERS = ("dynamic", "static")


@dataclasses.dataclass(frozen=True)
class TADFormerSpec:
    """How TADFormer's tasks differ.

    Attributes:
      num_tasks: T.
      rank: r, of the shared LoRA whose factors the tasks' filters use.
      filter: ``dynamic`` or ``static``.
      released: read ``m_t`` in the skip as the authors' release does, channels and positions of
        each window exchanged without a transpose. Only for comparison with it.
    """

    num_tasks: int
    rank: int
    filter: str = "dynamic"
    released: bool = False
    reads_frequencies: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        """Rejects an unknown filter."""
        if self.filter not in FILTERS:
            raise ConfigError(f"unknown filter {self.filter!r}{did_you_mean(self.filter, FILTERS)}")

    @property
    def streams(self) -> int:
        """One a task."""
        return self.num_tasks


class DynamicFilter(nn.Module):
    """A 3 x 3 depthwise convolution whose taps depend on the map that it filters.

    Attributes:
      rank: channels r.
    """

    rank: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Filters (T, ..., h, w, r); every example (and window) and task has taps of its own."""
        width = 9 * self.rank
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.rank, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        std = self.param("std", nn.initializers.ones, (self.rank, 9))
        mean = self.param("mean", nn.initializers.zeros, (self.rank, 9))
        taps = jnp.mean(x, axis=(-3, -2)) @ kernel + bias
        taps = normalised_taps(taps.reshape(*taps.shape[:-1], self.rank, 9)) * std + mean
        return depthwise(x, jnp.moveaxis(taps, -1, 0)[..., None, None, :])


class StaticFilter(nn.Module):
    """A 3 x 3 depthwise convolution with bias for each task.

    Attributes:
      num_tasks: T.
      rank: channels r.
    """

    num_tasks: int
    rank: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Filters (T, ..., h, w, r), each task by its own taps."""
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=())
        kernel = self.param("kernel", init, (self.num_tasks, self.rank, 9, 1))[..., 0]
        bias = self.param("bias", nn.initializers.zeros, (self.num_tasks, self.rank))
        lead = (self.num_tasks, *[1] * (x.ndim - 2), self.rank)
        taps = jnp.moveaxis(kernel, -1, 0).reshape(9, *lead)
        return depthwise(x, taps) + bias.reshape(lead)


def normalised_taps(taps: Array) -> Array:
    """Nine taps (..., r, 9) of each channel to mean zero and (unbiased) deviation one."""
    centred = taps - jnp.mean(taps, axis=-1, keepdims=True)
    variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / 8
    # The square root has no gradient at zero, where all nine taps agree.
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    return centred / (deviation + 1e-10)


def depthwise(x: Array, taps: Array) -> Array:
    """Nine shifted products: x (..., h, w, r), taps (9, ..., 1, 1, r) row by row; zero padding."""
    height, width = x.shape[-3:-1]
    padded = jnp.pad(x, (*[(0, 0)] * (x.ndim - 3), (1, 1), (1, 1), (0, 0)))
    y = jnp.zeros_like(x)
    for i in range(9):
        row, column = divmod(i, 3)
        y = y + taps[i] * padded[..., row : row + height, column : column + width, :]
    return y


class TaskSteering(nn.Module):
    """What TADFormer adds to a stage's last block: three filters and a gate.

    Attributes:
      spec: kind of the filters.
    """

    spec: TADFormerSpec

    def setup(self) -> None:
        """Declares ``proj``, ``fc1``, ``fc2`` (filters) and ``gate`` ()."""
        for name in TARGETS:
            made = (
                DynamicFilter(self.spec.rank)
                if self.spec.filter == "dynamic"
                else StaticFilter(self.spec.num_tasks, self.spec.rank)
            )
            setattr(self, name, made)
        self.gate = self.param("gate", nn.initializers.zeros, ())

    def both(
        self,
        name: str,
        dense: Dense,
        shared: Array,
        tasks: Array,
        size: tuple[int, int],
        keys: Array | None = None,
    ) -> tuple[Array, Array]:
        """One linear map on the shared stream (..., N, C) and on those of the tasks (T, ..., N, C).

        Args:
          name: whose filter is used.
          dense: the map.
          shared: the shared stream.
          tasks: the tasks' streams.
          size: height and width of what the N positions are.
          keys: of the dropout on the shared stream; the tasks' own are not dropped.

        Returns:
          Both outputs.
        """
        frozen = dense.frozen(shared)
        low = tasks @ dense.lora_down.astype(dense.dtype)
        image = low.reshape(*low.shape[:-2], *size, low.shape[-1])
        low = getattr(self, name)(image).reshape(low.shape).astype(dense.dtype)
        update = dense.lora_scale * (low @ dense.lora_up.astype(dense.dtype).T)
        return frozen + dense.low_rank(dense.thin(shared, keys)), frozen + update

    def mix(self, skip: Array, streams: Array) -> Array:
        """``sigmoid(g) skip + (1 - sigmoid(g)) streams``."""
        share = jax.nn.sigmoid(self.gate).astype(streams.dtype)
        return share * skip + (1 - share) * streams


class TADFormerBlock(SwinBlock):
    """A stage's last block in TADFormer.

    Attributes:
      task: kind of the filters.
      task_axis: not read; all tasks are computed at once.
    """

    task: TADFormerSpec | None = None
    task_axis: str = "vmap"

    def setup(self) -> None:
        """Declares the block and what steers its tasks."""
        super().setup()
        self.steering = TaskSteering(self.task, name="task")

    def normalised_tokens(self, tokens: Array) -> Array:
        """Tokens pass the norm of the pixels here; ``token_norm`` is for the tasks' streams."""
        return self.norm1(tokens)

    def split(
        self, maps: Maps, omega: Mapping[str, Array | None], drop: Drop | None = None
    ) -> tuple[Array, Maps]:
        """The block for every task, and for the stream that all share.

        Args:
          maps: what came in, with one token a task.
          omega: not read.
          drop: stochastic depth; a dropped example is dropped for every task.

        Returns:
          (T, B, H, W, C), and what goes on to the next stage.
        """
        attended, steering = self.attention(maps, drop), self.steering
        mixed, frame = attended.pixels, attended.frame
        first, late = drop and drop.fold(0), drop and drop.fold(1)

        heads = mixed.reshape(*mixed.shape[:-1], self.heads, -1)
        weights = nn.gelu(attended.logits.astype(self.dtype), approximate=False)
        steered = jnp.einsum("bwhtn,bwnhd->tbwnhd", weights, heads)
        steered = steered.reshape(-1, *mixed.shape)
        window = (frame.window, frame.window)
        shared, tasks = steering.both(
            "proj",
            self.proj,
            mixed,
            self.prompt_norm(steered + mixed),
            window,
            self.keys("proj", drop),
        )
        join = jax.vmap(frame.join)

        def residual(x: Array, branch: Array, drop: Drop | None) -> Array:
            return x + drop_path(branch, drop)

        x = residual(maps.pixels, frame.join(shared), first)
        streams = jax.vmap(residual, (None, 0, None))(maps.pixels, join(tasks), first)
        hidden, own = self._flat("fc1", self.norm2(x), self.norm2(streams), drop)
        hidden, own = (nn.gelu(h, approximate=False) for h in (hidden, own))
        branch, branches = self._flat("fc2", hidden, own, drop)
        streams = jax.vmap(residual, (0, 0, None))(streams, branches, late)
        if self.task.released:
            # (N, C) read from memory laid out as (C, N), as the release does.
            steered = jnp.swapaxes(steered, -1, -2).reshape(steered.shape)
        tokens = self.carry(maps.tokens, self.gather(attended))
        return steering.mix(join(steered), streams), Maps(residual(x, branch, late), tokens)

    def _flat(
        self, name: str, shared: Array, tasks: Array, drop: Drop | None
    ) -> tuple[Array, Array]:
        """:meth:`TaskSteering.both` on whole maps (B, H, W, C) and (T, B, H, W, C)."""
        size = shared.shape[1:3]
        flat = (x.reshape(*x.shape[:-3], -1, x.shape[-1]) for x in (shared, tasks))
        keys = self.keys(name, drop)
        outputs = self.steering.both(name, getattr(self, name), *flat, size, keys)
        return tuple(y.reshape(*y.shape[:-2], *size, y.shape[-1]) for y in outputs)

    def task_diagnostics(self, omega: Mapping[str, Array | None]) -> dict[str, Any]:
        """None: the tasks' updates depend on the image."""
        return {}


class TokenBlock(SwinBlock):
    """A block before a stage's last in TADFormer, whose tokens pass the norm of the pixels.

    ``token_norm`` is declared and never read, as in the authors' release: their parameter count
    includes it.
    """

    def normalised_tokens(self, tokens: Array) -> Array:
        """The norm of the pixels."""
        if self.is_initializing():
            self.prompt_norm(tokens)
        return self.norm1(tokens)
