"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) as a pyramid of four scales.

Batch norm is folded into the convolutions and nothing of the backbone is meant to be trained: a
real ImageNet pyramid that is light enough for a laptop. Any image size; padding is TensorFlow's
``SAME`` (an odd extra pixel goes to the bottom and right), so a map of H pixels leaves a step of
stride 2 with ceil(H / 2).

Adapters: shared LoRA on every 1x1 expand and project convolution; the task kernel on the last
project convolution at each of the strides 4, 8, 16 and 32. There the task streams leave, while the
shared stream goes on along the plain path. The very last project convolution has no shared LoRA
beside its task kernel, since nothing reads the shared stream after it.

Parameter names: ``stem``, ``stage{i}_block{j}/{expand, depthwise, project}``, and with a classifier
``head`` and ``classifier``; each has a ``kernel`` and a ``bias``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core.trees import unflatten_paths
from sinewich_jax.errors import CheckpointError, ConfigError
from sinewich_jax.nn.convolutions import Conv, DepthwiseConv, relu6
from sinewich_jax.nn.layers import Dense, apply_kernel
from sinewich_jax.nn.quantised import load_quantised
from sinewich_jax.nn.streams import each_task
from sinewich_jax.nn.task_kernel import TaskSpec

Array = jax.Array
Dtype = Any

STEM = 32
HEAD = 1280
CLASSES = 1001
# (expansion, output channels, blocks, stride of the first): table 2 of the paper.
SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class BlockShape(NamedTuple):
    """The numbers of one inverted residual block."""

    in_features: int
    hidden: int
    features: int
    stride: int


