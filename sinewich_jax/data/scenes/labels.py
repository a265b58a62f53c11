"""The label maps that follow from the geometry: edges and saliency."""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np

from sinewich_jax.data.scenes.geometry import Array, Vec, dot
from sinewich_jax.data.scenes.types import FIRST_OBJECT, MAX_OBJECTS

CREASE = 0.819152
"""Cosine of 35 degrees: neighbours whose normals differ by more are divided by an edge."""


def edges(thing: Array, part: Array, normal: Vec, xp: ModuleType) -> Array:
    """Boundaries one pixel wide, drawn on the upper or left one of the two neighbours.

    Args:
      thing: int [H, W], object ids.
      part: int [H, W], body part ids.
      normal: Vec [H, W], unit.
      xp: array module.

    Returns:
      uint8 [H, W], 1 where the object, the part, or the normal (by more than 35 degrees) changes
      towards the right or the lower neighbour.
    """
    marks = []
    for axis in (0, 1):
        here = (slice(None),) * axis + (slice(None, -1),)
        there = (slice(None),) * axis + (slice(1, None),)
        crease = dot(tuple(n[here] for n in normal), tuple(n[there] for n in normal)) < CREASE
        change = crease | (thing[here] != thing[there]) | (part[here] != part[there])
        marks.append(xp.pad(change, [(0, int(axis == 0)), (0, int(axis == 1))]))
    return (marks[0] | marks[1]).astype(xp.uint8)


@functools.lru_cache(maxsize=16)
def centre_weights(height: int, width: int) -> np.ndarray:
    """A Gaussian about the image centre, variance .09 in coordinates where the image is 1 x 1.

    Args:
      height: pixels.
      width: pixels.

    Returns:
      int32 [height, width], scaled to 1023 and rounded, so that sums are exact in any order.
    """
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    square = y[:, None] ** 2 + x[None, :] ** 2
    return np.round(1023 * np.exp(-square / (2 * 0.09))).astype(np.int32)


def saliency(thing: Array, xp: ModuleType) -> Array:
    """The mask of the object with the largest centre-weighted area.

    Args:
      thing: int [H, W], object ids.
      xp: array module.

    Returns:
      uint8 [H, W] in {0, 1}; all 0 when no object is in view.
    """
    weights = xp.asarray(centre_weights(*thing.shape))
    sums = [
        xp.where(thing == FIRST_OBJECT + n, weights, 0).sum(dtype=xp.int32)
        for n in range(MAX_OBJECTS)
    ]
    return (thing == FIRST_OBJECT + xp.argmax(xp.stack(sums))).astype(xp.uint8)
