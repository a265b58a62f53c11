"""Safetensors files leaf by leaf: a checked header, and one positioned read for each leaf.

The format is eight bytes that give the length of a JSON header, the header, and the raw numbers.
Leaves are read into memory of their own and not mapped: a mapped file counts as memory that the
process uses until it is closed, and one that is cut short while it is read kills the process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.arrays import DTYPES
from sinewich_jax.storage.leaves import LeafSource, LeafSpec

_LENGTH = 8
_MOST = 100_000_000  # bytes of header that any reader of the format accepts
_AT_ONCE = 1 << 30  # the system reads at most 2 GiB in one call


class SafetensorsLeaves(LeafSource):
    """See :func:`sinewich_jax.storage.opening.open_leaves`."""

    def __init__(self, path: Path) -> None:
        """Reads and checks the header.

        Raises:
          CheckpointError: nothing is there, or not a whole safetensors file.
        """
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            metadata, specs, self._offsets = _read_header(self._descriptor, path)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}); check the path"
            ) from error
        except BaseException:
            self.close()
            raise
        super().__init__(path, specs, metadata)

    def read(self, name: str) -> np.ndarray:
        """See :meth:`LeafSource.read`."""
        spec = self.spec(name)
        array = np.empty(spec.shape, spec.dtype)
        buffer = memoryview(array.reshape(-1).view(np.uint8))
        at, done = self._offsets[name], 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done : done + _AT_ONCE]], at + done)
            except OSError as error:
                raise CheckpointError(
                    f"the leaf {name!r} of {self.path} cannot be read ({error.strerror}); fetch or "
                    "export the file again"
                ) from error
            if not count:
                raise CheckpointError(
                    f"the leaf {name!r} of {self.path} ends after {done} of {len(buffer)} bytes: "
                    "the file was cut short; fetch or export it again"
                )
            done += count
        return array

    def close(self) -> None:
        """Closes the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        """Closes the file of a source that was forgotten."""
        self.close()


def _read_header(
    descriptor: int, path: Path
) -> tuple[dict[str, str], dict[str, LeafSpec], dict[str, int]]:
    """Metadata, specs and offsets in the file; all that a header can get wrong is refused."""

    def damaged(what: str) -> CheckpointError:
        return CheckpointError(
            f"{path} is not a whole safetensors file: {what}; fetch or export it again"
        )

    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, _LENGTH, 0), "little")
    if size < _LENGTH or length > min(size - _LENGTH, _MOST):
        raise damaged(f"it has {size} bytes and announces a header of {length}")
    try:
        header = json.loads(os.pread(descriptor, length, _LENGTH), object_pairs_hook=_once)
        metadata = dict(header.pop("__metadata__", {}))
        entries = {name: _entry(value) for name, value in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(f"its header cannot be read ({error})") from error
    start, end = _LENGTH + length, 0
    specs, offsets = {}, {}
    for name, (dtype, shape, first, last) in sorted(entries.items(), key=lambda e: e[1][2:]):
        if dtype not in DTYPES:
            raise CheckpointError(
                f"leaf {name!r} of {path} has dtype {dtype}, which NumPy cannot hold; export it as "
                f"one of {', '.join(sorted(DTYPES))}"
            )
        specs[name] = LeafSpec(shape, _dtype(DTYPES[dtype]))
        offsets[name] = start + first
        if first != end or last - first != specs[name].nbytes:
            raise damaged(
                f"leaf {name!r} lies at {first} to {last} of the data, expected {end} to "
                f"{end + specs[name].nbytes}"
            )
        end = last
    if start + end != size:
        raise damaged(f"it has {size} bytes, expected {start + end}")
    return metadata, specs, offsets


def _entry(value: Any) -> tuple[str, tuple[int, ...], int, int]:
    dtype, shape, (first, last) = value["dtype"], value["shape"], value["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise ValueError(f"expected whole numbers in {json.dumps(value)}")
    return str(dtype), tuple(shape), first, last


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
