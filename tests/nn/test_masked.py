"""Masked-image pretraining: what is hidden, what is predicted, what the loss counts."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.core import trees
from sinewich_jax.nn import masked, swin
from tests.helpers import fake_params

KEY = jax.random.key(0)
SMALL = swin.Swin(patch_size=2, embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4)
MODEL = masked.MaskedAutoencoder(SMALL, width=8)


def test_half_of_the_blocks_are_hidden_in_every_picture():
    taken = masked.draw_corruption(KEY, 5, 32, 40, unit=8, ratio=0.5)
    assert taken.hidden.shape == (5, 32, 40) and taken.grey.shape == (5,)
    blocks = np.asarray(taken.hidden).reshape(5, 4, 8, 5, 8)
    assert (blocks.all(axis=(2, 4)) == blocks.any(axis=(2, 4))).all()  # whole blocks
    np.testing.assert_array_equal(blocks[:, :, 0, :, 0].sum(axis=(1, 2)), [10] * 5)


def test_hidden_pixels_and_lost_colour_cannot_be_seen():
    taken = masked.draw_corruption(KEY, 2, 32, 32)
    image = jax.random.normal(KEY, (2, 32, 32, 3))
    params = fake_params(jax.eval_shape(lambda: MODEL.init(KEY, image, taken)))
    apply = jax.jit(lambda *arguments: MODEL.apply(*arguments).picture)
    changed = jnp.where(taken.hidden[..., None], 7.0, image)
    shown = apply(params, image, taken)
    assert shown.shape == image.shape
    np.testing.assert_array_equal(shown, apply(params, changed, taken))
    grey = taken._replace(grey=jnp.ones(2, bool))
    mean = jnp.broadcast_to(image.mean(axis=-1, keepdims=True), image.shape)
    np.testing.assert_allclose(apply(params, image, grey), apply(params, mean, grey), atol=1e-5)
    assert not np.allclose(shown, apply(params, image + 1.0, taken))


def test_whole_pictures_share_the_pass_and_change_nothing():
    taken = masked.draw_corruption(KEY, 2, 32, 32)
    image = jax.random.normal(KEY, (2, 32, 32, 3))
    whole = jax.random.normal(jax.random.key(1), (3, 32, 32, 3))
    params = fake_params(jax.eval_shape(lambda: MODEL.init(KEY, image, taken, whole)))
    apply = jax.jit(MODEL.apply)
    both = apply(params, image, taken, whole)
    assert both.log_depth.shape == (3, 32, 32)
    alone = apply(params, image, taken)
    assert alone.log_depth is None
    np.testing.assert_allclose(both.picture, alone.picture, atol=2e-5)
    moved = apply(params, image + 1, taken, whole).log_depth
    np.testing.assert_allclose(both.log_depth, moved, atol=2e-5)


def test_a_head_below_zero_everywhere_still_learns():
    """Features with a common offset and kernels of one sign: without a norm the head is dead."""
    taken = masked.draw_corruption(KEY, 2, 32, 32)
    image = jax.random.normal(KEY, (2, 32, 32, 3))
    params = fake_params(jax.eval_shape(lambda: MODEL.init(KEY, image, taken)))

    def spoil(path: str, leaf: jax.Array) -> jax.Array:
        if path.endswith("fc2/bias"):
            return leaf + 20.0
        return -jnp.abs(leaf) if re.fullmatch(r"params/pixels\d", path) else leaf

    params = trees.map_paths(spoil, params)

    def loss(params):
        return masked.masked_loss(MODEL.apply(params, image, taken).picture, image, taken)[0]

    gradient = jax.jit(jax.grad(loss))(params)["params"]
    assert float(jnp.linalg.norm(gradient["pixels0"])) > 1e-5  # a dead one passes back exactly 0


def test_the_loss_counts_hidden_pixels_and_the_colour_of_grey_pictures():
    image = jnp.zeros((2, 1, 2, 3))
    prediction = image.at[:, :, 0].set(1.0).at[:, :, 1].set(4.0)
    taken = masked.Corruption(
        hidden=jnp.array([[[True, False]], [[True, False]]]), grey=jnp.array([True, False])
    )
    loss, score = masked.masked_loss(prediction, image, taken)
    # Two hidden pixels of error 1; one visible pixel of a grey picture, of error 4, at a quarter.
    np.testing.assert_allclose(loss, (1 + 1 + 0.25 * 4) / 2.25)
    np.testing.assert_allclose(score, 1.0)
