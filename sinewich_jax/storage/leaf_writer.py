"""Safetensors files written leaf by leaf: the header first, then each leaf at its place."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.arrays import DTYPES
from sinewich_jax.storage.atomic import atomic_write
from sinewich_jax.storage.leaves import LeafSpec

_ALIGNMENT = 8
_NAMES = {numpy: name for name, numpy in DTYPES.items()}


class LeafWriter:
    """A safetensors file in the making; made by :func:`write_leaves`."""

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        specs: Mapping[str, LeafSpec],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Writes the header."""
        self._descriptor, self._path = file.fileno(), path
        self._specs = dict(specs)
        header, self._offsets = _header(path, specs, metadata)
        _write_at(self._descriptor, header, 0)
        self._left = set(specs)

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes a leaf; leaves may come in any order, each once.

        Raises:
          CheckpointError: a leaf that was not announced, or announced as something else.
        """
        spec = self._specs.get(name)
        if name not in self._left or (array.shape, array.dtype) != (spec.shape, spec.dtype):
            expected = "nothing more" if name not in self._left else f"{spec.dtype}{spec.shape}"
            raise CheckpointError(
                f"the leaf {name!r} of {self._path} is {array.dtype}{array.shape}; expected "
                f"{expected}"
            )
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        _write_at(self._descriptor, flat, self._offsets[name])
        self._left.discard(name)

    def finish(self) -> None:
        """Makes sure that every leaf was written.

        Raises:
          CheckpointError: one was not.
        """
        if self._left:
            raise CheckpointError(
                f"{len(self._left)} leaves of {self._path} were not written, the first being "
                f"{min(self._left)!r}"
            )


@contextlib.contextmanager
def write_leaves(
    path: str | os.PathLike[str],
    specs: Mapping[str, LeafSpec],
    metadata: Mapping[str, str] | None = None,
) -> Iterator[LeafWriter]:
    """Writes a safetensors file leaf by leaf, wholly or not at all.

    Args:
      path: the file.
      specs: name -> what each leaf will be.
      metadata: short strings stored in the header.

    Yields:
      A :class:`LeafWriter`, which has to be given every leaf inside the block.

    Raises:
      CheckpointError: a leaf is missing or not what was announced, or the disk is full.
    """
    path = Path(path)
    with atomic_write(path) as temporary, temporary.open("wb", buffering=0) as file:
        writer = LeafWriter(file, path, specs, metadata)
        yield writer
        writer.finish()


def _header(
    path: Path, specs: Mapping[str, LeafSpec], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, int]]:
    """The first bytes of the file, and where each leaf begins."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    places, end = {}, 0
    # Wide numbers first, so that every leaf is aligned to its own width.
    for name, spec in sorted(specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if spec.dtype.name not in _NAMES:
            raise CheckpointError(
                f"leaf {name!r} has dtype {spec.dtype}, which {path} cannot hold; convert it to "
                f"one of {', '.join(sorted(_NAMES))}"
            )
        places[name] = end
        end += spec.nbytes
        entries[name] = {
            "dtype": _NAMES[spec.dtype.name],
            "shape": list(spec.shape),
            "data_offsets": [places[name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {n: start + at for n, at in places.items()}


def _write_at(descriptor: int, data: bytes | np.ndarray, offset: int) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)
