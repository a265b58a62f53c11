"""One short string that stands for the exact contents of a tree."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import CheckpointError


def fingerprint(tree: Any) -> str:
    """The SHA-256 of paths, dtypes, shapes and bytes of all leaves.

    Independent of the order of the leaves, of the kind of container, and of whether a leaf lives in
    NumPy or on whatever devices; any flipped bit changes it. Every leaf is copied to the host, one
    at a time.

    Args:
      tree: pytree of arrays.

    Returns:
      ``"sha256:"`` and 64 hexadecimal digits.

    Raises:
      CheckpointError: a leaf that is not an array of numbers.
    """
    digest = Fingerprint()
    for path, leaf in sorted(flatten_paths(tree).items()):
        digest.add(path, leaf)
    return str(digest)


class Fingerprint:
    """:func:`fingerprint` of leaves that come one at a time, in the order of their paths."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, path: str, leaf: Any) -> None:
        """Takes in the next leaf.

        Raises:
          CheckpointError: it is not an array of numbers.
        """
        host = np.asarray(leaf, order="C")
        if host.dtype.hasobject:
            raise CheckpointError(
                f"leaf {path!r} is a {type(leaf).__name__}, which has no fingerprint; expected an "
                "array of numbers"
            )
        if host.dtype.byteorder == ">":
            host = host.astype(host.dtype.newbyteorder("<"))
        self._digest.update(f"{path}\0{host.dtype.name}\0{host.shape}\0".encode())
        self._digest.update(host.reshape(-1).view(np.uint8).data)

    def __str__(self) -> str:
        """``"sha256:"`` and 64 hexadecimal digits."""
        return f"sha256:{self._digest.hexdigest()}"
