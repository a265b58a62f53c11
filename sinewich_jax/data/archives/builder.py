"""Published archives as TFDS data sets on disk: array_record files, no TensorFlow, no network.

    with find_tree("nyud_mt", "/data") as tree:
        path = prepare("nyud_mt", tree, "train")
    source = open(path, "train")

Raw sizes are kept. Images are the archive's own bytes; class and binary maps are lossless PNG,
depth is float32 metres, 8-bit normals (PASCAL) are 8-bit again and others float16, masks are packed
bool. What takes time, edges and parts, is made here once. `prepare` writes into our cache and never
beside the archive; the directory's name holds a mark of the archive's files, so a changed archive
is prepared anew.

TFDS knows the builders by the same names once this module is imported, ``tfds.builder("nyud_mt",
file_format="array_record")``, and then looks into its manual directory.
This module imports TFDS; the package does not import this module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from sinewich_jax.data.archives.layouts import find_tree, reader_class
from sinewich_jax.data.archives.reader import Reader, Sample
from sinewich_jax.data.archives.tree import Tree
from sinewich_jax.data.cache import cache_dir
from sinewich_jax.data.labels import kind_of

FORMAT = "1.0.0"
"""Version of what is stored; the directory's name holds it."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True, eq=False)
class ArchiveConfig(tfds.core.BuilderConfig):
    """What is prepared.

    Attributes:
      reader: reads the archive; None looks into TFDS's manual directory.
      splits: those wanted; () takes all.
    """

    reader: Reader | None = None
    splits: tuple[str, ...] = ()


class Archive(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Dense labels from a user's copy of a published archive."""

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
        features: dict[str, Any] = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "height": tfds.features.Scalar(dtype=np.int32),
            "width": tfds.features.Scalar(dtype=np.int32),
            "available_tasks": tfds.features.Sequence(tfds.features.Text()),
        }
        for task in tasks:
            features[task] = _feature(task, kind.eight_bit_normals)
            features[f"{task}_valid"] = tfds.features.Tensor(
                shape=(None, None), dtype=np.bool_, encoding=tfds.features.Encoding.ZLIB
            )
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{kind.name}: {__doc__.split(':')[0]}",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def download_and_prepare(self, **options: Any) -> None:
        """Prepares the data set; see TFDS."""
        with contextlib.ExitStack() as self._opened:
            super().download_and_prepare(**options)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
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
            channels=reader.channels,
            class_names={task: list(names) for task, names in reader.class_names.items()},
            sizes=[],
            missing={split: reader.absent(ids[split]) for split in splits},
        )
        return {split: self._generate_examples(reader, split, ids[split]) for split in splits}

    def _generate_examples(
        self, reader: Reader, split: str, ids: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        sizes: set[tuple[int, ...]] = set()
        resized: dict[str, int] = {}
        stored = [task for task in reader.all_tasks if task in self.info.features]
        bar = tqdm(ids, f"preparing {reader.name} {split}", disable=not self.progress)
        for index, id in enumerate(bar):
            sample = reader.read(id, stored)
            sizes.add(sample.image.shape[:2])
            for task in sample.resized:
                resized[task] = resized.get(task, 0) + 1
            yield index, encode(sample, reader.eight_bit_normals)
        known = {tuple(size) for size in self.info.metadata["sizes"]}
        # What is of many sizes needs no list of them.
        self.info.metadata["sizes"] = [list(map(int, size)) for size in sorted(sizes | known)][:2]
        for task, count in resized.items():
            _log.warning(
                "%d %s labels of %s %s were resized to their images",
                *(count, task, reader.name, split),
            )


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


def _feature(task: str, eight_bit_normals: bool) -> Any:
    kind = kind_of(task)
    if kind == "normals" and eight_bit_normals:
        return tfds.features.Image(shape=(None, None, 3))
    if kind in ("normals", "depth"):
        shape, dtype = (((None, None, 3), np.float16), ((None, None), np.float32))[kind == "depth"]
        # Plain bytes: floats hardly shrink, and a list of them takes long to write and read.
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)
    return tfds.features.Image(shape=(None, None, 1), encoding_format="png")


def encode(sample: Sample, eight_bit_normals: bool) -> dict[str, Any]:
    """A sample in the form of the builder's features."""
    height, width = sample.image.shape[:2]
    features: dict[str, Any] = {
        "id": sample.id,
        "image": sample.encoded.get("image") or png(sample.image),
        "height": height,
        "width": width,
        "available_tasks": list(sample.available),
    }
    for task, label in sample.labels.items():
        kind = kind_of(task)
        if kind == "normals" and eight_bit_normals:
            # The archive's own file, unless the map is missing or was resized.
            rounded = np.rint((label + 1) * np.float32(127.5)).astype(np.uint8)
            label = sample.encoded.get("normals") or png(rounded)
        elif kind == "normals":
            label = label.astype(np.float16)
        elif kind != "depth":
            label = png(label)
        features[task], features[f"{task}_valid"] = label, sample.valid[task]
    return features


def png(pixels: np.ndarray) -> bytes:
    """A lossless image file of uint8 [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


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
    stamp = tree.stamp(reader_class(name).folders(tree))
    mark = json.dumps([name, stamp, dict(options)], sort_keys=True)
    return f"{split}-{hashlib.sha256(mark.encode()).hexdigest()[:16]}"


def is_prepared(path: pathlib.Path) -> bool:
    """Whether a directory holds a prepared split."""
    return (path / "dataset_info.json").exists()


def prepare(
    name: str,
    tree: Tree,
    split: str,
    options: Mapping[str, Any] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Prepares a split unless it is already there.

    TFDS writes into a directory of its own and renames it when all is written, so an interrupted
    preparation is started again and never read.

    Args:
      name: of the data set.
      tree: the archive, from `find_tree`.
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
    if is_prepared(path):
        return path
    reader = reader_class(name)(tree, **options)
    config = ArchiveConfig(
        name=_config_name(name, tree, split, options), reader=reader, splits=(split,)
    )
    reader.ids(split)  # An unknown split is refused before anything is written.
    with _quiet():
        builder = BUILDERS[name](
            data_dir=os.fspath(_root(cache)), config=config, file_format="array_record"
        )
        builder.progress = progress
        download_config = tfds.download.DownloadConfig(
            try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
        )
        try:
            builder.download_and_prepare(download_config=download_config)
        except OSError:
            # Another process that prepared the same was first to rename its directory; which bits
            # are there does not depend on who wrote them.
            if not is_prepared(path):
                raise
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from announcing downloads, custom configs and two bars for what is one loop."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(level)
