"""Views of a data source that are sources too: a part of it, another size, kept in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from sinewich_jax.core.interpolate import Method
from sinewich_jax.data.resize import resize_example, resize_image
from sinewich_jax.data.source import DataSource, Example
from sinewich_jax.errors import DataError


class _View:
    """Passes on what a source says about itself."""

    def __init__(self, source: DataSource):
        self.source = source
        self.tasks = tuple(source.tasks)
        self.size = source.size
        self.channels = dict(source.channels)
        self.class_names = dict(source.class_names)
        # What was decided on reading, such as a unit, where the source says it.
        self.notes = dict(getattr(source, "notes", {}))

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)


class Subset(_View):
    """Some examples of a source, in a given order."""

    def __init__(self, source: DataSource, indices: Sequence[int]):
        """Takes the source and the positions in it."""
        super().__init__(source)
        self.indices = indices

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        """Example ``index`` of the subset."""
        return self.source[self.indices[index]]


class SelectTasks(_View):
    """A source with fewer tasks, in the order asked for."""

    def __init__(self, source: DataSource, tasks: Sequence[str]):
        """Takes the source and the tasks wanted; DataError when it lacks one of them."""
        super().__init__(source)
        check_tasks(source, tasks)
        self.tasks = tuple(tasks)
        self.channels = {task: source.channels[task] for task in tasks}
        self.class_names = {t: source.class_names[t] for t in tasks if t in source.class_names}

    def __getitem__(self, index: int) -> Example:
        """Example ``index`` with the labels of the wanted tasks only, and their texts."""
        example = self.source[index]
        chosen = {
            **example,
            "labels": {task: example["labels"][task] for task in self.tasks},
            "valid": {task: example["valid"][task] for task in self.tasks},
        }
        if "text" in example:  # a row for each task of the source
            rows = [self.source.tasks.index(task) for task in self.tasks]
            chosen["text"] = {name: array[rows] for name, array in example["text"].items()}
        return chosen


class Resized(_View):
    """A source whose examples all have one size."""

    def __init__(
        self,
        source: DataSource,
        size: tuple[int, int],
        method: Method = "cubic",
        antialias: bool = True,
    ):
        """Takes the source and how to resize.

        Args:
          source: the source.
          size: (height, width).
          method: kernel for images and normals.
          antialias: widen that kernel when shrinking.
        """
        super().__init__(source)
        self.size = tuple(size)
        self._method, self._antialias = method, antialias

    def __getitem__(self, index: int) -> Example:
        """Example ``index``, resized."""
        return resize_example(self.source[index], self.size, self._method, self._antialias)


class OriginalLabels(_View):
    """Images of one size with labels of the size that each example came in.

    For scores at the original resolution. Labels lie top left in a frame that holds the largest,
    and count nowhere outside their own size, which each example names (``"size"``).
    """

    def __init__(self, source: DataSource, size: tuple[int, int] | None):
        """Takes the source and the (height, width) of the images, None for the source's own.

        Raises:
          DataError: no size is given, and the examples have several.
        """
        super().__init__(source)
        if size is None and source.size is None:
            raise DataError(
                "the examples have several sizes, and the network needs images of one; set the "
                "config key image_size=(height, width)"
            )
        self.size = tuple(size or source.size or ())
        self.frame = source.size or _largest(source)

    def __getitem__(self, index: int) -> Example:
        """Example ``index``: a resized image, and labels as they came."""
        example = self.source[index]
        height, width = example["image"].shape[:2]
        margin = ((0, self.frame[0] - height), (0, self.frame[1] - width))

        def framed(array: np.ndarray) -> np.ndarray:
            return np.pad(array, (*margin, *((0, 0),) * (array.ndim - 2)))

        return {
            "image": resize_image(example["image"], self.size, "cubic", antialias=True),
            "labels": {task: framed(label) for task, label in example["labels"].items()},
            "valid": {task: framed(mask) for task, mask in example["valid"].items()},
            "size": np.array([height, width], np.int32),
        }


def _largest(source: DataSource) -> tuple[int, int]:
    """Height and width that hold every image of a source, which is read once for it."""
    sizes = [source[index]["image"].shape[:2] for index in range(len(source))]
    height, width = np.max(sizes, axis=0)
    return int(height), int(width)


class Cached(_View):
    """Keeps examples in memory once they were read, up to a number of bytes.

    Reading (decoding, resizing) often costs more than augmentation, and from the second epoch on
    it need not be paid again. Arrays of kept examples are read-only.
    """

    def __init__(self, source: DataSource, limit: int = 2**30):
        """Takes the source and how many bytes may be kept; later examples are read each time."""
        super().__init__(source)
        self._left = limit
        self._kept: dict[int, Example] = {}

    def __getitem__(self, index: int) -> Example:
        """Example ``index``; threads may read at once."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        example = self.source[index]
        arrays = [example["image"], *example["labels"].values(), *example["valid"].values()]
        size = sum(array.nbytes for array in arrays)
        if size <= self._left:
            self._left -= size
            for array in arrays:
                array.flags.writeable = False
            self._kept[index] = example
        return example


def check_tasks(source: DataSource, tasks: Sequence[str]) -> None:
    """Raises DataError when a wanted task has no labels in the source."""
    for task in tasks:
        if task not in source.tasks:
            raise DataError(
                f"task {task!r} has no labels in this data set, which holds "
                f"{', '.join(source.tasks)}; "
                "leave it out of the tasks or add its labels"
            )


_SPLIT = re.compile(r"(?P<name>\w+)(?:\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?")


def parse_split(split: str) -> tuple[str, str | None, str | None]:
    """``"train[10%:50]"`` as ``("train", "10%", "50")``; without brackets both ends are None."""
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise DataError(
            f"split {split!r} is not understood, expected a name or a part such as "
            "'train[:100]' or 'train[80%:]'"
        )
    return match["name"], match["start"], match["stop"]


def part(source: DataSource, start: str | None, stop: str | None) -> DataSource:
    """The examples from ``start`` to ``stop``, each a count or a percentage as text, or None."""
    if start is None and stop is None:
        return source
    total = len(source)
    first, last = _position(start, total, 0), _position(stop, total, total)
    if not 0 <= first < last <= total:
        raise DataError(
            f"the part [{start or ''}:{stop or ''}] of a split with {total} examples is empty or "
            "reaches beyond its end"
        )
    return Subset(source, range(first, last))


def _position(text: str | None, total: int, default: int) -> int:
    if text is None:
        return default
    return total * int(text[:-1]) // 100 if text.endswith("%") else int(text)


def look_over(source: DataSource, most: int = 512) -> None:
    """Reads examples, evenly spaced, for the errors that only reading finds.

    Args:
      source: the source.
      most: number of examples; a source that is not larger is read whole.

    Raises:
      DataError: from the first example that is not what it should be.
    """
    step = max(1, -(-len(source) // most))
    for index in range(0, len(source), step):
        source[index]
