"""What packing will do: which leaves of each expert become a switch and which are kept in full.

Shapes and dtypes alone decide, so that every misfit is found before a leaf is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sinewich_jax.core.arrays import content
from sinewich_jax.errors import ConfigError, SinewichError, did_you_mean
from sinewich_jax.merging import origins
from sinewich_jax.merging.files import FileStats
from sinewich_jax.merging.plan import open_base
from sinewich_jax.storage.leaves import CHECKPOINTS, LeafSource
from sinewich_jax.storage.manifest import MANIFEST
from sinewich_jax.storage.opening import open_leaves
from sinewich_jax.switches.swb import index
from sinewich_jax.train import merge_tasks, switch_origin

StrPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Expert:
    """One model that is packed.

    Attributes:
      name: the task that it becomes.
      source: its leaves, under the names of the base.
      stats: its curvature, None where magnitudes decide.
      switched: leaves that become a mask, a sign and a knob.
      dense: leaves of the base whose change is kept in full.
      same: leaves of integers, which must agree with the base.
      own: leaves that the base does not have.
    """

    name: str
    source: LeafSource
    stats: FileStats | None
    switched: tuple[str, ...]
    dense: tuple[str, ...]
    same: tuple[str, ...]
    own: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Open files, and what is to be done with their leaves.

    Attributes:
      base: what all experts started from.
      experts: in the order given.
      left: leaves of the base that are not looked at and stay as they are.
      notes: what a user should know.
    """

    base: LeafSource
    experts: tuple[Expert, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]


