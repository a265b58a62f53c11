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
from sinewich_jax.train.switch_out import check_new

Progress = Callable[[int, int, str], None]

_SUFFIX = ".safetensors"
# Weights are multiplied with knobs in float32.
_LARGEST = float(np.finfo(np.float32).max)


class SwitchedLeaves(LeafSource):
    """The leaves of :func:`opened_bank`.

    Attributes:
      inputs: the files that they are made of, by what messages call them.
      own: the leaves that the one task has of its own; ``{}`` of a mixture.
    """

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
        self.own = {} if left_out else own
        notes = base.notes
        if left_out:
            notes += (_left_out(left_out),)
        specs = dict(base.specs)
        specs |= {leaf: LeafSpec(array.shape, array.dtype) for leaf, array in self.own.items()}
        metadata = {"base_fingerprint": mark, "per_task": json.dumps(sorted(self.own))}
        if len(switches) == 1:
            metadata["task"] = next(iter(switches))
        metadata["weights"] = json.dumps(dict(weights))
        super().__init__(path, specs, metadata, notes)
        self.inputs = {"the bank": path, "the base": base.path}
        self._base, self._switches, self._weights = base, changes, dict(weights)

    def read(self, name: str) -> np.ndarray:
        """See :meth:`LeafSource.read`."""
        self.spec(name)
        if name in self.own:
            return np.asarray(self.own[name])
        leaf = self._base.read(name)
        changes = {
            task: Switch({name: switch.leaves[name]})
            for task, switch in self._switches.items()
            if name in switch.leaves
        }
        if not changes:
            return leaf
        with np.errstate(over="ignore", invalid="ignore"):  # said below, in a sentence
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
      ConfigError: a task that the bank does not have, a weight that float32 does not hold.
      SinewichError: another base.
      CheckpointError: a file that cannot be read.
    """
    bank = Path(bank)
    for task, weight in tasks.items():
        if not abs(weight) <= _LARGEST:
            raise ConfigError(
                f"the weight of {task!r} is {weight:g}, expected a finite number that float32 holds"
            )
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
    source: SwitchedLeaves,
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
      ConfigError: see :func:`check_out`.
    """
    out = Path(out)
    check_out(out, source.inputs, overwrite)
    metadata = {key: value for key, value in source.metadata.items() if value is not None}
    with write_leaves(out, source.specs, metadata) as writer:
        for done, name in enumerate(source.names):
            if progress is not None:
                progress(done, len(source.names), name)
            writer.write(name, source.read(name))


def check_out(out: Path, inputs: Mapping[str, Path], overwrite: bool) -> None:
    """Refuses a file that is there, and one that must not be.

    Args:
      out: the file.
      inputs: see :func:`sinewich_jax.train.switch_out.check_apart`.
      overwrite: whether another file may be replaced.

    Raises:
      ConfigError: a folder, an input, a name of another format, or a file that is there.
    """
    check_new(out, inputs, overwrite)
    if out.suffix != _SUFFIX:
        raise ConfigError(
            f"{out} would hold safetensors, whatever its name says; expected --out NAME{_SUFFIX}"
        )


def _left_out(own: list[str]) -> str:
    """What a mixture says of leaves that are of single tasks."""
    one = len(own) == 1
    which = (
        f"1 leaf belongs to a single task ({own[0]!r}) and is"
        if one
        else f"{len(own)} leaves belong to single tasks, such as {own[0]!r}, and are"
    )
    return f"{which} not in a mixture; apply one task for its own"
