"""The frozen base: stored once for all steps and runs, found and verified by its fingerprint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.arrays import load_safetensors, save_safetensors
from sinewich_jax.storage.fingerprint import fingerprint


def save_base(directory: str | os.PathLike[str], tree: Any) -> str:
    """Stores a frozen tree as one safetensors file, unless a whole copy is already there.

    Args:
      directory: the folder of bases.
      tree: pytree of arrays.

    Returns:
      The fingerprint by which :func:`load_base` finds it again.
    """
    mark = fingerprint(tree)
    path = base_path(directory, mark)
    if path.exists() and _is_whole(path, mark):
        return mark
    flat = {name: np.asarray(leaf) for name, leaf in flatten_paths(tree).items()}
    save_safetensors(path, flat, {"fingerprint": mark})
    return mark


def load_base(directory: str | os.PathLike[str], mark: str) -> dict[str, Any]:
    """Reads a frozen tree and checks that it is, bit for bit, the one that was stored.

    Args:
      directory: the folder of bases.
      mark: what :func:`save_base` returned.

    Returns:
      A nested dict of NumPy arrays.

    Raises:
      CheckpointError: the file is missing, damaged, or holds other numbers.
    """
    path = base_path(directory, mark)
    if not path.is_file():
        there = sorted(file.name for file in Path(directory).glob("base-*.safetensors"))
        raise CheckpointError(
            f"the frozen base {mark} is not in {directory}: expected {path.name}, found "
            f"{', '.join(there) or 'no base at all'}; copy the file there or name its folder"
        )
    tree = unflatten_paths(load_safetensors(path)[0])
    found = fingerprint(tree)
    if found != mark:
        raise CheckpointError(
            f"{path} is damaged or was changed: its content has the fingerprint {found}, expected "
            f"{mark}; restore the file from a copy"
        )
    return tree


def base_path(directory: str | os.PathLike[str], mark: str) -> Path:
    """The file in which the base with this fingerprint is kept."""
    kind, _, digits = mark.partition(":")
    if kind != "sha256" or len(digits) != 64:
        raise CheckpointError(
            f"{mark!r} is not a fingerprint; expected 'sha256:' and 64 hexadecimal digits"
        )
    return Path(directory) / f"base-{digits[:16]}.safetensors"


def _is_whole(path: Path, mark: str) -> bool:
    try:
        return fingerprint(load_safetensors(path)[0]) == mark
    except CheckpointError:
        return False  # damaged: save_base writes it anew
