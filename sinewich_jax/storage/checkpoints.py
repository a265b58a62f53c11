"""Checkpoints of a training run: asynchronous, complete or absent, verified before they are read.

The only file that knows Orbax (its v0 ``CheckpointManager``). A step is a folder with one Orbax
item per tree, the JSON item ``meta`` and a manifest of checksums (:mod:`.manifest`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from sinewich_jax.core.trees import flatten_paths, tree_bytes
from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.atomic import is_full_disk, no_space
from sinewich_jax.storage.manifest import Leaves, Manifest, verify, write_manifest
from sinewich_jax.storage.steps import StepFolders, clear_the_way, newest_whole
from sinewich_jax.storage.targets import check_target, checked_leaves, checked_meta

META = "meta"


@dataclass(frozen=True)
class Restored:
    """What :meth:`CheckpointStore.restore_latest` found.

    Attributes:
      step: the newest whole step.
      items: item name -> restored tree.
      meta: the JSON that was saved with it.
      skipped: newer steps that were passed over, newest first, each with the reason in words.
    """

    step: int
    items: dict[str, Any]
    meta: dict[str, Any]
    skipped: list[tuple[int, str]]


@dataclass(frozen=True)
class _Saving:
    """The save under way: what its manifest will say and how much room it takes at most."""

    step: int
    leaves: Mapping[str, Leaves]
    needed: int


class CheckpointStore:
    """The checkpoints in one directory.

    Reading changes nothing on the disk, so a second process may look at a running job's directory.
    The first :meth:`save` removes temporary folders that a killed save left behind. Every process
    of a multi-process job has to make the same calls; the directory has to be shared.
    """

    def __init__(self, directory: str | os.PathLike[str], max_to_keep: int = 3):
        """Touches nothing on the disk yet.

        Args:
          directory: the folder of steps; made by the first save.
          max_to_keep: older steps beyond this number are removed after each successful save.
        """
        if "://" in os.fspath(directory):
            raise CheckpointError(
                f"{directory} is a remote address, expected a folder of the file system; mount the "
                "bucket and name the mounted folder"
            )
        if max_to_keep < 1:
            raise CheckpointError(f"max_to_keep is {max_to_keep}; expected at least 1")
        self.directory = Path(directory).absolute()
        self._steps = StepFolders(self.directory)
        self._max_to_keep = max_to_keep
        self._manager: ocp.CheckpointManager | None = None
        self._saving: _Saving | None = None

    def __enter__(self) -> CheckpointStore:
        """The store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the last save."""
        self.close()

    # ---- looking

    def steps(self) -> list[int]:
        """The committed steps, oldest first (their checksums are looked at when one is read)."""
        return self._steps.committed()

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def read_meta(self, step: int) -> dict[str, Any]:
        """The JSON item of a step.

        Raises:
          CheckpointError: there is no such step, or its meta file is damaged.
        """
        verify(self._steps.existing(step), under=f"{META}/")
        return self._read(step, {META: ocp.args.JsonRestore()})[META]

    # ---- saving

    def save(self, step: int, items: Mapping[str, Any]) -> None:
        """Starts saving; returns as soon as the arrays are copied off the devices.

        The next ``save``, :meth:`wait` or :meth:`close` raises if this save failed.

        Args:
          step: the training step, larger than every whole step in the directory.
          items: item name -> pytree of arrays, and under ``"meta"`` a dict for JSON. A tree without
            leaves takes no space and is restored as it was.

        Raises:
          CheckpointError: this or the previous save failed (a full disk, for example); a leaf or
            the meta that cannot be saved; a step that exists already.
        """
        self.wait()
        trees = {name: tree for name, tree in items.items() if name != META}
        leaves = {name: checked_leaves(name, tree) for name, tree in trees.items()}
        meta = checked_meta(items.get(META, {}))
        if clear_the_way(self._steps, step) and self._manager is not None:
            self._manager.reload()
        self._saving = _Saving(
            step=step,
            leaves=leaves,
            needed=sum(tree_bytes(tree) for tree in trees.values()),
        )
        arguments = {
            name: ocp.args.StandardSave(tree) for name, tree in trees.items() if leaves[name]
        }
        with self._translated_errors():
            self._writer().save(
                step,
                args=ocp.args.Composite(**arguments, **{META: ocp.args.JsonSave(meta)}),
                force=True,
            )

    def wait(self) -> None:
        """Blocks until the last save is on the disk.

        Raises:
          CheckpointError: it failed; earlier steps are intact.
        """
        if self._manager is not None and self._saving is not None:
            with self._translated_errors():
                self._manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Waits for the last save and frees the threads behind it."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    # ---- restoring

    def restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Reads items of one step onto the devices that the target names.

        Args:
          step: a step of :meth:`steps`.
          abstract: item name -> pytree of ``ShapeDtypeStruct``, each with a sharding. The mesh need
            not be the one that was saved from. Items that are not named are not read.

        Returns:
          The same trees, containers included, with arrays.

        Raises:
          CheckpointError: no such step, a damaged file, or a target that does not fit what was
            saved (names the leaf).
        """
        return self._restore(verify(self._steps.existing(step)), abstract)

    def restore_latest(self, abstract: Mapping[str, Any]) -> Restored | None:
        """Reads the newest whole step, passing over damaged ones and saying so.

        Args:
          abstract: as for :meth:`restore`.

        Returns:
          The newest whole step, or None when the directory holds no step at all.

        Raises:
          CheckpointError: every step is damaged, or the target does not fit the newest whole one.
        """
        manifest, skipped = newest_whole(self._steps)
        if manifest is None and skipped:
            reasons = "; ".join(reason for _, reason in skipped)
            raise CheckpointError(
                f"no whole checkpoint is left in {self.directory} ({reasons}); restore the folder "
                "from a copy, or start anew in another directory"
            )
        if manifest is None:
            return None
        items = self._restore(manifest, abstract)
        meta = self._read(manifest.step, {META: ocp.args.JsonRestore()})[META]
        return Restored(manifest.step, items, meta, skipped)

    # ---- inside

    def _restore(self, manifest: Manifest, abstract: Mapping[str, Any]) -> dict[str, Any]:
        for name, target in abstract.items():
            check_target(self._steps.folder(manifest.step), manifest, name, target)
        arguments = {
            name: ocp.args.StandardRestore(target)
            for name, target in abstract.items()
            if flatten_paths(target)
        }
        read = self._read(manifest.step, arguments) if arguments else {}
        return {name: read.get(name, target) for name, target in abstract.items()}

    def _read(self, step: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
        folder = self._steps.folder(step)
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                read = reader.restore(folder, args=ocp.args.Composite(**arguments))
        except Exception as error:
            raise CheckpointError(
                f"{folder} could not be restored ({type(error).__name__}: {_first_line(error)}), "
                "although its files are those that were saved"
            ) from error
        return {name: read[name] for name in arguments}

    def _writer(self) -> ocp.CheckpointManager:
        if self._manager is None:
            logging.getLogger("absl").addFilter(_RAISED_ANYWAY)  # adding it twice is harmless
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    create=True,
                    cleanup_tmp_directories=True,
                    preservation_policy=ocp.checkpoint_managers.LatestN(self._max_to_keep),
                    # Runs on the main process when all files are written, before the rename that
                    # commits the step.
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
                ),
            )
        return self._manager

    def _seal(self) -> None:
        saving = self._saving
        temporary = self._steps.temporary(saving.step)
        if len(temporary) != 1:
            raise CheckpointError(
                f"expected one temporary folder of step {saving.step} in {self.directory}, found "
                f"{[path.name for path in temporary]}; another process is saving there"
            )
        write_manifest(temporary[0], saving.step, saving.leaves)

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Whatever Orbax raises becomes one sentence; the writer is made anew for the next save."""
        try:
            yield
        except Exception as error:
            saving, self._saving, self._manager = self._saving, None, None
            if jax.process_index() == 0:
                for folder in self._steps.temporary(saving.step):
                    shutil.rmtree(folder, ignore_errors=True)
            if is_full_disk(error):
                raise no_space(self._steps.folder(saving.step), saving.needed) from error
            raise CheckpointError(
                f"step {saving.step} could not be saved in {self.directory} "
                f"({type(error).__name__}: {_first_line(error)}); earlier steps are intact"
            ) from error


class _RaisedAnyway(logging.Filter):
    """Drops the tracebacks that Orbax's threads log: the same errors are raised by ``wait``."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname)


_RAISED_ANYWAY = _RaisedAnyway()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
