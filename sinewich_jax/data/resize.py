"""Resizing with rules that are written down, in plain NumPy.

Every rule uses half-pixel centres for interpolation, ``x_in = (x_out + 0.5) * n_in / n_out - 0.5``,
with neighbours clamped to the border:

* ``linear`` equals OpenCV's INTER_LINEAR, torch's ``bilinear(align_corners=False)`` and
  ``jax.image.resize(..., "linear", antialias=False)``;
* ``cubic`` is the cubic kernel of :mod:`~sinewich_jax.core.interpolate` with a = -0.75 and equals
  OpenCV's INTER_CUBIC and torch's ``bicubic`` (JAX's ``"cubic"`` has a = -0.5 and differs);
* ``nearest`` takes the source index ``floor(i * n_in / n_out)``, as OpenCV does (JAX, TensorFlow
  and PIL use the pixel centre instead). It is the rule for label maps.

``antialias=True`` widens the kernel when shrinking, so that every source pixel is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinewich_jax.core.interpolate import Method, taps
from sinewich_jax.data.labels import kind_of, unit_normals
from sinewich_jax.errors import DataError


def nearest_index(n_in: int, n_out: int) -> np.ndarray:
    """Source index ``floor(i * n_in / n_out)`` for every output position, int64 [n_out]."""
    return np.arange(n_out, dtype=np.int64) * n_in // n_out


def _along(array: np.ndarray, axis: int, n_out: int, method: Method, antialias: bool) -> np.ndarray:
    if array.shape[axis] == n_out:
        return array
    index, weight = taps(array.shape[axis], n_out, method, antialias)
    weight = weight.astype(array.dtype)
    column = [1] * array.ndim
    column[axis] = n_out
    out = None
    for k in range(index.shape[1]):
        term = array.take(index[:, k], axis=axis) * weight[:, k].reshape(column)
        out = term if out is None else np.add(out, term, out=out)
    return out


def resize(
    array: np.ndarray, size: tuple[int, int], method: Method = "cubic", antialias: bool = False
) -> np.ndarray:
    """Interpolates a float map to another size.

    Args:
      array: float [H, W] or [H, W, C].
      size: (height, width) wanted.
      method: ``"linear"`` or ``"cubic"``.
      antialias: widen the kernel when shrinking.

    Returns:
      Same dtype, [*size] or [*size, C]; cubic may overshoot the input's range.
    """
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"resize works on float arrays, got {array.dtype}; use resize_image")
    return _along(_along(array, 0, size[0], method, antialias), 1, size[1], method, antialias)


def resize_image(
    image: np.ndarray, size: tuple[int, int], method: Method = "cubic", antialias: bool = False
) -> np.ndarray:
    """Interpolates an image, rounded and clipped to [0, 255].

    A bare cast to uint8 would wrap the overshoot of the cubic kernel: 281 would become 25.

    Args:
      image: uint8 [H, W] or [H, W, 3].
      size: (height, width) wanted.
      method: ``"linear"`` or ``"cubic"``.
      antialias: widen the kernel when shrinking.

    Returns:
      uint8 [*size] or [*size, 3].
    """
    if image.shape[:2] == tuple(size):
        return image
    smooth = resize(image.astype(np.float32), size, method, antialias)
    return to_uint8(smooth)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Rounds and clips floats to [0, 255], uint8, C order."""
    values = np.rint(values)
    return np.clip(values, 0, 255, out=values).astype(np.uint8, order="C")


def resize_nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Takes the nearest source pixel by the floor rule; any dtype, [H, W] or [H, W, C]."""
    rows = nearest_index(array.shape[0], size[0])
    columns = nearest_index(array.shape[1], size[1])
    return array[rows[:, None], columns[None, :]]


def resize_example(
    example: Mapping[str, Any],
    size: tuple[int, int],
    method: Method = "cubic",
    antialias: bool = False,
) -> dict[str, Any]:
    """Resizes image, labels and masks of one example to a fixed size (aspect ratio not kept).

    Labels and masks take the nearest pixel; depth values stay what they are (a resize is a change
    of sampling, a zoom is :class:`~sinewich_jax.data.augment.Augment`'s business); normals are
    interpolated by the image's method over valid pixels and made unit again.

    Args:
      example: an example (see :mod:`sinewich_jax.data.source`) of size [H, W].
      size: (height, width) wanted.
      method: kernel for image and normals.
      antialias: widen that kernel when shrinking.

    Returns:
      A new example of the wanted size.
    """
    if example["image"].shape[:2] == tuple(size):
        return dict(example)
    labels, valid = {}, {}
    for task, label in example["labels"].items():
        mask = example["valid"][task]
        valid[task] = resize_nearest(mask, size)
        if kind_of(task) == "normals":
            smooth = resize(np.where(mask[..., None], label, 0), size, method, antialias)
            labels[task], solid = unit_normals(smooth)
            valid[task] &= solid
        else:
            labels[task] = resize_nearest(label, size)
    return {
        **example,
        "image": resize_image(example["image"], size, method, antialias),
        "labels": labels,
        "valid": valid,
    }
