"""A tar as a tree: read in place, never extracted by the names it holds.

An uncompressed tar is read through an index of its members. A compressed one is first unpacked into
one nameless file in our cache, which the system removes when it is closed, whatever happens. So no
name that a tar holds is ever used as a path on disk; a tar with names that would leave its folder
is refused all the same, because it was made to do harm or is broken.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from sinewich_jax.data.archives.tree import FolderTree, Tree
from sinewich_jax.data.cache import cache_dir
from sinewich_jax.errors import DataError

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
"""Endings under which an archive is looked for beside its folder; what it is, its bytes say."""

_COMPRESSIONS = ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\x00", lzma))
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)


class TarTree(Tree):
    """A tar; reading is thread-safe because each read says where it reads.

    Indexing walks over all headers once, when the first name is asked for.
    """

    def __init__(self, path: Path):
        """Takes the tar file."""
        super().__init__(path)
        self._state = path.stat()
        self._shared: dict[str, object] = {}  # What views made by `sub` have in common.

    @property
    def _index(self) -> dict[str, tuple[int, int]]:
        if "index" not in self._shared:
            file = _uncompressed(self.path)
            try:
                self._shared["index"] = index = _index(file, self.path)
            except BaseException:
                file.close()
                raise
            self._shared["file"] = file
            self._shared["folders"] = _folders(index)
        return self._shared["index"]

    def _list(self, folder: str) -> tuple[frozenset[str], frozenset[str]]:
        _ = self._index
        return self._shared["folders"].get(folder, (frozenset(), frozenset()))

    def _read(self, name: str) -> bytes:
        offset, size = self._index[name]
        content = os.pread(self._shared["file"].fileno(), size, offset)
        while len(content) < size:  # A read beyond 2 GiB comes in pieces.
            more = os.pread(
                self._shared["file"].fileno(), size - len(content), offset + len(content)
            )
            if not more:
                raise DataError(f"{self.path}:{name} ends early; the tar was cut while it was read")
            content += more
        return content

    def stamp(self, folders: Callable[[Tree], Iterable[str]]) -> str:
        """Size and time of change of the tar, which need no look into it."""
        del folders
        text = f"{self._state.st_size} {self._state.st_mtime_ns}"
        return hashlib.sha256(text.encode()).hexdigest()

    def where(self, name: str) -> str:
        """The tar and the name in it."""
        return f"{self.path}:{self._full(name)}"

    def close(self) -> None:
        """Closes the tar; an unpacked copy is gone with that."""
        file = self._shared.pop("file", None)
        self._shared.clear()
        if file is not None:
            file.close()


def open_path(path: Path) -> Tree:
    """A folder or a tar as a tree.

    Raises:
      DataError: it is neither.
    """
    if path.is_dir():
        return FolderTree(path)
    if not path.exists():
        raise DataError(f"{path} does not exist, expected a folder or a tar")
    return TarTree(path)


def _uncompressed(path: Path) -> IO[bytes]:
    """The bytes of a tar, unpacked into a nameless file in our cache where need be."""
    file = path.open("rb")
    start = file.read(6)
    file.seek(0)
    module = next((m for magic, m in _COMPRESSIONS if start.startswith(magic)), None)
    if module is None:
        return file
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    copied = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, the tree closes it
    try:
        with file, module.open(file, "rb") as packed:
            _copy(packed, copied, path)
        copied.flush()
    except BaseException:
        copied.close()
        raise
    return copied


def _copy(packed: IO[bytes], copied: IO[bytes], path: Path) -> None:
    while True:
        try:
            block = packed.read(2**20)
        except _BROKEN as error:
            raise DataError(
                f"{path} is damaged ({error}), expected a whole compressed tar; download it again"
            ) from None
        if not block:
            return
        copied.write(block)


def _index(file: IO[bytes], path: Path) -> dict[str, tuple[int, int]]:
    """``{name: (offset, size)}`` of the plain files in a tar; of equal names the last counts."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    index: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = _safe_name(member, path)
                if member.isdir():
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                index[name] = member.offset_data, member.size
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{path} is not a tar that can be read ({error}), expected a folder or a whole tar; "
            "download it again"
        ) from None
    return index


def _safe_name(member: tarfile.TarInfo, path: Path) -> str:
    """The member's name without ``./``; refuses what has no business in a data set."""
    name = member.name
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.drive or windows.root:
        raise DataError(f"{path} holds {name!r}, an absolute path, expected names below one folder")
    if ".." in windows.parts:  # Both kinds of slash separate here.
        raise DataError(f"{path} holds {name!r}, which leaves the folder, expected names below it")
    if not (member.isdir() or (member.isreg() and not member.issparse())):
        kind = "a link" if member.issym() or member.islnk() else "no plain file"
        raise DataError(f"{path} holds {name!r}, which is {kind}, expected files and folders only")
    return str(PurePosixPath(name))


def _folders(index: Iterable[str]) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """``{folder: (files, folders)}``; folders without a file in them do not count."""
    files: dict[str, set[str]] = {}
    folders: dict[str, set[str]] = {}
    for name in index:
        folder, _, last = name.rpartition("/")
        if folder not in files:
            files[folder] = set()
            below, child = folder, ""
            while below:
                below, _, child = below.rpartition("/")
                folders.setdefault(below, set()).add(child)
        files[folder].add(last)
    return {
        folder: (frozenset(files.get(folder, ())), frozenset(folders.get(folder, ())))
        for folder in files.keys() | folders.keys()
    }
