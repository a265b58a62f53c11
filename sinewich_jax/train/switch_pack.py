"""Packing experts that lie in files into a bank of switches, leaf by leaf.

In memory are a leaf of the base, the same leaf of one expert, their difference, and what was packed
before: two bits for each entry. Everything is packed before the bank is touched, so that a number
that is not finite in the last leaf of the last expert leaves no file behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sinewich_jax.core.arrays import widen
from sinewich_jax.core.curvature import Diagonal, root
from sinewich_jax.errors import ConfigError, SinewichError, did_you_mean
from sinewich_jax.merging.align import check_integers
from sinewich_jax.storage.atomic import atomic_write
from sinewich_jax.storage.leaves import LeafSource
from sinewich_jax.switches.bank import Base, SwitchBank
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.make import METHODS, make_switch
from sinewich_jax.switches.report import Report
from sinewich_jax.train import switch_origin, switch_out
from sinewich_jax.train.switch_plan import Expert, Plan

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
      path: the bank.
      names: the tasks that were packed.
      report: of the whole bank.
      notes: what a user should know.
    """

    path: Path
    names: tuple[str, ...]
    report: Report
    notes: tuple[str, ...]


def method_options(
    method: str = "tswitch",
    alpha: float | str | None = None,
    density: float | None = None,
    knob: str | None = None,
    scope: str | None = None,
) -> dict[str, Any]:
    """The keywords of :func:`~sinewich_jax.switches.make.make_switch` for a method by name.

    Args:
      method: a key of ``METHODS``.
      alpha: the fraction that is dropped, or ``"auto"``.
      density: the fraction that is kept, in its place.
      knob: see ``make_switch``.
      scope: see there.

    Raises:
      ConfigError: an unknown method, a setting that cannot be, or one that the method has itself.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}{did_you_mean(method, METHODS)}")
    options = dict(METHODS[method])
    given = {"alpha": alpha, "density": density, "knob": knob, "scope": scope}
    given = {name: value for name, value in given.items() if value is not None}
    if method == "bitdelta" and (fixed := given.keys() & {"alpha", "density", "knob"}):
        name = min(fixed)
        raise ConfigError(
            f"the method 'bitdelta' has an alpha and a knob of its own, found {name} "
            f"{given[name]}; leave it out, or take the method 'tswitch'"
        )
    if "density" in given and "alpha" not in given:
        options.pop("alpha", None)
    options |= given
    make_switch({}, **options)  # looks at the settings
    return options


def pack(
    plan: Plan,
    out: str | os.PathLike[str],
    options: Mapping[str, Any],
    *,
    append: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Packs every expert of a plan into a bank.

    Args:
      plan: open files, see :func:`sinewich_jax.train.switch_plan.planned`.
      out: the bank.
      options: what :func:`method_options` returned.
      append: add the tasks to the bank that is there.
      overwrite: write a new bank in the place of one; with ``append`` replace tasks of these names.
      progress: called with leaves done, leaves in all, and what is looked at.

    Raises:
      ConfigError: see :func:`sinewich_jax.train.switch_out.check_target`.
      SinewichError: experts that do not fit each other, numbers that are not finite.
    """
    out = Path(out)
    names = [expert.name for expert in plan.experts]
    known = switch_out.check_target(out, names, _inputs(plan), append, overwrite)
    mark = switch_origin.fingerprint_of(plan.base)
    if append:
        _check_base(out, plan.base, mark)
    switched = tuple(dict.fromkeys(leaf for one in plan.experts for leaf in one.switched))
    experts = {expert.name: expert.source for expert in plan.experts}
    kept = {
        name: switch_origin.told(meta, name, out)
        for name, meta in known.items()
        if name not in names
    }
    switch_origin.check_together(plan.base, experts, kept, switched, out)
    done, total = 0, sum(map(_count, plan.experts))
    switches = {}
    for expert in plan.experts:

        def looked(path: str, name: str = expert.name) -> None:
            nonlocal done
            if progress is not None:
                progress(done, total, f"{name}: {path}")
            done += 1

        switches[expert.name] = Switch(dict(_leaves(plan.base, expert, options, looked)))
    if progress is not None:
        progress(total, total, plan.experts[-1].name)
    metas = {expert.name: _meta(expert, options) for expert in plan.experts}
    header = None
    if not append:
        header = switch_origin.described(plan.base, mark)
    frequencies = switch_origin.frequencies_of(experts, switched)
    with _bank(out, header, frequencies) as bank:
        for name, switch in switches.items():
            bank.add(name, switch, meta=metas[name], replace=name in known)
        report = bank.report()
    return Packed(out, tuple(names), dataclasses.replace(report, path=str(out)), plan.notes)


