"""The blocks of a Swin: windowed attention and an MLP, and how tasks part ways in a stage's last.

A block maps :class:`Maps` to :class:`Maps`: the feature map that all tasks share and, where task
tokens take part (visual prompt tuning, Jia et al. 2022, arXiv 2203.12119), one token a task. Tokens
stand in front of the pixels of every window, attend and are attended to without position bias or
mask; what they gather is averaged over the windows, goes through the block's own MLP, and is added
to the tokens that came in (as in TADFormer; there is no residual around the attention).

Parameter names: ``{norm1, qkv, proj, bias_table, norm2, fc1, fc2}`` and, with tokens,
``token_norm``, the norm that tokens pass instead of ``norm1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.nn.layers import Dense, Drop, LayerNorm, apply_kernel, drop_path, trunc_normal
from sinewich_jax.nn.streams import each_task
from sinewich_jax.nn.task_kernel import TaskSpec
from sinewich_jax.nn.windows import Frame, pad_to_multiple, relative_position_index

Array = jax.Array
Dtype = Any

TASK_TARGETS = ("fc1", "fc2")
"""The linear maps that own a task kernel: the MLP of a stage's last block (specification, 6.1)."""

# What a block folds into its keys: 0 and 1 for the stochastic depth of its halves, then these.
_SALTS = {"qkv": 2, "proj": 3, "fc1": 4, "fc2": 5}


class Maps(NamedTuple):
    """What flows from block to block.

    Attributes:
      pixels: (B, H, W, C), the stream that all tasks share.
      tokens: (B, T, C), one token a task, or None.
    """

    pixels: Array
    tokens: Array | None = None


class Attended(NamedTuple):
    """Attention inside windows, before the output projection.

    Attributes:
      pixels: (B, W, N, C).
      tokens: (B, W, T, C), or None.
      logits: (B, W, heads, T, N), raw products of the tokens' queries with the pixels' keys (no
        scale, bias or mask), or None without tokens.
      frame: where the windows lie.
    """

    pixels: Array
    tokens: Array | None
    logits: Array | None
    frame: Frame


