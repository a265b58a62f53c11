"""What a step aside says about distance: two pictures of one scene, and no label.

    X  = D(p) K^-1 p        the point that pixel p shows, in metres along the first camera's axes
    p' = K (X - step)       where a second camera sees it, which moved by ``step`` without turning
    L  = mean |I'(p') - I(p)|

A network that predicts D well makes the second picture explain the first. Its step is known in
metres, as a robot's is, so D comes out in metres too. Sources: Zhou et al. 2017 (arXiv 1704.07813)
for the loss, Godard et al. 2017 (arXiv 1609.03677) for the smoothness that leaves out edges. Other
than there the motion is given rather than predicted, and the camera does not turn.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

NEAREST = 0.1
"""Metres: no point is taken to be nearer to the second camera, so that nothing divides by zero."""

LARGEST_ERROR = 1.0
"""In units of normalised colour: what is hidden in the second picture counts no more than this."""

EDGE_SHARPNESS = 4.0
"""How fast a change of colour lifts the demand for smoothness."""


def project(depth: Array, step: Array, focal: Array) -> tuple[Array, Array]:
    """Where the second camera sees what each pixel of the first one shows.

    Args:
      depth: (B, H, W), metres along the optical axis.
      step: (B, 3), metres right, down and forward.
      focal: (B,), focal length in image widths.

    Returns:
      Column and row, (B, H, W) each; pixel (i, j) has its centre at column j + .5, row i + .5.
    """
    _, height, width = depth.shape
    focal = (focal * width)[:, None, None]
    right, down, forward = (step[:, axis, None, None] for axis in range(3))
    x = (jnp.arange(width) + 0.5 - width / 2)[None, None, :]
    y = (jnp.arange(height) + 0.5 - height / 2)[None, :, None]
    ahead = jnp.maximum(depth - forward, NEAREST)
    column = (depth * x - focal * right) / ahead + width / 2
    row = (depth * y - focal * down) / ahead + height / 2
    return column, row


def sample(picture: Array, column: Array, row: Array) -> tuple[Array, Array]:
    """Reads pictures between their pixels, bilinearly.

    Args:
      picture: (B, H, W, C).
      column: (B, H', W'), where to read; centres lie at halves.
      row: (B, H', W').

    Returns:
      Values (B, H', W', C), and whether they lie inside the picture (B, H', W').
    """
    _, height, width, _ = picture.shape
    x, y = column - 0.5, row - 0.5
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = jnp.clip(x, 0, width - 1), jnp.clip(y, 0, height - 1)
    left = jnp.clip(jnp.floor(x), 0, width - 2).astype(jnp.int32)
    top = jnp.clip(jnp.floor(y), 0, height - 2).astype(jnp.int32)
    u, v = (x - left)[..., None], (y - top)[..., None]
    read = jax.vmap(lambda one, i, j: one[i, j])
    upper = (1 - u) * read(picture, top, left) + u * read(picture, top, left + 1)
    lower = (1 - u) * read(picture, top + 1, left) + u * read(picture, top + 1, left + 1)
    return (1 - v) * upper + v * lower, inside


def photometric_error(
    depth: Array, picture: Array, moved: Array, step: Array, focal: Array
) -> Array:
    """How badly the second picture explains the first, given the depth of the first.

    Args:
      depth: (B, H, W), metres.
      picture: (B, H, W, C), the first pictures, normalised.
      moved: (B, H, W, C), the pictures after the step.
      step: (B, 3), metres.
      focal: (B,), image widths.

    Returns:
      (), the mean absolute error over the pixels that the second picture can see, each cut at
      :data:`LARGEST_ERROR`.
    """
    seen, inside = sample(moved, *project(depth, step, focal))
    error = jnp.minimum(jnp.mean(jnp.abs(seen - picture), axis=-1), LARGEST_ERROR)
    return jnp.sum(error * inside) / jnp.maximum(jnp.sum(inside), 1)


def roughness(values: Array, picture: Array) -> Array:
    """Mean absolute slope of (B, H, W) values, counted less where the picture has an edge."""
    total = jnp.zeros(())
    for axis in (1, 2):
        edge = jnp.mean(jnp.abs(jnp.diff(picture, axis=axis)), axis=-1)
        slope = jnp.abs(jnp.diff(values, axis=axis))
        total += jnp.mean(slope * jnp.exp(-EDGE_SHARPNESS * edge))
    return total


def parallax_loss(
    log_depth: Array,
    typical_depth: float,
    picture: Array,
    moved: Array,
    step: Array,
    focal: Array,
    smoothness: float = 0.02,
) -> Array:
    """:func:`photometric_error` of a predicted depth, plus ``smoothness`` times its roughness.

    Args:
      log_depth: (B, H, W), log of metres over ``typical_depth``; held between -2 and 2.
      typical_depth: metres.
      picture: (B, H, W, C), normalised.
      moved: (B, H, W, C), the pictures after the step.
      step: (B, 3), metres.
      focal: (B,), image widths.
      smoothness: weight of the roughness of ``log_depth``.
    """
    depth = typical_depth * jnp.exp(jnp.clip(log_depth, -2.0, 2.0))
    error = photometric_error(depth, picture, moved, step, focal)
    return error + smoothness * roughness(log_depth, picture)