def _inputs(plan: Plan) -> dict[str, Path]:
    scored = [expert for expert in plan.experts if expert.stats is not None]
    return switch_out.inputs_of(
        plan.base.path,
        {expert.name: expert.source.path for expert in plan.experts},
        {expert.name: expert.stats.source.path for expert in scored},
    )


def _check_base(out: Path, base: LeafSource, mark: str) -> None:
    with SwitchBank.open(out) as bank:
        named = bank.base
    if named != mark:
        raise SinewichError(
            f"the bank {out} holds switches of another base: it names {str(named)[:19]}, and "
            f"{base.path} is {mark[:19]}; name the base that it was packed with, or another --out"
        )


@contextlib.contextmanager
def _bank(out: Path, base: Base | None, frequencies: str | None) -> Iterator[SwitchBank]:
    """The bank to write to; a new one, of a base, appears when it is whole."""
    if base is None:
        with SwitchBank.open(out, mode="a") as bank:
            yield bank
        return
    with (
        atomic_write(out) as temporary,
        SwitchBank.create(temporary, base=base, frequencies=frequencies) as bank,
    ):
        yield bank


def _leaves(
    base: LeafSource, expert: Expert, options: Mapping[str, Any], looked: Callable[[str], None]
) -> Iterator[tuple[str, LeafSwitch | DenseLeaf]]:
    for path in expert.same:
        looked(path)
        label = f"the expert {expert.name!r} ({expert.source.path})"
        check_integers({path: base.read(path)}, {path: expert.source.read(path)}, label)
    # With one threshold for the whole model all changes have to be there at once.
    together = options.get("scope") == "global"
    deltas: dict[str, np.ndarray] = {}
    for path in expert.switched:
        looked(path)
        deltas[path] = _delta(base, expert, path)
        if not together:
            yield from _made(expert, deltas, options)
            deltas.clear()
    if together:
        yield from _made(expert, deltas, options)
    for path in expert.dense:
        looked(path)
        yield path, DenseLeaf(_delta(base, expert, path))
    for path in expert.own:
        looked(path)
        leaf = expert.source.read(path)
        _check_finite(expert, path, leaf)
        yield path, DenseLeaf(leaf)


def _made(
    expert: Expert, deltas: dict[str, np.ndarray], options: Mapping[str, Any]
) -> Iterator[tuple[str, LeafSwitch | DenseLeaf]]:
    score = None
    if expert.stats is not None:
        # The root of curvature x delta^2 ranks entries alike and does not underflow.
        score = {path: np.abs(delta) * _root(expert, path, delta) for path, delta in deltas.items()}
    yield from make_switch(deltas, score=score, **options).leaves.items()


def _root(expert: Expert, path: str, delta: np.ndarray) -> np.ndarray:
    curvature = expert.stats.get(path)
    if isinstance(curvature, np.ndarray):
        curvature = Diagonal(curvature)
    with np.errstate(all="ignore"):
        found = root(curvature, delta.shape)
    if found.shape != delta.shape or not (np.isfinite(found).all() and (found >= 0).all()):
        raise SinewichError(
            f"the curvature of {path!r} of the expert {expert.name!r} "
            f"({expert.stats.source.path}) is negative or not finite; expected second moments"
        )
    return found


def _delta(base: LeafSource, expert: Expert, path: str) -> np.ndarray:
    """What training changed in one leaf, float32 or wider."""
    ours, theirs = base.read(path), expert.source.read(path)
    with np.errstate(all="ignore"):
        delta = widen(theirs, np) - widen(ours, np)
    _check_finite(expert, path, delta)
    return delta


def _check_finite(expert: Expert, path: str, leaf: np.ndarray) -> None:
    leaf = widen(leaf, np)
    if leaf.dtype.kind in "fc" and not np.isfinite(leaf).all():
        raise SinewichError(
            f"the leaf {path!r} of the expert {expert.name!r} ({expert.source.path}), or its "
            "change from the base, is not finite; nothing was written, name another checkpoint"
        )


def _count(expert: Expert) -> int:
    return sum(map(len, (expert.switched, expert.dense, expert.same, expert.own)))


def _meta(expert: Expert, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the bank keeps of how a task was packed: the same for the same packing."""
    return {
        "source": os.fspath(expert.source.path),
        "options": json.loads(json.dumps(options)),
        "score": None if expert.stats is None else os.fspath(expert.stats.source.path),
        "own": list(expert.own),
        "facts": switch_origin.facts(expert.source),
    }
