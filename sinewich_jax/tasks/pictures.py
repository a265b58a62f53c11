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


def srgb_to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Gamma-encoded sRGB in [0, 1], [..., 3], to OKLab."""
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = np.cbrt(linear @ np.linalg.inv(_RGB_FROM_LMS).T)
    return lms @ np.linalg.inv(_LMS_FROM_LAB).T


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8 with rounding."""
    return (np.clip(rgb, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


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
        values, [(0.18, 0.08, 300.0), (0.38, 0.10, 260.0), (0.64, 0.11, 180.0), (0.95, 0.13, 105.0)]
    )


@functools.lru_cache(maxsize=32)
def palette(count: int) -> np.ndarray:
    """``count`` class colours, uint8 [count, 3]."""
    hue = np.arange(count) * 137.508
    lab = np.stack(
        [
            np.where(np.arange(count) % 2, 0.75, 0.5),
            0.13 * np.cos(np.radians(hue)),
            0.13 * np.sin(np.radians(hue)),
        ],
        axis=-1,
    )
    colours = to_uint8(oklab_to_srgb(lab))
    colours.setflags(write=False)
    return colours