def stages(
    settings: tuple[tuple[int, int, int, int], ...] = SETTINGS, stem: int = STEM
) -> tuple[tuple[BlockShape, ...], ...]:
    """The blocks of each stage; stage i ends with the last block at stride ``4 * 2**i``.

    Blocks at stride 2 open the first stage.

    Raises:
      ConfigError: when the strides do not make exactly four stages.
    """
    grouped: list[list[BlockShape]] = []
    width, stride = stem, 2
    for expansion, features, repeats, step in settings:
        for i in range(repeats):
            block = BlockShape(width, expansion * width, features, step if i == 0 else 1)
            if not grouped or (block.stride == 2 and stride > 2):
                grouped.append([])
            stride *= block.stride
            grouped[-1].append(block)
            width = features
    if stride != 32 or len(grouped) != 4:
        raise ConfigError(
            f"the settings end at stride {stride} with {len(grouped)} stages; expected strides 4, "
            f"8, 16 and 32, so four of the rows need stride 2 and the others 1"
        )
    return tuple(tuple(stage) for stage in grouped)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a residual where the shapes agree.

    Attributes:
      shape: widths and stride.
      lora_rank: rank of the shared LoRA on the expand convolution.
      project_rank: rank of the shared LoRA on the project convolution.
      task: task kernels on the project convolution, or None.
      task_axis: ``vmap`` or ``map``.
    """

    shape: BlockShape
    lora_rank: int = 0
    project_rank: int = 0
    lora_scale: float = 4.0
    lora_frequency: float | None = None
    task: TaskSpec | None = None
    task_axis: str = "vmap"
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declares the two or three convolutions; an expansion of one has no expand."""
        shape = self.shape
        common: dict[str, Any] = dict(
            lora_scale=self.lora_scale, lora_frequency=self.lora_frequency, dtype=self.dtype
        )
        if shape.hidden != shape.in_features:
            self.expand = Dense(
                shape.in_features, shape.hidden, lora_rank=self.lora_rank, name="expand", **common
            )
        self.depthwise = DepthwiseConv(
            shape.hidden, stride=shape.stride, dtype=self.dtype, name="depthwise"
        )
        self.project = Dense(
            shape.hidden,
            shape.features,
            lora_rank=self.project_rank,
            task=self.task,
            name="project",
            **common,
        )

    def hidden(self, x: Array) -> Array:
        """Everything before the project convolution; it does not depend on the task."""
        if self.shape.hidden != self.shape.in_features:
            x = relu6(self.expand(x))
        return relu6(self.depthwise(x))

    def _residual(self, x: Array, y: Array) -> Array:
        keeps_shape = self.shape.stride == 1 and self.shape.in_features == self.shape.features
        return x + y if keeps_shape else y

    def finish(self, x: Array, hidden: Array) -> Array:
        """The project convolution and the residual on the shared stream."""
        return self._residual(x, self.project(hidden))

    def task_streams(self, x: Array, hidden: Array, omega: Array | None) -> Array:
        """The same once for each task: (S, B, h, w, C), S = T or 1."""
        bias = self.project.task_bias()

        def stream(hidden: Array, kernel: Array) -> Array:
            return self._residual(x, apply_kernel(hidden, kernel, bias))

        return each_task(stream, hidden, self.project.task_kernels(omega), self.task_axis)

    def __call__(self, x: Array) -> Array:
        """The whole block on the shared stream."""
        return self.finish(x, self.hidden(x))

    def diagnostics(self, omega: Array | None) -> dict[str, Any]:
        """Diagnostics of the task kernel."""
        return self.project.task_kernel.diagnostics(omega)


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 with folded batch norm, adapters, and task streams at four strides.

    Attributes:
      settings: the table of blocks; smaller ones are for tests.
      stem: channels after the first convolution.
      lora_rank: rank of the shared LoRA; 0 for none.
      lora_scale: its multiplier.
      task: rule of the task kernels; None for a backbone that all tasks share.
      task_axis: ``vmap`` (all tasks at once) or ``map`` (one after another, less memory).
      num_classes: width of the classifier; 0 leaves it and the 1280-wide head out.
      dtype: compute dtype; parameters stay float32.
      image_mean: mean of an image in [0, 1] that the caller subtracts, and
      image_std: what the caller then divides by. Together they are the input scaling of the
        quantised network, ``(u8 - 127) * 0.00784313771873712``.
    """

    prompts: ClassVar[bool] = False  # Its task tokens only feed the clock.
    image_mean: ClassVar[tuple[float, ...]] = (127 / 255,) * 3
    image_std: ClassVar[tuple[float, ...]] = (1 / (255 * 0.00784313771873712),) * 3

    settings: tuple[tuple[int, int, int, int], ...] = SETTINGS
    stem: int = STEM
    lora_rank: int = 0
    lora_scale: float = 4.0
    lora_frequency: float | None = None
    task: TaskSpec | None = None
    task_axis: str = "vmap"
    num_classes: int = 0
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declares stem and blocks, and head and classifier where asked for."""
        self.stem_conv = Conv(3, self.stem, stride=2, dtype=self.dtype, name="stem")
        shapes = stages(self.settings, self.stem)
        grid = []
        for stage, row in enumerate(shapes):
            blocks = []
            for i, shape in enumerate(row):
                splits = i == len(row) - 1 and self.task is not None
                unread = splits and stage == len(shapes) - 1
                blocks.append(
                    InvertedResidual(
                        shape,
                        lora_rank=self.lora_rank,
                        project_rank=0 if unread else self.lora_rank,
                        lora_scale=self.lora_scale,
                        task=self.task if splits else None,
                        task_axis=self.task_axis,
                        dtype=self.dtype,
                        name=f"stage{stage}_block{i}",
                    )
                )
            grid.append(blocks)
        self.blocks = grid
        if self.num_classes:
            self.head = Dense(self.channels[-1], HEAD, dtype=self.dtype, name="head")
            self.classifier = Dense(HEAD, self.num_classes, dtype=self.dtype, name="classifier")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four features; (24, 32, 96, 320) by default."""
        return tuple(row[-1].features for row in stages(self.settings, self.stem))

    @property
    def stride(self) -> int:
        """Stride of the finest feature."""
        return 4

    @property
    def task_layers(self) -> tuple[str, ...]:
        """Names of the layers whose task kernels read frequencies, in order."""
        if self.task is None or not self.task.reads_frequencies:
            return ()
        return tuple(f"stage{i}/project" for i in range(4))

    def __call__(
        self,
        image: Array,
        omega: Mapping[str, Array] | None = None,
        keys: Array | None = None,
    ) -> list[Array]:
        """The four features.

        Args:
          image: (B, H, W, 3), normalised by ``image_mean`` and ``image_std``.
          omega: frequencies (T,) for each name in :attr:`task_layers`; None without sine layers.
          keys: not read; the network has no drop path. It is here to share Swin's interface.

        Returns:
          Four arrays (S, B, h, w, C), finest first, at strides 4, 8, 16, 32; S = T with task
          streams, 1 without.
        """
        omega, features = omega or {}, []
        for stage, (last, x, hidden, shared) in enumerate(self._stages(image)):
            if self.task is None:
                features.append(shared[None])
            else:
                features.append(last.task_streams(x, hidden, omega.get(f"stage{stage}/project")))
        return features

    def classify(self, image: Array) -> tuple[Array, Array]:
        """Logits (B, classes) and pooled feature (B, 1280) of the shared stream, float32.

        Raises:
          ConfigError: on a network that was made without a classifier.
        """
        if not self.num_classes:
            raise ConfigError(
                "this MobileNetV2 has num_classes=0 and cannot classify; make it with the number "
                f"of classes, {CLASSES} for the ImageNet weights"
            )
        *_, (_, _, _, x) = self._stages(image)
        pooled = jnp.mean(relu6(self.head(x)).astype(jnp.float32), axis=(1, 2))
        return self.classifier(pooled).astype(jnp.float32), pooled

    def _stages(self, image: Array) -> Iterator[tuple[InvertedResidual, Array, Array, Array]]:
        """For each stage its last block, that block's input, hidden map and shared output."""
        x = relu6(self.stem_conv(image))
        for *before, last in self.blocks:
            for block in before:
                x = block(x)
            hidden = last.hidden(x)
            shared = last.finish(x, hidden)
            yield last, x, hidden, shared
            x = shared

    def diagnostics(self, omega: Mapping[str, Array] | None) -> dict[str, Any]:
        """Diagnostics of every task layer, by the names of :attr:`task_layers`."""
        if self.task is None:
            return {}
        omega = omega or {}
        return {
            f"stage{stage}/project": blocks[-1].diagnostics(omega.get(f"stage{stage}/project"))
            for stage, blocks in enumerate(self.blocks)
        }


