"""What a merge of files will do: which leaves it merges, which stay, what it reads and writes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from sinewich_jax.core.arrays import content
from sinewich_jax.errors import CheckpointError, ConfigError, SinewichError, did_you_mean
from sinewich_jax.merging import origins
from sinewich_jax.merging.align import matched
from sinewich_jax.merging.combine import flat_stats
from sinewich_jax.merging.files import FileStats
from sinewich_jax.merging.registry import Rule
from sinewich_jax.storage.leaves import CHECKPOINTS, LeafSource, LeafSpec
from sinewich_jax.storage.opening import open_leaves

MERGED = "merged"
Model = str | os.PathLike[str] | LeafSource
# The interpreter with NumPy, and in units of the largest leaf what a rule may need beside it.
_RUNTIME = 60_000_000
_COPIES = 4


class Inputs(NamedTuple):
    """Open files.

    Attributes:
      base: the model that all experts started from.
      experts: by name.
      stats: of each expert, None where the rule needs none.
    """

    base: LeafSource
    experts: dict[str, LeafSource]
    stats: dict[str, FileStats] | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the readers want to be known."""
        return tuple(note for one in (self.base, *self.experts.values()) for note in one.notes)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a merge of files will do.

    Attributes:
      rule: the rule.
      merged: the leaves that the rule sees.
      same: leaves of integers, which must agree and stay as they are.
      base_only: leaves that stay as the base has them, in every model.
      base_kept: leaves of the base that are not merged because each task has its own.
      per_task: name of an expert -> its leaves that are not merged and go with it.
      files: name of a file that is written -> its leaves.
      bytes_read: in one pass over the leaves that are merged.
      bytes_written: in all.
      memory: bytes that the process needs at most, about.
      notes: what a user should know.
    """

    rule: Rule
    merged: tuple[str, ...]
    same: tuple[str, ...]
    base_only: tuple[str, ...]
    base_kept: tuple[str, ...]
    per_task: dict[str, tuple[str, ...]]
    files: dict[str, dict[str, LeafSpec]]
    bytes_read: int
    bytes_written: int
    memory: int
    notes: tuple[str, ...]


def open_base(path: str | os.PathLike[str]) -> LeafSource:
    """What experts started from; a run's work directory stands for what that run started from."""
    return open_leaves(path, "start" if (Path(path) / CHECKPOINTS).is_dir() else "params")


@contextlib.contextmanager
def open_inputs(
    rule: Rule,
    base: Model,
    experts: Mapping[str, Model],
    stats: Mapping[str, Model] | None,
) -> Iterator[Inputs]:
    """Opens what a merge reads; see :func:`sinewich_jax.merging.stream.merge_files`.

    A run keeps the curvature of its training beside its parameters; it is found there where
    ``stats`` does not name another file. What is open already stays open.

    Raises:
      ConfigError: no expert, a name that cannot be that of a file, statistics that are missing, a
        rule that needs data.
      CheckpointError: something that cannot be opened.
    """
    if not isinstance(experts, Mapping) or not experts:
        raise ConfigError(
            f"experts must be a mapping from names to at least one file, found {experts!r:.60}"
        )
    for name in experts:
        if not re.fullmatch(r"\w[\w.-]*", name) or name == MERGED:
            raise ConfigError(
                f"{name!r} cannot name an expert, because it names a file; expected letters, "
                f"digits, '-', '_' and '.', and another word than {MERGED!r}"
            )
    if "data" in rule.needs:
        raise ConfigError(
            f"the merge rule {rule.name!r} learns from data, which files of weights do not hold; "
            "call it from Python"
        )
    for name in stats or {}:
        if name not in experts:
            raise ConfigError(
                f"there are statistics of {name!r}, which is no expert{did_you_mean(name, experts)}"
            )
    with contextlib.ExitStack() as stack:

        def opened(model: Model, opening: Callable[..., LeafSource] = open_leaves) -> LeafSource:
            if isinstance(model, LeafSource):
                return model
            return stack.enter_context(opening(model))

        origin = opened(base, open_base)
        models = {name: opened(model) for name, model in experts.items()}
        found = {name: opened(model) for name, model in (stats or {}).items()}
        if "curvature" in rule.needs:
            for name in set(experts) - set(found):
                origins.check_curvature(rule.name, name, models[name])
                with contextlib.suppress(CheckpointError):
                    path = experts[name]
                    if not isinstance(path, LeafSource) and Path(path).is_dir():
                        found[name] = stack.enter_context(open_leaves(path, item="merge"))
        models = {name: origins.named_as(origin, source) for name, source in models.items()}
        found = {name: origins.named_as(origin, source) for name, source in found.items()}
        # The names alone say whether there is too little or too much.
        given = {name: {} for name in found} or (None if stats is None else {})
        wanted = flat_stats(rule, experts, given)
        readers = None
        if wanted is not None:
            factors = origins.curvature_factors({name: found[name] for name in experts})
            readers = {name: FileStats(found[name], factors[name]) for name in experts}
        yield Inputs(origin, models, readers)


