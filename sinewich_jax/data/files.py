"""Reading one image or label file; every failure names the file and says what to do."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from sinewich_jax.data.labels import kind_of
from sinewich_jax.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = {
    "class": (".png",),
    "binary": (".png",),
    "depth": (".npy", ".png"),
    "normals": (".npy", ".png"),
}
"""File endings of a label, by its kind."""

DEPTH_UNITS = {"m": 1.0, "cm": 1e-2, "mm": 1e-3}
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_COLOUR = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


def _open(data: str | os.PathLike[str] | bytes, where: str):
    """Opens an image lazily (the header only) with PIL."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except FileNotFoundError:
        raise DataError(f"{where} does not exist") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{where} is not an image that can be read ({_brief(error)}), expected JPEG or PNG; "
            "replace or remove the file"
        ) from None


def _load(image, where: str) -> None:
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"{where} is damaged ({_brief(error)}), expected a whole image; replace the file"
        ) from None


def _brief(error: Exception) -> str:
    return str(error).split("\n")[0].split(" <_io")[0] or type(error).__name__


def read_image(data: str | os.PathLike[str] | bytes, where: str | None = None) -> np.ndarray:
    """Reads a photograph as RGB, turned the way its EXIF orientation says it is looked at.

    Args:
      data: a path, or the encoded bytes.
      where: names the image in errors; the path by default.

    Returns:
      uint8 [H, W, 3]; grey is repeated, an alpha channel dropped.

    Raises:
      DataError: the file is missing, damaged or not an image.
    """
    from PIL import ImageOps

    where = where or str(data)
    with _open(data, where) as image:
        _load(image, where)
        if image.mode not in _COLOUR:
            raise DataError(
                f"{where} has pixels of mode {image.mode}, expected 8-bit grey or RGB; convert it"
            )
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as :func:`read_image` returns it, from its header alone."""
    with _open(path, str(path)) as image:
        turned = image.getexif().get(0x0112) in _TURNED
        return image.size if turned else image.size[::-1]


def read_label(task: str, path: Path, depth_unit: str | float | None = None) -> np.ndarray:
    """Reads a label file into the form that :func:`~sinewich_jax.data.labels.to_label` takes.

    Args:
      task: the task; its kind decides how the numbers are read.
      path: the file. Class maps: PNG with one channel or a palette. Binary maps: PNG, every value
        but 0 is 1 (so 0/255 masks work; 255 is not "no label" here). Depth: ``.npy`` or 16-bit
        PNG. Normals: ``.npy`` in [-1, 1], or RGB PNG read as ``2 v / 255 - 1``.
      depth_unit: ``"m"``, ``"cm"``, ``"mm"`` or the metres one unit stands for; None: metres in
        ``.npy``, millimetres in PNG.

    Returns:
      integers [H, W], or float32 [H, W] metres, or float32 [H, W, 3].

    Raises:
      DataError: the file is missing, damaged, or holds another kind of map.
    """
    kind = kind_of(task)
    raw = _read_npy(path) if path.suffix.lower() == ".npy" else _read_png(path)
    if kind == "depth":
        return _metres(raw, path, depth_unit)
    if kind == "normals" and raw.dtype == np.uint8:
        return raw.astype(np.float32) * np.float32(2 / 255) - 1
    if kind in ("class", "binary") and raw.ndim == 3:
        raise DataError(
            f"{path} has {raw.shape[-1]} channels, expected one channel of class numbers; "
            "turn colours into class numbers first"
        )
    return (raw != 0).astype(np.uint8) if kind == "binary" else raw


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask: PNG, True where not 0; bool [H, W]."""
    raw = _read_png(path)
    if raw.ndim != 2:
        raise DataError(f"{path} has {raw.shape[-1]} channels, expected a mask with one")
    return raw != 0


def _read_png(path: Path) -> np.ndarray:
    with _open(path, str(path)) as image:
        _load(image, str(path))
        return np.array(image)


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} is not a NumPy array that can be read ({_brief(error)}); save it again with "
            "numpy.save"
        ) from None


def _metres(raw: np.ndarray, path: Path, unit: str | float | None) -> np.ndarray:
    if raw.dtype in (np.uint8, np.bool_):
        raise DataError(
            f"{path} is an 8-bit depth map, expected a 16-bit PNG or a float .npy; 8 bits are too "
            "coarse, save it again"
        )
    if raw.dtype.kind not in "iuf":
        raise DataError(f"{path} holds {raw.dtype} values, expected depth as real numbers")
    if unit is None:
        if path.suffix.lower() == ".npy" and raw.dtype.kind != "f":
            raise DataError(
                f"{path} holds {raw.dtype} values, and only a float .npy is taken to be in metres; "
                'say depth_unit="mm" (config key depth_unit) or what it is'
            )
        unit = "mm" if path.suffix.lower() == ".png" else "m"
    if isinstance(unit, str):
        if unit not in DEPTH_UNITS:
            raise DataError(
                f"depth_unit is {unit!r}, expected one of {', '.join(DEPTH_UNITS)} or a number"
            )
        unit = DEPTH_UNITS[unit]
    if not unit > 0:
        raise DataError(f"depth_unit is {unit}, expected metres per unit, more than 0")
    return (raw * float(unit)).astype(np.float32)
