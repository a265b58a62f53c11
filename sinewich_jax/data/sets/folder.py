"""folder: your own images and labels; ``data_dir`` is the folder itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from sinewich_jax.data.folder import FolderSource, from_folder
from sinewich_jax.data.registry import register
from sinewich_jax.data.source import ClassNames
from sinewich_jax.errors import DataError


@register("folder")
def folder(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    channels: Mapping[str, int] | None = None,
    class_names: ClassNames | None = None,
    depth_unit: str | float | None = None,
    allow_missing: bool = False,
) -> FolderSource:
    """Opens a folder laid out as :mod:`sinewich_jax.data.folder` says.

    Args:
      split: a list in ``splits/``, or ``"all"`` for every image (also in parts, ``"all[:90%]"``).
      data_dir: the folder.
      tasks: tasks wanted; None takes all that have labels.
      image_size: (height, width) to resize to.
      channels: class counts.
      class_names: names of the classes.
      depth_unit: unit of the depth files.
      allow_missing: images may lack labels.
    """
    if data_dir is None:
        raise DataError(
            "data set 'folder' needs the config key data_dir, the folder that holds images/"
        )
    return from_folder(
        data_dir,
        split=None if split == "all" else split,
        tasks=tasks,
        resize=image_size,
        channels=channels,
        class_names=class_names,
        depth_unit=depth_unit,
        allow_missing=allow_missing,
    )
