"""Whether switches and weights fit a base; a refusal names the switch, the leaf and the shapes.

Also whether single settings are what they should be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinewich_jax.core.arrays import content, dtype_of, fails, namespace
from sinewich_jax.errors import ConfigError, SinewichError, did_you_mean
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch, plane_bytes, register_pytrees

Array = Any


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuses a setting that is no whole number from ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number from {least}")


def as_weight(weight: Any, owner: str = "the weight", shape: tuple[int, ...] = ()) -> Array:
    """A weight (or an array of them) in float32, of its library.

    Args:
      weight: real, whole or true and false; JAX may trace it.
      owner: what the message calls it.
      shape: that it has to have.

    Raises:
      SinewichError: something else than numbers, another shape, or a number that is not finite in
        float32.
    """
    found = _shape(weight)
    if found != shape:
        raise SinewichError(f"{owner} has the shape {found}; expected one number for each switch")
    if isinstance(weight, int):  # of any size
        weight = float(weight) if abs(weight) < 1 << 128 else math.inf
    dtype = dtype_of(weight).name
    if content(weight) == "other" or dtype.startswith("complex"):
        found = dtype if hasattr(weight, "dtype") else type(weight).__name__
        raise SinewichError(f"{owner} holds {found}; expected real numbers")
    xp = namespace(weight)
    with np.errstate(over="ignore"):
        weight = xp.asarray(weight).astype(np.float32)
    if fails(xp.isfinite(weight).all()):
        raise SinewichError(f"{owner} is not finite in float32; expected finite numbers")
    return weight


def _shape(weights: Any) -> tuple[int, ...]:
    """The shape; of a list its length, as it may hold anything."""
    return (len(weights),) if isinstance(weights, list | tuple) else np.shape(weights)


def in_order(weights: Any, names: list[str]) -> Array | list[Array]:
    """The weights of the tasks in the order of ``names``, float32: an array (T,) or T scalars."""
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
        weights = [weights[name] for name in names]
    shape = _shape(weights)
    if shape != (len(names),):
        raise SinewichError(
            f"the weights have the shape {shape}; expected ({len(names)},), one for each switch"
        )
    if isinstance(weights, list | tuple):
        return [
            as_weight(weight, f"the weight of the switch {name!r}")
            for name, weight in zip(names, weights, strict=True)
        ]
    return as_weight(weights, "the array of weights", shape)


def check_switch(switch: Any, owner: str) -> None:
    """Refuses what is no switch, a task vector for example."""
    if not isinstance(switch, Switch):
        raise SinewichError(
            f"{owner} is of the type {type(switch).__name__}; expected a Switch, which make_switch "
            "makes of a task vector"
        )


def check_fits(flat: Mapping[str, Any], switch: Switch, owner: str, leading: int = 0) -> None:
    """Refuses a switch with a leaf that the base has not, or has in another shape or as integers.

    Args:
      flat: the leaves of the base by path.
      switch: with ``leading`` axes before those of one task.
      owner: what the message calls the switch.
      leading: 1 for a stack.
    """
    check_switch(switch, owner)
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
