"""The scenes as a TFDS data set on disk: array_record files, no TensorFlow, no network.

    path = prepare("/data", height=64, width=64, counts={"train": 2000, "val": 200, "test": 200})
    source = open(path, "train")
    source[0]["image"], source[0]["labels"]["depth"]

Example i of a split is the scene with the seed ``SPLIT_OFFSETS[split] + i``, rendered by NumPy.
Images and label maps are lossless PNG bytes and depth is float32, so those are the renderer's
bits; normals are kept as float16, which turns them by less than 0.05 degrees, and are brought
back to length one when they are read.

The splits' scenes are the same whatever their counts: a longer split starts with the shorter one.
This module imports TFDS; the package does not import this module.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from sinewich_jax.data import prepare as preparing
from sinewich_jax.data.scenes.render import TASKS, render
from sinewich_jax.data.scenes.sampling import FORMAT, SPLIT_OFFSETS, sample_scene
from sinewich_jax.data.scenes.types import PART_CLASSES, SEMSEG_CLASSES
from sinewich_jax.errors import DataError

COUNTS = {"train": 2000, "val": 200, "test": 200}
"""Scenes a split when nothing else is asked for."""

MAPS = ("semseg", "human_parts", "saliency", "edge")
"""The tasks whose labels are PNG images."""

SHARD = 512
"""Scenes a file; so many are in memory while they are written."""

_MOST = 1_000_000


@dataclasses.dataclass(kw_only=True, eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
    """Resolution and number of scenes; the name says both, so each has its own directory.

    Attributes:
      height: pixels.
      width: pixels.
      counts: scenes a split; the splits are keys of `SPLIT_OFFSETS`.
    """

    height: int = 64
    width: int = 64
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict(COUNTS))


def config(height: int = 64, width: int = 64, counts: Mapping[str, int] | None = None):
    """The builder config for a resolution and counts, checked.

    Args:
      height: pixels, at least 8.
      width: pixels, at least 8.
      counts: scenes a split, `COUNTS` when None.

    Returns:
      A `ScenesConfig`.

    Raises:
      DataError: on a size, split or count that cannot be.
    """
    counts = dict(COUNTS if counts is None else counts)
    if min(height, width) < 8:
        raise DataError(f"scenes of {height} x {width} pixels are too small: use 8 x 8 or more")
    if not counts:
        raise DataError("no split of scenes was asked for: give counts such as {'train': 2000}")
    for split, count in counts.items():
        if split not in SPLIT_OFFSETS:
            known = ", ".join(SPLIT_OFFSETS)
            raise DataError(f"scenes have no split {split!r}: use one of {known}")
        if not 1 <= count <= _MOST:
            raise DataError(f"split {split!r} of {count} scenes: use 1 to {_MOST}")
    name = "_".join([f"{height}x{width}", *(f"{split}{n}" for split, n in counts.items())])
    return ScenesConfig(name=name, height=height, width=width, counts=counts)


class Scenes(tfds.core.ShardBasedBuilder):
    """Rooms with figures, tables, lamps, trees, houses and balls, labelled for six dense tasks.

    Shards are made one after the other and hold consecutive scenes. The more usual base class would
    gather a split to sort it: in memory up to 1 GB, beyond that by way of TensorFlow.
    """

    VERSION = tfds.core.Version(FORMAT)
    RELEASE_NOTES = {FORMAT: "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [config()]  # noqa: RUF012

    progress = False
    """Show a bar while rendering."""

    def _info(self) -> tfds.core.DatasetInfo:
        height, width = self.builder_config.height, self.builder_config.width
        maps = {
            name: tfds.features.Image(shape=(height, width, 1), encoding_format="png")
            for name in MAPS
        }
        features = {
            "image": tfds.features.Image(shape=(height, width, 3), encoding_format="png"),
            **maps,
            "depth": _tensor((height, width), np.float32),
            "normals": _tensor((height, width, 3), np.float16),
            "seed": tfds.features.Scalar(dtype=np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__.split("\n")[0],
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
        del dl_manager  # Nothing is downloaded.
        return {split: self._shards(split) for split in self.builder_config.counts}

    def _shards(self, split: str) -> list[Callable[[], Iterator]]:
        count = self.builder_config.counts[split]
        bar = tqdm(total=count, desc=f"rendering {split} scenes", disable=not self.progress)
        chunks = (range(i, min(i + SHARD, count)) for i in range(0, count, SHARD))
        return [functools.partial(self._examples, split, chunk, bar) for chunk in chunks]

    def _examples(
        self, split: str, indices: range, bar: tqdm
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices:
            yield index, self._example(SPLIT_OFFSETS[split] + index)
            bar.update()
            if bar.n == bar.total:
                bar.close()

    def _example(self, seed: int) -> dict[str, Any]:
        example = render(sample_scene(seed), self.builder_config.height, self.builder_config.width)
        labels = example["labels"]
        return {
            "image": _png(example["image"]),
            **{name: _png(labels[name]) for name in MAPS},
            "depth": labels["depth"],
            "normals": labels["normals"].astype(np.float16),
            "seed": seed,
        }


def _tensor(shape: tuple[int, ...], dtype: type) -> tfds.features.Tensor:
    """An array kept as its bytes: a list of floats takes longer to write than the scene itself."""
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def prepare(
    data_dir: str | os.PathLike,
    height: int = 64,
    width: int = 64,
    counts: Mapping[str, int] | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Renders the data set unless it is already there.

    Args:
      data_dir: where data sets live.
      height: pixels.
      width: pixels.
      counts: scenes a split, `COUNTS` when None.
      progress: show progress bars.

    Returns:
      The directory of the prepared data set, for `open`.
    """
    wanted = config(height, width, counts)
    return preparing.prepare(
        lambda: Scenes(data_dir=os.fspath(data_dir), config=wanted, file_format="array_record"),
        progress,
    )


