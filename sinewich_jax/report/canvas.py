"""Drawing with Pillow: paper, ink, text, tiles; the same bytes from the same input.

Text is set in the font that Pillow carries (Aileron), so that nothing needs to be installed; it
has the Latin-1 letters of English and few others, see :func:`plain`.
"""

from __future__ import annotations

import functools
import math
import os
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sinewich_jax import storage

PAPER = (252, 252, 250)
INK = (34, 36, 42)
MUTED = (104, 108, 118)
RULE = (222, 224, 228)
MARGIN = 20
TITLE, BODY, SMALL = 17, 14, 12

LINE_COLOURS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (190, 80, 145),
    (200, 135, 0),
    (60, 155, 215),
    (95, 95, 105),
    (130, 60, 20),
)
"""Okabe and Ito (2008), the pale ones darkened to be read as lines on paper."""

Colour = tuple[int, int, int]


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def plain(text: str) -> str:
    """``text`` in letters that the font has: accents are dropped, others become a question mark.

    Args:
      text: any text, a class name in any script, say.
    """
    decomposed = unicodedata.normalize("NFKD", text)
    kept = (c for c in decomposed if not unicodedata.combining(c))
    return "".join(c if c.isascii() or c in "±·°" else "?" for c in kept)


def text_width(text: str, size: int = BODY) -> int:
    """Width of a line in pixels, rounded up."""
    return math.ceil(font(size).getlength(plain(text)))


def pale(colour: Colour, share: float) -> Colour:
    """A colour thinned with paper; ``share`` of 1 leaves it as it is."""
    red, green, blue = (
        round(share * c + (1.0 - share) * p) for c, p in zip(colour, PAPER, strict=True)
    )
    return red, green, blue


def write(
    image: Image.Image,
    at: tuple[float, float],
    text: str,
    size: int = BODY,
    colour: Colour = INK,
    anchor: str = "la",
    bold: bool = False,
) -> None:
    """Sets one line of text.

    Args:
      image: to draw on.
      at: (x, y) of the anchor.
      text: the line.
      size: letter size in pixels.
      colour: RGB.
      anchor: Pillow's two letters: l, m, r across and a (ascender), m, s (baseline), d down.
      bold: thicken the strokes.
    """
    ImageDraw.Draw(image).text(
        at,
        plain(text),
        fill=colour,
        font=font(size),
        anchor=anchor,
        stroke_width=0.25 if bold else 0,
    )


def write_upwards(image: Image.Image, centre: tuple[int, int], text: str, size: int) -> None:
    """Sets one muted line that reads from bottom to top around ``centre``."""
    strip = sheet(text_width(text, size) + 4, size + 8)
    write(strip, (strip.width / 2, strip.height / 2), text, size, MUTED, "mm")
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (centre[0] - turned.width // 2, centre[1] - turned.height // 2))


def sheet(width: int, height: int) -> Image.Image:
    """An empty page."""
    return Image.new("RGB", (max(1, width), max(1, height)), PAPER)


def fit(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """(height, width) of the tile that shows an image of this size.

    Small images grow by a whole factor until both sides have ``least`` pixels, unless the longer
    one passes ``most`` first; images beyond ``most`` shrink to it, keeping their shape.

    Examples:
      >>> fit(64, 64, 160, 384)
      (192, 192)
      >>> fit(480, 640, 160, 384)
      (288, 384)
    """
    longer, shorter = max(height, width), min(height, width)
    if longer > most:
        return max(1, round(height * most / longer)), max(1, round(width * most / longer))
    factor = max(1, min(math.ceil(least / shorter), most // longer))
    return height * factor, width * factor


def tile(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """An image at tile size: enlarged pixel by pixel, made smaller by averaging.

    Args:
      pixels: uint8 [H, W, 3].
      size: (height, width), from :func:`fit`.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    height, width = size
    grows = width >= image.width
    return image.resize(
        (width, height), Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    )


def photograph(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """An input at (height, width), smoothly resized: it is a picture, not a map of pixels."""
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (size[1], size[0]), Image.Resampling.LANCZOS
    )


def shown(label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """A label with 0 where it is invalid: what stands there may be no class at all.

    Args:
      label: [H, W] or [H, W, 3].
      valid: bool [H, W].
    """
    mask = valid.reshape(valid.shape + (1,) * (label.ndim - valid.ndim))
    return np.where(mask, label, np.zeros((), label.dtype))


def save(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Writes a PNG, wholly or not at all."""
    with storage.atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)
    return Path(path)
