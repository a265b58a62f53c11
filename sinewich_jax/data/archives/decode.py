"""From the bytes of one file in an archive to an array; every failure names the file."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np

from sinewich_jax.data.files import read_npy, read_pixels
from sinewich_jax.errors import DataError

_HDF5 = b"\x89HDF\r\n\x1a\n"


def class_map(data: bytes, where: str) -> np.ndarray:
    """Class numbers of a PNG with one channel or a palette, integers [H, W]."""
    raw = read_pixels(data, where)
    if raw.ndim != 2:
        raise DataError(f"{where} has {raw.shape[-1]} channels, expected one of class numbers")
    return raw


def grey(data: bytes, where: str) -> np.ndarray:
    """An 8-bit grey image, uint8 [H, W]; three equal channels count as one."""
    raw = read_pixels(data, where)
    if raw.ndim == 3 and raw.shape[-1] == 3 and (raw == raw[..., :1]).all():
        raw = raw[..., 0]
    if raw.dtype == np.bool_:  # A PNG of one bit a pixel.
        raw = raw.astype(np.uint8) * np.uint8(255)
    if raw.ndim != 2 or raw.dtype != np.uint8:
        raise DataError(
            f"{where} holds {raw.dtype} pixels of shape {list(raw.shape)}, expected 8-bit grey"
        )
    return raw


def vectors(data: bytes, where: str) -> np.ndarray:
    """Vectors of an 8-bit RGB image, ``2 v / 255 - 1``, float32 [H, W, 3]."""
    raw = read_pixels(data, where)
    if raw.ndim != 3 or raw.shape[-1] != 3 or raw.dtype != np.uint8:
        raise DataError(
            f"{where} holds {raw.dtype} pixels of shape {list(raw.shape)}, expected 8-bit RGB"
        )
    return raw.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


def npy(data: bytes, where: str, dimensions: tuple[int, ...]) -> np.ndarray:
    """A numeric ``.npy`` array with one of the numbers of ``dimensions``."""
    raw = read_npy(data, where)
    if raw.ndim not in dimensions or raw.dtype.kind not in "biuf":
        wanted = " or ".join(str(n) for n in dimensions)
        raise DataError(
            f"{where} holds {raw.dtype} of shape {list(raw.shape)}, expected numbers in "
            f"{wanted} dimensions"
        )
    return raw


def mat(data: bytes, where: str, key: str) -> np.ndarray:
    """One variable of a MATLAB file of version 5 (what ``save -v7`` and older write).

    Args:
      data: the file's bytes.
      where: names the file in errors.
      key: name of the variable.

    Returns:
      The variable as SciPy gives it: structs as records, cells and strings as objects.

    Raises:
      DataError: version 7.3 (HDF5), a damaged file, or no such variable.
    """
    import scipy.io
    from scipy.io.matlab import MatReadError

    if data.startswith((_HDF5, b"MATLAB 7.3")) or data[512:520] == _HDF5:
        raise DataError(
            f"{where} is a MATLAB v7.3 (HDF5) file, expected version 5; save it again in MATLAB "
            "with save(FILE, '-v7')"
        )
    try:
        found: dict[str, Any] = scipy.io.loadmat(io.BytesIO(data), variable_names=[key])
    # SciPy checks little: these are what its parser meets in cut and overwritten files.
    except (
        MatReadError,
        NotImplementedError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OSError,
        EOFError,
        MemoryError,
        zlib.error,
    ) as error:
        raise DataError(
            f"{where} is not a MATLAB file that can be read ({error or type(error).__name__}), "
            "expected version 5; replace the file"
        ) from None
    if key not in found:
        raise DataError(f"{where} holds no variable {key!r}, expected one")
    return found[key]


def mat_map(data: bytes, where: str, key: str) -> np.ndarray:
    """A numeric map [H, W] in a MATLAB file."""
    raw = mat(data, where, key)
    if not isinstance(raw, np.ndarray) or raw.ndim != 2 or raw.dtype.kind not in "biuf":
        raise DataError(f"variable {key!r} of {where} is no map of numbers, expected [H, W]")
    return raw


def whole(raw: np.ndarray, where: str) -> np.ndarray:
    """Class numbers that MATLAB or NumPy kept as floats, as int64; fractions are refused."""
    if raw.dtype.kind in "biu":
        return raw.astype(np.int64)
    if not (np.isfinite(raw).all() and (raw == np.rint(raw)).all()):
        raise DataError(f"{where} holds fractions or NaN, expected whole class numbers")
    return raw.astype(np.int64)
