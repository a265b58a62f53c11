"""scenes: procedural rooms with six exact label types, rendered once into a cache folder.

See :mod:`sinewich_jax.data.scenes` for what is drawn and how a seed becomes an example. Each split
is prepared on first use in a directory of its own, so that another training size does not render
the evaluation scenes again; example i of a split is always the same scene.
"""

from __future__ import annotations

import os

from sinewich_jax.data.cache import CACHE_ENVIRONMENT, cache_dir
from sinewich_jax.data.registry import register
from sinewich_jax.data.source import DataSource, head_info, make_tasks
from sinewich_jax.errors import DataError, did_you_mean
from sinewich_jax.storage.atomic import is_full_disk


@register("scenes", rendered=True)
def scenes(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] | None = None,
    size: int | None = None,
    progress: bool = True,
) -> DataSource:
    """Opens a split, rendering it first if it is not in the cache; all six tasks.

    Args:
      split: ``train``, ``val``, ``test`` or ``pretrain`` (disjoint scenes).
      data_dir: cache folder; None takes ``SINEWICH_CACHE`` or the user's cache.
      image_size: (height, width), by default (64, 64); scenes are rendered at this size.
      size: number of scenes; None takes the split's usual number.
      progress: show a progress bar while rendering.
    """
    from sinewich_jax.data.scenes import PART_CLASSES, SEMSEG_CLASSES, SPLIT_OFFSETS, builder

    if split not in SPLIT_OFFSETS:
        raise DataError(f"'scenes' have no split {split!r}{did_you_mean(split, SPLIT_OFFSETS)}")
    if size is None:
        if split not in builder.COUNTS:
            raise DataError(
                f"split {split!r} of 'scenes' has no usual size (only {', '.join(builder.COUNTS)} "
                "have); say size=N"
            )
        size = builder.COUNTS[split]
    height, width = image_size or (64, 64)
    folder = data_dir or cache_dir()
    try:
        path = builder.prepare(folder, height, width, {split: size}, progress=progress)
    except OSError as error:
        if is_full_disk(error):
            raise
        raise DataError(
            f"scenes cannot be rendered into {folder} ({error.strerror or error}); name a folder "
            "that can be written by the config key data_dir or the environment variable "
            f"{CACHE_ENVIRONMENT}"
        ) from error
    source = builder.open(path, split)
    names = {"semseg": SEMSEG_CLASSES, "human_parts": PART_CLASSES}
    source.channels, source.class_names = head_info(make_tasks(source.tasks, class_names=names))
    return source
