"""cityscapes_mt: semantic classes and depth (or disparity) of streets, from your own copy.

See :mod:`sinewich_jax.data.archives.cityscapes` for the three layouts and what ``target`` means;
the opened source says it in ``notes``. 2,975 + 500 images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from sinewich_jax.data.registry import register
from sinewich_jax.data.source import DataSource


@register("cityscapes_mt", eval_split="val")
def cityscapes_mt(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    channels: Mapping[str, int] | None = None,
    target: str = "disparity_px",
    allow_missing: bool = False,
    progress: bool = True,
) -> DataSource:
    """Opens a split, ``"train"`` or ``"val"``, preparing it on first use.

    Args:
      split: which one.
      data_dir: the folder or tar, or the folder that holds it.
      tasks: of semseg and depth; None takes those there are.
      channels: ``{"semseg": 2, 7 or 19}`` for the layout in NumPy files, which do not say it.
      target: what depth means: ``"disparity_px"``, ``"disparity_norm"`` or ``"depth_m"``.
      allow_missing: labels of the tasks wanted may be missing; they count nowhere.
      progress: show a progress bar while preparing.
    """
    from sinewich_jax.data.archives.source import open_archive

    return open_archive(
        "cityscapes_mt",
        split,
        data_dir,
        tasks,
        allow_missing,
        progress=progress,
        target=target,
        classes=(channels or {}).get("semseg"),
    )
