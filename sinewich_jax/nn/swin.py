"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030) as a pyramid of four scales.

Any image size: the image is zero-padded on the right and bottom to a multiple of the patch, each
block pads its map to a multiple of the window, patch merging pads odd maps. Padding tokens take
part as keys, as in the transformers library. Features are cropped to the unpadded size.

Two partitions are offered where the literature disagrees. ``fit`` (default) is the original: where
a map is not larger than the window, the window becomes the smaller side and the shift is dropped.
``always`` is the backbone of the transformers library: the window never shrinks and shifted blocks
stay shifted. They differ only on maps that are not larger than one window.

Parameter names: ``patch_embed_proj``, ``patch_embed_norm``, ``stage{i}_block{j}/{norm1, qkv, proj,
bias_table, norm2, fc1, fc2}``, ``merge{i}/{norm, reduction}``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn.layers import Dense, Drop, LayerNorm, drop_path, trunc_normal
from sinewich_jax.nn.streams import each_task
from sinewich_jax.nn.task_kernel import TaskSpec

Array = jax.Array
Dtype = Any

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        patch_size=2, embed_dim=24, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=4, mlp_ratio=2.0
    ),
    "swin_t": dict(embed_dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "swin_s": dict(embed_dim=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
    "swin_b": dict(embed_dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    "swin_l": dict(embed_dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
}

# Which linear maps of a block carry the shared LoRA: all of them, except in the last block of a
# stage, where the task streams take over the MLP (specification of Free Sinewich, 6.1).
LORA_TARGETS = ("qkv", "proj", "fc1", "fc2")
LORA_TARGETS_LAST = ("qkv", "proj", "fc1")
TASK_TARGETS = ("fc1", "fc2")


def pad_to_multiple(x: Array, multiple: int) -> Array:
    """Zero-pads (B, H, W, C) on the right and bottom until H and W are multiples."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if not (bottom or right):
        return x
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def window_partition(x: Array, window: int) -> Array:
    """(B, H, W, C) to (B, windows, window * window, C); H and W are multiples of ``window``."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, window * window, c)


def window_reverse(x: Array, window: int, height: int, width: int) -> Array:
    """The inverse of :func:`window_partition`."""
    b, c = x.shape[0], x.shape[-1]
    x = x.reshape(b, height // window, width // window, window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, c)


@functools.lru_cache
def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Additive mask (windows, N, N): 0 within a region of the rolled map, -100 across."""
    region = np.zeros((height, width), np.int32)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            region[rows, columns] = 3 * i + j
    region = region.reshape(height // window, window, width // window, window)
    region = region.transpose(0, 2, 1, 3).reshape(-1, window * window)
    differs = region[:, :, None] != region[:, None, :]
    return np.where(differs, np.float32(-100.0), np.float32(0.0))


@functools.lru_cache
def relative_position_index(window: int, table_window: int) -> np.ndarray:
    """Row of the bias table for each pair of tokens, (N, N) with N = window^2.

    The table belongs to ``table_window``; a smaller window reads its centre.
    """
    y, x = np.divmod(np.arange(window * window), window)
    side = 2 * table_window - 1
    rows = y[:, None] - y[None, :] + table_window - 1
    columns = x[:, None] - x[None, :] + table_window - 1
    return rows * side + columns


class SwinBlock(nn.Module):
    """Windowed attention and an MLP, each with a residual; tasks may split in the MLP.

    Attributes:
      dim: channels C.
      heads: attention heads.
      window: side of the window for which the bias table is made.
      shifted: whether this block rolls its map by half a window.
      lora: names among ``qkv, proj, fc1, fc2`` that carry the shared LoRA.
      lora_rank: its rank.
      lora_scale: its multiplier.
      task: task kernels on fc1 and fc2, or None.
      task_axis: ``vmap`` (all tasks at once) or ``map`` (one after another, less memory).
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
    task: TaskSpec | None = None
    task_axis: str = "vmap"
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declares the block's six parts under the names of the module docstring."""
        hidden = int(self.dim * self.mlp_ratio)

        def dense(name: str, in_: int, out: int) -> Dense:
            return Dense(
                in_,
                out,
                lora_rank=self.lora_rank if name in self.lora else 0,
                lora_scale=self.lora_scale,
                task=self.task if name in TASK_TARGETS else None,
                dtype=self.dtype,
                name=name,
            )

        self.norm1 = LayerNorm(self.dim, dtype=self.dtype, name="norm1")
        self.qkv = dense("qkv", self.dim, 3 * self.dim)
        self.proj = dense("proj", self.dim, self.dim)
        self.bias_table = self.param(
            "bias_table", trunc_normal, ((2 * self.window - 1) ** 2, self.heads)
        )
        self.norm2 = LayerNorm(self.dim, dtype=self.dtype, name="norm2")
        self.fc1 = dense("fc1", self.dim, hidden)
        self.fc2 = dense("fc2", hidden, self.dim)

    def _window_and_shift(self, height: int, width: int) -> tuple[int, int]:
        window, shift = self.window, self.window // 2 if self.shifted else 0
        if self.partition == "fit" and min(height, width) <= window:
            return min(height, width), 0
        return window, shift

    def _attention(self, x: Array) -> Array:
        """Multi-head attention in windows: (B, H, W, C) to the same."""
        b, height, width, _ = x.shape
        window, shift = self._window_and_shift(height, width)
        x = pad_to_multiple(x, window)
        padded_height, padded_width = x.shape[1:3]
        if shift:
            x = jnp.roll(x, (-shift, -shift), axis=(1, 2))
        qkv = self.qkv(window_partition(x, window))
        tokens = window * window
        qkv = qkv.reshape(b, -1, tokens, 3, self.heads, self.dim // self.heads)
        query, key, value = jnp.moveaxis(qkv, 3, 0)
        query = query * (self.dim // self.heads) ** -0.5
        logits = jnp.einsum("bwnhd,bwmhd->bwhnm", query, key).astype(jnp.float32)
        index = relative_position_index(window, self.window).reshape(-1)
        bias = self.bias_table[index].reshape(tokens, tokens, self.heads)
        logits = logits + bias.transpose(2, 0, 1)[None, None]
        if shift:
            mask = shift_mask(padded_height, padded_width, window, shift)
            logits = logits + mask[None, :, None]
        attention = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        x = jnp.einsum("bwhnm,bwmhd->bwnhd", attention, value)
        x = self.proj(x.reshape(b, -1, tokens, self.dim))
        x = window_reverse(x, window, padded_height, padded_width)
        if shift:
            x = jnp.roll(x, (shift, shift), axis=(1, 2))
        return x[:, :height, :width]

    def attend(self, x: Array, drop: Drop | None = None) -> Array:
        """The attention half of the block with its residual."""
        return x + drop_path(self._attention(self.norm1(x)), drop and drop.fold(0))

    def mlp(self, x: Array, drop: Drop | None = None) -> Array:
        """The MLP half of the block with its residual, on the stream that all tasks share."""
        branch = self.fc2(nn.gelu(self.fc1(self.norm2(x)), approximate=False))
        return x + drop_path(branch, drop and drop.fold(1))

    def task_streams(
        self, x: Array, omega: Mapping[str, Array | None], drop: Drop | None = None
    ) -> Array:
        """The MLP half once for each task.

        Args:
          x: (B, H, W, C), the output of :meth:`attend`; it does not depend on the task.
          omega: frequencies (T,) of ``fc1`` and ``fc2``.
          drop: stochastic depth; a dropped example is dropped for every task.

        Returns:
          (S, B, H, W, C): one stream a task, or a single one where all tasks share the kernel.
        """
        y = self.norm2(x)
        kernels = self.fc1.task_kernels(omega["fc1"]), self.fc2.task_kernels(omega["fc2"])
        bias1, bias2 = self.fc1.task_bias(), self.fc2.task_bias()

        def stream(y: Array, kernels: tuple[Array, Array]) -> Array:
            first, second = kernels
            branch = nn.gelu(y @ first + bias1, approximate=False) @ second + bias2
            return x + drop_path(branch, drop and drop.fold(1))

        return each_task(stream, y, kernels, self.task_axis)

    def task_diagnostics(self, omega: Mapping[str, Array | None]) -> dict[str, Any]:
        """Diagnostics of the task kernels on fc1 and fc2."""
        return {
            name: getattr(self, name).task_kernel.diagnostics(omega[name]) for name in TASK_TARGETS
        }

    def __call__(self, x: Array, drop: Drop | None = None) -> Array:
        """The whole block on the shared stream, (B, H, W, C) to the same."""
        return self.mlp(self.attend(x, drop), drop)


class PatchMerging(nn.Module):
    """Halves the map: four neighbours side by side, layer norm, linear 4C to 2C without bias."""

    dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., H, W, C) to (..., ceil(H/2), ceil(W/2), 2C)."""
        lead = x.shape[:-3]
        x = pad_to_multiple(x.reshape(-1, *x.shape[-3:]), 2)
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = jnp.concatenate(parts, axis=-1)
        x = LayerNorm(4 * self.dim, dtype=self.dtype, name="norm")(x)
        x = Dense(4 * self.dim, 2 * self.dim, use_bias=False, dtype=self.dtype, name="reduction")(x)
        return x.reshape(*lead, *x.shape[1:])


class Swin(nn.Module):
    """A Swin backbone with, optionally, shared LoRA and task streams in each stage's last block.

    Attributes:
      embed_dim: channels of the first stage; stage i has ``embed_dim * 2**i``.
      depths: blocks of each stage.
      heads: attention heads of each stage.
      window: side of the attention window.
      patch_size: side of a patch.
      drop_path_rate: rate of the last block; the others grow linearly from 0.
      partition: ``fit`` or ``always``, see the module docstring.
      features: ``stage`` takes each stage's output before patch merging (C, 2C, 4C, 8C at strides
        p, 2p, 4p, 8p); ``merged`` takes it after merging (2C, 4C, 8C, 8C), as MTLoRA does.
      lora_rank: rank of the shared LoRA; 0 for none.
      task: rule of the task kernels; None for a backbone that all tasks share.
      scan: run a stage's block pairs through ``lax.scan`` (shorter compile of deep stages). The
        parameter tree does not change.
      remat: recompute blocks in the backward pass (less memory).
      dtype: compute dtype; parameters stay float32, norms and softmax are float32 inside.
      image_mean: mean of an image in [0, 1] that the caller subtracts; ImageNet's, as published
        Swin weights expect.
      image_std: what the caller then divides by.
    """

    image_mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    image_std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    patch_size: int = 4
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    partition: str = "fit"
    features: str = "stage"
    lora_rank: int = 0
    lora_scale: float = 4.0
    task: TaskSpec | None = None
    task_axis: str = "vmap"
    scan: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declares patch embedding, blocks and mergings."""
        self.patch_proj = Dense(
            3 * self.patch_size**2, self.embed_dim, dtype=self.dtype, name="patch_embed_proj"
        )
        self.patch_norm = LayerNorm(self.embed_dim, dtype=self.dtype, name="patch_embed_norm")
        blocks, merges = [], []
        for stage, depth in enumerate(self.depths):
            row = []
            for i in range(depth):
                last = i == depth - 1 and self.task is not None
                row.append(
                    SwinBlock(
                        self.embed_dim * 2**stage,
                        self.heads[stage],
                        window=self.window,
                        shifted=i % 2 == 1,
                        mlp_ratio=self.mlp_ratio,
                        partition=self.partition,
                        lora=LORA_TARGETS_LAST if last else LORA_TARGETS,
                        lora_rank=self.lora_rank,
                        lora_scale=self.lora_scale,
                        task=self.task if last else None,
                        task_axis=self.task_axis,
                        dtype=self.dtype,
                        name=f"stage{stage}_block{i}",
                    )
                )
            blocks.append(row)
            if stage < len(self.depths) - 1:
                merges.append(
                    PatchMerging(self.embed_dim * 2**stage, dtype=self.dtype, name=f"merge{stage}")
                )
        self.blocks, self.merges = blocks, merges

    @property
    def stride(self) -> int:
        """Pixels between neighbours of the finest feature."""
        return self.patch_size if self.features == "stage" else 2 * self.patch_size

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four features."""
        widths = [self.embed_dim * 2**i for i in range(len(self.depths))]
        return tuple(widths) if self.features == "stage" else (*widths[1:], widths[-1])

    @property
    def task_layers(self) -> tuple[str, ...]:
        """Names of the layers that own a task kernel, in order."""
        if self.task is None:
            return ()
        return tuple(f"stage{i}/{name}" for i in range(len(self.depths)) for name in TASK_TARGETS)

    @property
    def rates(self) -> np.ndarray:
        """Drop-path rate of each block, (sum(depths),) float32."""
        return np.linspace(0.0, self.drop_path_rate, sum(self.depths), dtype=np.float32)

    def embed(self, image: Array) -> Array:
        """Patch embedding: (B, H, W, 3) to (B, ceil(H/p), ceil(W/p), C)."""
        p = self.patch_size
        x = pad_to_multiple(image, p)
        b, h, w, c = x.shape
        x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        return self.patch_norm(self.patch_proj(x.reshape(b, h // p, w // p, p * p * c)))

    def __call__(
        self,
        image: Array,
        omega: Mapping[str, Array] | None = None,
        keys: Array | None = None,
    ) -> list[Array]:
        """The four features.

        Args:
          image: (B, H, W, 3), normalised.
          omega: frequencies (T,) for each name in :attr:`task_layers`; None without sine layers.
          keys: a PRNG key an example (B,) for drop path, or None to switch it off.

        Returns:
          Four arrays (S, B, h, w, C), finest first; S = T with task streams, 1 without.
        """
        if self.partition not in ("fit", "always"):
            raise ConfigError(
                f"unknown partition {self.partition!r}"
                f"{did_you_mean(self.partition, ('fit', 'always'))}"
            )
        x = self.embed(image.astype(self.dtype))
        omega = omega or {}
        drops: list[Drop | None] = [None] * sum(self.depths)
        if keys is not None and self.drop_path_rate > 0:
            drops = [Drop(rate, keys).fold(i) for i, rate in enumerate(self.rates)]
        features, first = [], 0
        for stage, blocks in enumerate(self.blocks):
            own = drops[first : first + len(blocks)]
            first += len(blocks)
            if self.task is None:
                x = self._shared_blocks(blocks, x, own)
                streams = x[None]
            else:
                *before, last = blocks
                y = last.attend(self._shared_blocks(before, x, own[:-1]), own[-1])
                frequencies = {name: omega.get(f"stage{stage}/{name}") for name in TASK_TARGETS}
                streams = last.task_streams(y, frequencies, own[-1])
                x = last.mlp(y, own[-1])
            if stage < len(self.merges):
                merge = self.merges[stage]
                features.append(streams if self.features == "stage" else merge(streams))
                x = merge(x)
            else:
                features.append(streams)
        return features

    def _shared_blocks(self, blocks: list[SwinBlock], x: Array, drops: list[Drop | None]) -> Array:
        """Runs blocks one after another, under scan and checkpoint where asked for."""
        if self.is_initializing() or not (self.scan or self.remat):
            for block, drop in zip(blocks, drops, strict=True):
                x = block(x, drop)
            return x

        # Pure functions of the blocks' own variables, so that JAX's transforms apply and the
        # parameter tree is the same with and without them.
        pure = [block.clone(parent=None, name=None) for block in blocks]
        inputs = [(block.variables, drop) for block, drop in zip(blocks, drops, strict=True)]

        def run(x: Array, group: Sequence[SwinBlock], rows: Sequence[Any]) -> Array:
            for block, (variables, drop) in zip(group, rows, strict=True):
                x = block.apply(variables, x, drop)
            return x

        def checkpointed(group: Sequence[SwinBlock]) -> Callable[[Array, Any], Array]:
            body = functools.partial(lambda group, x, rows: run(x, group, rows), tuple(group))
            return jax.checkpoint(body) if self.remat else body

        pairs = len(blocks) // 2 if self.scan and len(blocks) >= 4 else 0
        if pairs:
            steps = [tuple(inputs[2 * i : 2 * i + 2]) for i in range(pairs)]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
            body = checkpointed(pure[:2])
            x, _ = jax.lax.scan(lambda x, rows: (body(x, rows), None), x, stacked)
        for block, row in zip(pure[2 * pairs :], inputs[2 * pairs :], strict=True):
            x = checkpointed((block,))(x, (row,))
        return x

    def diagnostics(self, omega: Mapping[str, Array] | None) -> dict[str, Any]:
        """Diagnostics of every task layer, by the names of :attr:`task_layers`."""
        omega, report = omega or {}, {}
        for stage, blocks in enumerate(self.blocks if self.task is not None else ()):
            frequencies = {name: omega.get(f"stage{stage}/{name}") for name in TASK_TARGETS}
            for name, values in blocks[-1].task_diagnostics(frequencies).items():
                report[f"stage{stage}/{name}"] = values
        return report


def swin(name: str, **overrides: Any) -> Swin:
    """A Swin by preset name: ``tiny`` (ours) or ``swin_t``, ``swin_s``, ``swin_b``, ``swin_l``.

    Raises:
      ConfigError: for a name that is no preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown backbone {name!r}{did_you_mean(name, PRESETS)}")
    return Swin(**{**PRESETS[name], **overrides})
