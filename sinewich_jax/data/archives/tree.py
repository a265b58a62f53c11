"""Files in folders behind one interface, only ever read; here a folder on disk, a tar in `tar`.

Names are relative, with ``/`` between their parts.
"""

from __future__ import annotations

import abc
import copy
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from sinewich_jax.errors import DataError


class Tree(abc.ABC):
    """Files in folders, read-only.

    Attributes:
      path: the folder or tar that was opened.
    """

    def __init__(self, path: Path):
        """Takes the path; `open_tree` makes trees."""
        self.path = path
        self._prefix = ""

    def sub(self, folder: str) -> Tree:
        """The same tree seen from one of its folders; it shares the open file."""
        view = copy.copy(self)
        view._prefix = self._full(folder)
        return view

    def _full(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, name) if part)

    @abc.abstractmethod
    def _list(self, folder: str) -> tuple[frozenset[str], frozenset[str]]:
        """(files, folders) directly in a folder given by its full name; empty when absent."""

    @abc.abstractmethod
    def _read(self, name: str) -> bytes:
        """Bytes of a file given by its full name."""

    @abc.abstractmethod
    def stamp(self, folders: Callable[[Tree], Iterable[str]]) -> str:
        """A hexadecimal mark that changes when a file in ``folders(tree)`` (not below) does."""

    @abc.abstractmethod
    def where(self, name: str) -> str:
        """How messages name a file."""

    def files(self, folder: str = "") -> list[str]:
        """Names of the files in a folder, sorted, without those that start with a dot."""
        return sorted(n for n in self._list(self._full(folder))[0] if not n.startswith("."))

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders in a folder, sorted, without those that start with a dot."""
        return sorted(n for n in self._list(self._full(folder))[1] if not n.startswith("."))

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        folder, _, file = self._full(name).rpartition("/")
        return file in self._list(folder)[0]

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name."""
        folder, _, last = self._full(name).rpartition("/")
        return last in self._list(folder)[1]

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
          DataError: there is no such file, or it cannot be read.
        """
        if not self.has(name):
            raise DataError(f"{self.where(name)} is not there")
        return self._read(self._full(name))

    def close(self) -> None:  # noqa: B027, a folder has nothing to close
        """Closes what is open; views of this tree end with it."""

    def __enter__(self) -> Tree:
        """The tree itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the tree."""
        self.close()


class FolderTree(Tree):
    """A folder on disk; symbolic links in it are the user's own and are followed."""

    def __init__(self, path: Path):
        """Takes the folder."""
        super().__init__(path)
        self._known: dict[str, tuple[frozenset[str], frozenset[str]]] = {}

    def _list(self, folder: str) -> tuple[frozenset[str], frozenset[str]]:
        if folder not in self._known:
            try:
                entries = list(os.scandir(self.path / folder))
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            except PermissionError:
                raise DataError(
                    f"{self.path / folder} cannot be listed, expected a folder that may be read"
                ) from None
            files = frozenset(entry.name for entry in entries if entry.is_file())
            self._known[folder] = files, frozenset(e.name for e in entries if e.is_dir())
        return self._known[folder]

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.path / name} cannot be read ({error.strerror or error})"
            ) from None

    def stamp(self, folders: Callable[[Tree], Iterable[str]]) -> str:
        """Names, sizes and times of change of all files in ``folders``."""
        digest = hashlib.sha256()
        for folder in folders(self):
            digest.update(f"{folder}\n".encode())
            for name in self.files(folder):
                state = (self.path / self._full(folder) / name).stat()
                digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def where(self, name: str) -> str:
        """The path of a file."""
        return str(self.path / self._full(name))
