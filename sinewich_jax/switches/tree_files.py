"""A switch as an Orbax checkpoint: its arrays as they are, for programs that keep all state there.

For shipping, a bank (:mod:`sinewich_jax.switches.bank`) is smaller and needs no JAX to be read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sinewich_jax.core.trees import unflatten_paths
from sinewich_jax.errors import SinewichError
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.swb.entries import dtype_of
from sinewich_jax.switches.swb.log import SwitchBankError
from sinewich_jax.switches.swb.records import checked

_ITEM, _STEP, _FORMAT = "switch", 0, 1
_FIELDS = {"switch": ("mask", "sign", "knob", "levels"), "dense": ("delta",)}


def save_switch(
    directory: str | os.PathLike[str], switch: Switch, meta: Mapping[str, Any] | None = None
) -> None:
    """Writes a switch as step 0 of a checkpoint directory, with checksums.

    The tree ``switch`` of the step has the arrays under ``PATH/mask`` and so on; those without
    elements, which Orbax cannot hold, are told by their shape alone.

    Args:
      directory: the folder; it must not hold a checkpoint.
      switch: of NumPy or JAX arrays.
      meta: anything that JSON has a form for.

    Raises:
      CheckpointError: a checkpoint is there, the disk is full, or ``meta`` has no form in JSON.
      SwitchBankError: leaves of which one is inside of another; a bank holds them.
    """
    from sinewich_jax.storage.checkpoints import CheckpointStore

    flat: dict[str, np.ndarray] = {}
    leaves = []
    for path, leaf in switch.leaves.items():
        kind = "dense" if isinstance(leaf, DenseLeaf) else "switch"
        arrays = {field: np.asarray(getattr(leaf, field)) for field in _FIELDS[kind]}
        flat |= {_name(path, field): array for field, array in arrays.items() if array.size}
        specs = {f: {"shape": list(a.shape), "dtype": a.dtype.name} for f, a in arrays.items()}
        leaves.append({"path": path, "kind": kind, "shape": list(leaf.shape), "arrays": specs})
    about = {"format": _FORMAT, "leaves": leaves, "meta": dict(meta or {})}
    try:
        tree = unflatten_paths(flat) if flat else {}
    except SinewichError as error:
        raise SwitchBankError(
            f"the switch has no place in {directory} as a tree ({error}); add it to a SwitchBank, "
            "which keeps leaves by their paths"
        ) from error
    with CheckpointStore(directory) as store:
        store.save(_STEP, {_ITEM: tree, "meta": {_ITEM: about}})


def load_switch(directory: str | os.PathLike[str]) -> tuple[Switch, dict[str, Any]]:
    """Reads what :func:`save_switch` wrote, bit for bit.

    Returns:
      The switch, of NumPy arrays, and its meta.

    Raises:
      CheckpointError: there is no such checkpoint, or its files are damaged.
      SwitchBankError: it holds no switch, or one whose arrays are not those that were written.
    """
    from sinewich_jax.storage.checkpoints import CheckpointStore
    from sinewich_jax.storage.opening import open_leaves

    folder = Path(directory)
    about = CheckpointStore(folder).read_meta(_STEP).get(_ITEM)
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise SwitchBankError(
            f"{folder} holds no switch of format {_FORMAT}; expected what save_switch wrote"
        )
    found: dict[str, np.ndarray] = {}
    if any(math.prod(a["shape"]) for leaf in about["leaves"] for a in leaf["arrays"].values()):
        with open_leaves(folder / str(_STEP), _ITEM) as source:
            found = {name: source.read(name) for name in source.names}
    leaves = {one["path"]: _leaf(one, folder, found) for one in about["leaves"]}
    return Switch(leaves), about["meta"]


def _leaf(
    about: Mapping[str, Any], folder: Path, found: Mapping[str, np.ndarray]
) -> LeafSwitch | DenseLeaf:
    path, arrays = about["path"], {}
    for field in _FIELDS[about["kind"]]:
        spec = about["arrays"][field]
        shape, dtype = tuple(spec["shape"]), dtype_of(spec["dtype"])
        array = found.get(_name(path, field)) if math.prod(shape) else np.zeros(shape, dtype)
        if array is None or (array.shape, array.dtype) != (shape, dtype):
            raise SwitchBankError(
                f"the leaf {path!r} of {folder} has as its {field} "
                f"{'nothing' if array is None else f'{array.dtype}{array.shape}'}, expected "
                f"{dtype}{shape}; restore the folder from a copy"
            )
        arrays[field] = array
    if about["kind"] == "dense":
        return DenseLeaf(arrays["delta"])
    leaf = LeafSwitch(**arrays, shape=tuple(about["shape"]))
    try:
        checked(leaf)
    except ValueError as error:
        raise SwitchBankError(f"the leaf {path!r} of {folder} cannot be read: {error}") from error
    return leaf


def _name(path: str, field: str) -> str:
    return f"{path}/{field}" if path else field
