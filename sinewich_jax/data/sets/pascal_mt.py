"""pascal_mt: PASCAL-Context for five tasks, from your own copy of ``PASCAL_MT``.

See :mod:`sinewich_jax.data.archives.pascal` for the layout. 4,998 + 5,105 images of many sizes:
``image_size`` brings them to one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from sinewich_jax.data.registry import register
from sinewich_jax.data.source import DataSource


@register("pascal_mt", eval_split="val")
def pascal_mt(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    allow_missing: bool = False,
    progress: bool = True,
) -> DataSource:
    """Opens a split, ``"train"`` or ``"val"``, preparing it on first use.

    Args:
      split: a list in ``ImageSets/Context``.
      data_dir: the folder or tar, or the folder that holds it.
      tasks: of semseg, human_parts, saliency, normals and edge; None takes those there are.
      allow_missing: labels of the tasks wanted may be missing; they count nowhere.
      progress: show a progress bar while preparing.
    """
    from sinewich_jax.data.archives.source import open_archive

    return open_archive("pascal_mt", split, data_dir, tasks, allow_missing, progress=progress)