class SwinBlock(nn.Module):
    """Windowed attention and an MLP, each with a residual.

    Attributes:
      dim: channels C.
      heads: attention heads.
      window: side of the window for which the bias table is made.
      shifted: whether this block rolls its map by half a window.
      mlp_ratio: width of the MLP in units of C.
      partition: ``fit`` or ``always``, see :mod:`sinewich_jax.nn.swin`.
      lora: names among ``qkv, proj, fc1, fc2`` that carry the shared LoRA.
      lora_rank: its rank.
      lora_scale: its multiplier.
      lora_frequency: None, or the fixed frequency of Sine-LoRA.
      lora_dropout: dropout on what the shared updates read of the pixels; tokens are not dropped.
      token_norm: whether task tokens take part, and so need a norm.
      dtype: compute dtype.
    """

    dim: int
    heads: int
    window: int = 7
    shifted: bool = False
    mlp_ratio: float = 4.0
    partition: str = "fit"
    lora: tuple[str, ...] = ()
    lora_rank: int = 0
    lora_scale: float = 4.0
    lora_frequency: float | None = None
    lora_dropout: float = 0.0
    token_norm: bool = False
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declares the block's parts under the names of the module docstring."""
        hidden = int(self.dim * self.mlp_ratio)
        self.norm1 = LayerNorm(self.dim, dtype=self.dtype, name="norm1")
        if self.token_norm:
            self.prompt_norm = LayerNorm(self.dim, dtype=self.dtype, name="token_norm")
        self.qkv = self.dense("qkv", self.dim, 3 * self.dim)
        self.proj = self.dense("proj", self.dim, self.dim)
        self.bias_table = self.param(
            "bias_table", trunc_normal, ((2 * self.window - 1) ** 2, self.heads)
        )
        self.norm2 = LayerNorm(self.dim, dtype=self.dtype, name="norm2")
        self.fc1 = self.dense("fc1", self.dim, hidden)
        self.fc2 = self.dense("fc2", hidden, self.dim)

    def dense(self, name: str, in_features: int, features: int) -> Dense:
        """One of the block's four linear maps."""
        return Dense(
            in_features,
            features,
            lora_rank=self.lora_rank if name in self.lora else 0,
            lora_scale=self.lora_scale,
            lora_frequency=self.lora_frequency,
            lora_dropout=self.lora_dropout,
            task=self.task_part(name),
            dtype=self.dtype,
            name=name,
        )

    def task_part(self, name: str) -> TaskSpec | None:
        """The rule by which tasks differ in a linear map; none in an ordinary block."""
        return None

    # --- attention ------------------------------------------------------------------------------

    def frame(self, height: int, width: int) -> Frame:
        """The windows of a map of this size."""
        window, shift = self.window, self.window // 2 if self.shifted else 0
        if self.partition == "fit" and min(height, width) <= window:
            return Frame(height, width, min(height, width), 0)
        return Frame(height, width, window, shift)

    def normalised_tokens(self, tokens: Array) -> Array:
        """What the tokens pass before they attend."""
        return self.prompt_norm(tokens)

    def attention(self, maps: Maps, drop: Drop | None = None) -> Attended:
        """Multi-head attention in windows, up to the output projection."""
        frame = self.frame(*maps.pixels.shape[1:3])
        windows = frame.cut(self.norm1(maps.pixels))
        positions = windows.shape[2]
        query, key, value = self._heads(self.qkv(windows, self.keys("qkv", drop)))
        logits = _products(query, key)
        index = relative_position_index(frame.window, self.window).reshape(-1)
        bias = self.bias_table[index].reshape(positions, positions, self.heads)
        logits = logits + bias.transpose(2, 0, 1)[None, None]
        mask = frame.mask()
        if mask is not None:
            logits = logits + mask[None, :, None]
        if maps.tokens is None:
            return Attended(self._mix(logits, value), None, None, frame)

        # A token is the same in front of every window, so its query, key and value are too.
        tokens = self.normalised_tokens(maps.tokens)
        own = self._heads(self.qkv(tokens)[:, None])
        own_query, own_key, own_value = (
            jnp.broadcast_to(x, (*windows.shape[:2], *x.shape[2:])) for x in own
        )
        values = jnp.concatenate([own_value, value], axis=2)
        to_tokens = _products(query, own_key)
        pixels = self._mix(jnp.concatenate([to_tokens, logits], axis=-1), values)
        seen = _products(own_query, key)
        gathered = self._mix(
            jnp.concatenate([_products(own_query, own_key), seen], axis=-1), values
        )
        return Attended(pixels, gathered, seen * (self.dim // self.heads) ** 0.5, frame)

    def _heads(self, qkv: Array) -> tuple[Array, Array, Array]:
        """(B, W, N, 3C) to query (scaled), key and value, each (B, W, N, heads, C / heads)."""
        width = self.dim // self.heads
        qkv = qkv.reshape(*qkv.shape[:-1], 3, self.heads, width)
        query, key, value = jnp.moveaxis(qkv, 3, 0)
        return query * width**-0.5, key, value

    def _mix(self, logits: Array, values: Array) -> Array:
        """Softmax over the last axis of logits (B, W, heads, N, M), then the sum of the values."""
        attention = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bwhnm,bwmhd->bwnhd", attention, values)
        return mixed.reshape(*mixed.shape[:3], self.dim)

    # --- the two halves -------------------------------------------------------------------------

    def attend(self, maps: Maps, drop: Drop | None = None) -> Maps:
        """The attention half: pixels with their residual; tokens are only what they gathered."""
        attended = self.attention(maps, drop)
        pixels = self.add(maps.pixels, self.project(attended, drop), drop, 0)
        return Maps(pixels, self.gather(attended))

    def project(self, attended: Attended, drop: Drop | None = None) -> Array:
        """What attention adds to the pixels, (B, H, W, C), before the residual."""
        return attended.frame.join(self.proj(attended.pixels, self.keys("proj", drop)))

    def gather(self, attended: Attended) -> Array | None:
        """What the tokens saw, averaged over the windows and projected, (B, T, C).

        The projection is linear, so its mean over the windows is the projection of the mean.
        """
        if attended.tokens is None:
            return None
        return self.proj(jnp.mean(attended.tokens, axis=1))

    def mlp(self, x: Array, drop: Drop | None = None) -> Array:
        """The MLP half on the shared stream, with its residual."""
        return self.add(x, self.feed_forward(x, drop), drop, 1)

    def feed_forward(self, x: Array, drop: Drop | None = None) -> Array:
        """What the MLP adds to a stream (..., C), its norm included, before the residual."""
        hidden = nn.gelu(self.fc1(self.norm2(x), self.keys("fc1", drop)), approximate=False)
        return self.fc2(hidden, self.keys("fc2", drop))

    def carry(self, tokens: Array | None, gathered: Array | None) -> Array | None:
        """The tokens that leave the block: those that came in, plus the MLP of what they saw."""
        return None if tokens is None else tokens + self.feed_forward(gathered)

    def keys(self, name: str, drop: Drop | None) -> Array | None:
        """The keys (B,) of a linear map's dropout."""
        return None if drop is None or not self.lora_dropout else drop.fold(_SALTS[name]).keys

    def add(self, x: Array, branch: Array, drop: Drop | None, half: int) -> Array:
        """A residual with stochastic depth; ``half`` is 0 for attention and 1 for the MLP."""
        return x + drop_path(branch, drop and drop.fold(half))

    def __call__(self, maps: Maps, drop: Drop | None = None) -> Maps:
        """The whole block on the stream that all tasks share."""
        seen = self.attend(maps, drop)
        return Maps(self.mlp(seen.pixels, drop), self.carry(maps.tokens, seen.tokens))


def _products(query: Array, key: Array) -> Array:
    """(B, W, N, heads, D) and (B, W, M, heads, D) to float32 (B, W, heads, N, M)."""
    return jnp.einsum("bwnhd,bwmhd->bwhnm", query, key).astype(jnp.float32)


class KernelBlock(SwinBlock):
    """A stage's last block: the MLP runs once a task, each time under the task's own kernels.

    Attributes:
      task: the rule of the kernels on ``fc1`` and ``fc2``.
      task_axis: ``vmap`` (all tasks at once) or ``map`` (one after another, less memory).
    """

    task: TaskSpec | None = None
    task_axis: str = "vmap"

    def task_part(self, name: str) -> TaskSpec | None:
        """The task kernels sit on the two maps of the MLP."""
        return self.task if name in TASK_TARGETS else None

    def split(
        self, maps: Maps, omega: Mapping[str, Array | None], drop: Drop | None = None
    ) -> tuple[Array, Maps]:
        """The block for every task, and for the stream that all share.

        Args:
          maps: what came in; it does not depend on the task.
          omega: frequencies (T,) of ``fc1`` and ``fc2``; None where no rule reads them.
          drop: stochastic depth; a dropped example is dropped for every task.

        Returns:
          (S, B, H, W, C), one stream a task or a single one where all tasks share the kernel, and
          what goes on to the next stage.
        """
        seen = self.attend(maps, drop)
        streams = self._streams(seen.pixels, omega, drop)
        return streams, Maps(self.mlp(seen.pixels, drop), self.carry(maps.tokens, seen.tokens))

    def _streams(
        self, x: Array, omega: Mapping[str, Array | None], drop: Drop | None = None
    ) -> Array:
        y = self.norm2(x)
        kernels = self.fc1.task_kernels(omega["fc1"]), self.fc2.task_kernels(omega["fc2"])
        bias1, bias2 = self.fc1.task_bias(), self.fc2.task_bias()
        late = drop and drop.fold(1)

        def stream(y: Array, kernels: tuple[Array, Array]) -> Array:
            first, second = kernels
            hidden = nn.gelu(apply_kernel(y, first, bias1), approximate=False)
            return x + drop_path(apply_kernel(hidden, second, bias2), late)

        return each_task(stream, y, kernels, self.task_axis)

    def task_diagnostics(self, omega: Mapping[str, Array | None]) -> dict[str, Any]:
        """Diagnostics of the task kernels on fc1 and fc2."""
        return {
            name: getattr(self, name).task_kernel.diagnostics(omega[name]) for name in TASK_TARGETS
        }


class PatchMerging(nn.Module):
    """Halves the map: four neighbours side by side, layer norm, linear 4C to 2C without bias.

    Attributes:
      dim: channels C of what comes in.
      lora_rank: rank of a LoRA on the linear map, 0 for none (MTLoRA+ has one).
      lora_scale: its multiplier.
      lora_dropout: dropout on what it reads.
      dtype: compute dtype.
    """

    dim: int
    lora_rank: int = 0
    lora_scale: float = 4.0
    lora_dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None) -> Array:
        """(..., H, W, C) to (..., ceil(H/2), ceil(W/2), 2C); keys need (B, H, W, C)."""
        lead = x.shape[:-3]
        x = pad_to_multiple(x.reshape(-1, *x.shape[-3:]), 2)
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = jnp.concatenate(parts, axis=-1)
        x = LayerNorm(4 * self.dim, dtype=self.dtype, name="norm")(x)
        x = Dense(
            4 * self.dim,
            2 * self.dim,
            use_bias=False,
            lora_rank=self.lora_rank,
            lora_scale=self.lora_scale,
            lora_dropout=self.lora_dropout,
            dtype=self.dtype,
            name="reduction",
        )(x, keys)
        return x.reshape(*lead, *x.shape[1:])
