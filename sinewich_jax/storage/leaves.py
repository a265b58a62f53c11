"""Leaves of files one at a time, whatever the format: what is there is known before it is read."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sinewich_jax.errors import CheckpointError, did_you_mean

# What a run's work directory calls the folders of its steps and of its frozen base.
CHECKPOINTS = "checkpoints"
BASE = "base"
# What the names of a run's shared parameters begin with, and those of a bare backbone do not.
BACKBONE = "backbone/"


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """What a leaf will be.

    Attributes:
      shape: of the array.
      dtype: of the array; bfloat16 and its like are those of ``ml_dtypes``.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class LeafSource(abc.ABC):
    """An open file, or several, with leaves to read; a context manager.

    Attributes:
      path: what was opened.
      specs: name -> what the leaf will be, by sorted name.
      metadata: short strings that the file holds beside its leaves.
      notes: what a user should know, a sentence each (a damaged step that was passed over).
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, LeafSpec],
        metadata: Mapping[str, str] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Called by the readers of the formats."""
        self.path = path
        self.specs = dict(sorted(specs.items()))
        self.metadata = dict(metadata or {})
        self.notes = notes

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all leaves, sorted, in whatever order the file keeps them."""
        return tuple(self.specs)

    @property
    def nbytes(self) -> int:
        """The bytes of all leaves together."""
        return sum(spec.nbytes for spec in self.specs.values())

    def spec(self, name: str) -> LeafSpec:
        """Shape and dtype of a leaf; nothing is read.

        Raises:
          CheckpointError: no such leaf; the nearest name is offered.
        """
        if name not in self.specs:
            raise CheckpointError(
                f"{self.path} has no leaf {name!r}{did_you_mean(name, self.names)}"
            )
        return self.specs[name]

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """One leaf, in memory of its own.

        Raises:
          CheckpointError: no such leaf, or its bytes cannot be read; file and leaf are named.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the files; leaves that were read stay."""

    def __enter__(self) -> LeafSource:
        """The source itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the files."""
        self.close()


class Shards(LeafSource):
    """Leaves of several sources as one."""

    def __init__(
        self,
        path: Path,
        homes: Mapping[str, tuple[LeafSource, str]],
        metadata: Mapping[str, str] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Takes the sources over: closing this closes them.

        Args:
          path: what messages call all of it.
          homes: name -> source and the leaf's name there.
          metadata: see :class:`LeafSource`.
          notes: see :class:`LeafSource`.
        """
        specs = {name: source.spec(inside) for name, (source, inside) in homes.items()}
        super().__init__(path, specs, metadata, notes)
        self._homes = dict(homes)

    def read(self, name: str) -> np.ndarray:
        """See :meth:`LeafSource.read`."""
        self.spec(name)
        source, inside = self._homes[name]
        return source.read(inside)

    def close(self) -> None:
        """Closes all sources."""
        for source in {id(source): source for source, _ in self._homes.values()}.values():
            source.close()
