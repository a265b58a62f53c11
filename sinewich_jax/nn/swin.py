"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030) as a pyramid of four scales.

Any image size: the image is zero-padded on the right and bottom to a multiple of the patch, each
block pads its map to a multiple of the window, patch merging pads odd maps. Padding tokens take
part as keys, as in the transformers library. Features are cropped to the unpadded size.

Two partitions are offered where the literature disagrees. ``fit`` (default) is the original: where
a map is not larger than the window, the window becomes the smaller side and the shift is dropped.
``always`` is the backbone of the transformers library: the window never shrinks and shifted blocks
stay shifted. They differ only on maps that are not larger than one window.

Parameter names: ``patch_embed_proj``, ``patch_embed_norm``, ``stage{i}_block{j}/...`` (see
:mod:`sinewich_jax.nn.blocks`), ``merge{i}/{norm, reduction}``.
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
from sinewich_jax.nn.blocks import TASK_TARGETS, KernelBlock, Maps, PatchMerging, SwinBlock
from sinewich_jax.nn.bottleneck import BottleneckBlock, BottleneckSpec
from sinewich_jax.nn.layers import Dense, Drop, LayerNorm
from sinewich_jax.nn.mtlora import MTLoRABlock, MTLoRASpec
from sinewich_jax.nn.tadformer import TADFormerBlock, TADFormerSpec, TokenBlock
from sinewich_jax.nn.task_kernel import TaskSpec
from sinewich_jax.nn.windows import pad_to_multiple

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
# stage, where the task streams take over the MLP (specification of Free Sinewich, 6.1). The peers
# keep it there.
LORA_TARGETS = ("qkv", "proj", "fc1", "fc2")
LORA_TARGETS_LAST = ("qkv", "proj", "fc1")

Task = TaskSpec | MTLoRASpec | TADFormerSpec | BottleneckSpec