def load_mobilenet(path: str | os.PathLike[str], classifier: bool = False) -> dict[str, Any]:
    """The parameters of a quantised ImageNet MobileNetV2 1.0, for :class:`MobileNetV2`.

    Args:
      path: file in the format of :func:`~sinewich_jax.nn.quantised.load_quantised`.
      classifier: whether to return the head and the classifier as well.

    Returns:
      Nested dict of float32 NumPy arrays: the frozen part of ``variables["params"]``.

    Raises:
      CheckpointError: when the file is damaged or holds another network.
    """
    layers = load_quantised(path)
    names = list(_layer_shapes())
    if len(layers) != len(names):
        raise CheckpointError(
            f"{path} holds {len(layers)} convolutions, but MobileNetV2 1.0 has {len(names)}; name "
            "a file of that network"
        )
    flat: dict[str, Any] = {}
    for layer, (name, shape, stride) in zip(layers, names, strict=True):
        if layer.kernel.shape != shape or layer.stride != stride:
            raise CheckpointError(
                f"layer {layer.key} of {path} has a kernel {layer.kernel.shape} at stride "
                f"{layer.stride}, but {name} of MobileNetV2 1.0 needs {shape} at stride {stride}; "
                "name a file of that network"
            )
        if name in ("head", "classifier") and not classifier:
            continue
        # What a linear map applies to each pixel is stored as a 1 x 1 convolution.
        flat[f"{name}/kernel"] = layer.kernel[0, 0] if shape[:2] == (1, 1) else layer.kernel
        flat[f"{name}/bias"] = layer.bias
    return unflatten_paths(flat)


def _layer_shapes() -> Iterator[tuple[str, tuple[int, int, int, int], int]]:
    """Name, kernel shape (HWIO) and stride of each convolution, in execution order."""
    yield "stem", (3, 3, 3, STEM), 2
    for stage, row in enumerate(stages()):
        for i, block in enumerate(row):
            name = f"stage{stage}_block{i}"
            if block.hidden != block.in_features:
                yield f"{name}/expand", (1, 1, block.in_features, block.hidden), 1
            yield f"{name}/depthwise", (3, 3, 1, block.hidden), block.stride
            yield f"{name}/project", (1, 1, block.hidden, block.features), 1
    yield "head", (1, 1, stages()[-1][-1].features, HEAD), 1
    yield "classifier", (1, 1, HEAD, CLASSES), 1
