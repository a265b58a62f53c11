"""A data set from a folder of your own files.

Layout (nothing is ever written into it)::

    my_data/
      images/<id>.jpg | .jpeg | .png     any size
      semseg/<id>.png                    class numbers, one channel or palette; 255: no label
      human_parts/<id>.png               the same
      saliency/<id>.png                  0: no, anything else: yes (so 0/255 masks work)
      edge/<id>.png                      the same
      depth/<id>.npy | .png              float metres | 16-bit millimetres (depth_unit changes it);
                                         0, negative or NaN: no depth
      normals/<id>.npy | .png            unit vectors | 8-bit RGB read as 2 v / 255 - 1; x right,
                                         y down, z forward, towards the viewer (z < 0);
                                         shorter than 0.1: no normal
      <task>_valid/<id>.png              optional mask of any task, 0: no label there
      splits/train.txt, val.txt, ...     optional, one id per line
      classes.json                       {"semseg": ["road", "car", ...]}, needed for semseg

Only the folders of the tasks that you have need exist. A photograph is turned the way its EXIF
orientation says, and labels must have the size of the turned photograph.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sinewich_jax.data.files import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    image_size,
    read_image,
    read_label,
    read_mask,
)
from sinewich_jax.data.labels import KINDS, OWN_CLASSES, kind_of, to_label
from sinewich_jax.data.resize import resize_example
from sinewich_jax.data.source import ClassNames, Example, head_info, make_tasks
from sinewich_jax.errors import DataError, did_you_mean


class FolderSource:
    """Examples read from a folder when they are asked for; made by :func:`from_folder`.

    Attributes:
      ids: file name without ending, per example.
    """

    def __init__(
        self,
        images: Mapping[str, Path],
        labels: Mapping[str, Mapping[str, Path]],
        masks: Mapping[str, Mapping[str, Path]],
        made: Mapping[str, object],
        resize: tuple[int, int] | None,
        antialias: bool,
        depth_unit: str | float | None,
    ):
        """Takes ``{id: file}`` of images, labels and masks, and the tasks."""
        self.ids = tuple(images)
        self.tasks = tuple(labels)
        self.channels, self.class_names = head_info(made)
        self._images, self._labels, self._masks, self._made = images, labels, masks, made
        self._resize, self._antialias, self._depth_unit = resize, antialias, depth_unit

    @functools.cached_property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every example, None when they differ; reads the images' headers."""
        if self._resize:
            return self._resize
        sizes = {image_size(path) for path in self._images.values()}
        return sizes.pop() if len(sizes) == 1 else None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        """Reads and checks example ``index``."""
        name = self.ids[index]
        image = read_image(self._images[name])
        example: Example = {"image": image, "labels": {}, "valid": {}}
        for task in self.tasks:
            label, valid = self._label(task, name, image.shape[:2])
            example["labels"][task], example["valid"][task] = label, valid
        if self._resize:
            example = resize_example(example, self._resize, "cubic", self._antialias)
        return example

    def _label(self, task: str, name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        path = self._labels[task].get(name)
        if path is None:
            return _no_label(task, size)
        label, valid = to_label(task, read_label(task, path, self._depth_unit), str(path))
        _check_size(path, label.shape[:2], size)
        if name in self._masks[task]:
            mask_path = self._masks[task][name]
            mask = read_mask(mask_path)
            _check_size(mask_path, mask.shape, size)
            valid = valid & mask
        self._made[task].check_label(label, valid, str(path))
        return label, valid


def from_folder(
    path: str | os.PathLike[str],
    split: str | None = None,
    tasks: Sequence[str] | None = None,
    resize: tuple[int, int] | None = None,
    channels: Mapping[str, int] | None = None,
    class_names: ClassNames | None = None,
    depth_unit: str | float | None = None,
    allow_missing: bool = False,
    antialias: bool = True,
) -> FolderSource:
    """A data set from a folder of images and label maps; the layout is in the module's docstring.

    File names are checked here; contents when an example is read.

    Args:
      path: the folder.
      split: name of a list in ``splits/``; None takes every image.
      tasks: tasks wanted, in order; None takes all that have a folder, ``()`` images alone.
      resize: (height, width) to bring every example to: a = -0.75 cubic for images and normals,
        nearest pixel by the floor rule for labels. None keeps the sizes, which batches need equal
        (or cropped to one).
      channels: number of classes per task, ``{"semseg": 21}``; required for semseg when neither
        ``class_names`` nor ``classes.json`` says it.
      class_names: names of the classes instead; ``classes.json`` by default.
      depth_unit: ``"m"``, ``"cm"``, ``"mm"`` or metres per unit; None: metres in ``.npy``,
        millimetres in PNG.
      allow_missing: an image may lack the label of a task, which then counts nowhere; otherwise it
        is an error.
      antialias: widen the kernel when ``resize`` shrinks, so that fine texture does not alias.

    Returns:
      The data source.

    Raises:
      DataError: names the file or folder, what was found and what was expected.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder, expected one that holds images/")
    images = _index(root / "images", IMAGE_SUFFIXES, required=True)
    if not images:
        raise DataError(f"{root / 'images'} holds no image; put <id>.jpg or <id>.png files there")
    if split is not None:
        images = {name: images[name] for name in _read_split(root, split, images)}
    tasks = _find_tasks(root) if tasks is None else tuple(tasks)
    labels = {t: _index_labels(root, t, images, allow_missing) for t in tasks}
    masks = {t: _index(root / f"{t}_valid", (".png",), required=False) for t in tasks}
    channels, names = channels or {}, class_names or {}
    stated = {**_read_classes(root), **names}
    stated = {t: n for t, n in stated.items() if t in names or (t in tasks and t not in channels)}
    for task in tasks:
        if task in OWN_CLASSES and task not in channels and task not in stated:
            raise DataError(
                f"the classes of {task} in {root} are not known; write classes.json there, "
                f'{{"{task}": ["first class", "second class"]}}, or give '
                f"channels (config key channels.{task}=NUMBER)"
            )
    made = make_tasks(tasks, channels, stated)
    if resize is not None and (not isinstance(resize, Sequence) or len(resize) != 2):
        raise DataError(f"resize is {resize!r}, expected (height, width)")
    resize = None if resize is None else (int(resize[0]), int(resize[1]))
    return FolderSource(images, labels, masks, made, resize, antialias, depth_unit)


def _index(folder: Path, suffixes: Sequence[str], required: bool) -> dict[str, Path]:
    """``{id: file}`` of a folder, sorted; hidden files are passed over."""
    if not folder.is_dir():
        if required:
            raise DataError(f"{folder} is not there, expected a folder with one file per id")
        return {}
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.suffix.lower() not in suffixes:
            raise DataError(
                f"{entry} is not one of {', '.join(suffixes)}; convert it or move it elsewhere"
            )
        if entry.stem in found:
            raise DataError(
                f"{entry} and {found[entry.stem].name} have the same id; keep one of them"
            )
        found[entry.stem] = entry
    return found


def _index_labels(
    root: Path, task: str, images: Mapping[str, Path], allow_missing: bool
) -> dict[str, Path]:
    suffixes = LABEL_SUFFIXES[kind_of(task)]
    folder = root / task
    if not folder.is_dir():
        found = [entry.name for entry in root.iterdir() if entry.is_dir()]
        raise DataError(
            f"task {task!r} has no folder {folder}{did_you_mean(task, found)}; add its labels or "
            "leave the task out"
        )
    labels = _index(folder, suffixes, required=True)
    missing = [name for name in images if name not in labels]
    if missing and not allow_missing:
        raise DataError(
            f"{len(missing)} of {len(images)} images have no {task} label, first {folder}/"
            f"{missing[0]}{suffixes[0]}; add the files, leave the task out, or say "
            "allow_missing=True (argument of from_folder, config key)"
        )
    return labels


def _find_tasks(root: Path) -> tuple[str, ...]:
    tasks = tuple(task for task in KINDS if (root / task).is_dir())
    if not tasks:
        raise DataError(
            f"{root} has no label folder, expected at least one of {', '.join(KINDS)} "
            "(or tasks=() for images alone)"
        )
    return tasks


def _read_split(root: Path, split: str, images: Mapping[str, Path]) -> list[str]:
    path = root / "splits" / f"{split}.txt"
    if not path.is_file():
        found = sorted(p.stem for p in path.parent.glob("*.txt"))
        known = f" (there are {', '.join(found)})" if found else ""
        raise DataError(f"{path} is not there{known}; write it with one id per line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    names = [line.strip() for line in text.splitlines()]
    for number, name in enumerate(names, 1):
        if name and name not in images:
            raise DataError(f"line {number} of {path} names {name!r}, which has no file in images/")
    names = [name for name in names if name]
    if not names:
        raise DataError(f"{path} lists no id")
    return names


def _read_classes(root: Path) -> dict[str, list[str]]:
    path = root / "classes.json"
    if not path.is_file():
        return {}
    try:
        classes = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    right = isinstance(classes, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in classes.values()
    )
    if not right:
        raise DataError(f'{path} holds no class names, expected {{"semseg": ["road", "car"]}}')
    return classes


def _check_size(path: Path, found: tuple[int, int], expected: tuple[int, int]) -> None:
    if tuple(found) != tuple(expected):
        raise DataError(
            f"{path} is {found[0]} x {found[1]} (height x width) but its image is "
            f"{expected[0]} x {expected[1]}; resize the label to the image (nearest pixel)"
        )


def _no_label(task: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    kind = kind_of(task)
    shape = (*size, 3) if kind == "normals" else size
    dtype = np.float32 if kind in ("normals", "depth") else np.uint8
    return np.zeros(shape, dtype), np.zeros(size, bool)
