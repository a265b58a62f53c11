"""What was trained beside a frozen base, in one file that knows its base: adapters, fusion, heads.

A part that is missing, left over or of another shape is an error that names it: adapters that are
read in part still run, only worse, and nobody notices.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.errors import CheckpointError, did_you_mean
from sinewich_jax.storage.arrays import load_safetensors, save_safetensors
from sinewich_jax.storage.fingerprint import fingerprint

_KIND = "sinewich_jax composition 1"


class Composition(NamedTuple):
    """The content of a file.

    Attributes:
      parts: by name, trees of NumPy arrays.
      facts: what the caller said about them: names of adapters, their placement, and so on.
    """

    parts: dict[str, Any]
    facts: dict[str, Any]


def save_composition(
    path: str | os.PathLike[str],
    parts: Mapping[str, Any],
    base: Any,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes a composition to a safetensors file, wholly or not at all.

    Args:
      path: the file.
      parts: by name, trees of arrays with at least one leaf each, such as
        ``{"adapters": ..., "fusion": ..., "head": ...}``.
      base: the frozen tree beside which they were trained; only its fingerprint is kept.
      facts: anything that JSON holds; comes back with the parts.

    Raises:
      CheckpointError: a part without a leaf or with a name that paths cannot begin with, facts that
        JSON does not hold, or a full disk.
    """
    flat: dict[str, Any] = {}
    for name, tree in parts.items():
        leaves = flatten_paths(tree)
        if not name or "/" in name or not leaves:
            raise CheckpointError(
                f"the part {name!r} of a composition has {len(leaves)} leaves; expected at least "
                "one, and a name without '/'"
            )
        flat |= {f"{name}/{path}": leaf for path, leaf in leaves.items()}
    try:
        said = json.dumps(dict(facts or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the facts of {path} have no form in JSON: {error}") from error
    metadata = {"kind": _KIND, "base": fingerprint(base), "facts": said}
    save_safetensors(path, flat, metadata)


def composition_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was said about the parts of a file: enough to build what they belong to.

    Args:
      path: the file.

    Raises:
      CheckpointError: no composition, or a damaged one.
    """
    return _read(path).facts


def rewrite_composition(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    change: Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    """Writes a changed copy of a composition, which keeps the mark of its base.

    Args:
      path: the file.
      out: the copy.
      change: from parts and facts to parts and facts.

    Raises:
      CheckpointError: no composition, a damaged one, or a full disk.
    """
    read = _read(path)
    parts, facts = change(unflatten_paths(read.leaves), read.facts)
    metadata = {"kind": _KIND, "base": read.base, "facts": json.dumps(facts)}
    save_safetensors(out, flatten_paths(parts), metadata)


def load_composition(
    path: str | os.PathLike[str], like: Mapping[str, Any], base: Any
) -> Composition:
    """Reads a composition that is exactly what is expected.

    Args:
      path: the file.
      like: by name, trees of arrays or of ``jax.ShapeDtypeStruct``: every part, with the paths,
        shapes and dtypes that it must have.
      base: the frozen tree that it is to be used beside.

    Returns:
      The parts, bit for bit as they were saved, and the facts.

    Raises:
      CheckpointError: no composition, another base, or a leaf that is missing, left over, of
        another shape or dtype, or not finite; the leaf is named.
    """
    read = _read(path)
    leaves, mark = read.leaves, fingerprint(base)
    if read.base != mark:
        raise CheckpointError(
            f"{path} was trained beside the base {read.base:.19}, and this one is {mark:.19}; use "
            "the base that it was trained with"
        )
    wanted = {
        f"{name}/{path}": leaf
        for name, tree in like.items()
        for path, leaf in flatten_paths(tree).items()
    }
    for name in wanted:
        if name not in leaves:
            raise CheckpointError(
                f"{path} lacks the leaf {name!r}{did_you_mean(name, leaves)}; it holds another "
                "composition"
            )
    for name, leaf in leaves.items():
        if name not in wanted:
            raise CheckpointError(
                f"{path} has a leaf {name!r}, which nothing here reads{did_you_mean(name, wanted)}"
            )
        shape, dtype = tuple(wanted[name].shape), np.dtype(wanted[name].dtype)
        if leaf.shape != shape or leaf.dtype != dtype:
            raise CheckpointError(
                f"the leaf {name!r} of {path} is {leaf.dtype} {leaf.shape}, expected {dtype} "
                f"{shape}"
            )
        if dtype.kind not in "iub" and not np.isfinite(leaf).all():
            raise CheckpointError(
                f"the leaf {name!r} of {path} holds NaN or infinity, expected finite numbers; "
                "train it again"
            )
    return Composition(unflatten_paths(leaves), read.facts)


class _File(NamedTuple):
    leaves: dict[str, np.ndarray]
    base: str
    facts: dict[str, Any]


def _read(path: str | os.PathLike[str]) -> _File:
    leaves, metadata = load_safetensors(path)
    if metadata.get("kind") != _KIND:
        raise CheckpointError(
            f"{path} is no composition (it says {metadata.get('kind')!r}); expected a file that "
            "save_composition wrote"
        )
    try:
        facts = json.loads(metadata["facts"])
    except (KeyError, ValueError):
        facts = None
    if not isinstance(facts, dict):
        raise CheckpointError(
            f"{path} says of its parts {metadata.get('facts')!r:.60}, expected a JSON object; copy "
            "it again, or train it again"
        )
    return _File(leaves, str(metadata.get("base")), facts)
