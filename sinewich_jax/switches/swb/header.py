"""What a bank says of the model that its tasks change: a fingerprint, and each leaf's shape."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.arrays import content, dtype_of
from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.storage.fingerprint import Fingerprint
from sinewich_jax.storage.leaves import LeafSource
from sinewich_jax.switches.swb.entries import shape_of
from sinewich_jax.switches.swb.log import SwitchBankError

FORMAT = 1
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")


class BaseLeaf(NamedTuple):
    """A leaf of the base.

    Attributes:
      shape: of the array.
      dtype: its name.
    """

    shape: tuple[int, ...]
    dtype: str


class Base(NamedTuple):
    """The model that the tasks of a bank change, without its numbers.

    Attributes:
      fingerprint: see :func:`sinewich_jax.storage.fingerprint.fingerprint`.
      leaves: path -> what it is.
    """

    fingerprint: str
    leaves: dict[str, BaseLeaf]

    @classmethod
    def of(cls, base: Any) -> Base:
        """Of a tree of arrays or of an open file, read leaf by leaf.

        Raises:
          CheckpointError: a leaf that cannot be read.
          SwitchBankError: a path, or a leaf that is no array of numbers.
        """
        if isinstance(base, Base):
            return base
        if isinstance(base, str | os.PathLike):
            raise SwitchBankError(
                f"the base is {os.fspath(base)!r}, expected its leaves; open it with "
                "storage.open_leaves"
            )
        digest, leaves = Fingerprint(), {}
        if isinstance(base, LeafSource):
            names, read = base.names, base.read
        else:
            flat = flatten_paths(base)
            names, read = sorted(flat), flat.__getitem__
        for path in names:
            leaf = read(path)
            if content(leaf) == "other":
                raise SwitchBankError(
                    f"the leaf {path!r} of the base holds {dtype_of(leaf)}, expected numbers; "
                    "leave it out"
                )
            digest.add(path, leaf)
            leaves[path] = BaseLeaf(tuple(np.shape(leaf)), np.dtype(dtype_of(leaf)).name)
        return cls(str(digest), leaves)


def to_json(base: Base | None, frequencies: str | None) -> dict[str, Any]:
    """The header of a bank."""
    mark = None
    if base is not None:
        leaves = [
            {"path": path, "shape": list(leaf.shape), "dtype": leaf.dtype}
            for path, leaf in base.leaves.items()
        ]
        mark = {"fingerprint": base.fingerprint, "leaves": leaves}
    return {"format": FORMAT, "base": mark, "frequencies": frequencies}


def from_json(content: Any) -> tuple[Base | None, str | None]:
    """Base and frequencies of a header.

    Raises:
      ValueError: it is no header.
    """
    if not isinstance(content, dict) or set(content) != {"format", "base", "frequencies"}:
        raise ValueError("its header is no object of format, base and frequencies")
    if content["format"] != FORMAT:
        raise ValueError(f"its header has the format {content['format']!r}, expected {FORMAT}")
    frequencies, mark = content["frequencies"], content["base"]
    if frequencies is not None and not isinstance(frequencies, str):
        raise ValueError("its frequencies are no string")
    if mark is None:
        return None, frequencies
    if not isinstance(mark, dict) or set(mark) != {"fingerprint", "leaves"}:
        raise ValueError("its base is no object of fingerprint and leaves")
    if not isinstance(mark["fingerprint"], str) or not _FINGERPRINT.fullmatch(mark["fingerprint"]):
        raise ValueError("the fingerprint of its base is not 'sha256:' and 64 hexadecimal digits")
    if not isinstance(mark["leaves"], list):
        raise ValueError("the leaves of its base are no list")
    leaves = {}
    for leaf in mark["leaves"]:
        if not isinstance(leaf, dict) or set(leaf) != {"path", "shape", "dtype"}:
            raise ValueError("a leaf of its base is no object of path, shape and dtype")
        if not isinstance(leaf["path"], str) or not isinstance(leaf["dtype"], str):
            raise ValueError("the path or dtype of a leaf of its base is no string")
        if leaf["path"] in leaves:
            raise ValueError(f"the leaf {leaf['path']!r} of its base occurs twice")
        leaves[leaf["path"]] = BaseLeaf(shape_of(leaf["shape"]), leaf["dtype"])
    return Base(mark["fingerprint"], leaves), frequencies


def check(path: Path, kept: Base | None, given: Base) -> None:
    """Refuses a base that the bank was not made for.

    Raises:
      SwitchBankError: another fingerprint; the first leaf that is another is named.
    """
    if kept is None:
        raise SwitchBankError(
            f"{path} was made without a base, so that none can be checked; open it without one"
        )
    if kept.fingerprint == given.fingerprint:
        return
    differ = sorted(
        leaf
        for leaf in kept.leaves.keys() | given.leaves.keys()
        if kept.leaves.get(leaf) != given.leaves.get(leaf)
    )
    where = "all leaves have the same shapes, but not the same numbers"
    if differ:
        ours, theirs = kept.leaves.get(differ[0]), given.leaves.get(differ[0])
        where = f"the leaf {differ[0]!r} is {_spec(theirs)}, expected {_spec(ours)}"
    raise SwitchBankError(
        f"{path} was made for another base: the fingerprint is {given.fingerprint[:19]}, expected "
        f"{kept.fingerprint[:19]} ({where}); name the base that its tasks were trained from"
    )


def _spec(leaf: BaseLeaf | None) -> str:
    return "not there" if leaf is None else f"{leaf.dtype}{leaf.shape}"
