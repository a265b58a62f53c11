"""Joint augmentation: image, labels and masks of one example move together.

The geometry is that of dense multi-task training since MTI-Net: flip, then zoom and turn about the
centre, in one pass. What changes besides positions:

* normals: a flip negates x, a turn by +a maps (nx, ny) to (nx cos a + ny sin a,
  -nx sin a + ny cos a); so (1, 0, 0) at +20 degrees becomes (0.93969, -0.34202, 0);
* depth is divided by the zoom (what looks larger is nearer) and disparity, which an example names
  under ``"grows"``, multiplied by it; the mask moves along;
* pixels that come from outside the source are *invalid* for every task. Common implementations
  make them class 0, which trains "background" (or, on indoor sets, "wall") on black corners;
  ``zero_border=True`` reproduces that for the class and binary maps.

Class, binary and depth maps and all masks take the nearest pixel; the image is interpolated,
rounded and clipped to [0, 255]; normals are interpolated over valid pixels and made unit again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinewich_jax.core.interpolate import Method
from sinewich_jax.data.labels import kind_of, unit_normals
from sinewich_jax.data.resize import to_uint8
from sinewich_jax.data.warp import Sampler, Window
from sinewich_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Augment:
    """What may happen to a training example; the default changes nothing.

    Attributes:
      flip: mirror left to right with probability one half.
      scale: zoom drawn uniformly from this range.
      zooms: zooms drawn from these with equal probability instead, unless there are none.
      rotate: angle in degrees drawn uniformly from [-rotate, rotate].
      crop: output (height, width), cut at a random place of the zoomed frame; where the frame is
        smaller, it lies at a random place of the window and the rest is invalid. None keeps the
        size and the centre.
      zero_border: pixels from outside count as class 0 (compatibility with common code).
      method: kernel for image and normals, ``"linear"`` or ``"cubic"`` (a = -0.75, slower).
      brightness: largest shift of the image as a fraction of 255.
      contrast: largest relative change of the image's contrast about mid-grey.
    """

    flip: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    crop: tuple[int, int] | None = None
    zero_border: bool = False
    method: Method = "linear"
    brightness: float = 0.0
    contrast: float = 0.0
    zooms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError when a range is impossible."""
        low, high = self.scale
        if not 0 < low <= high:
            raise ConfigError(f"augment.scale is {self.scale}, expected 0 < low <= high")
        if self.zooms and min(self.zooms) <= 0:
            raise ConfigError(f"augment.zooms is {self.zooms}, expected positive factors")
        if self.zooms and self.scale != (1.0, 1.0):
            raise ConfigError(
                f"augment.scale is {self.scale}, zooms {self.zooms}; expected one of them only"
            )
        if not 0 <= self.rotate <= 180:
            raise ConfigError(f"augment.rotate is {self.rotate}, expected degrees from 0 to 180")
        if self.crop is not None and min(self.crop) < 1:
            raise ConfigError(f"augment.crop is {self.crop}, expected a positive (height, width)")
        if self.method not in ("linear", "cubic"):
            raise ConfigError(f"augment.method is {self.method!r}, expected 'linear' or 'cubic'")
        if not (0 <= self.brightness <= 1 and 0 <= self.contrast <= 1):
            raise ConfigError("augment.brightness and augment.contrast must lie from 0 to 1")

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Draws a window and a tone curve and applies both.

        Args:
          example: image uint8 [H, W, 3], labels, masks (see :mod:`sinewich_jax.data.source`).
          rng: the example's own generator; always seven numbers are drawn, so switching one effect
            on leaves the others as they were.

        Returns:
          A new example of size ``crop`` or [H, W].
        """
        u = rng.random(7)
        image = example["image"]
        if self.brightness or self.contrast:
            image = jitter(
                image,
                shift=self.brightness * (2 * u[5] - 1) * 255,
                contrast=1 + self.contrast * (2 * u[6] - 1),
            )
        window = self._window(u, image.shape[:2])
        return look_through({**example, "image": image}, window, self.method, self.zero_border)

    def _window(self, u: np.ndarray, source: tuple[int, int]) -> Window:
        low, high = self.scale
        zoom = low + (high - low) * float(u[1])
        if self.zooms:
            zoom = self.zooms[int(u[1] * len(self.zooms))]
        window = Window(
            size=self.crop or source,
            flip=self.flip and u[0] < 0.5,
            zoom=zoom,
            degrees=self.rotate * (2 * float(u[2]) - 1),
        )
        if self.crop is None:
            return window
        offset = tuple(
            _place(float(draw), window.zoom * whole - part, whole_pixels=window.rigid)
            for draw, whole, part in zip(u[3:5], source, self.crop, strict=True)
        )
        return dataclasses.replace(window, offset=offset)


def _place(draw: float, slack: float, whole_pixels: bool) -> float:
    """Offset of a window from the centre; ``slack``: pixels left over (negative: missing)."""
    if whole_pixels:
        start = int(draw * (abs(slack) + 1)) * (1 if slack > 0 else -1)
    else:
        start = draw * slack
    return start - slack / 2


def jitter(image: np.ndarray, shift: float, contrast: float) -> np.ndarray:
    """``clip(127.5 + contrast * (v - 127.5) + shift)`` by a table; uint8 in, uint8 out."""
    table = to_uint8(127.5 + contrast * (np.arange(256) - 127.5) + shift)
    return table.take(image)


def look_through(
    example: Mapping[str, Any], window: Window, method: Method = "linear", zero_border: bool = False
) -> dict[str, Any]:
    """Moves image, labels and masks of one example through a window.

    Args:
      example: image uint8 [H, W, 3], labels and masks [H, W] (normals [H, W, 3]).
      window: where the output's pixels come from.
      method: kernel for image and normals.
      zero_border: pixels from outside are valid zeros in class and binary maps.

    Returns:
      A new example of ``window.size``; other keys are passed on.
    """
    sampler = Sampler(window, example["image"].shape[:2])
    if window.rigid:
        image = sampler.nearest(example["image"])
    else:
        image = to_uint8(sampler.smooth(example["image"], method))
    labels, valid = {}, {}
    moved: dict[int, np.ndarray] = {}  # tasks often share one mask
    for task, label in example["labels"].items():
        mask, kind = example["valid"][task], kind_of(task)
        if id(mask) not in moved:
            moved[id(mask)] = sampler.nearest(mask)
        valid[task] = moved[id(mask)]
        if kind == "normals":
            labels[task], solid = _move_normals(sampler, label, mask, method)
            valid[task] = valid[task] & solid
        else:
            labels[task] = sampler.nearest(label)
            if kind == "depth" and task in example.get("grows", ()):
                labels[task] *= np.float32(window.zoom)
            elif kind == "depth":
                labels[task] /= np.float32(window.zoom)
            elif zero_border and not sampler.full:
                valid[task] = valid[task] | ~sampler.inside
    return {**example, "image": image, "labels": labels, "valid": valid}


def _move_normals(
    sampler: Sampler, label: np.ndarray, mask: np.ndarray, method: Method
) -> tuple[np.ndarray, np.ndarray]:
    label = label if mask.all() else np.where(mask[..., None], label, np.float32(0))
    if sampler.window.rigid:
        moved = sampler.nearest(label)
        return sampler.window.turn_normals(moved), np.ones(moved.shape[:2], bool)
    unit, solid = unit_normals(sampler.smooth(label, method))
    return sampler.window.turn_normals(unit), solid
