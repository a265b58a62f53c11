"""A prepared archive as a data source, and the way there from a user's folder or tar.

This module imports TFDS; the package does not import this module.
"""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sinewich_jax.data.archives import builder, records
from sinewich_jax.data.archives.layouts import at_root, find_place, reader_class
from sinewich_jax.data.cache import CACHE_ENVIRONMENT
from sinewich_jax.data.files import read_image
from sinewich_jax.data.prepare import is_prepared
from sinewich_jax.data.source import Example
from sinewich_jax.errors import DataError
from sinewich_jax.storage.atomic import is_full_disk

_log = logging.getLogger(__name__)


class ArchiveSource:
    """Random access to a prepared split: ``len(source)``, ``source[i]``.

    Attributes:
      tasks: names of the tasks.
      channels: per task, the width of its prediction head.
      class_names: per task over classes, their names.
      size: (height, width) when all images have one, else None.
      path: the prepared directory.
      layout: which release it was made from.
      notes: what was decided on reading, by name, for example a unit.
      resized: per task, how many labels were brought to their image's size.
      missing: per task that lacks labels, ``{"count": files, "first": name}``.
    """

    def __init__(self, path: pathlib.Path, split: str, tasks: Sequence[str] | None = None):
        """Opens the split; use `open`."""
        prepared = tfds.builder_from_directory(path)
        about = dict(prepared.info.metadata)
        held = about["tasks"]
        self.tasks = tuple(held if tasks is None else tasks)
        self.channels: Mapping[str, int] = {t: about["channels"][t] for t in self.tasks}
        names = about["class_names"]
        self.class_names = {t: tuple(names[t]) for t in self.tasks if t in names}
        sizes = about["sizes"]
        self.size: tuple[int, int] | None = (sizes[0][0], sizes[0][1]) if len(sizes) == 1 else None
        self.path, self.layout, self.notes = path, about["layout"], about["notes"]
        self._grows = tuple(task for task in about["grows"] if task in self.tasks)
        self.resized: Mapping[str, int] = about["resized"]
        self.missing: Mapping[str, Any] = about["missing"].get(split.partition("[")[0], {})
        images = [
            name
            for name, feature in prepared.info.features.items()
            if isinstance(feature, tfds.features.Image)
        ]
        raw = {name: tfds.decode.SkipDecoding() for name in images}
        self._records = prepared.as_data_source(split, decoders=raw)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Example ``index`` at the size it has in the archive."""
        record = self._records[int(index)]
        image = read_image(record["image"], f"image {index} of {self.path}")
        everything = np.ones(image.shape[:2], bool)  # Shared, which makes augmentation cheaper.
        labels, valid = {}, {}
        for task in self.tasks:
            mask = record[f"{task}_valid"]
            valid[task] = everything if mask.all() else mask
            labels[task] = records.label(task, record[task], mask)
        example: Example = {"image": image, "labels": labels, "valid": valid}
        return {**example, "grows": self._grows} if self._grows else example

    def id(self, index: int) -> str:
        """The id that example ``index`` has in the archive."""
        return self._records[int(index)]["id"].decode()

    def available(self, index: int) -> tuple[str, ...]:
        """Tasks whose label of example ``index`` is in the archive."""
        return tuple(task.decode() for task in self._records[int(index)]["available_tasks"])


def open(
    path: str | os.PathLike[str], split: str, tasks: Sequence[str] | None = None
) -> ArchiveSource:
    """Opens a prepared split for random access.

    Args:
      path: the directory that `builder.prepare` returned.
      split: its split, or a TFDS part of it such as ``"train[:50%]"``.
      tasks: tasks wanted; None takes all.

    Returns:
      An `ArchiveSource`.

    Raises:
      DataError: the directory is no prepared archive.
    """
    path = pathlib.Path(path)
    if not is_prepared(path):
        raise DataError(f"{path} is no prepared archive: call prepare() and pass what it returns")
    return ArchiveSource(path, split, tasks)


def open_archive(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    allow_missing: bool = False,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> ArchiveSource:
    """Opens a split of a published archive, preparing it first if that was not done.

    Args:
      name: of the data set, like ``"nyud_mt"``.
      split: a list of the archive, usually ``"train"`` or ``"val"``.
      data_dir: the archive's folder or tar, or the folder that holds it.
      tasks: tasks wanted, whose labels must then all be there; None takes all there are, and a
        missing label counts nowhere.
      allow_missing: labels of wanted tasks may be missing too.
      cache: where prepared data sets live; None takes ours.
      progress: show a progress bar while preparing.
      **options: what the layout's reader takes besides.

    Returns:
      The source.

    Raises:
      DataError: the archive is absent, damaged, or lacks a wanted task or label.
    """
    with find_place(name, data_dir) as tree:
        path = builder.prepared_path(name, tree, split, options, cache)
        if not is_prepared(path):
            reader = reader_class(name)(at_root(name, tree), **options)
            # What the list of files tells is told before the work.
            _check(reader.tasks, reader.absent(reader.ids(split)), tasks, allow_missing, name)
            try:
                builder.prepare(name, tree, split, options, cache, progress)
            except OSError as error:
                if is_full_disk(error):
                    raise
                raise DataError(
                    f"{name} cannot be prepared in {path.parent} ({error.strerror or error}); name "
                    f"a folder that can be written by the environment variable {CACHE_ENVIRONMENT}"
                ) from error
    source = ArchiveSource(path, split)
    _check(source.tasks, source.missing, tasks, allow_missing, name)
    for task, files in source.missing.items():
        if tasks is None or task in tasks:
            _log.warning("%s", _lacking(task, files, f"{name} {split}") + "; they count nowhere")
    for task, count in source.resized.items():
        if tasks is None or task in tasks:
            _log.warning(
                "%d %s labels of %s %s were not of their image's size and were resized to it",
                *(count, task, name, split),
            )
    return source if tasks is None else ArchiveSource(path, split, tasks)


def _check(
    held: Sequence[str],
    missing: Mapping[str, Any],
    tasks: Sequence[str] | None,
    allow_missing: bool,
    name: str,
) -> None:
    """Refuses wanted tasks that the archive does not hold or not for every image."""
    for task in tasks or ():
        if task not in held:
            raise DataError(
                f"task {task!r} has no labels in this copy of {name}, which holds "
                f"{', '.join(held) or 'none'}; leave it out of the tasks or add its labels"
            )
        if task in missing and not allow_missing:
            raise DataError(
                _lacking(task, missing[task], name) + "; add the files, leave the task out, or "
                "set the option allow_missing"
            )


def _lacking(task: str, files: Mapping[str, Any], where: str) -> str:
    return f"{files['count']} {task} files of {where} are missing, first {files['first']}"
