"""The leaves of a model that lies in files: read one at a time, checked, and read ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.arrays import content, widen
from sinewich_jax.core.curvature import Curvature, Diagonal, Factored, scaled
from sinewich_jax.errors import SinewichError
from sinewich_jax.merging.align import check_integers
from sinewich_jax.merging.combine import view
from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.storage.fingerprint import Fingerprint
from sinewich_jax.storage.leaves import LeafSource

Looked = Callable[[str], None]


class FileStats:
    """The statistics of one expert, by the path of the parameter."""

    def __init__(self, source: LeafSource, factor: float = 1.0) -> None:
        """Reads nothing yet.

        Args:
          source: an open file with ``PATH/row`` and ``PATH/col``, ``PATH/diag``, or ``PATH``.
          factor: that curvatures are multiplied by, see :func:`sinewich_jax.merging.fisher_scale`.
        """
        self.source = source
        self._factor = factor

    def get(self, path: str) -> Any:
        """The statistic of one leaf, None where there is none.

        Raises:
          SinewichError: one margin without the other.
        """
        names = self.source.specs
        if path in names:
            return self.source.read(path)
        if f"{path}/diag" in names:
            return self._scaled(Diagonal(self.source.read(f"{path}/diag")))
        margins = [field for field in Factored._fields if f"{path}/{field}" in names]
        if not margins:
            return None
        if len(margins) == 1:
            raise SinewichError(
                f"the curvature of {path!r} in {self.source.path} has {margins[0]} and not the "
                "other margin; expected both row and col"
            )
        return self._scaled(Factored(*(self.source.read(f"{path}/{field}") for field in margins)))

    def _scaled(self, curvature: Curvature) -> Curvature:
        return curvature if self._factor == 1 else scaled(curvature, np.float32(self._factor))


class _Read(NamedTuple):
    arrays: list[np.ndarray]
    stats: tuple[Any, ...]


class FileLeaves:
    """:class:`~sinewich_jax.merging.registry.Leaves` of open files.

    Every pass reads every leaf again, in the order of the paths. While the rule works on a leaf, a
    thread reads and fingerprints the next, so that two are in memory.

    Attributes:
      names: of the experts.
      fingerprints: after a whole pass: of the leaves that were read, of the base and each expert.
      cosines: after a whole pass: each expert -> the cosine between it and the base.
    """

    def __init__(
        self,
        base: LeafSource,
        experts: Mapping[str, LeafSource],
        paths: tuple[str, ...],
        stats: Mapping[str, FileStats] | None = None,
        looked: Looked = lambda path: None,
    ) -> None:
        """Reads nothing yet.

        Args:
          base: the model that all experts started from.
          experts: the open models by name.
          paths: of the leaves to read, which all of them have with equal shapes.
          stats: the statistics of each expert, None where the rule needs none.
          looked: called with the path of each leaf that is given out.
        """
        self.names = tuple(experts)
        self.fingerprints: tuple[str, ...] = ()
        self.cosines: dict[str, float] = {}
        self._sources = [base, *experts.values()]
        self._labels = ["the base", *(f"the expert {name!r}" for name in experts)]
        self._paths = tuple(sorted(paths))
        self._stats = stats
        self._looked = looked

    def __iter__(self) -> Iterator[Leaf]:
        """The leaves that hold reals, one at a time.

        Raises:
          SinewichError: integers that differ.
          CheckpointError: a leaf that cannot be read.
        """
        first = _Facts(len(self._sources)) if not self.fingerprints else None
        with ThreadPoolExecutor(1, "leaves") as thread:
            coming = None
            for path, after in zip(self._paths, (*self._paths[1:], None), strict=True):
                read = self._read(path, first) if coming is None else coming.result()
                # Asked for before the rule starts on this one.
                coming = None if after is None else thread.submit(self._read, after, first)
                if content(read.arrays[0]) == "real":
                    self._looked(path)
                    leaf = view(path, read.arrays, read.stats)
                    del read  # else two leaves stay while the next is waited for
                    yield leaf
                    del leaf
        if first is not None:
            self.fingerprints = tuple(map(str, first.digests))
            self.cosines = dict(zip(self.names, first.cosines(), strict=True))

    def _read(self, path: str, facts: _Facts | None) -> _Read:
        arrays = []
        for place, source in enumerate(self._sources):
            array = source.read(path)
            if facts is not None:
                facts.digests[place].add(path, array)
            if content(array) == "real":
                array = widen(array, np)
            elif place:
                check_integers({path: arrays[0]}, {path: array}, self._labels[place])
            arrays.append(array)
        if facts is not None and content(arrays[0]) == "real":
            facts.add(arrays)
        stats = () if self._stats is None else self._stats.values()
        return _Read(arrays, tuple(one.get(path) for one in stats))


class _Facts:
    """What one pass learns about whole models."""

    def __init__(self, count: int) -> None:
        self.digests = [Fingerprint() for _ in range(count)]
        self._with_base = np.zeros(count)
        self._squares = np.zeros(count)

    def add(self, arrays: list[np.ndarray]) -> None:
        with np.errstate(all="ignore"):
            base = arrays[0].reshape(-1)
            for place, array in enumerate(arrays):
                flat = array.reshape(-1)
                self._with_base[place] += np.vdot(base, flat).real
                self._squares[place] += np.vdot(flat, flat).real

    def cosines(self) -> list[float]:
        lengths = np.sqrt(self._squares)
        scale = lengths[0] * lengths[1:]
        return [
            float(dot / size) if size else math.nan
            for dot, size in zip(self._with_base[1:], scale, strict=True)
        ]
