"""nyuv2_mtan: the small NYUv2 in NumPy files, from your own copy.

See :mod:`sinewich_jax.data.archives.mtan` for the layout. 795 + 654 images of 288 x 384, 13
classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from sinewich_jax.data.registry import register
from sinewich_jax.data.source import DataSource


@register("nyuv2_mtan", eval_split="val")
def nyuv2_mtan(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    allow_missing: bool = False,
    progress: bool = True,
) -> DataSource:
    """Opens a split, ``"train"`` or ``"val"``, preparing it on first use.

    Args:
      split: which one.
      data_dir: the folder or tar, or the folder that holds it.
      tasks: of semseg, normals and depth; None takes those there are.
      allow_missing: labels of the tasks wanted may be missing; they count nowhere.
      progress: show a progress bar while preparing.
    """
    from sinewich_jax.data.archives.source import open_archive

    return open_archive("nyuv2_mtan", split, data_dir, tasks, allow_missing, progress=progress)
