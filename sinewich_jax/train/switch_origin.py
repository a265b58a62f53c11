"""Which base a bank of switches belongs to, and which of a run's two faces that is.

A switch is a change of one set of numbers and means nothing on another, so a bank names its base by
fingerprint. A run's work directory stands for what the run started from: all that tasks share,
adapters included, or the plain backbone in it. A bank of adapters as they are was made for the
first, a bank of the kernels that they make for the second; the fingerprint tells which.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sinewich_jax.errors import SinewichError
from sinewich_jax.merging import origins
from sinewich_jax.merging.plan import open_base
from sinewich_jax.storage.fingerprint import Fingerprint
from sinewich_jax.storage.leaves import BACKBONE, LeafSource, Shards
from sinewich_jax.switches.bank import Base
from sinewich_jax.switches.swb.header import BaseLeaf

FACTS = ("step", "task", "base", "start", "frequencies", "sine_factors", "prefix")
"""What a run says of itself that decides whether its switches go with others."""


def fingerprint_of(source: LeafSource) -> str:
    """:func:`sinewich_jax.storage.fingerprint.fingerprint` of leaves that lie in files."""
    digest = Fingerprint()
    for name in source.names:
        digest.add(name, source.read(name))
    return str(digest)


def described(source: LeafSource, mark: str) -> Base:
    """What a bank keeps of a base whose fingerprint is known already."""
    leaves = {n: BaseLeaf(tuple(s.shape), s.dtype.name) for n, s in source.specs.items()}
    return Base(mark, leaves)


@contextlib.contextmanager
def opened_base(path: str | os.PathLike[str], mark: str | None, bank: Path) -> Iterator[LeafSource]:
    """Opens the base that a bank was made for.

    Args:
      path: weights, or a run that stands for what it started from.
      mark: the fingerprint that the bank names, if it names one.
      bank: the file, for messages.

    Raises:
      CheckpointError: nothing can be read there.
      SinewichError: it is another base, or the bank names none.
    """
    if mark is None:
        raise SinewichError(
            f"the bank {bank} does not say which base it belongs to, so that none can be checked; "
            "make it anew with a base"
        )
    with open_base(path) as source:
        found = []
        for view in _views(source):
            found.append(fingerprint_of(view))
            if found[-1] == mark:
                yield view
                return
        raise SinewichError(
            f"the bank {bank} holds switches of another base: it names {mark[:19]}, and {path} is "
            f"{found[0][:19]}; name the base that it was packed with"
        )


def _views(source: LeafSource) -> Iterator[LeafSource]:
    """A model as it is, and the plain backbone in it under the names of a file of it alone."""
    yield source
    if any(name.startswith(BACKBONE) for name in source.names):
        from sinewich_jax.nn.sinewich import is_adapter

        homes = {
            name.removeprefix(BACKBONE): (source, name)
            for name in source.names
            if name.startswith(BACKBONE) and not is_adapter(name)
        }
        yield Shards(source.path, homes, source.metadata, source.notes)


class _Packed(NamedTuple):
    """An expert that is in the bank already: as much of a source as origins are told by."""

    path: Path
    metadata: Mapping[str, str]


def facts(source: LeafSource) -> dict[str, str]:
    """What an expert says of itself, for the record of its switch."""
    return {key: source.metadata[key] for key in FACTS if key in source.metadata}


def told(meta: Mapping[str, Any], name: str, bank: Path) -> dict[str, str]:
    """What a bank keeps of an expert's :func:`facts`; nothing of tasks that were added in Python.

    Raises:
      SinewichError: it is in another form.
    """
    found = meta.get("facts", {})
    try:
        for key in ("frequencies", "sine_factors", "prefix"):
            json.loads(found.get(key, "null"))
    except (AttributeError, TypeError, ValueError) as error:
        raise SinewichError(
            f"the task {name!r} of {bank} says in another form than 'sinewich switch pack' where "
            f"it comes from ({error}); add to another bank"
        ) from error
    return {key: found[key] for key in FACTS if isinstance(found.get(key), str)}


def check_together(
    base: LeafSource,
    experts: Mapping[str, LeafSource],
    packed: Mapping[str, Mapping[str, str]],
    switched: tuple[str, ...],
    bank: Path,
) -> None:
    """Refuses experts that say that they do not belong to the base, or not to each other.

    Switches of one bank may be mixed, so what merging refuses is refused here: runs of another
    start, and factors of task kernels that are read at other frequencies.

    Args:
      base: the base.
      experts: the models to pack, by name.
      packed: what those that are in the bank already said, see :func:`facts`.
      switched: the leaves that switches change.
      bank: the file, for messages.

    Raises:
      SinewichError: naming two that do not go together, and how.
    """
    kept = {name: _Packed(bank, said) for name, said in packed.items()}
    everyone: dict[str, Any] = {**kept, **experts}
    origins.check(base, everyone, ())
    if (words := origins.other_frequencies(everyone, switched)) is not None:
        raise SinewichError(
            f"{words}, so that switches of factors do not go together; switch the kernels "
            "themselves (the backbone file as --base, or --expert NAME=WORKDIR@TASK), or leave the "
            "factors out with --only"
        )


def frequencies_of(experts: Mapping[str, LeafSource], switched: tuple[str, ...]) -> str | None:
    """A word for the frequencies at which switched factors are read; None where none are."""
    for source in experts.values():
        if set(switched) & origins.listed(source, "sine_factors"):
            table = source.metadata["frequencies"].encode()
            return f"sha256:{hashlib.sha256(table).hexdigest()}"
    return None


def own_names(source: LeafSource) -> set[str]:
    """The leaves that a run says belong to its tasks."""
    return origins.listed(source, "per_task")
