"""What the reader of a published archive is: it lists the ids of a split and reads one example.

A reader knows one layout and nothing of TFDS, caches or batches. Labels leave it in the library's
own form (:mod:`sinewich_jax.data.labels`): 0 where there is none, and a mask that says where that
is. A label whose size is not its image's is brought to it, by the floor rule, normals by cubic
interpolation, as the field's loaders do.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from sinewich_jax.data.archives.tree import Tree
from sinewich_jax.data.files import read_image
from sinewich_jax.data.labels import kind_of, to_label, unit_normals
from sinewich_jax.data.resize import resize, resize_nearest
from sinewich_jax.data.source import head_info, make_tasks


@dataclasses.dataclass(frozen=True)
class Sample:
    """One example of an archive.

    Attributes:
      id: its name in the archive.
      image: uint8 [H, W, 3].
      encoded: files of the archive that hold ``"image"``, or 8-bit ``"normals"`` of the image's
        size, as they are.
      labels: per task, [H, W] or [H, W, 3] in label form.
      valid: per task, bool [H, W].
      available: tasks whose label file is there; the others are invalid everywhere.
      resized: tasks whose label was brought to the image's size.
    """

    id: str
    image: np.ndarray
    encoded: dict[str, bytes]
    labels: dict[str, np.ndarray]
    valid: dict[str, np.ndarray]
    available: tuple[str, ...]
    resized: tuple[str, ...]


class Reader(abc.ABC):
    """Reads one layout.

    Attributes:
      name: of the data set, as in ``data.load``.
      all_tasks: tasks that the layout can hold.
      names: folders and tars it is known by.
      tree: what is read.
      tasks: those of ``all_tasks`` that have a file.
    """

    name: ClassVar[str]
    all_tasks: ClassVar[tuple[str, ...]]
    names: ClassVar[tuple[str, ...]]
    eight_bit_normals: ClassVar[bool] = False
    """Normals are kept as 8-bit images, because every release has them so."""
    packed_depth: ClassVar[bool] = False
    """Depth is kept compressed, because it comes from few values and large maps."""

    def __init__(self, tree: Tree):
        """Takes the tree whose root is the data set's."""
        self.tree = tree
        self.tasks = tuple(task for task in self.all_tasks if self._has_task(task))

    @classmethod
    @abc.abstractmethod
    def fits(cls, tree: Tree) -> bool:
        """Whether a tree has the folders by which the layout is known."""

    @classmethod
    def told(cls, tree: Tree) -> bool:
        """Whether a tree that fits is surely this layout, when nobody says which it is."""
        return cls.fits(tree)

    @classmethod
    @abc.abstractmethod
    def folders(cls, tree: Tree) -> tuple[str, ...]:
        """Folders whose files are read; what changes elsewhere changes nothing."""

    @property
    @abc.abstractmethod
    def layout(self) -> str:
        """One line for people: which release this is."""

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits there are."""

    @abc.abstractmethod
    def ids(self, split: str, strict: bool = True) -> list[str]:
        """The ids of a split, in order; their images are there.

        Args:
          split: one of `splits`.
          strict: a listed id without an image is an error; otherwise it is passed over.

        Raises:
          DataError: no such split, a list that cannot be read, or a line that names no image.
        """

    @abc.abstractmethod
    def image_file(self, id: str) -> str:
        """Name of the image."""

    @abc.abstractmethod
    def label_files(self, task: str, id: str) -> tuple[str, ...]:
        """Names of the files that the label of a task is made from, whether they are there or not.

        Where there are several places for one file this is the one that is there, or the first.
        """

    @abc.abstractmethod
    def _has_task(self, task: str) -> bool:
        """Whether any label of a task is there."""

    @abc.abstractmethod
    def _raw(
        self, task: str, id: str, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """``(raw, mask)``: the map as ``to_label`` takes it, and where it holds (None: all)."""

    @functools.cached_property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes by task."""
        return head_info(self.made)[1]

    @functools.cached_property
    def channels(self) -> dict[str, int]:
        """Head width by task."""
        return head_info(self.made)[0]

    @functools.cached_property
    def made(self) -> dict[str, object]:
        """The tasks, with this data set's classes."""
        return self._make(self.tasks)

    def _make(self, tasks: Sequence[str]) -> dict[str, object]:
        return make_tasks(tasks)

    @property
    def grows(self) -> tuple[str, ...]:
        """Tasks of the kind depth whose values a zoom multiplies (disparity)."""
        return ()

    @property
    def notes(self) -> dict[str, str]:
        """What was decided on reading, by name, for example a unit."""
        return {}

    def has_label(self, task: str, id: str) -> bool:
        """Whether all files of a label are there."""
        return all(self.tree.has(name) for name in self.label_files(task, id))

    def missing(self, task: str, ids: Iterable[str]) -> list[str]:
        """Files that the labels of ``ids`` lack."""
        files = (name for id in ids for name in self.label_files(task, id))
        return [name for name in files if not self.tree.has(name)]

    def absent(self, ids: Sequence[str]) -> dict[str, dict[str, int | str]]:
        """Per task that lacks labels of ``ids``, ``{"count": files, "first": name}``."""
        missing = {task: self.missing(task, ids) for task in self.tasks}
        return {
            task: {"count": len(files), "first": self.tree.where(files[0])}
            for task, files in missing.items()
            if files
        }

    def read(self, id: str, tasks: Sequence[str] | None = None) -> Sample:
        """Reads one example.

        Args:
          id: one of `ids`.
          tasks: tasks wanted; None takes all that the archive has.

        Returns:
          The sample; a label that is missing is invalid everywhere.

        Raises:
          DataError: a file is damaged or holds what it should not.
        """
        image, encoded = self._image(id)
        size = image.shape[:2]
        labels, valid, available, resized = {}, {}, [], []
        for task in self.tasks if tasks is None else tasks:
            if not self.has_label(task, id):
                labels[task], valid[task] = no_label(task, size)
                continue
            available.append(task)
            label, mask = self._label(task, id, size)
            if label.shape[:2] != size:
                resized.append(task)
                label, mask = fit_label(task, label, mask, size)
            elif task == "normals" and self.eight_bit_normals:
                encoded["normals"] = self.tree.read(self.label_files(task, id)[0])
            where = self.tree.where(self.label_files(task, id)[0])
            self.made[task].check_label(label, mask, where)
            labels[task], valid[task] = label, mask
        return Sample(id, image, encoded, labels, valid, tuple(available), tuple(resized))

    def _image(self, id: str) -> tuple[np.ndarray, dict[str, bytes]]:
        data, where = self._bytes(self.image_file(id))
        return read_image(data, where), {"image": data}

    def _label(self, task: str, id: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        raw, held = self._raw(task, id, size)
        label, mask = to_label(task, raw, self.tree.where(self.label_files(task, id)[0]))
        if held is None or held.all():
            return label, mask
        if held.shape != mask.shape:
            held = resize_nearest(held, mask.shape)
        mask = mask & held
        return np.where(mask.reshape(mask.shape + (1,) * (label.ndim - 2)), label, 0).astype(
            label.dtype
        ), mask

    def _bytes(self, name: str) -> tuple[bytes, str]:
        """``(content, name for messages)`` of a file, as the decoders take them."""
        return self.tree.read(name), self.tree.where(name)


def no_label(task: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A label that is nowhere valid."""
    kind = kind_of(task)
    shape = (*size, 3) if kind == "normals" else size
    dtype = np.float32 if kind in ("normals", "depth") else np.uint8
    return np.zeros(shape, dtype), np.zeros(size, bool)


def fit_label(
    task: str, label: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Brings a label and its mask to another size: nearest, normals cubic and made unit again."""
    mask = resize_nearest(valid, size)
    if kind_of(task) != "normals":
        return resize_nearest(label, size), mask
    unit, solid = unit_normals(resize(label, size, "cubic"))
    mask = mask & solid
    return np.where(mask[..., None], unit, np.float32(0)), mask
