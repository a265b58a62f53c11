"""Whether switches and weights fit a base; a refusal names the switch, the leaf and the shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinewich_jax.core.arrays import content, dtype_of
from sinewich_jax.errors import SinewichError, did_you_mean
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch, plane_bytes, register_pytrees


def in_order(weights: Any, names: list[str]) -> Any:
    """The weights of the tasks in the order of ``names``."""
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                raise SinewichError(
                    f"there is a weight for {name!r}, but no such switch{did_you_mean(name, names)}"
                )
        for name in names:
            if name not in weights:
                raise SinewichError(
                    f"there is no weight for the switch {name!r}; give it one, 0 to leave it out"
                )
        return [weights[name] for name in names]
    shape = (len(weights),) if isinstance(weights, list | tuple) else np.shape(weights)
    if shape != (len(names),):
        raise SinewichError(
            f"the weights have the shape {shape}; expected ({len(names)},), one for each switch"
        )
    return weights


def check_fits(flat: Mapping[str, Any], switch: Switch, owner: str, leading: int = 0) -> None:
    """Refuses a switch with a leaf that the base has not, or has in another shape or as integers.

    Args:
      flat: the leaves of the base by path.
      switch: with ``leading`` axes before those of one task.
      owner: what the message calls the switch.
      leading: 1 for a stack.
    """
    register_pytrees()
    for path, leaf in switch.leaves.items():
        if path not in flat:
            raise SinewichError(
                f"{owner} changes the leaf {path!r}, which the base has not"
                f"{did_you_mean(path, flat)}; apply it to the model that it was made for"
            )
        shape = tuple(leaf.shape[leading:] if isinstance(leaf, DenseLeaf) else leaf.shape)
        if np.shape(flat[path]) != shape:
            raise SinewichError(
                f"{owner} changes the leaf {path!r} of shape {shape}, but in the base its shape is "
                f"{np.shape(flat[path])}; apply it to the model that it was made for"
            )
        if content(flat[path]) != "real":
            raise SinewichError(
                f"{owner} changes the leaf {path!r} by real numbers, but in the base it holds "
                f"{dtype_of(flat[path]).name}; expected floating point"
            )
        if isinstance(leaf, LeafSwitch):
            check_single(path, leaf, owner, leading)


def check_single(path: str, leaf: LeafSwitch, owner: str, leading: int = 0) -> None:
    """Refuses planes of another length or with other leading axes than they should have."""
    found = tuple(leaf.mask.shape[leading:])
    if found == (plane_bytes(leaf.size),):
        return
    hint = "merge stacked switches with merge_switches" if len(found) > 1 else "it is damaged"
    raise SinewichError(
        f"{owner} has a mask of the shape {tuple(leaf.mask.shape)} for the leaf {path!r}; expected "
        f"({plane_bytes(leaf.size)},) for {leaf.size} entries: {hint}"
    )


def check_stack(flat: Mapping[str, Any], switches: Switch) -> int:
    """The number of switches in a stack that fits the base."""
    tasks = set()
    for leaf in switches.leaves.values():
        array, single = (leaf.delta, 0) if isinstance(leaf, DenseLeaf) else (leaf.mask, 1)
        tasks.add(array.shape[:1] if array.ndim > single else ())
    if len(tasks) != 1 or () in tasks:
        raise SinewichError(
            "the leaves of the stacked switch have no leading axis in common; make it with "
            "stack_switches, or give a mapping from the name of a task to its switch"
        )
    check_fits(flat, switches, "the stacked switch", leading=1)
    return tasks.pop()[0]
