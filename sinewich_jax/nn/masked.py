"""Masked-image pretraining of a Swin: hide patches and colour, predict the picture.

Source of the idea: SimMIM (Xie et al. 2022, arXiv 2111.09886): hidden patches are replaced by one
learned token, a light head predicts raw pixels, the loss is L1. Here the head reads all four
scales, so that each of them is trained, and half of the pictures also lose their colour. Pictures
that are shown whole go through the same network in the same pass; :mod:`sinewich_jax.nn.parallax`
says what their depth is good for.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.nn.decoder import he_normal
from sinewich_jax.nn.resize import resize_bilinear
from sinewich_jax.nn.swin import Swin

Array = jax.Array


class Corruption(NamedTuple):
    """What was taken from a batch of pictures.

    Attributes:
      hidden: (B, H, W) bool, pixels whose patch was replaced by the mask token.
      grey: (B,) bool, pictures shown without colour.
    """

    hidden: Array
    grey: Array


def draw_corruption(
    key: Array, batch: int, height: int, width: int, unit: int = 8, ratio: float = 0.5
) -> Corruption:
    """Hides ``ratio`` of the ``unit`` x ``unit`` blocks and the colour of half of the pictures."""
    blocks_key, grey_key = jax.random.split(key)
    rows, columns = -(-height // unit), -(-width // unit)
    score = jax.random.uniform(blocks_key, (batch, rows * columns))
    rank = jnp.argsort(jnp.argsort(score, axis=1), axis=1)
    blocks = (rank < round(ratio * rows * columns)).reshape(batch, rows, columns)
    hidden = jnp.repeat(jnp.repeat(blocks, unit, axis=1), unit, axis=2)[:, :height, :width]
    return Corruption(hidden, jax.random.bernoulli(grey_key, 0.5, (batch,)))


class Output(NamedTuple):
    """What the network says.

    Attributes:
      picture: (B, H, W, 3), normalised, the corrupted pictures as they were.
      log_depth: (N, H, W), log of metres over :attr:`MaskedAutoencoder.typical_depth`, for the
        pictures that were shown whole; None when there were none.
    """

    picture: Array
    log_depth: Array | None


class MaskedAutoencoder(nn.Module):
    """A Swin with a mask token, a pixel head, and a depth head for pictures shown whole.

    Attributes:
      backbone: the Swin to pretrain; only its parameters are kept afterwards.
      width: width of the heads.
      typical_depth: metres that an output of zero stands for.
    """

    backbone: Swin
    width: int = 48
    typical_depth: float = 4.5

    @nn.compact
    def __call__(self, image: Array, corruption: Corruption, whole: Array | None = None) -> Output:
        """Looks at corrupted and at whole pictures in one pass.

        Args:
          image: (B, H, W, 3) normalised, to be corrupted and predicted.
          corruption: what is taken from them.
          whole: (N, H, W, 3) normalised, shown as they are; their depth is predicted.
        """
        grey = jnp.mean(image, axis=-1, keepdims=True)
        shown = jnp.where(corruption.grey[:, None, None, None], grey, image)
        # As varied as a pixel: the embedding of a nearly grey token would be divided by next to
        # nothing in the norm that follows, and its gradient would drown all the others.
        token = self.param("mask_token", nn.initializers.normal(1.0), (3,))
        shown = jnp.where(corruption.hidden[..., None], token, shown)
        if whole is not None:
            shown = jnp.concatenate([shown, whole])
        features = [feature[0] for feature in self.backbone(shown)]
        count, height, width = image.shape[:3]
        p = self.backbone.stride

        x = self._head("pixels", [f[:count] for f in features], p * p * 3)
        h, w = x.shape[1:3]
        x = x.reshape(-1, h, w, p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        picture = x.reshape(-1, h * p, w * p, 3)[:, :height, :width]
        if whole is None:
            return Output(picture, None)
        x = self._head("depth", [f[count:] for f in features], 1)
        return Output(picture, resize_bilinear(x, h * p, w * p)[:, :height, :width, 0])

    def _head(self, name: str, features: list[Array], channels: int) -> Array:
        """All scales projected to the finest, a nonlinearity, and ``channels`` outputs.

        Normalised before the nonlinearity: without it a few early steps could push every unit of
        the head below zero, where it returns a constant and passes no gradient back.
        """
        height, width = features[0].shape[1:3]
        x = 0.0
        for i, feature in enumerate(features):
            kernel = self.param(f"{name}{i}", he_normal, (feature.shape[-1], self.width))
            x = x + resize_bilinear(feature @ kernel, height, width)
        x = nn.gelu(nn.LayerNorm(name=f"{name}_norm")(x))
        return nn.Dense(channels, kernel_init=he_normal, name=name)(x)


def masked_loss(prediction: Array, image: Array, corruption: Corruption) -> tuple[Array, Array]:
    """L1 per pixel and channel.

    Returns:
      The training loss, in which visible pixels of grey pictures count a quarter (their colour was
      taken) and other visible pixels nothing; and the plain L1 of the hidden pixels, the score.
    """
    error = jnp.mean(jnp.abs(prediction - image), axis=-1)
    hidden = corruption.hidden.astype(error.dtype)
    visible_grey = (1.0 - hidden) * corruption.grey[:, None, None]
    weight = hidden + 0.25 * visible_grey
    score = jnp.sum(error * hidden) / jnp.sum(hidden)
    return jnp.sum(error * weight) / jnp.sum(weight), score
