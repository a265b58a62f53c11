"""Files that are either whole or absent: write beside, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sinewich_jax.errors import CheckpointError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TEMPORARY_PREFIX = ".tmp-"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it takes the place of ``path``.

    The temporary name keeps the suffix of ``path``, because some writers choose their format by it.
    Whatever goes wrong inside the block, an earlier file at ``path`` stays as it was and the
    temporary file is removed.

    Args:
      path: where the file shall be. Missing folders are made.

    Yields:
      The path to write to (does not exist yet).

    Raises:
      CheckpointError: the disk is full, or nothing was written inside the block.

    Examples:
      >>> with atomic_write("results.txt") as temporary:
      ...     temporary.write_text("42")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}"
    try:
        yield temporary
        if not temporary.exists():
            raise CheckpointError(
                f"nothing was written for {path}: the block has to write to the path it is given"
            )
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            written = temporary.stat().st_size if temporary.exists() else None
            raise no_space(path, written) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes ``content`` to ``path``, wholly or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Writes ``content`` as UTF-8 to ``path``, wholly or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes ``obj`` as indented JSON with sorted keys, wholly or not at all.

    Raises:
      CheckpointError: ``obj`` holds something that JSON has no form for (NaN included).
    """
    try:
        text = json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be written as JSON ({error}); convert arrays and NumPy scalars to "
            "lists and Python numbers, and NaN to null"
        ) from error
    write_text(path, text + "\n")


def fsync(path: Path) -> None:
    """Forces a file or folder to the disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full_disk(error: BaseException) -> bool:
    """Whether ``error``, or one that it was raised from, says that a disk or quota is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        # TensorStore and safetensors report the operating system's error only as text.
        text = str(seen)
        if any(os.strerror(code) in text for code in _FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def no_space(path: Path, needed: int | None) -> CheckpointError:
    """The error for a full disk: names the place, what was needed and what is free.

    Args:
      path: the file or folder that was being written.
      needed: bytes, or None when unknown.
    """
    folder = path if path.is_dir() else path.parent
    free = shutil.disk_usage(folder).free
    need = "" if needed is None else f"about {_mebibytes(needed)} needed, "
    return CheckpointError(
        f"no space left while writing {path}: {need}{_mebibytes(free)} free in {folder}; what was "
        "saved before is intact; free some space (or raise the quota or file size limit), or "
        "choose another directory"
    )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
