"""Weights of other libraries by name, from whatever kind of file: the kind is told by its bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sinewich_jax.convert.torch_zip import read_torch
from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage import arrays

_RESAVE = (
    "load it where you trust it and save it again with torch.save(model.state_dict(), FILE) of "
    "torch 1.6 or newer, or as safetensors"
)


class Source(NamedTuple):
    """What a file holds.

    Attributes:
      name: the file's name without its folder.
      sha256: of its bytes, hexadecimal.
      tensors: name -> array in host memory.
      others: names of entries that are no tensors.
    """

    name: str
    sha256: str
    tensors: dict[str, np.ndarray]
    others: tuple[str, ...]


def read_weights(path: str | os.PathLike[str]) -> Source:
    """Reads the tensors of a safetensors file or of a torch zip archive; no code is run.

    Args:
      path: the file. Its suffix does not matter.

    Raises:
      CheckpointError: nothing is there, or a file that is of neither kind, is damaged, or would
        have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(f"expected a weight file at {path}, found {found}; check the path")
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if head[:2] == b"PK":
        tensors, others = read_torch(path)
    elif head[8:9] == b"{":
        tensors, others = arrays.load_safetensors(path)[0], ()
    elif head[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is a bare pickle (torch's format of before 1.6, or any Python object), which "
            f"could run code when it is loaded and was not read; {_RESAVE}"
        )
    else:
        raise CheckpointError(
            f"{path} starts with {head[:8]!r}, which is neither a safetensors file nor a torch zip "
            "archive; expected one of these two"
        )
    return Source(path.name, sha256, tensors, others)
