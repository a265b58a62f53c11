"""Checkpoints leaf by leaf: an Orbax tree, and a run's parameters with its frozen base.

Orbax restores a tree; where the target holds a placeholder, it reads nothing. A call costs some
milliseconds whatever it reads, so that neighbours of a small leaf are read with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.errors import CheckpointError, did_you_mean
from sinewich_jax.storage.base import base_path
from sinewich_jax.storage.fingerprint import Fingerprint
from sinewich_jax.storage.leaves import BASE, CHECKPOINTS, LeafSource, LeafSpec, Shards
from sinewich_jax.storage.manifest import verify
from sinewich_jax.storage.safetensors_leaves import SafetensorsLeaves
from sinewich_jax.storage.steps import StepFolders, newest_whole

_TOGETHER = 8 << 20
_PARAMS = "params"
START = "start"
FROZEN = "frozen"
# What merging wants to know of a run, from the JSON of its checkpoints.
FACTS = {
    "start": "base",
    "batch_size": "batch_size",
    "per_task": "per_task",
    "frequencies": "frequencies",
    "prefix": "prefix",
    "factors": "factors",
    "sine_factors": "sine_factors",
}


class OrbaxLeaves(LeafSource):
    """The leaves of one Orbax item."""

    def __init__(self, path: Path) -> None:
        """Reads the description of the tree.

        Raises:
          CheckpointError: Orbax cannot read the folder, or it holds something that is no array.
        """
        self._handler = ocp.PyTreeCheckpointHandler()
        try:
            self._tree = self._handler.metadata(path.absolute()).tree
            specs = {
                name: LeafSpec(tuple(leaf.shape), np.dtype(leaf.dtype))
                for name, leaf in flatten_paths(self._tree).items()
            }
        except Exception as error:
            self._handler.close()
            raise CheckpointError(
                f"{path} cannot be read as a tree of arrays ({type(error).__name__}: {error}); "
                "expected a folder that Orbax wrote"
            ) from error
        super().__init__(path, specs)
        self._waiting: dict[str, np.ndarray] = {}

    def read(self, name: str) -> np.ndarray:
        """See :meth:`LeafSource.read`."""
        self.spec(name)
        if name not in self._waiting:
            self._waiting = self._restore(self._neighbours(name), name)
        return self._waiting.pop(name)

    def close(self) -> None:
        """Frees Orbax's threads."""
        self._waiting = {}
        self._handler.close()

    def _neighbours(self, name: str) -> set[str]:
        names, size = self.names, 0
        group = set()
        for near in names[names.index(name) :]:
            size += self.specs[near].nbytes
            if group and size > _TOGETHER:
                break
            group.add(near)
        return group

    def _restore(self, names: set[str], first: str) -> dict[str, np.ndarray]:
        target = map_paths(
            lambda path, leaf: leaf if path in names else ocp.PLACEHOLDER, self._tree
        )
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        try:
            tree = self._handler.restore(
                self.path.absolute(),
                args=ocp.args.PyTreeRestore(item=target, restore_args=arguments),
            )
        except Exception as error:
            raise CheckpointError(
                f"the leaf {first!r} of {self.path} cannot be read ({type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0]}); restore the folder from a copy"
            ) from error
        return {path: leaf for path, leaf in flatten_paths(tree).items() if path in names}


def open_run(workdir: Path, item: str) -> LeafSource:
    """The newest whole step of a run.

    Raises:
      CheckpointError: there is none.
    """
    steps = StepFolders(workdir / CHECKPOINTS)
    manifest, skipped = newest_whole(steps)
    notes = tuple(f"{reason}; step passed over" for _, reason in skipped)
    if manifest is None:
        raise CheckpointError(
            f"{workdir} holds no whole checkpoint ({'; '.join(notes) or 'none was saved'}); train "
            "it first"
        )
    return open_step(steps.folder(manifest.step), item, notes)


def open_step(folder: Path, item: str, notes: tuple[str, ...] = ()) -> LeafSource:
    """One item of a step whose checksums hold; with ``params`` come the frozen parameters.

    Raises:
      CheckpointError: the step is damaged, lacks the item, or its frozen base is not there.
    """
    folder = folder.absolute()
    manifest = verify(folder, under=f"{item}/")
    if item == START:
        return _open_start(folder, notes)
    meta = json.loads((folder / "meta" / "metadata").read_bytes())
    mark = meta.get("base")
    if item == FROZEN and mark is not None:
        return _open_base(folder.parent.parent / BASE, mark)
    if not manifest.items.get(item):
        raise CheckpointError(
            f"{folder} has no item {item!r}{did_you_mean(item, manifest.items)}; name another "
            "checkpoint"
        )
    opened: list[LeafSource] = []
    try:
        opened.append(OrbaxLeaves(folder / item))
        homes = {name: (opened[0], name) for name in opened[0].names}
        if item == _PARAMS and mark is not None:
            opened.append(_open_base(folder.parent.parent / BASE, mark))
            for name in opened[1].names:
                collection, _, path = name.partition("/")
                if collection == _PARAMS:
                    homes[path] = (opened[1], name)
        metadata = {"step": str(manifest.step)} | ({} if mark is None else {"base": mark})
        if (facts := meta.get("merge")) is not None:
            metadata |= {
                name: json.dumps(facts[key]) for name, key in FACTS.items() if key in facts
            }
        return Shards(folder, homes, metadata, notes)
    except BaseException:
        for source in opened:
            source.close()
        raise


def _open_start(folder: Path, notes: tuple[str, ...]) -> LeafSource:
    """The parameters of a run before its first step, as far as tasks share them."""
    meta = json.loads((folder / "meta" / "metadata").read_bytes())
    mark = meta.get("merge", {}).get("start")
    if mark is None:
        raise CheckpointError(
            f"{folder} does not say where its run started: no parameter of it can be merged, or an "
            "earlier version trained it; name the weights that it started from"
        )
    homes: dict[str, tuple[LeafSource, str]] = {}
    try:
        for one in filter(None, (mark, meta.get("base"))):
            source = _open_base(folder.parent.parent / BASE, one)
            homes |= {
                name.removeprefix(f"{_PARAMS}/"): (source, name)
                for name in source.names
                if name.startswith(f"{_PARAMS}/")
            }
        return Shards(folder, homes, {"step": "0"}, notes)
    except BaseException:
        for source, _ in homes.values():
            source.close()
        raise


def _open_base(directory: Path, mark: str) -> LeafSource:
    path = base_path(directory, mark)
    if not path.is_file():
        raise CheckpointError(
            f"the base {mark} of the run is not in {directory}: expected {path.name}; copy "
            "the file there"
        )
    source = SafetensorsLeaves(path)
    digest = Fingerprint()
    for name in source.names:
        digest.add(name, source.read(name))
    if str(digest) != mark:
        source.close()
        raise CheckpointError(
            f"{path} is damaged or was changed: its content has the fingerprint {digest}, expected "
            f"{mark}; restore the file from a copy"
        )
    return source
