"""Merging files: read leaf by leaf, written as it goes, with the bits of a merge in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import sinewich_jax
from sinewich_jax.errors import ConfigError, SinewichError
from sinewich_jax.merging.files import FileLeaves
from sinewich_jax.merging.plan import MERGED, Inputs, Model, Plan, make_plan, open_inputs
from sinewich_jax.merging.registry import check_options, find, results
from sinewich_jax.storage.atomic import TEMPORARY_PREFIX, write_json
from sinewich_jax.storage.leaf_writer import LeafWriter, write_leaves

RECORD = "merge.json"
_SUFFIX = ".safetensors"
_FAR = 0.5  # cosine: experts of one base have nearly all of it, independent models next to none

StrPath = str | os.PathLike[str]
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a merge did.

    Attributes:
      plan: what was merged and what was not.
      outputs: the files that were written.
      record: the content of ``merge.json``.
      notes: what a user should know.
    """

    plan: Plan
    outputs: tuple[Path, ...]
    record: dict[str, Any]
    notes: tuple[str, ...]


def plan_files(
    rule: str,
    base: Model,
    experts: Mapping[str, Model],
    out: StrPath | None = None,
    *,
    stats: Mapping[str, Model] | None = None,
    keep: str | None = None,
    only: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Plan:
    """What :func:`merge_files` would do with these arguments; no leaf is read, nothing written."""
    chosen = find(rule)
    check_options(chosen, options)
    if out is not None:
        _former(Path(out), overwrite)
    with open_inputs(chosen, base, experts, stats) as inputs:
        return make_plan(chosen, inputs, keep, only)


def merge_files(
    rule: str,
    base: Model,
    experts: Mapping[str, Model],
    out: StrPath,
    *,
    stats: Mapping[str, Model] | None = None,
    keep: str | None = None,
    only: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """One model out of several, from files to a file, in the memory of a few leaves.

    The result has the bits that :func:`sinewich_jax.merging.merge` gives to the same trees.

    Args:
      rule: the name of a rule, see :func:`sinewich_jax.merging.rules`.
      base: what all experts started from; anything that
        :func:`sinewich_jax.storage.opening.open_leaves` opens, or a source that is open already and
        stays so. A run's work directory stands for the weights that the run started from, one of
        its checkpoints for itself.
      experts: the trained models by name, likewise.
      out: the folder to write to: ``merged.safetensors``, or for a conditional rule one model a
        task, ``NAME.safetensors``; and ``merge.json``, which says how it was made.
      stats: for rules that need them, a file with the statistics of each expert; a run that keeps
        its own needs none.
      keep: a regular expression for leaves that are not merged but stay with each task, as heads
        do: the base's own, if it has them, stay in ``merged.safetensors``, and those of each expert
        go to ``NAME.safetensors``.
      only: a regular expression for the leaves to merge; all others stay as the base has them.
        Both have to match a whole path.
      overwrite: write over a former merge in ``out``.
      progress: called with leaves done, leaves in all, and the path that is looked at.
      **options: those of the rule.

    Returns:
      What was done.

    Raises:
      ConfigError: an unknown rule or option, missing statistics, a folder that is in use.
      SinewichError: models that do not fit each other, or numbers that are not finite; the leaf
        and the expert are named and nothing is written.
      CheckpointError: a file that cannot be read or written.
    """
    chosen = find(rule)
    check_options(chosen, options)
    out = Path(out)
    former = _former(out, overwrite)
    with open_inputs(chosen, base, experts, stats) as inputs:
        plan = make_plan(chosen, inputs, keep, only)
        done = 0

        def looked(path: str) -> None:
            if progress is not None:
                progress(done, len(plan.merged), path)

        leaves = FileLeaves(
            inputs.base, inputs.experts, plan.merged + plan.same, inputs.stats, looked
        )
        with _made(out), _writers(out, plan, former) as writers:
            left = set(plan.merged)
            for path, result in results(chosen, leaves, options):
                _write(plan, inputs, writers, path, result)
                left.discard(path)
                done += 1
                looked(path)
                del result  # the next leaf is computed without it
            # A rule may leave some alone, as it may in memory.
            _copy(plan, inputs, writers, {*left, *plan.same, *plan.base_only})
            record = _record(plan, inputs, leaves, options)
        write_json(out / RECORD, record)
    outputs = tuple(out / f"{name}{_SUFFIX}" for name in plan.files)
    return Report(plan, outputs, record, (*plan.notes, *_far_off(leaves.cosines)))


def merge_leaves(
    rule: str,
    base: Model,
    experts: Mapping[str, Model],
    *,
    stats: Mapping[str, Model] | None = None,
    keep: str | None = None,
    only: str | None = None,
    **options: Any,
) -> tuple[Plan, dict[str, Any]]:
    """:func:`merge_files` into memory: what was planned, and the result of each merged leaf.

    A result is an array or, of a conditional rule, a
    :class:`~sinewich_jax.merging.registry.Conditional`.
    """
    chosen = find(rule)
    check_options(chosen, options)
    with open_inputs(chosen, base, experts, stats) as inputs:
        plan = make_plan(chosen, inputs, keep, only)
        leaves = FileLeaves(inputs.base, inputs.experts, plan.merged + plan.same, inputs.stats)
        return plan, dict(results(chosen, leaves, options))


def _write(
    plan: Plan, inputs: Inputs, writers: dict[str, LeafWriter], path: str, result: Any
) -> None:
    dtype = inputs.base.spec(path).dtype
    if plan.rule.conditional:
        for task, name in enumerate(inputs.experts):
            writers[name].write(path, _cast(plan, path, result.select(task), dtype))
    else:
        writers[MERGED].write(path, _cast(plan, path, result, dtype))


def _cast(plan: Plan, path: str, result: Any, dtype: np.dtype) -> np.ndarray:
    array = np.asarray(result).astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise SinewichError(
            f"the merge rule {plan.rule.name!r} makes numbers that are not finite of the leaf "
            f"{path!r}, stored as {dtype}; nothing was written, choose other options"
        )
    return array


def _copy(plan: Plan, inputs: Inputs, writers: dict[str, LeafWriter], paths: set[str]) -> None:
    """Writes what stays: leaves of the base to every model, and to each task its own."""
    models = list(writers) if plan.rule.conditional else [MERGED]
    for path in sorted(paths if plan.rule.conditional else paths.union(plan.base_kept)):
        array = inputs.base.read(path)
        for name in models:
            writers[name].write(path, array)
    for name, own in plan.per_task.items():
        for path in own:
            writers[name].write(path, inputs.experts[name].read(path))


def _former(out: Path, overwrite: bool) -> dict[str, Any]:
    """The record of the merge that is in ``out``, {} where there is none.

    Raises:
      ConfigError: the folder holds something else, or a merge that must not be overwritten.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, expected a folder; name another --out")
    if not out.exists() or all(p.name.startswith(TEMPORARY_PREFIX) for p in out.iterdir()):
        return {}
    try:
        record = json.loads((out / RECORD).read_bytes())
        files = set(record["outputs"])
    except (OSError, ValueError, KeyError, TypeError):
        found = next(path.name for path in sorted(out.iterdir()))
        raise ConfigError(
            f"the folder {out} is not empty (it holds {found!r}) and is no former merge; choose "
            "another --out"
        ) from None
    if not overwrite:
        raise ConfigError(
            f"the folder {out} holds a merge by {record.get('rule')!r} already; choose another "
            "--out, or pass --overwrite"
        )
    # Only names of files beside it: the record may have been edited.
    return record | {"outputs": sorted(name for name in files if Path(name).name == name)}


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder, and takes it away again when what was to fill it fails."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _writers(out: Path, plan: Plan, former: dict[str, Any]) -> Iterator[dict[str, LeafWriter]]:
    """One writer a file; all files appear at the end, and of a former merge nothing is left."""
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(write_leaves(out / f"{name}{_SUFFIX}", specs))
            for name, specs in plan.files.items()
        }
        yield writers
        for writer in writers.values():
            writer.finish()
        # From here to the new record a folder without one: never files with a record of others.
        (out / RECORD).unlink(missing_ok=True)
    for name in former.get("outputs", ()):
        if name.removesuffix(_SUFFIX) not in plan.files:
            (out / name).unlink(missing_ok=True)


def _record(
    plan: Plan, inputs: Inputs, leaves: FileLeaves, options: dict[str, Any]
) -> dict[str, Any]:
    """The content of ``merge.json``: the same for the same merge, whenever it is made."""

    marks = leaves.fingerprints or (None,) * (1 + len(inputs.experts))

    facts = ("step", "base", "task")

    def described(source: Any, mark: str | None) -> dict[str, Any]:
        return {
            "path": os.fspath(source.path),
            "bytes": source.nbytes,
            # Of the leaves that were merged or compared; of all of them that of storage.
            "fingerprint": mark,
            **{key: source.metadata[key] for key in facts if key in source.metadata},
        }

    everything = plan.rule.options | options
    return {
        "rule": plan.rule.name,
        "source": plan.rule.source,
        "options": json.loads(json.dumps(everything, default=repr)),
        "base": described(inputs.base, marks[0]),
        "experts": {
            name: described(source, mark)
            for (name, source), mark in zip(inputs.experts.items(), marks[1:], strict=True)
        },
        "statistics": {n: os.fspath(s.source.path) for n, s in (inputs.stats or {}).items()},
        "outputs": [f"{name}{_SUFFIX}" for name in plan.files],
        "merged": list(plan.merged),
        "same": list(plan.same),
        "base_only": list(plan.base_only),
        "per_task": {name: list(paths) for name, paths in plan.per_task.items() if paths},
        "versions": {
            "sinewich_jax": sinewich_jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _far_off(cosines: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(
        f"the expert {name!r} has a cosine of {cosine:.2f} with the base, as if it had been "
        "trained from another one; a merge of it is then worth nothing"
        for name, cosine in cosines.items()
        if cosine < _FAR
    )
