"""A base with one task switched on, or a mixture of tasks, as leaves that are made when asked for.

    with opened_bank("tasks.swb", {"depth": 1.0}, base="swin_t.safetensors") as source:
        write(source, "depth.safetensors")

A task's own leaves, which the base does not have (its decoder), come along. A mixture of several
tasks has none of them: each fits one task alone.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from sinewich_jax.errors import ConfigError, SinewichError, did_you_mean
from sinewich_jax.storage.leaf_writer import write_leaves
from sinewich_jax.storage.leaves import LeafSource, LeafSpec
from sinewich_jax.switches.apply import apply_switch, merge_switches
from sinewich_jax.switches.bank import SwitchBank
from sinewich_jax.switches.leaf import Switch
from sinewich_jax.switches.own import split_own
from sinewich_jax.train.switch_origin import described, opened_base

Progress = Callable[[int, int, str], None]


class SwitchedLeaves(LeafSource):
    """The leaves of :func:`opened_bank`."""

    def __init__(
        self,
        path: Path,
        base: LeafSource,
        switches: Mapping[str, Switch],
        weights: Mapping[str, float],
        mark: str,
    ) -> None:
        """Reads nothing yet; the base stays that of the caller.

        Args:
          path: what messages call it.
          base: the base, open.
          switches: by task.
          weights: of each of them.
          mark: the fingerprint of the base.

        Raises:
          SinewichError: a switch that changes a leaf which the base does not have.
        """
        own: dict[str, np.ndarray] = {}
        changes: dict[str, Switch] = {}
        for name, switch in switches.items():
            changes[name], leaves = split_own(switch, base.specs)
            own |= leaves
        left_out = sorted(own) if len(switches) > 1 else []
        self._own = {} if left_out else own
        notes = base.notes
        if left_out:
            notes += (
                f"{len(left_out)} leaves belong to single tasks, such as {left_out[0]!r}, and are "
                "not in a mixture; apply one task for its own",
            )
        specs = dict(base.specs)
        specs |= {leaf: LeafSpec(array.shape, array.dtype) for leaf, array in self._own.items()}
        metadata = {"base_fingerprint": mark, "per_task": json.dumps(sorted(self._own))}
        if len(switches) == 1:
            metadata["task"] = next(iter(switches))
        metadata["weights"] = json.dumps(dict(weights))
        super().__init__(path, specs, metadata, notes)
        self._base, self._switches, self._weights = base, changes, dict(weights)

    def read(self, name: str) -> np.ndarray:
        """See :meth:`LeafSource.read`."""
        self.spec(name)
        if name in self._own:
            return np.asarray(self._own[name])
        leaf = self._base.read(name)
        changes = {
            task: Switch({name: switch.leaves[name]})
            for task, switch in self._switches.items()
            if name in switch.leaves
        }
        if not changes:
            return leaf
        if len(changes) == 1:
            ((task, change),) = changes.items()
            made = apply_switch({name: leaf}, change, self._weights[task])
        else:
            weights = np.array([self._weights[task] for task in changes], np.float32)
            made = merge_switches({name: leaf}, changes, weights)
        made = np.asarray(made[name])
        if not np.isfinite(made).all():
            raise SinewichError(
                f"{' and '.join(changes)} make numbers that are not finite of the leaf {name!r}, "
                f"stored as {made.dtype}; choose smaller weights"
            )
        return made

    def close(self) -> None:
        """The base is the caller's."""


@contextlib.contextmanager
def opened_bank(
    bank: str | os.PathLike[str],
    tasks: Mapping[str, float],
    base: str | os.PathLike[str],
) -> Iterator[SwitchedLeaves]:
    """Opens a base with tasks of a bank switched on.

    Args:
      bank: the file.
      tasks: which, and the weight of each; 1 is the task as it was packed.
      base: what the bank was packed with: weights, or a run that started from it.

    Raises:
      ConfigError: a task that the bank does not have, a weight that is not finite.
      SinewichError: another base.
      CheckpointError: a file that cannot be read.
    """
    bank = Path(bank)
    for task, weight in tasks.items():
        if not np.isfinite(weight):
            raise ConfigError(f"the weight of {task!r} is {weight}, expected a finite number")
    with SwitchBank.open(bank) as opened:
        for task in tasks:
            if task not in opened.names:
                raise ConfigError(
                    f"the bank {bank} has no task {task!r}{did_you_mean(task, opened.names)}"
                )
        mark = opened.base
    with opened_base(base, mark, bank) as origin:
        with SwitchBank.open(bank, base=described(origin, mark)) as opened:
            switches = {task: opened.get(task) for task in tasks}
        yield SwitchedLeaves(bank, origin, switches, tasks, mark)


def write(
    source: LeafSource,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes the leaves of a source to a safetensors file, wholly or not at all.

    Args:
      source: open.
      out: the file.
      overwrite: take the place of a file that is there.
      progress: called with leaves done, leaves in all, and the path that is looked at.

    Raises:
      ConfigError: a file that is there.
    """
    out = Path(out)
    check_out(out, overwrite)
    metadata = {key: value for key, value in source.metadata.items() if value is not None}
    with write_leaves(out, source.specs, metadata) as writer:
        for done, name in enumerate(source.names):
            if progress is not None:
                progress(done, len(source.names), name)
            writer.write(name, source.read(name))


def check_out(out: Path, overwrite: bool) -> None:
    """Refuses a file that is there.

    Raises:
      ConfigError: it, or a folder.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder, expected a file; name another --out")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists already; choose another --out, or pass --overwrite")
