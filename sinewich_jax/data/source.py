"""What a data set is to the rest of the library, and the one that lives in memory.

An *example* is a dict::

    {"image": uint8 [H, W, 3] RGB,
     "labels": {task: array},      # see sinewich_jax.data.labels for shapes, dtypes, units
     "valid": {task: bool [H, W]}}

A :class:`DataSource` is anything with a length and random access to examples; the pipeline asks
nothing else of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sinewich_jax.data.labels import OWN_CLASSES, kind_of, to_label
from sinewich_jax.errors import DataError, did_you_mean

Example = dict[str, Any]
ClassNames = Mapping[str, Sequence[str]]


@runtime_checkable
class DataSource(Protocol):
    """Random access to examples.

    Attributes:
      tasks: names of the tasks that every example carries.
      size: (height, width) of every example, or None when they differ.
      channels: per task, the width its prediction head needs (classes, or 1, or 3).
      class_names: per task over classes, their names, where known.
    """

    tasks: tuple[str, ...]
    size: tuple[int, int] | None
    channels: Mapping[str, int]
    class_names: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> Example:
        """Example ``index``, 0 <= index < len."""


def make_tasks(
    names: Sequence[str],
    channels: Mapping[str, int] | None = None,
    class_names: ClassNames | None = None,
) -> dict[str, Any]:
    """The tasks of a data set, with its own class counts.

    Args:
      names: task names.
      channels: class counts that differ from the tasks' defaults.
      class_names: names of the classes; they imply the count.

    Returns:
      ``{name: Task}`` in the order of ``names``.

    Raises:
      DataError: counts or names for a task that is not among ``names``.
    """
    from sinewich_jax import tasks

    overrides: dict[str, dict[str, Any]] = {name: {} for name in names}
    for field, given in (("channels", channels), ("class_names", class_names)):
        for name, value in (given or {}).items():
            if name not in overrides:
                raise DataError(f"{field} names {name!r}, which is not a task of this data set")
            if isinstance(value, str):
                raise DataError(
                    f"{field} of {name} is the text {value!r}, expected a list of names"
                )
            overrides[name][field] = value
    return {name: tasks.make(name, **fields) for name, fields in overrides.items()}


def head_info(made: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """``(channels, class_names)`` of a data source, from its tasks."""
    channels = {name: task.channels for name, task in made.items()}
    names = {name: task.class_names for name, task in made.items() if task.class_names}
    return channels, names


class ArraySource:
    """A data set whose maps are stacked arrays; examples are read-only views of them."""

    def __init__(
        self,
        image: np.ndarray,
        labels: Mapping[str, np.ndarray],
        valid: Mapping[str, np.ndarray],
        channels: Mapping[str, int],
        class_names: Mapping[str, tuple[str, ...]] | None = None,
    ):
        """Takes maps that are right already; :func:`from_arrays` converts and checks.

        Args:
          image: uint8 [N, H, W, 3].
          labels: per task, [N, H, W] or [N, H, W, 3], in label form.
          valid: per task, bool [N, H, W].
          channels: head width per task.
          class_names: names per task over classes.
        """
        self._image = _frozen(image)
        self._labels = {task: _frozen(label) for task, label in labels.items()}
        # Masks that are True everywhere share one array, which also makes augmentation cheaper.
        everything = _frozen(np.ones(image.shape[1:3], bool))
        self._valid: dict[str, Any] = {
            task: [everything] * len(image) if mask.all() else _frozen(mask)
            for task, mask in valid.items()
        }
        self.tasks = tuple(labels)
        self.size: tuple[int, int] | None = tuple(image.shape[1:3])
        self.channels = dict(channels)
        self.class_names = dict(class_names or {})

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._image)

    def __getitem__(self, index: int) -> Example:
        """Example ``index``."""
        return {
            "image": self._image[index],
            "labels": {task: label[index] for task, label in self._labels.items()},
            "valid": {task: mask[index] for task, mask in self._valid.items()},
        }


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def from_arrays(
    arrays: Mapping[str, Any],
    channels: Mapping[str, int] | None = None,
    class_names: ClassNames | None = None,
) -> ArraySource:
    """A data set from your own arrays.

    Everything is checked here, once, so that training never meets a bad label.

    Args:
      arrays: ``"image"``, uint8 [N, H, W, 3] RGB, and one entry per task under the task's name:

        * ``semseg``, ``human_parts``: whole numbers [N, H, W], 255 where there is no label;
        * ``saliency``, ``edge``: 0 or 1 [N, H, W], 255 where there is no label;
        * ``depth``: float metres [N, H, W]; <= 0, NaN or infinite where there is none;
        * ``normals``: float [N, H, W, 3], x right, y down, z forward, towards the viewer (z < 0);
          shorter than 0.1 or NaN where there is none.

        ``"<task>_valid"``, bool [N, H, W] or [N], masks further pixels or whole examples, so a
        data set may be labelled in part.
      channels: number of classes per task, ``{"semseg": 21}``. When neither this nor the names are
        given, semseg has as many classes as these arrays show (give it for a split that may not
        show all of them), and every other task its default.
      class_names: names of the classes instead, ``{"semseg": ["road", "car", ...]}``.

    Returns:
      The data source.

    Raises:
      DataError: names the key and example, what was found and what was expected.
    """
    image = _check_image(arrays)
    names = [key for key in arrays if key != "image" and not key.endswith("_valid")]
    for name in names:
        kind_of(name)
    for key in arrays:
        if key.endswith("_valid") and key.removesuffix("_valid") not in names:
            near = did_you_mean(key, [f"{name}_valid" for name in names])
            raise DataError(f"{key!r} masks a task that the arrays do not hold{near}")
    if not names:
        raise DataError('the arrays hold no task, expected at least one beside "image"')
    labels, valid = {}, {}
    for name in names:
        given = _given_mask(arrays, name, image)
        labels[name], valid[name] = _convert(name, np.asarray(arrays[name]), given, image)
    stated = {*(channels or {}), *(class_names or {})}
    unstated = [name for name in OWN_CLASSES if name in labels and name not in stated]
    seen = {name: int(labels[name].max()) + 1 for name in unstated}
    for name, count in seen.items():
        if count < 2:
            raise DataError(
                f"{name} shows no class but 0 in these arrays, so its number of classes cannot be "
                f'told; say channels={{"{name}": N}}'
            )
    made = make_tasks(names, {**(channels or {}), **seen}, class_names)
    for name, task in made.items():
        for i in range(len(image)):
            task.check_label(labels[name][i], valid[name][i], f"example {i}")
    return ArraySource(image, labels, valid, *head_info(made))


def _check_image(arrays: Mapping[str, Any]) -> np.ndarray:
    if "image" not in arrays:
        raise DataError(f'the arrays have no "image" (found: {", ".join(sorted(arrays))})')
    try:
        image = np.asarray(arrays["image"])
    except ValueError:
        sizes = sorted({np.shape(one) for one in arrays["image"]})[:2]
        raise DataError(
            f'"image" holds images of several shapes, {" and ".join(map(str, sizes))} among them; '
            "resize them to one, or use from_folder, which can"
        ) from None
    if image.dtype != np.uint8:
        hint = "multiply by 255, round" if np.issubdtype(image.dtype, np.floating) else "clip"
        raise DataError(f'"image" is {image.dtype}, expected uint8 RGB in 0..255; {hint} and cast')
    if image.ndim != 4 or image.shape[-1] != 3:
        raise DataError(
            f'"image" has shape {image.shape}, expected [N, H, W, 3]; repeat a grey image three '
            "times, drop an alpha channel"
        )
    if not len(image):
        raise DataError('"image" holds no example')
    return image


def _given_mask(arrays: Mapping[str, Any], name: str, image: np.ndarray) -> np.ndarray | None:
    if f"{name}_valid" not in arrays:
        return None
    mask = np.asarray(arrays[f"{name}_valid"])
    if mask.dtype != np.bool_ or mask.shape not in (image.shape[:3], image.shape[:1]):
        raise DataError(
            f'"{name}_valid" is {mask.dtype} of shape {mask.shape}, expected bool '
            f"{list(image.shape[:3])} or {list(image.shape[:1])}"
        )
    return mask if mask.ndim == 3 else mask[:, None, None]


def _convert(
    name: str, raw: np.ndarray, given: np.ndarray | None, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if raw.shape[:1] != image.shape[:1]:
        raise DataError(
            f'"{name}" holds {raw.shape[0] if raw.ndim else 0} labels for {len(image)} images'
        )
    if raw.shape[1:3] != image.shape[1:3]:
        raise DataError(
            f'"{name}" has labels of size {list(raw.shape[1:3])} for images of size '
            f"{list(image.shape[1:3])}; resize the labels to the images (nearest pixel)"
        )
    pairs = [to_label(name, raw[i], f"example {i}") for i in range(len(raw))]
    label = np.stack([pair[0] for pair in pairs])
    valid = np.stack([pair[1] for pair in pairs])
    return label, valid if given is None else valid & given
