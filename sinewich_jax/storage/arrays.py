"""Flat dictionaries of arrays in files: safetensors both ways, npz for reading."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.atomic import atomic_write, is_full_disk, no_space

# safetensors name -> NumPy name: what both sides can hold.
DTYPES = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    "C64": "complex64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "I8": "int8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "U8": "uint8",
}


def save_safetensors(
    path: str | os.PathLike[str],
    flat: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays to a safetensors file, wholly or not at all.

    Args:
      path: the file to write.
      flat: name -> array. NumPy or JAX arrays of any shape (scalars and non-contiguous views too)
        and of any dtype that the format has, bfloat16 included.
      metadata: short strings stored in the header.

    Raises:
      CheckpointError: the disk is full, or a leaf has no form in the format.
    """
    import safetensors
    import safetensors.numpy

    path = Path(path)
    # The library takes the raw memory of each array, so anything strided must be copied first.
    host = {name: np.asarray(leaf, order="C") for name, leaf in flat.items()}
    for name, leaf in host.items():
        if leaf.dtype.name not in DTYPES.values():
            raise CheckpointError(
                f"leaf {name!r} has dtype {leaf.dtype}, which {path} cannot hold; convert it to "
                f"one of {', '.join(sorted(DTYPES.values()))}"
            )
    with atomic_write(path) as temporary:
        try:
            safetensors.numpy.save_file(host, temporary, metadata=dict(metadata or {}) or None)
        except safetensors.SafetensorError as error:
            if is_full_disk(error):
                raise no_space(path, sum(leaf.nbytes for leaf in host.values())) from error
            raise CheckpointError(f"{path} could not be written: {error}") from error


def load_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads every array of a safetensors file.

    Args:
      path: the file to read.

    Returns:
      ``(name -> array in host memory, metadata)``.

    Raises:
      CheckpointError: the file is missing, cut short, or not a safetensors file.
    """
    import ml_dtypes  # noqa: F401  (gives NumPy its bfloat16, which the library asks for by name)
    import safetensors

    path = _existing(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            for name in names:
                dtype = file.get_slice(name).get_dtype()
                if dtype not in DTYPES:
                    raise CheckpointError(
                        f"leaf {name!r} of {path} has dtype {dtype}, which NumPy cannot hold; "
                        f"export it as one of {', '.join(sorted(DTYPES))}"
                    )
            flat = {name: file.get_tensor(name) for name in names}
            metadata = dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); fetch or export it again"
        ) from error
    return flat, metadata


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of an ``.npz`` file; pickled objects are refused.

    Args:
      path: the file to read.

    Returns:
      name -> array.

    Raises:
      CheckpointError: the file is missing, damaged, or holds pickled objects.
    """
    path = _existing(path)
    try:
        with path.open("rb") as raw:  # np.load leaves a file open that turns out to be damaged
            file = np.load(raw, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise CheckpointError(f"{path} holds one bare array; expected an .npz archive")
            return {name: file[name] for name in file.files}
    except CheckpointError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is not a whole .npz file of plain arrays ({error}); fetch or write it again"
        ) from error


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(f"expected a file at {path}, found {found}; check the path")
    return path
