"""What a checkpoint carries for merging: curvature by parameter, and the facts that it depends on.

A run with ``merge_stats_every`` keeps the curvature of every mergeable parameter beside its
optimizer (:func:`sinewich_jax.optim.with_merge_stats`), and every checkpoint has it, free of bias,
as the item ``merge``: ``m + n`` floats a matrix. Merging reads this item alone.

Mergeable is what tasks share in the backbone. The decoder, the clock and whatever has one row a
task belong to their tasks and are never merged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from sinewich_jax import optim, parallel, storage
from sinewich_jax.config import Config
from sinewich_jax.core import trees
from sinewich_jax.errors import ConfigError
from sinewich_jax.nn.sinewich import is_adapter, is_sine_factor
from sinewich_jax.storage.fingerprint import Fingerprint, fingerprint
from sinewich_jax.storage.leaves import BACKBONE

ITEM = "merge"
DECAY = 0.999


def is_mergeable(path: str, own_rows: tuple[str, ...]) -> bool:
    """Whether tasks share the parameter ``path``; ``own_rows`` match what has a row for each."""
    own = any(re.fullmatch(pattern, path) for pattern in own_rows)
    return path.startswith(BACKBONE) and not own


def track(
    tx: optax.GradientTransformation,
    config: Config,
    abstract_params: Any,
    mergeable: Callable[[str], bool],
) -> optax.GradientTransformation:
    """``tx`` with curvature kept beside it; ``tx`` itself where there is nothing to keep.

    Args:
      tx: the optimizer of the trained parameters; its updates do not change.
      config: the run.
      abstract_params: shapes of the trained parameters.
      mergeable: whether tasks share the parameter of a path.
    """
    mask = trees.map_paths(lambda path, _: mergeable(path), abstract_params)
    if not config.merge_stats_every or not any(jax.tree.leaves(mask)):
        return tx
    return optim.with_merge_stats(tx, decay=DECAY, mask=mask, stats_every=config.merge_stats_every)


def exported(opt_state: Any) -> Any:
    """The item of a checkpoint: curvature by parameter, ``{}`` where none was recorded."""
    try:
        return optim.export_stats(opt_state)
    except ConfigError:
        return {}


def save_start(folder: Path, params: Any, per_task: Sequence[str]) -> str | None:
    """Stores the mergeable parameters as they are before the first step.

    With the frozen ones, which a run keeps anyway, they are the base that task vectors start from.

    Args:
      folder: of the frozen base.
      params: the trained parameters.
      per_task: paths of those that are not mergeable.

    Returns:
      The fingerprint by which ``storage.load_base`` finds them; None where there are none.
    """
    flat = trees.flatten_paths(params)
    shared = {path: leaf for path, leaf in flat.items() if path not in set(per_task)}
    if not shared:
        return None
    tree = {"params": trees.unflatten_paths(shared)}
    if not parallel.is_main_process():
        return fingerprint(tree)
    return storage.save_base(folder, tree)


def describe(
    config: Config,
    base: str,
    start: str | None,
    frequencies: Any,
    per_task: Sequence[str],
    shared: Sequence[str],
) -> dict[str, Any]:
    """The JSON beside the item: what has to agree, or to be known, when runs are merged.

    Args:
      config: the run.
      base: of :func:`base_of`.
      start: of :func:`save_start`.
      frequencies: ``{layer: (T,)}``, ``{}`` where nothing reads them.
      per_task: the trained parameters that are not mergeable.
      shared: those that are.
    """
    return {
        "format_version": 1,
        "base": base,
        "start": start,
        "tasks": list(config.tasks),
        "batch_size": config.batch_size,
        "loss_reduction": "mean",
        "decay": DECAY,
        "stats_every": config.merge_stats_every,
        "frequencies": {
            layer: np.asarray(omega, np.float64).tolist() for layer, omega in frequencies.items()
        },
        "per_task": sorted(per_task),
        "prefix": BACKBONE,
        "factors": sorted(filter(is_adapter, shared)),
        "sine_factors": sorted(filter(is_sine_factor, shared)) if frequencies else [],
    }


def base_of(variables: dict[str, Any]) -> str:
    """The fingerprint of the backbone that a run starts from, adapters included.

    Runs may be merged where it is the same: a task vector is the way from one base.
    """
    digest = Fingerprint()
    for path, leaf in sorted(trees.flatten_paths(variables["params"]).items()):
        if path.startswith(BACKBONE):
            digest.add(path, np.asarray(leaf))
    return str(digest)