def make_plan(rule: Rule, inputs: Inputs, keep: str | None = None, only: str | None = None) -> Plan:
    """Looks at shapes and dtypes and decides what is merged; reads no leaf.

    Args:
      rule: the rule.
      inputs: the open files.
      keep: see :func:`sinewich_jax.merging.stream.merge_files`.
      only: see there.

    Raises:
      SinewichError: leaves that do not fit, named; another base; nothing to merge.
    """
    base, experts = inputs.base, inputs.experts
    kept, chosen = _pattern("keep", keep, origins.own_leaves(experts)), _pattern("only", only, ".*")

    def shared(source: LeafSource) -> dict[str, LeafSpec]:
        specs = source.specs.items()
        return {n: s for n, s in specs if chosen.fullmatch(n) and not kept.fullmatch(n)}

    ours = shared(base)
    for name, source in experts.items():
        try:
            matched(ours, shared(source), f"the expert {name!r} ({source.path})")
        except SinewichError as error:
            raise SinewichError(
                f"{error}; 'keep' takes a regular expression for leaves that stay with each task"
            ) from error
    merged = tuple(name for name, spec in ours.items() if content(spec) == "real")
    if not merged:
        raise SinewichError(
            f"no leaf is left to merge of the {len(base.names)} in {base.path}, whose first is "
            f"{next(iter(base.names), None)!r}; 'only' and 'keep' are regular expressions that "
            "have to match a whole path"
        )
    _check_stats(inputs, merged)
    origins.check(base, experts, merged)
    per_task = {n: tuple(filter(kept.fullmatch, s.names)) for n, s in experts.items()}
    files = _files(rule, inputs, per_task, kept)
    written = sum(spec.nbytes for specs in files.values() for spec in specs.values())
    together = sum(spec.nbytes for spec in ours.values())
    # Leaves narrower than float32 are merged in float32.
    largest = max(_wide(base.spec(name)) for name in merged)
    if rule.streaming:
        memory = _COPIES * (len(experts) + 2) * largest
    else:
        memory = (2 * len(experts) + 2) * sum(_wide(base.spec(name)) for name in merged)
    return Plan(
        rule=rule,
        merged=merged,
        same=tuple(name for name in ours if name not in set(merged)),
        base_only=tuple(n for n in base.names if n not in ours and not kept.fullmatch(n)),
        base_kept=tuple(filter(kept.fullmatch, base.names)),
        per_task=per_task,
        files=files,
        bytes_read=together * (1 + len(experts)),
        bytes_written=written,
        memory=memory + _RUNTIME,
        notes=inputs.notes + origins.notes(experts, merged),
    )


def _files(
    rule: Rule, inputs: Inputs, per_task: dict[str, tuple[str, ...]], kept: re.Pattern[str]
) -> dict[str, dict[str, LeafSpec]]:
    """One file for all tasks and one for what each keeps; a conditional rule has a model a task."""
    own = {n: {leaf: inputs.experts[n].spec(leaf) for leaf in per_task[n]} for n in per_task}
    if rule.conditional:
        common = {n: s for n, s in inputs.base.specs.items() if not kept.fullmatch(n)}
        return {name: common | specs for name, specs in own.items()}
    return {MERGED: inputs.base.specs} | {name: specs for name, specs in own.items() if specs}


def _check_stats(inputs: Inputs, merged: tuple[str, ...]) -> None:
    for name, stats in (inputs.stats or {}).items():
        theirs = stats.source.names
        paths = {re.sub("/(row|col|diag)$", "", leaf) for leaf in theirs} | set(theirs)
        if paths.isdisjoint(merged):
            raise SinewichError(
                f"the statistics of {name!r} ({stats.source.path}) are of none of the leaves that "
                f"are merged: found {next(iter(theirs), None)!r}, expected {merged[0]!r} or "
                f"'{merged[0]}/row'"
            )


def _wide(spec: LeafSpec) -> int:
    return spec.nbytes // spec.dtype.itemsize * max(4, spec.dtype.itemsize)


def _pattern(option: str, text: str | None, default: str) -> re.Pattern[str]:
    try:
        return re.compile(default if text is None else text)
    except re.error as error:
        raise ConfigError(f"{option}={text!r} is no regular expression ({error})") from error
