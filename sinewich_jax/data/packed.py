"""Small real data sets packed as ``.npz``: concatenated JPEG bytes and raw label arrays."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from sinewich_jax.data.files import read_image
from sinewich_jax.data.labels import to_label
from sinewich_jax.data.registry import find_root
from sinewich_jax.data.source import ArraySource, head_info, make_tasks
from sinewich_jax.errors import CheckpointError, DataError
from sinewich_jax.storage.arrays import load_npz

SPLITS = ("train", "test")


def load_packed(
    name: str, stem: str, split: str, data_dir: str | os.PathLike[str] | None
) -> dict[str, np.ndarray]:
    """Reads ``<data_dir>/dense/<stem>_<split>.npz``, images decoded.

    Args:
      name: the data set, for messages.
      stem: file name without split and ending.
      split: ``"train"`` or ``"test"``.
      data_dir: folder that holds ``dense/``; None: the environment says.

    Returns:
      The arrays of the file, with ``image`` uint8 [N, H, W, 3] in place of the JPEG bytes.
    """
    if split not in SPLITS:
        raise DataError(
            f"data set {name!r} has no split {split!r}, expected one of {', '.join(SPLITS)} or a "
            "part such as 'train[:90%]'"
        )
    path = find_root(data_dir, name, f"dense/{stem}_{split}.npz")
    try:
        arrays = load_npz(path)
        data, offsets = arrays.pop("jpeg"), arrays.pop("jpeg_offsets")
    except CheckpointError as error:
        raise DataError(str(error)) from None
    except KeyError as error:
        raise DataError(f"{path} has no array {error}, expected a packed data set") from None
    arrays["image"] = np.stack(
        [
            read_image(data[start:stop].tobytes(), f"image {i} of {path}")
            for i, (start, stop) in enumerate(itertools.pairwise(offsets))
        ]
    )
    return arrays


def packed_source(
    image: np.ndarray,
    raw: Mapping[str, np.ndarray],
    class_names: Mapping[str, Sequence[str]],
    where: str,
) -> ArraySource:
    """Makes the in-memory source from label maps in outside form (see ``data.labels``).

    Args:
      image: uint8 [N, H, W, 3].
      raw: per task, the stacked maps.
      class_names: names per task over classes.
      where: names the data in errors.
    """
    labels, valid = {}, {}
    for task, maps in raw.items():
        pairs = [to_label(task, one, f"image {i} of {where}") for i, one in enumerate(maps)]
        labels[task] = np.stack([pair[0] for pair in pairs])
        valid[task] = np.stack([pair[1] for pair in pairs])
    made = make_tasks(tuple(raw), class_names=class_names)
    return ArraySource(image, labels, valid, *head_info(made))