class SceneSource:
    """Random access to a prepared split: ``len(source)``, ``source[i]``.

    Attributes:
      tasks: names of the six tasks.
      channels: per task, the width of its prediction head.
      class_names: per task over classes, their names.
      size: (height, width) in pixels.
      path: the data set's directory.
      split: the split's name.
    """

    tasks = TASKS
    channels: Mapping[str, int] = types.MappingProxyType(
        {
            "semseg": len(SEMSEG_CLASSES),
            "human_parts": len(PART_CLASSES),
            "saliency": 1,
            "normals": 3,
            "depth": 1,
            "edge": 1,
        }
    )
    class_names: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
        {"semseg": SEMSEG_CLASSES, "human_parts": PART_CLASSES}
    )

    def __init__(self, path: pathlib.Path, split: str, records: Any):
        """Wraps TFDS's data source ``records``; use `open`."""
        self.path, self.split, self._records = path, split, records
        self.size: tuple[int, int] = records.dataset_info.features["depth"].shape
        self._valid = np.ones(self.size, bool)  # One mask for all: nothing is ever unlabelled.
        self._valid.flags.writeable = False

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One scene, as `render.render` returns it."""
        record = self._records[int(index)]
        normals = record["normals"].astype(np.float32)
        length = np.sqrt((normals * normals).sum(axis=-1, keepdims=True))
        labels = {name: _pixels(record[name]) for name in MAPS}
        labels["normals"] = normals / length
        labels["depth"] = record["depth"]
        return {
            "image": _pixels(record["image"]),
            "labels": {task: labels[task] for task in TASKS},
            "valid": {task: self._valid for task in TASKS},
        }

    def seed(self, index: int) -> int:
        """The seed that scene ``index`` was made from."""
        return int(self._records[int(index)]["seed"])


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image)


def open(path: str | os.PathLike, split: str) -> SceneSource:
    """Opens a split of a prepared data set for random access.

    Args:
      path: the directory that `prepare` returned.
      split: ``"train"``, or any TFDS sub-split such as ``"train[:50%]"``.

    Returns:
      A `SceneSource`.

    Raises:
      DataError: when the directory is no prepared data set, has no such split, or is damaged.
    """
    path = pathlib.Path(path)
    if not preparing.is_prepared(path):
        raise DataError(f"{path} holds no prepared scenes: call prepare() and pass what it returns")
    builder = tfds.builder_from_directory(path)
    name = split.split("[")[0]
    if name not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise DataError(f"the scenes in {path} have no split {name!r}: use one of {known}")
    raw = {name: tfds.decode.SkipDecoding() for name in ("image", *MAPS)}
    try:
        source = SceneSource(path, split, builder.as_data_source(split, decoders=raw))
        source[0], source[len(source) - 1]  # opens every file that a cache cleaner may have cut
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise DataError(
            f"the rendered scenes in {path} are damaged ({str(error).splitlines()[0]}); delete "
            "that folder and they are rendered anew"
        ) from error
    return source
