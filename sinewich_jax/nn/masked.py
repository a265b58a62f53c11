"""Masked-image pretraining of a Swin: hide patches and colour, predict the picture.

Source of the idea: SimMIM (Xie et al. 2022, arXiv 2111.09886): hidden patches are replaced by one
learned token, a light head predicts raw pixels, the loss is L1. Here the head reads all four
scales, so that each of them is trained, and half of the pictures also lose their colour.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.nn.decoder import he_normal, resize_bilinear
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


class MaskedAutoencoder(nn.Module):
    """A Swin with a mask token and a pixel head.

    Attributes:
      backbone: the Swin to pretrain; only its parameters are kept afterwards.
      width: width of the head.
    """

    backbone: Swin
    width: int = 48

    @nn.compact
    def __call__(self, image: Array, corruption: Corruption) -> Array:
        """Predicts the picture, (B, H, W, 3) normalised, from what was left of it."""
        grey = jnp.mean(image, axis=-1, keepdims=True)
        shown = jnp.where(corruption.grey[:, None, None, None], grey, image)
        token = self.param("mask_token", nn.initializers.normal(0.02), (3,))
        shown = jnp.where(corruption.hidden[..., None], token, shown)
        features = [feature[0] for feature in self.backbone(shown)]
        height, width = features[0].shape[1:3]
        x = 0.0
        for i, feature in enumerate(features):
            kernel = self.param(f"head{i}", he_normal, (feature.shape[-1], self.width))
            x = x + resize_bilinear(feature @ kernel, height, width)
        x = nn.gelu(x)
        p = self.backbone.stride
        kernel = self.param("pixels", he_normal, (self.width, p * p * 3))
        x = (x @ kernel).reshape(-1, height, width, p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, height * p, width * p, 3)[:, : image.shape[1], : image.shape[2]]


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
