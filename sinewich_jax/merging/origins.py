"""What models say of where they come from, and whether that lets them be merged.

Runs say it in their checkpoints: the frozen parameters that they share (``base``), the backbone
that they started from (``start``), their batch size, which leaves belong to their tasks
(``per_task``), which are factors of adapters (``factors``), which of those are read at frequencies
(``sine_factors``) and at which (``frequencies``), and what the names of shared leaves begin with
(``prefix``). Plain files may name the model they were trained from as ``base_fingerprint``; most
say nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sinewich_jax.errors import ConfigError, SinewichError
from sinewich_jax.storage.fingerprint import Fingerprint
from sinewich_jax.storage.leaves import LeafSource, Shards


def named_as(base: LeafSource, source: LeafSource) -> LeafSource:
    """A run's leaves under the names of the base, where that is the file of a bare backbone."""
    prefix = _prefix(source)
    if any(name.startswith(prefix) for name in base.names):
        return source
    homes = {name.removeprefix(prefix): (source, name) for name in source.names}
    if len(homes) < len(source.names) or homes.keys() == set(source.names):
        return source
    return Shards(source.path, homes, source.metadata, source.notes)


def own_leaves(experts: Mapping[str, LeafSource]) -> str:
    """A pattern for what runs say belongs to their tasks; of plain files nothing does."""
    own = set[str]().union(*(listed(source, "per_task") for source in experts.values()))
    return "|".join(map(re.escape, sorted(own))) or r"(?!)"


def curvature_factors(stats: Mapping[str, LeafSource]) -> dict[str, float]:
    """What each expert's curvature is multiplied by: the batch sizes of runs, where they differ.

    A run averages squares of gradients that are means over its batch, which are smaller by about
    the batch size than the squares that the Fisher information averages.
    """
    sizes = {n: json.loads(source.metadata.get("batch_size", "1")) for n, source in stats.items()}
    equal = len(set(sizes.values())) == 1
    return {name: 1.0 if equal else float(size) for name, size in sizes.items()}


def check(base: LeafSource, experts: Mapping[str, LeafSource], merged: tuple[str, ...]) -> None:
    """Refuses experts that say that they do not belong together.

    Args:
      base: what all of them are said to have started from.
      experts: the models by name.
      merged: the leaves that are to be merged.

    Raises:
      SinewichError: another base, another start, or factors read at other frequencies.
    """
    _check_bases(base, experts)
    _check_starts(experts)
    _check_frequencies(experts, merged)


def check_curvature(rule: str, name: str, expert: LeafSource) -> None:
    """Refuses to look for curvature that an expert says its leaves do not have.

    Raises:
      ConfigError: saying why.
    """
    if (why := expert.metadata.get("no_curvature")) is not None:
        raise ConfigError(
            f"the merge rule {rule!r} needs the curvature of every expert and has none of {name!r} "
            f"({expert.path}): {why}; pass --stats {name}=PATH, or merge by a rule without "
            "statistics"
        )


def notes(experts: Mapping[str, LeafSource], merged: tuple[str, ...]) -> tuple[str, ...]:
    """What a user should know of the leaves that are merged."""
    factors = set(merged).intersection(*(listed(s, "factors") for s in experts.values()))
    if not factors:
        return ()
    return (
        f"{len(factors)} leaves are factors of adapters and are merged as such, which is not the "
        "merge of the kernels that they make; for the kernels give the backbone file as --base, "
        "or --expert NAME=WORKDIR@TASK",
    )


def _check_bases(base: LeafSource, experts: Mapping[str, LeafSource]) -> None:
    """Refuses experts whose frozen parameters are others, or that name another base."""
    frozen = {
        f"{label} ({source.path})": source.metadata["base"]
        for label, source in (
            ("the base", base),
            *((f"the expert {n!r}", s) for n, s in experts.items()),
        )
        if "base" in source.metadata
    }
    if len(set(frozen.values())) > 1:
        (first, mark), *others = frozen.items()
        other = next(label for label, theirs in others if theirs != mark)
        raise SinewichError(
            f"{other} was trained on another frozen base than {first}: its fingerprint is "
            f"{frozen[other][:19]}, expected {mark[:19]}; merge models that share their base"
        )
    ours = None
    for name, source in experts.items():
        theirs = source.metadata.get("base_fingerprint")
        if theirs is None:
            continue
        if ours is None:
            digest = Fingerprint()
            for leaf in base.names:
                digest.add(leaf, base.read(leaf))
            ours = str(digest)
        if theirs != ours:
            raise SinewichError(
                f"the expert {name!r} ({source.path}) was trained from another base: it names "
                f"{theirs[:19]}, and {base.path} is {ours[:19]}; name the base that it started from"
            )


def _check_starts(experts: Mapping[str, LeafSource]) -> None:
    """Refuses runs whose backbones, adapters included, did not start as one."""
    starts = {name: s.metadata["start"] for name, s in experts.items() if "start" in s.metadata}
    (first, *others) = starts or [None]
    for name in others:
        if starts[name] != starts[first]:
            raise SinewichError(
                f"the runs of {first!r} and {name!r} started from other weights (fingerprints "
                f"{starts[first][1:20]} and {starts[name][1:20]}), so that their changes do not "
                "add up; train them from one backbone, and adapters from one seed"
            )


def _check_frequencies(experts: Mapping[str, LeafSource], merged: tuple[str, ...]) -> None:
    """Refuses shared factors that are read at other frequencies; a kernel is the sine of both."""
    if (words := other_frequencies(experts, merged)) is not None:
        raise SinewichError(
            f"{words}, so that a mean of factors is no mean of kernels; merge the kernels "
            "themselves (the backbone file as --base, or --expert NAME=WORKDIR@TASK), or leave the "
            "factors out with --keep"
        )


def other_frequencies(experts: Mapping[str, Any], leaves: Iterable[str]) -> str | None:
    """Which two models read factors at other frequencies, in words; None where all are equal.

    Args:
      experts: by name, anything with ``metadata``.
      leaves: those that are used; models of which none is a sine factor are not asked.
    """
    tables = {
        name: json.loads(source.metadata["frequencies"])
        for name, source in experts.items()
        if listed(source, "sine_factors").intersection(leaves)
    }
    (first, *others) = tables or [None]
    for name in others:
        for layer in sorted(tables[first].keys() | tables[name].keys()):
            ours, theirs = (np.asarray(tables[n].get(layer, [])) for n in (first, name))
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-6, atol=0):
                return (
                    f"{first!r} and {name!r} read the factors of their task kernels at other "
                    f"frequencies (layer {layer!r}: {_numbers(ours)} and {_numbers(theirs)})"
                )
    return None


def _prefix(source: Any) -> str:
    """What the names of a run's shared leaves begin with and those of a bare backbone do not."""
    return json.loads(source.metadata.get("prefix", '""'))


def listed(source: Any, fact: str) -> set[str]:
    """The leaves that a model lists under a fact, by the names in the run and in the bare one."""
    paths = json.loads(source.metadata.get(fact, "[]"))
    return {*paths, *(path.removeprefix(_prefix(source)) for path in paths)}


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values) or "none"
