"""Saving and restoring a run: which items a checkpoint has, over ``storage.CheckpointStore``."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import optax

import sinewich_jax
from sinewich_jax import config as configs
from sinewich_jax import parallel, storage
from sinewich_jax.config import Config
from sinewich_jax.train import merge_item
from sinewich_jax.train import state as states
from sinewich_jax.train import workdir as workdirs

# Each is an item of its own, so that a reader (merging, serving) restores only what it needs. The
# item ``merge`` is made from the optimizer's state and only read by merging.
ITEMS = ("params", "model_state", "weighting", "opt_state")


class Resumed(NamedTuple):
    """A run taken up again.

    Attributes:
      state: the restored state, on its mesh.
      constants: the frozen tree as it was when the run began, on its mesh.
      meta: the checkpoint's JSON.
      skipped: newer checkpoints that could not be read, as (step, reason).
    """

    state: states.TrainState
    constants: dict[str, Any]
    meta: dict[str, Any]
    skipped: list[tuple[int, str]]


def open_store(workdir: Path, config: Config) -> storage.CheckpointStore:
    """The checkpoints of a work directory."""
    return storage.CheckpointStore(workdir / workdirs.CHECKPOINTS, max_to_keep=config.max_to_keep)


def save_base(workdir: Path, constants: dict[str, Any]) -> str | None:
    """Stores the frozen tree once; returns its fingerprint, None when nothing is frozen."""
    if not jax.tree.leaves(constants):
        return None
    if not parallel.is_main_process():
        return storage.fingerprint.fingerprint(constants)
    return storage.save_base(workdir / workdirs.BASE, constants)


def describe(
    config: Config, counts: dict[str, int], base: str | None, timing: dict[str, float]
) -> dict[str, Any]:
    """The JSON item of a checkpoint: enough to know, years later, what one has in hand."""
    return {
        "config": configs.to_dict(config),
        "tasks": list(config.tasks),
        "base": base,
        "timing": timing,
        "versions": {
            "sinewich_jax": sinewich_jax.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "python": platform.python_version(),
        },
        **counts,
    }


def save(
    store: storage.CheckpointStore, step: int, state: states.TrainState, meta: dict[str, Any]
) -> None:
    """Saves a state (in the background; ``store.wait()`` returns when it is on disk)."""
    items = {name: getattr(state, name) for name in ITEMS}
    items[merge_item.ITEM] = merge_item.exported(state.opt_state)
    store.save(step, {**items, "meta": {**meta, "step": step}})


def resume(store: storage.CheckpointStore, workdir: Path, placed: states.Placed) -> Resumed | None:
    """The newest whole checkpoint, placed as ``placed`` is; None when none has been saved.

    Args:
      store: the checkpoints.
      workdir: where the frozen tree lies.
      placed: a state of the same run: its shapes, dtypes and shardings are the target, so that
        a run may go on with another mesh.

    Raises:
      CheckpointError: there are checkpoints, but none of them is whole.
    """
    target = states.abstract_state(placed)
    restored = store.restore_latest({name: getattr(target, name) for name in ITEMS})
    if restored is None:
        return None
    constants, mark = placed.constants, restored.meta["base"]
    # What this start has made anew is most often the same, bit for bit; the file need not be read.
    if mark is not None and storage.fingerprint.fingerprint(constants) != mark:
        loaded = storage.load_base(workdir / workdirs.BASE, mark)
        loaded = {name: loaded.get(name, {}) for name in placed.constants}
        constants = jax.device_put(loaded, placed.constant_shardings)
    step = jax.device_put(jax.numpy.int32(restored.step), placed.shardings.step)
    state = states.TrainState(step=step, **restored.items)
    return Resumed(state, constants, restored.meta, restored.skipped)
