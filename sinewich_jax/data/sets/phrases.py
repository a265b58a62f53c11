"""phrases: four text tasks made from a small grammar, see `sinewich_jax.data.text.phrases`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sinewich_jax.data.registry import register
from sinewich_jax.data.text import phrases as grammar
from sinewich_jax.data.text.texts import Texts


@register("phrases", texts=True)
def phrases(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] = grammar.TASKS,
) -> Texts:
    """Makes a split, ``"train"``, ``"val"`` or ``"test"``; tasks cola, sst2, mrpc, sts.

    Args:
      split: which one.
      data_dir: not needed.
      tasks: those wanted.
    """
    del data_dir
    return grammar.texts(split, tasks)
