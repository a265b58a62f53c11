"""What may be saved and whether a target fits what was saved, leaf by leaf."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import CheckpointError, did_you_mean
from sinewich_jax.storage.manifest import Leaves, Manifest


def checked_leaves(item: str, tree: Any) -> dict[str, str]:
    """The type of every leaf by path, e.g. ``{"head/kernel": "float32[3,4]"}``.

    Args:
      item: name of the item, for messages.
      tree: what is to be saved.

    Raises:
      CheckpointError: a leaf that is no array, or an array of size zero.
    """
    flat = flatten_paths(tree)
    for path, leaf in flat.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise CheckpointError(
                f"leaf {path!r} of item {item!r} is a {type(leaf).__name__}, expected an array; "
                "put plain values into 'meta'"
            )
        if math.prod(leaf.shape) == 0:
            raise CheckpointError(
                f"leaf {path!r} of item {item!r} has shape {tuple(leaf.shape)}; an array without "
                "elements cannot be saved, so leave it out of the tree"
            )
    return {path: _type(leaf) for path, leaf in flat.items()}


def checked_meta(meta: Any) -> dict[str, Any]:
    """``meta`` as it will come back from the file.

    Raises:
      CheckpointError: it is not a dict, or JSON has no form for something in it.
    """
    if not isinstance(meta, Mapping):
        raise CheckpointError(f"item 'meta' is a {type(meta).__name__}; expected a dict for JSON")
    try:
        return json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"item 'meta' cannot be written as JSON ({error}); convert arrays and NumPy scalars to "
            "lists and Python numbers, and NaN to null"
        ) from error


def check_target(folder: Path, manifest: Manifest, item: str, target: Any) -> None:
    """Compares a restore target with what was saved; a dtype is never cast silently.

    Args:
      folder: the folder of the step, for messages.
      manifest: of that step.
      item: name of the item.
      target: pytree of ``ShapeDtypeStruct`` with shardings.

    Raises:
      CheckpointError: names the item or leaf that does not fit.
    """
    if item not in manifest.items:
        raise CheckpointError(
            f"{folder} has no item {item!r}{did_you_mean(item, manifest.items)}; ask only for what "
            "was saved"
        )
    saved: Leaves = manifest.items[item]
    wanted = flatten_paths(target)
    for path, leaf in wanted.items():
        if path not in saved:
            raise CheckpointError(
                f"{folder} has no leaf {path!r} in item {item!r}{did_you_mean(path, saved)}; it "
                "was saved by another model or configuration"
            )
        if saved[path] != _type(leaf):
            raise CheckpointError(
                f"leaf {path!r} of item {item!r} in {folder} is {saved[path]}, expected "
                f"{_type(leaf)}; it was saved by another model or configuration"
            )
        if getattr(leaf, "sharding", None) is None:
            raise CheckpointError(
                f"the target of leaf {path!r} of item {item!r} has no sharding; give every leaf "
                "one, jax.ShapeDtypeStruct(shape, dtype, sharding=...)"
            )
    left = sorted(set(saved) - set(wanted))
    if left:
        raise CheckpointError(
            f"item {item!r} in {folder} has {len(left)} leaves that were not asked for, the first "
            f"being {left[0]!r}; it was saved by another model or configuration"
        )


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
