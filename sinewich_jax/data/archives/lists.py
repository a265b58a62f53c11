"""What several readers do with lists of ids and folders of files."""

from __future__ import annotations

from collections.abc import Mapping

from sinewich_jax.data.archives.reader import Reader
from sinewich_jax.data.archives.tree import Tree
from sinewich_jax.errors import DataError, did_you_mean


def read_list(tree: Tree, name: str) -> list[tuple[int, str]]:
    """``(line number, id)`` of a list with one id a line; empty lines are passed over.

    Raises:
      DataError: not text, no id, or an id that would be a path.
    """
    try:
        lines = tree.read(name).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{tree.where(name)} is not text, expected one id per line") from None
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{tree.where(name)} lists no id, expected one per line")
    for number, id in rows:
        if "/" in id or "\\" in id or id.startswith("."):
            raise DataError(
                f"line {number} of {tree.where(name)} is {id!r}, expected an id without a path"
            )
    return rows


def list_splits(tree: Tree, folder: str) -> tuple[str, ...]:
    """Names of the lists in a folder, train first, then val, then the others."""
    names = [name.removesuffix(".txt") for name in tree.files(folder) if name.endswith(".txt")]
    first = {"train": 0, "val": 1}
    return tuple(sorted(names, key=lambda name: (first.get(name, 2), name)))


def listed_ids(reader: Reader, folder: str, split: str, strict: bool) -> list[str]:
    """The ids in ``folder/split.txt``, each of which must have its image."""
    tree = reader.tree
    if split not in reader.splits:
        raise no_split(reader, split)
    rows = read_list(tree, f"{folder}/{split}.txt")
    absent = {row: None for row in rows if not tree.has(reader.image_file(row[1]))}
    if absent and strict:
        number, id = next(iter(absent))
        raise DataError(
            f"line {number} of {tree.where(f'{folder}/{split}.txt')} names {id!r}, but "
            f"{tree.where(reader.image_file(id))} is not there ({len(absent)} of {len(rows)} "
            "images are missing); add it or take the line out"
        )
    return [row[1] for row in rows if row not in absent]


def no_split(reader: Reader, split: str) -> DataError:
    """The error for a split that is not there."""
    found = did_you_mean(split, reader.splits) or ", which holds none"
    return DataError(f"there is no split {split!r} in {reader.tree.where('')}{found}")


def suffixes(tree: Tree, folder: str) -> Mapping[str, int]:
    """How many files of each ending, in lower case, a folder holds."""
    counts: dict[str, int] = {}
    for name in tree.files(folder):
        stem, dot, ending = name.rpartition(".")
        ending = (dot + ending).lower() if stem else ""
        counts[ending] = counts.get(ending, 0) + 1
    return counts
