"""Dense heads of all tasks at once, with one frequency-switched convolution between them.

    x_t   = concat_i upsample(P_ti f_i)          per-task 1x1 projections of the four scales
    h_t   = relu(bn_t(K_t x_t + b_t))            K_t = lowpass(sin(omega_t * M)), M shared
    out_t = O_t h_t                              then bilinear to the size of the image

Source: Free Sinewich (arXiv 2603.21111), shared decoder group; the widths are HRNet's head as used
by MTLoRA. Without the sine (``base="shared"``) all tasks use M itself; ``independent`` gives each
its own matrix, which is the head of MTLoRA.
"""

from __future__ import annotations

import dataclasses
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core import sine
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn.resize import resize_bilinear

Array = jax.Array

BASES = ("sine", "shared", "independent")

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=-2, out_axis=-1)


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Widths and kind of the decoder.

    Attributes:
      channels: width of the projection of each scale, finest first.
      hidden: width of the shared convolution; None means four times that of its input.
      base: ``sine``, ``shared`` or ``independent``.
      lowpass: None or (size, sigma) of the Gaussian over the channel plane of the base kernel.
      position: append row and column of each pixel, in [-1, 1], to the concatenation (CoordConv,
        Liu et al. 2018): a Swin knows no absolute position, but depth and normals depend on it.
      mean_frequency: mean initial frequency, by which the start of the base kernel is divided.
    """

    channels: tuple[int, ...] = (18, 36, 72, 144)
    hidden: int | None = None
    base: str = "sine"
    lowpass: tuple[int, float] | None = None
    position: bool = False
    mean_frequency: float = 1.0

    def __post_init__(self) -> None:
        """Rejects an unknown base."""
        if self.base not in BASES:
            raise ConfigError(f"unknown decoder_base {self.base!r}{did_you_mean(self.base, BASES)}")

    @property
    def width(self) -> int:
        """Width of the concatenation."""
        return sum(self.channels) + 2 * self.position

    @property
    def hidden_width(self) -> int:
        """Width of the shared convolution."""
        return self.hidden or 4 * self.width


def _positions(like: Array) -> Array:
    """Row and column of each pixel in [-1, 1], (..., h, w, 2), for features (..., h, w, C)."""
    *lead, height, width, _ = like.shape
    rows, columns = jnp.linspace(-1.0, 1.0, height), jnp.linspace(-1.0, 1.0, width)
    grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
    return jnp.broadcast_to(grid.astype(like.dtype), (*lead, height, width, 2))


class Decoder(nn.Module):
    """Maps four features to one map a task.

    Attributes:
      in_channels: channels of the four features, finest first.
      heads: (task, output channels) in task order.
      spec: widths and kind.
      dtype: compute dtype; batch norm and the output layers are float32.
    """

    in_channels: tuple[int, ...]
    heads: tuple[tuple[str, int], ...]
    spec: DecoderSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: list[Array], omega: Array | None, *, train: bool = False
    ) -> dict[str, Array]:
        """Heads of all tasks.

        Args:
          features: four arrays (S, B, h, w, C), S = T or 1 (shared by all tasks).
          omega: (T,) frequencies of the shared convolution; read by ``base="sine"``.
          train: use and update batch statistics (over the whole global batch).

        Returns:
          ``{task: (B, h0, w0, channels)}`` float32 at the resolution of the finest feature.
        """
        chex.assert_rank(features, 5)
        spec, tasks = self.spec, len(self.heads)
        height, width = features[0].shape[2:4]
        if len(spec.channels) != len(features):
            raise ConfigError(
                f"decoder_channels needs one width for each of the {len(features)} scales, "
                f"found {spec.channels}"
            )
        scales = []
        for i, (feature, out) in enumerate(zip(features, spec.channels, strict=True)):
            kernel = self.param(f"project{i}", he_normal, (tasks, self.in_channels[i], out))
            kernel = kernel.astype(self.dtype)
            if feature.shape[0] == 1:
                projected = jnp.einsum("bhwc,tcd->tbhwd", feature[0], kernel)
            else:
                projected = jnp.einsum("tbhwc,tcd->tbhwd", feature, kernel)
            scales.append(resize_bilinear(projected, height, width))
        if spec.position:
            scales.append(_positions(scales[0]))
        x = jnp.concatenate(scales, axis=-1)
        bias = self.param("base_bias", nn.initializers.zeros, (tasks, spec.hidden_width))
        x = jnp.einsum("tbhwc,tcd->tbhwd", x, self._base_kernels(omega).astype(self.dtype))
        x = x + bias.astype(self.dtype)[:, None, None, None]
        x = nn.BatchNorm(
            use_running_average=not train,
            axis=(0, -1),
            momentum=0.9,
            epsilon=1e-5,
            dtype=jnp.float32,
            name="norm",
        )(x)
        x = nn.relu(x)
        outputs = {}
        for t, (task, channels) in enumerate(self.heads):
            kernel = self.param(f"output_{task}", he_normal, (spec.hidden_width, channels))
            bias = self.param(f"output_{task}_bias", nn.initializers.zeros, (channels,))
            outputs[task] = (x[t] @ kernel + bias).astype(jnp.float32)
        return outputs

    def _base_kernels(self, omega: Array) -> Array:
        """(T, width, hidden): the kernel of the shared convolution for every task."""
        spec, tasks = self.spec, len(self.heads)
        shape = (spec.width, spec.hidden_width)
        if spec.base == "independent":
            return self.param("base", he_normal, (tasks, *shape))
        if spec.base == "shared":
            kernel = self.param("base", he_normal, shape)
            return jnp.broadcast_to(kernel, (tasks, *shape))
        # sin(omega M) is a convolution of He's scale while omega M is small, so the draw is
        # divided by the mean frequency; batch norm makes up for the rest.
        std = math.sqrt(2.0 / spec.width) / spec.mean_frequency
        kernel = self.param("base", nn.initializers.normal(std), shape)[None, None]
        return jax.vmap(lambda w: sine.modulate(kernel, w, lowpass=spec.lowpass))(omega)[:, 0, 0]