@contextlib.contextmanager
def planned(
    base: StrPath,
    experts: Mapping[str, StrPath],
    *,
    stats: Mapping[str, StrPath] | None = None,
    only: str | None = None,
    keep_dense: str | None = None,
) -> Iterator[Plan]:
    """Opens the files and decides; the sources stay open inside the block.

    Args:
      base: see :func:`sinewich_jax.train.merge_tasks.opened`; no expert names it.
      experts: by the name of the task; weights, runs, or ``WORKDIR@TASK``.
      stats: for each expert, or none, the curvature that chooses what is kept: a file with
        ``PATH/row`` and ``PATH/col`` or ``PATH/diag``, or a run that recorded it.
      only: a regular expression for the leaves to pack; others stay those of the base.
      keep_dense: a regular expression for leaves whose change is kept in full.

    Raises:
      ConfigError: names, statistics or patterns that cannot be used.
      SinewichError: an expert that does not fit the base; the leaf is named.
      CheckpointError: something that cannot be opened.
    """
    for name in experts:
        try:
            index.check_name(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    for name in stats or {}:
        if name not in experts:
            raise ConfigError(
                f"there are statistics of {name!r}, which is no expert{did_you_mean(name, experts)}"
            )
    if stats and (missing := [name for name in experts if name not in stats]):
        raise ConfigError(
            f"there are statistics of {', '.join(stats)} and none of {missing[0]!r}; switches of "
            f"one bank are made alike, pass --stats {missing[0]}=PATH or leave --stats out"
        )
    chosen, dense = _pattern("only", only, ".*"), _pattern("keep-dense", keep_dense, r"(?!)")
    with contextlib.ExitStack() as stack:
        given, models = stack.enter_context(merge_tasks.opened(base, experts))

        def opened(
            model: StrPath | LeafSource, opening: Callable[..., LeafSource] = open_leaves
        ) -> LeafSource:
            return (
                model if isinstance(model, LeafSource) else stack.enter_context(open_leaves(model))
            )

        if isinstance(given, LeafSource):
            origin = given
        else:
            origin = stack.enter_context(open_base(given))
        found = {
            name: None if not stats else FileStats(_open_stats(stack, origin, stats[name]))
            for name in experts
        }
        made = [
            _expert(
                name, origin, origins.named_as(origin, opened(model)), found[name], chosen, dense
            )
            for name, model in models.items()
        ]
        left = tuple(name for name in origin.names if not chosen.fullmatch(name))
        notes = (*origin.notes, *(note for one in made for note in one.source.notes))
        yield Plan(origin, tuple(made), left, notes)


def _open_stats(stack: contextlib.ExitStack, base: LeafSource, path: StrPath) -> LeafSource:
    """A file of curvature, or that which a run recorded while it trained."""
    path = Path(path)
    is_run = (path / CHECKPOINTS).is_dir() or (path / MANIFEST).is_file()
    return origins.named_as(
        base, stack.enter_context(open_leaves(path, "merge" if is_run else "params"))
    )


def _expert(
    name: str,
    base: LeafSource,
    source: LeafSource,
    stats: FileStats | None,
    chosen: re.Pattern[str],
    dense: re.Pattern[str],
) -> Expert:
    label = f"the expert {name!r} ({source.path})"
    shared = [leaf for leaf in base.names if chosen.fullmatch(leaf)]
    if not shared:
        raise ConfigError(
            f"no leaf is left to pack of the {len(base.names)} in {base.path}, whose first is "
            f"{next(iter(base.names), None)!r}; --only is a regular expression that has to match a "
            "whole path"
        )
    missing = [leaf for leaf in shared if leaf not in source.specs]
    if missing:
        raise SinewichError(
            f"{label} lacks leaves of {base.path}, {len(missing)} of {len(shared)}, the first is "
            f"{missing[0]!r}; name the base that it was trained from, or choose the leaves that "
            "both have with --only"
        )
    for leaf in shared:
        _check_leaf(leaf, base, source, label)
    kept = {leaf for leaf in shared if dense.fullmatch(leaf)} | switch_origin.own_names(source)
    reals = [leaf for leaf in shared if content(base.spec(leaf)) == "real"]
    switched = tuple(leaf for leaf in reals if leaf not in kept and base.spec(leaf).shape)
    _check_stats(stats, name, switched)
    return Expert(
        name=name,
        source=source,
        stats=stats,
        switched=switched,
        dense=tuple(leaf for leaf in reals if leaf not in set(switched)),
        same=tuple(leaf for leaf in shared if leaf not in set(reals)),
        own=tuple(n for n in source.names if n not in base.specs and chosen.fullmatch(n)),
    )


def _check_leaf(leaf: str, base: LeafSource, source: LeafSource, label: str) -> None:
    ours, theirs = base.spec(leaf), source.spec(leaf)
    if ours.shape != theirs.shape:
        raise SinewichError(
            f"the leaf {leaf!r} has shape {theirs.shape} in {label} and {ours.shape} in "
            f"{base.path}; leave it out with --only, or name the base that the expert was trained "
            "from"
        )
    kinds = content(ours), content(theirs)
    if kinds[0] != kinds[1] or "other" in kinds:
        raise SinewichError(
            f"the leaf {leaf!r} is {theirs.dtype} in {label} and {ours.dtype} in {base.path}; both "
            "must be floating, or both integer"
        )


def _check_stats(stats: FileStats | None, name: str, switched: tuple[str, ...]) -> None:
    if stats is None:
        return
    there = set(stats.source.names)
    for leaf in switched:
        if not there & {leaf, f"{leaf}/row", f"{leaf}/col", f"{leaf}/diag"}:
            raise SinewichError(
                f"the statistics of {name!r} ({stats.source.path}) have no curvature of the leaf "
                f"{leaf!r}; expected '{leaf}/row' and '{leaf}/col', or '{leaf}/diag' (leave the "
                "leaf out with --only, or keep its change in full with --keep-dense)"
            )


def _pattern(option: str, text: str | None, default: str) -> re.Pattern[str]:
    try:
        return re.compile(default if text is None else text)
    except re.error as error:
        raise ConfigError(f"--{option} {text!r} is no regular expression ({error})") from error