# By the kind of task part: the last block of a stage, the blocks before it, and which maps of the
# last carry the shared LoRA.
BLOCKS: dict[type, tuple[type[SwinBlock], type[SwinBlock], tuple[str, ...]]] = {
    TaskSpec: (KernelBlock, SwinBlock, LORA_TARGETS_LAST),
    MTLoRASpec: (MTLoRABlock, SwinBlock, LORA_TARGETS),
    TADFormerSpec: (TADFormerBlock, TokenBlock, LORA_TARGETS),
    BottleneckSpec: (BottleneckBlock, SwinBlock, LORA_TARGETS),
}


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
      lora_scale: its multiplier.
      lora_frequency: None, or the fixed frequency of Sine-LoRA.
      lora_dropout: rate of dropout on the inputs of the shared LoRA.
      lora_merging: whether patch merging carries the shared LoRA as well (MTLoRA+).
      task: how the tasks part in the last block of each stage; None for a backbone that all share.
      task_axis: ``vmap`` or ``map`` over the tasks.
      prompts: task tokens take part in the attention of every window; they come with the image.
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
    lora_frequency: float | None = None
    lora_dropout: float = 0.0
    lora_merging: bool = False
    task: Task | None = None
    task_axis: str = "vmap"
    prompts: bool = False
    scan: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declares patch embedding, blocks and mergings."""
        self.patch_proj = Dense(
            3 * self.patch_size**2, self.embed_dim, dtype=self.dtype, name="patch_embed_proj"
        )
        self.patch_norm = LayerNorm(self.embed_dim, dtype=self.dtype, name="patch_embed_norm")
        last_block, block, lora_last = BLOCKS.get(type(self.task), (None, SwinBlock, ()))
        blocks, merges = [], []
        for stage, depth in enumerate(self.depths):
            dim = self.embed_dim * 2**stage
            common: dict[str, Any] = dict(
                dim=dim,
                heads=self.heads[stage],
                window=self.window,
                mlp_ratio=self.mlp_ratio,
                partition=self.partition,
                lora_rank=self.lora_rank,
                lora_scale=self.lora_scale,
                lora_frequency=self.lora_frequency,
                lora_dropout=self.lora_dropout,
                token_norm=self.prompts,
                dtype=self.dtype,
            )
            row = []
            for i in range(depth):
                name, shifted = f"stage{stage}_block{i}", i % 2 == 1
                if last_block is None or i < depth - 1:
                    row.append(block(lora=LORA_TARGETS, shifted=shifted, name=name, **common))
                else:
                    own = {"task": self.task, "task_axis": self.task_axis}
                    row.append(
                        last_block(lora=lora_last, shifted=shifted, name=name, **own, **common)
                    )
            blocks.append(row)
            if stage < len(self.depths) - 1:
                rank = self.lora_rank if self.lora_merging else 0
                merges.append(
                    PatchMerging(
                        dim,
                        rank,
                        self.lora_scale,
                        self.lora_dropout,
                        dtype=self.dtype,
                        name=f"merge{stage}",
                    )
                )
        self.blocks, self.merges = blocks, merges

    @property
    def stride(self) -> int:
        """Pixels between neighbours of the finest feature."""
        return self.patch_size if self.features == "stage" else 2 * self.patch_size

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four features."""
        widths = self.widths
        return widths if self.features == "stage" else (*widths[1:], widths[-1])

    @property
    def task_layers(self) -> tuple[str, ...]:
        """Names of the layers whose task kernels read frequencies, in order."""
        if self.task is None or not self.task.reads_frequencies:
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
        tokens: tuple[Array, Sequence[Array]] | None = None,
    ) -> list[Array]:
        """The four features.

        Args:
          image: (B, H, W, 3), normalised.
          omega: frequencies (T,) for each name in :attr:`task_layers`; None without sine layers.
          keys: a PRNG key an example (B,) for drop path and dropout, or None to switch them off.
          tokens: with ``prompts``, one token a task (T, C) and the matrices (C, 2C), (2C, 4C), ...
            that lift them where pixels are merged.

        Returns:
          Four arrays (S, B, h, w, C), finest first; S = T with task streams, 1 without.
        """
        if self.partition not in ("fit", "always"):
            raise ConfigError(
                f"unknown partition {self.partition!r}"
                f"{did_you_mean(self.partition, ('fit', 'always'))}"
            )
        start, lifts = tokens or (None, None)
        pixels = self.embed(image.astype(self.dtype))
        if start is not None:
            start = jnp.broadcast_to(start.astype(self.dtype), (pixels.shape[0], *start.shape))
        maps = Maps(pixels, start)
        omega = omega or {}
        drops: list[Drop | None] = [None] * sum(self.depths)
        if self.drop_path_rate == 0 and self.lora_dropout == 0:
            keys = None
        if keys is not None:
            drops = [Drop(rate, keys).fold(i) for i, rate in enumerate(self.rates)]
        features, first = [], 0
        for stage, blocks in enumerate(self.blocks):
            own = drops[first : first + len(blocks)]
            first += len(blocks)
            if self.task is None:
                maps = self._shared_blocks(blocks, maps, own)
                streams = maps.pixels[None]
            else:
                *before, last = blocks
                maps = self._shared_blocks(before, maps, own[:-1])
                frequencies = {name: omega.get(f"stage{stage}/{name}") for name in TASK_TARGETS}
                streams, maps = last.split(maps, frequencies, own[-1])
            if stage < len(self.merges):
                # The same entries are dropped for all streams.
                own_keys = None if keys is None else Drop(0.0, keys).fold(len(drops) + stage).keys
                merge = functools.partial(self.merges[stage], keys=own_keys)
                # Stream by stream: a product over all streams at once would sum in another order,
                # and an untouched task would differ from the frozen backbone in the last bit.
                merged = self.features == "merged"
                features.append(jnp.stack([merge(x) for x in streams]) if merged else streams)
                lifted = None if lifts is None else maps.tokens @ lifts[stage].astype(self.dtype)
                maps = Maps(merge(maps.pixels), lifted)
            else:
                features.append(streams)
        return features

    def _shared_blocks(self, blocks: list[SwinBlock], x: Maps, drops: list[Drop | None]) -> Maps:
        """Runs blocks one after another, under scan and checkpoint where asked for."""
        if self.is_initializing() or not (self.scan or self.remat):
            for block, drop in zip(blocks, drops, strict=True):
                x = block(x, drop)
            return x

        # Pure functions of the blocks' own variables, so that JAX's transforms apply and the
        # parameter tree is the same with and without them.
        pure = [block.clone(parent=None, name=None) for block in blocks]
        inputs = [(block.variables, drop) for block, drop in zip(blocks, drops, strict=True)]

        def run(x: Maps, group: Sequence[SwinBlock], rows: Sequence[Any]) -> Maps:
            for block, (variables, drop) in zip(group, rows, strict=True):
                x = block.apply(variables, x, drop)
            return x

        def checkpointed(group: Sequence[SwinBlock]) -> Callable[[Maps, Any], Maps]:
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
        """Diagnostics of every layer with a task kernel, ``stage{i}/{name}``."""
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
