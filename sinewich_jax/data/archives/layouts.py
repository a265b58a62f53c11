"""Which layouts there are, and where in a user's folder or tar one begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sinewich_jax.data.archives.cityscapes import CityscapesReader
from sinewich_jax.data.archives.mtan import NyuMtanReader
from sinewich_jax.data.archives.nyud import NyudReader
from sinewich_jax.data.archives.pascal import PascalReader
from sinewich_jax.data.archives.reader import Reader
from sinewich_jax.data.archives.tar import TAR_SUFFIXES, open_path
from sinewich_jax.data.archives.tree import FolderTree, Tree
from sinewich_jax.data.registry import ENVIRONMENT
from sinewich_jax.errors import DataError, did_you_mean

READERS: dict[str, type[Reader]] = {
    reader.name: reader for reader in (PascalReader, NyudReader, NyuMtanReader, CityscapesReader)
}
"""The readers by the name of their data set."""

Test = Callable[[Tree], bool]


def reader_class(name: str) -> type[Reader]:
    """The reader of a data set, or an error that offers the nearest."""
    if name not in READERS:
        raise DataError(f"there is no archive layout {name!r}{did_you_mean(name, READERS)}")
    return READERS[name]


def find_place(name: str, data_dir: str | os.PathLike[str] | None = None) -> Tree:
    """Finds the folder or tar of a data set without looking into a tar.

    Args:
      name: of the data set, like ``"nyud_mt"``.
      data_dir: the data set's folder, its tar, or a folder that holds one of them; None takes the
        folder that the environment variable ``SINEWICH_DATA`` names.

    Returns:
      A folder's tree at its root, or a tar's tree as it is, which `at_root` looks into; close it.

    Raises:
      DataError: it is not there, or there more than once.
    """
    reader = reader_class(name)
    given = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT)
    if not given:
        raise DataError(
            f"data set {name!r} needs {_wanted(reader)}, named by the config key data_dir or the "
            f"environment variable {ENVIRONMENT}, but neither is set"
        )
    places = _places(Path(given), {reader: reader.fits})
    if not places:
        raise _absent(reader, given)
    return _one(places, Path(given), name)


def at_root(name: str, tree: Tree) -> Tree:
    """The tree seen from where the data set begins, which may be a folder in a tar.

    Raises:
      DataError: it is not there, or there more than once, or the tar cannot be read.
    """
    reader = reader_class(name)
    found = _fitting(tree, {reader: reader.fits})
    if not found:
        raise _absent(reader, tree.path)
    return _one([view for view, _ in found], tree.path, name)


def find_tree(name: str, data_dir: str | os.PathLike[str] | None = None) -> Tree:
    """`find_place` and `at_root` together: a tree whose root is the data set's; close it."""
    place = find_place(name, data_dir)
    try:
        return at_root(name, place)
    except DataError:
        place.close()
        raise


def detect(path: str | os.PathLike[str]) -> tuple[Tree, type[Reader]]:
    """Finds out which data set a folder or tar is.

    Args:
      path: the folder, its parent, or the tar.

    Returns:
      The tree whose root is the data set's, and the reader for it.

    Raises:
      DataError: none of the layouts, or several data sets.
    """
    tests = {reader: reader.told for reader in READERS.values()}
    places = _places(Path(path), tests)
    found = [pair for place in places for pair in _fitting(place, tests)]
    if not found:
        for place in places:
            place.close()
        raise DataError(
            f"{path} has none of the layouts that are known ({', '.join(READERS)}), expected the "
            "folder or tar of one of them"
        )
    tree = _one([tree for tree, _ in found], Path(path), "data set")
    return tree, found[0][1]


def _wanted(reader: type[Reader]) -> str:
    return f"{' or '.join(reader.names)} (a folder or a tar)"


def _absent(reader: type[Reader], place: object) -> DataError:
    module = reader.__module__.rpartition(".")[2]
    return DataError(
        f"{place} holds no {reader.name}, expected {_wanted(reader)} in the layout that "
        f"sinewich_jax.data.archives.{module} describes; name another by the config key data_dir"
    )


def _places(path: Path, tests: Mapping[type[Reader], Test]) -> list[Tree]:
    """The path itself if it is a tar; else folders that fit a reader; else tars by their names."""
    tree = open_path(path)
    if not isinstance(tree, FolderTree):
        return [tree]
    names = {
        stem.lower() + end for reader in tests for stem in reader.names for end in TAR_SUFFIXES
    }
    tars = (path / file for file in tree.files() if file.lower() in names)
    return [view for view, _ in _fitting(tree, tests)] or [open_path(tar) for tar in tars]


def _fitting(tree: Tree, tests: Mapping[type[Reader], Test]) -> list[tuple[Tree, type[Reader]]]:
    """The tree's root if it fits, else those of its folders that do."""
    for level in ([tree], [tree.sub(folder) for folder in tree.folders()]):
        found = [(view, reader) for view in level for reader, fits in tests.items() if fits(view)]
        if found:
            return found
    return []


def _one(trees: Sequence[Tree], path: Path, what: str) -> Tree:
    if len(trees) == 1:
        return trees[0]
    for tree in trees:
        tree.close()
    places = ", ".join(tree.where("") for tree in trees)
    raise DataError(f"{path} holds more than one {what} ({places}), expected one; name it itself")
