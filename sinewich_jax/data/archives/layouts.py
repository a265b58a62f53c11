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


def find_tree(name: str, data_dir: str | os.PathLike[str] | None = None) -> Tree:
    """Finds a data set.

    Args:
      name: of the data set, like ``"nyud_mt"``.
      data_dir: the data set's folder, its tar, or a folder that holds one of them; None takes the
        folder that the environment variable ``SINEWICH_DATA`` names.

    Returns:
      The tree whose root is the data set's; close it.

    Raises:
      DataError: it is not there, or there more than once.
    """
    reader = reader_class(name)
    given = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT)
    wanted = f"{' or '.join(reader.names)} (a folder or a tar)"
    if not given:
        raise DataError(
            f"data set {name!r} needs {wanted}, named by the config key data_dir or the "
            f"environment variable {ENVIRONMENT}, but neither is set"
        )
    trees = _candidates(Path(given), {reader: reader.fits})
    if not trees:
        raise DataError(
            f"{given} holds no {name}, expected {wanted} in the layout that "
            f"sinewich_jax.data.archives.{reader.__module__.rpartition('.')[2]} describes; name "
            "another by the config key data_dir"
        )
    return _one([tree for tree, _ in trees], Path(given), name)


def detect(path: str | os.PathLike[str]) -> tuple[Tree, type[Reader]]:
    """Finds out which data set a folder or tar is.

    Args:
      path: the folder, its parent, or the tar.

    Returns:
      The tree whose root is the data set's, and the reader for it.

    Raises:
      DataError: none of the layouts, or several data sets.
    """
    found = _candidates(Path(path), {reader: reader.told for reader in READERS.values()})
    if not found:
        raise DataError(
            f"{path} has none of the layouts that are known ({', '.join(READERS)}), expected the "
            "folder or tar of one of them"
        )
    tree = _one([tree for tree, _ in found], Path(path), "data set")
    return tree, found[0][1]


def _candidates(
    path: Path, readers: Mapping[type[Reader], Test]
) -> list[tuple[Tree, type[Reader]]]:
    """Trees that fit a reader: the path itself, else what it holds, folders before tars."""
    tree = open_path(path)
    found = _fitting(tree, readers)
    if found or not isinstance(tree, FolderTree):
        if not found:
            tree.close()
        return found
    for reader in readers:
        for file in tree.files():
            lower = file.lower()
            names = {stem.lower() + ending for stem in reader.names for ending in TAR_SUFFIXES}
            if lower in names:
                found += _fitting(open_path(path / file), {reader: readers[reader]})
    return found


def _fitting(tree: Tree, readers: Mapping[type[Reader], Test]) -> list[tuple[Tree, type[Reader]]]:
    """The tree's root if it fits, else those of its folders that do."""
    for level in ([tree], [tree.sub(folder) for folder in tree.folders()]):
        found = [(view, reader) for view in level for reader, fits in readers.items() if fits(view)]
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
