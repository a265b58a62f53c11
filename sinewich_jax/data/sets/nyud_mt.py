"""nyud_mt: NYU-Depth v2 for four tasks, from your own copy of ``NYUD_MT`` or ``NYUDv2``.

See :mod:`sinewich_jax.data.archives.nyud` for the three releases. 795 + 654 images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from sinewich_jax.data.registry import register
from sinewich_jax.data.source import DataSource


@register("nyud_mt", eval_split="val")
def nyud_mt(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    allow_missing: bool = False,
    depth_unit: str = "auto",
    progress: bool = True,
) -> DataSource:
    """Opens a split, ``"train"`` or ``"val"``, preparing it on first use.

    Args:
      split: a list in ``gt_sets``.
      data_dir: the folder or tar, or the folder that holds it.
      tasks: of semseg, normals, depth and edge; None takes those there are.
      allow_missing: labels of the tasks wanted may be missing; they count nowhere.
      depth_unit: ``"m"``, ``"mm"``, or ``"auto"`` to tell it from the files.
      progress: show a progress bar while preparing.
    """
    from sinewich_jax.data.archives.source import open_archive

    return open_archive(
        "nyud_mt", split, data_dir, tasks, allow_missing, progress=progress, depth_unit=depth_unit
    )
