"""Published archives as TFDS data sets on disk: array_record files, no TensorFlow, no network.

    with find_place("nyud_mt", "/data") as tree:
        path = prepare("nyud_mt", tree, "train")
    source = open(path, "train")

What takes time, edges and parts, is made here once; what a record holds, `records` says. `prepare`
writes into our cache and never beside the archive; the directory's name holds a mark of the
archive's files, so a changed archive is prepared anew.

TFDS knows the builders by the same names once this module is imported, ``tfds.builder("nyud_mt",
file_format="array_record")``, and then looks into its manual directory.
This module imports TFDS; the package does not import this module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from sinewich_jax.data import prepare as preparing
from sinewich_jax.data.archives import records
from sinewich_jax.data.archives.layouts import at_root, find_tree, reader_class
from sinewich_jax.data.archives.reader import Reader
from sinewich_jax.data.archives.tree import Tree
from sinewich_jax.data.cache import cache_dir

FORMAT = "1.0.0"
"""Version of what is stored; the directory's name holds it."""

SHARD = 32
"""Examples a file; so many are in memory while they are written."""


@dataclasses.dataclass(kw_only=True, eq=False)
class ArchiveConfig(tfds.core.BuilderConfig):
    """What is prepared.

    Attributes:
      reader: reads the archive; None looks into TFDS's manual directory.
      splits: those wanted; () takes all.
    """

    reader: Reader | None = None
    splits: tuple[str, ...] = ()


class Archive(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Dense labels from a user's copy of a published archive.

    Shards are made one after the other and hold consecutive examples. The more usual base class
    would gather a split to sort it: in memory up to 1 GB, beyond that by way of TensorFlow.
    """

    VERSION = tfds.core.Version(FORMAT)
    RELEASE_NOTES = {FORMAT: "First release."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the archive, a folder or a tar, into the manual directory."
    BUILDER_CONFIGS = [ArchiveConfig(name="manual")]  # noqa: RUF012

    progress = False
    """Show a bar while preparing."""

    def _info(self) -> tfds.core.DatasetInfo:
        reader = self.builder_config.reader
        kind = reader_class(self.name)
        tasks = kind.all_tasks if reader is None else reader.tasks
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{kind.name}: {__doc__.split(':')[0]}",
            features=records.features(kind, tasks),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def download_and_prepare(self, **options: Any) -> None:
        """Prepares the data set; see TFDS."""
        with contextlib.ExitStack() as self._opened:
            super().download_and_prepare(**options)

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
        config = self.builder_config
        reader = config.reader
        if reader is None:
            tree = self._opened.enter_context(find_tree(self.name, dl_manager.manual_dir))
            reader = reader_class(self.name)(tree)
        splits = config.splits or reader.splits
        ids = {split: reader.ids(split) for split in splits}  # Before any of the work.
        self.info.metadata.update(
            name=reader.name,
            layout=reader.layout,
            notes=reader.notes,
            tasks=list(reader.tasks),
            grows=list(reader.grows),
            channels=reader.channels,
            class_names={task: list(names) for task, names in reader.class_names.items()},
            sizes=[],
            resized={},
            missing={split: reader.absent(ids[split]) for split in splits},
        )
        return {split: self._shards(reader, split, ids[split]) for split in splits}

    def _shards(self, reader: Reader, split: str, ids: list[str]) -> list[Callable[[], Iterator]]:
        bar = tqdm(
            total=len(ids), desc=f"preparing {reader.name} {split}", disable=not self.progress
        )
        starts = range(0, len(ids), SHARD)
        return [
            functools.partial(self._examples, reader, ids[start : start + SHARD], start, bar)
            for start in starts
        ]

    def _examples(
        self, reader: Reader, ids: list[str], start: int, bar: tqdm
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        metadata = self.info.metadata
        tasks = [task for task in reader.all_tasks if task in self.info.features]
        for index, id in enumerate(ids, start):
            sample = reader.read(id, tasks)
            size = list(sample.image.shape[:2])
            # What is of many sizes needs no list of them.
            if size not in metadata["sizes"] and len(metadata["sizes"]) < 2:
                metadata["sizes"].append(size)
            for task in sample.resized:
                metadata["resized"][task] = metadata["resized"].get(task, 0) + 1
            yield index, records.encode(sample, reader.eight_bit_normals)
            bar.update()
            if bar.n == bar.total:
                bar.close()


class PascalMt(Archive):
    """PASCAL-Context for five tasks."""


class NyudMt(Archive):
    """NYU-Depth v2 for four tasks."""


class Nyuv2Mtan(Archive):
    """NYUv2 in NumPy files for three tasks."""


class CityscapesMt(Archive):
    """Cityscapes for semantic classes and depth."""


BUILDERS: Mapping[str, type[Archive]] = {
    kind.name: kind for kind in (PascalMt, NyudMt, Nyuv2Mtan, CityscapesMt)
}
"""The builders by the name of their data set."""


def prepared_path(
    name: str,
    tree: Tree,
    split: str,
    options: Mapping[str, Any] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Where `prepare` puts a split; the name changes with the archive's files and the options."""
    return _root(cache) / name / _config_name(name, tree, split, options or {}) / FORMAT


def _root(cache: str | os.PathLike[str] | None) -> pathlib.Path:
    return pathlib.Path(cache) if cache is not None else cache_dir() / "archives"


def _config_name(name: str, tree: Tree, split: str, options: Mapping[str, Any]) -> str:
    stamp = tree.stamp(reader_class(name).folders)
    mark = json.dumps([name, stamp, dict(options)], sort_keys=True)
    return f"{split}-{hashlib.sha256(mark.encode()).hexdigest()[:16]}"


def prepare(
    name: str,
    tree: Tree,
    split: str,
    options: Mapping[str, Any] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Prepares a split unless it is already there.

    Args:
      name: of the data set.
      tree: the archive, from `layouts.find_place`.
      split: a split of it.
      options: what its reader takes besides, for example ``{"depth_unit": "mm"}``.
      cache: where prepared data sets live; None takes ``archives`` in our cache.
      progress: show a progress bar.

    Returns:
      The directory, for `open`.

    Raises:
      DataError: the archive is not what it should be; names the file.
    """
    options = dict(options or {})
    path = prepared_path(name, tree, split, options, cache)
    if preparing.is_prepared(path):
        return path
    reader = reader_class(name)(at_root(name, tree), **options)
    config = ArchiveConfig(
        name=_config_name(name, tree, split, options), reader=reader, splits=(split,)
    )
    reader.ids(split)  # An unknown split is refused before anything is written.
    return preparing.prepare(
        lambda: BUILDERS[name](
            data_dir=os.fspath(_root(cache)), config=config, file_format="array_record"
        ),
        progress,
    )
