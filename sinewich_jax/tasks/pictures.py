"""Pixels for people: palettes, ramps and hatching, in plain NumPy.

Colours are chosen in OKLab (Ottosson 2020), where distance is roughly what the eye sees, so ramps
are even steps of lightness and read the same in grey, in print and with colour-blind eyes.
"""

from __future__ import annotations

import functools

import numpy as np

_LMS_FROM_LAB = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_RGB_FROM_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab [..., 3] to gamma-encoded sRGB in [0, 1], clipped to the gamut."""
    linear = ((lab @ _LMS_FROM_LAB.T) ** 3) @ _RGB_FROM_LMS.T
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _linear_to_oklab(linear: np.ndarray) -> np.ndarray:
    """Linear RGB [..., 3] to OKLab."""
    lms = np.cbrt(linear @ np.linalg.inv(_RGB_FROM_LMS).T)
    return lms @ np.linalg.inv(_LMS_FROM_LAB).T


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8 with rounding; NaN, as under a mask, is black."""
    return (np.clip(np.nan_to_num(rgb), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


HATCH = (np.array([56, 56, 56], np.uint8), np.array([84, 84, 84], np.uint8))
"""The two greys of pixels without a label."""


def hatch(picture: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Covers invalid pixels with diagonal stripes in dark grey.

    Args:
      picture: uint8 [H, W, 3].
      valid: bool [H, W], or None when all are valid.
    """
    if valid is None:
        return picture
    rows, columns = np.indices(picture.shape[:2])
    stripes = np.where(((rows + columns) % 8 < 3)[..., None], HATCH[1], HATCH[0])
    return np.where(np.asarray(valid, bool)[..., None], picture, stripes).astype(np.uint8)


def _ramp(values: np.ndarray, stops: list[tuple[float, float, float]]) -> np.ndarray:
    """Interpolates OKLCh stops (lightness, chroma, hue in degrees) over [0, 1]; NaN is the end."""
    values = np.nan_to_num(np.clip(np.asarray(values, np.float64), 0.0, 1.0), nan=1.0)
    table = _ramp_table(tuple(stops))
    return table[np.rint(values * (len(table) - 1)).astype(np.intp)]


@functools.lru_cache(maxsize=16)
def _ramp_table(stops: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """256 colours along the stops, uint8 [256, 3]."""
    at = np.linspace(0.0, 1.0, 256)
    lightness, chroma, hue = (
        np.interp(at, np.linspace(0.0, 1.0, len(stops)), column)
        for column in zip(*stops, strict=True)
    )
    angle = np.radians(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    return to_uint8(oklab_to_srgb(lab))


def error_ramp(values: np.ndarray) -> np.ndarray:
    """0 nearly black, 1 bright red: [..., ] to uint8 [..., 3]."""
    return _ramp(values, [(0.16, 0.01, 25.0), (0.64, 0.24, 27.0)])


def miss_ramp(values: np.ndarray) -> np.ndarray:
    """0 nearly black, 1 bright blue: the other sign of an error."""
    return _ramp(values, [(0.16, 0.01, 250.0), (0.66, 0.17, 245.0)])


def depth_ramp(values: np.ndarray) -> np.ndarray:
    """0 dark violet, through blue-green, to 1 light yellow, in even steps of lightness."""
    return _ramp(
        values,
        [
            (0.18, 0.07, 310.0),
            (0.37, 0.10, 270.0),
            (0.56, 0.10, 225.0),
            (0.75, 0.12, 165.0),
            (0.94, 0.13, 108.0),
        ],
    )


# Linear-RGB matrices of full protanopia and deuteranopia (Machado, Oliveira, Fernandes 2009).
_PROTAN = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
_DEUTAN = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)

# Class 0 is a background or a wall more often than not, so it stays quiet; then the seven colours
# of Okabe and Ito (2008), made for colour-blind readers.
_FIRST_COLOURS = np.array(
    [
        [32, 34, 40],
        [230, 159, 0],
        [86, 180, 233],
        [0, 158, 115],
        [240, 228, 66],
        [0, 114, 178],
        [213, 94, 0],
        [204, 121, 167],
    ],
    np.uint8,
)


def seen_by(rgb: np.ndarray) -> np.ndarray:
    """OKLab coordinates of colours as seen by normal, protanope and deuteranope eyes.

    Args:
      rgb: gamma-encoded sRGB in [0, 1], [N, 3].

    Returns:
      float64 [3, N, 3].
    """
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    views = np.stack([linear @ eye.T for eye in (np.eye(3), _PROTAN, _DEUTAN)])
    return _linear_to_oklab(np.clip(views, 0.0, 1.0))


@functools.lru_cache(maxsize=32)
def palette(count: int) -> np.ndarray:
    """Class colours that stay apart, also for colour-blind eyes.

    Eight fixed ones, then repeatedly the colour of a coarse grid whose nearest neighbour among
    those chosen, seen by the eye that finds it hardest, is farthest. A shorter palette is the
    beginning of a longer one.

    Args:
      count: number of classes.

    Returns:
      uint8 [count, 3], read-only.
    """
    chosen = list(_FIRST_COLOURS)
    levels = np.linspace(0, 255, 9).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    views = seen_by(grid / 255.0)
    lightness, chroma = views[0, :, 0], np.linalg.norm(views[0, :, 1:], axis=-1)
    usable = (lightness > 0.36) & (lightness < 0.95) & (chroma < 0.22)
    gap = np.full(len(grid), np.inf)
    for colour in chosen:
        gap = np.minimum(gap, _hardest_gap(views, colour))
    while len(chosen) < count:
        best = int(np.argmax(np.where(usable, gap, -1.0)))
        chosen.append(grid[best].astype(np.uint8))
        gap = np.minimum(gap, _hardest_gap(views, chosen[-1]))
    colours = np.array(chosen[:count], np.uint8)
    colours.setflags(write=False)
    return colours


def _hardest_gap(views: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Distance of every candidate [3, N, 3] to ``colour`` for the eye that finds it hardest."""
    return np.linalg.norm(views - seen_by(colour[None] / 255.0), axis=-1).min(axis=0)
