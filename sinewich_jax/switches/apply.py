"""Switches on a base: one task on, off, or many at once by weights.

The change of an entry is ``(weight * knob)`` times -1, 0 or +1: the second product is exact, so
packed and dense sums agree bit for bit, and so do NumPy and XLA (which may fuse it with the sum).
With levels it is times a whole number, and XLA may differ from NumPy by a unit in the last place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sinewich_jax.core.arrays import namespace, widen
from sinewich_jax.core.trees import flatten_paths, map_paths, unflatten_paths
from sinewich_jax.errors import SinewichError
from sinewich_jax.switches.fits import (
    as_weight,
    check_fits,
    check_single,
    check_stack,
    check_switch,
    in_order,
)
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.planes import decode, pieces

Array = Any
Change = LeafSwitch | DenseLeaf


def unpack(switch: Switch, like: Any = None) -> Any:
    """The task vector that a switch stands for: ``knob * mask * sign``.

    Args:
      switch: one task (``jax.vmap`` unpacks stacked ones).
      like: a tree with the containers to give it; leaves that the switch leaves alone are zeros.
        None gives nested dicts with the leaves of the switch.

    Returns:
      A tree of float32 arrays; leaves that are kept dense in a wider dtype stay in it.

    Raises:
      SinewichError: a leaf of the switch that ``like`` has not, or has in another shape.
    """
    check_switch(switch, "the switch")
    flat = {path: _unpacked(path, leaf) for path, leaf in switch.leaves.items()}
    if like is None:
        return unflatten_paths(flat)
    check_fits(flatten_paths(like), switch, "the switch")

    def leaf(path: str, other: Any) -> Any:
        if path in flat:
            return flat[path]
        return namespace(other).zeros(np.shape(other), np.float32)

    return map_paths(leaf, like)


def apply_switch(base: Any, switch: Switch, weight: Any = 1.0, *, in_place: bool = False) -> Any:
    """``base + (weight * knob) * mask * sign``, leaf by leaf: the task is switched on.

    NumPy leaves are worked on in blocks. JAX leaves may be traced: ``jax.jit(apply_switch,
    donate_argnums=0)`` needs no memory but that of the base and the planes.

    Args:
      base: a tree; leaves that the switch does not name are passed on as they are.
      switch: of one task.
      weight: a number, or a scalar that JAX may trace.
      in_place: writes into the arrays of ``base``, which all have to be NumPy's.

    Returns:
      A tree like ``base``, in its containers and dtypes; sums are made in float32 at least.

    Raises:
      SinewichError: a leaf of the switch that the base has not, or has in another shape or as
        integers; a stacked switch; a weight that is no finite number, or with which a leaf moves
        beyond float32 (not seen where JAX computes); arrays that cannot be written in place, which
        are looked for before the first is written.
    """
    check_fits(flatten_paths(base), switch, "the switch")
    weight = as_weight(weight)
    return _add(base, {path: [(weight, leaf)] for path, leaf in switch.leaves.items()}, in_place)


def remove_switch(tree: Any, switch: Switch, weight: Any = 1.0, *, in_place: bool = False) -> Any:
    """``tree - (weight * knob) * mask * sign``: takes back what :func:`apply_switch` added.

    Rounding stays: the base comes back to within a unit in the last place of the larger of the
    entry and the knob. Keep the base, or hold the switch out of it, where that matters.
    """
    return apply_switch(tree, switch, -as_weight(weight), in_place=in_place)


def merge_switches(base: Any, switches: Mapping[str, Switch] | Switch, weights: Any) -> Any:
    """``base + sum_t (weight_t * knob_t) * mask_t * sign_t`` (Auto-Switch, equation 6).

    One pass over each leaf: the tasks are summed in blocks (NumPy) or in one fused loop (JAX), and
    no dense task vector is made. A weight of one task alone gives what :func:`apply_switch` gives,
    bit for bit. ``jax.vmap`` over ``weights`` makes one tree for each of several routes.

    Args:
      base: a tree.
      switches: by the name of the task, each with leaves of its own; or a stack of T switches (see
        :func:`stack_switches`).
      weights: by the name of the task, or (T,) in the order of the switches.

    Returns:
      A tree like ``base``.

    Raises:
      SinewichError: switches that do not fit the base, weights that do not fit the switches.
    """
    flat = flatten_paths(base)
    terms: dict[str, list[tuple[Any, Change]]] = {}
    if isinstance(switches, Switch):
        tasks = check_stack(flat, switches)
        scales = in_order(weights, [str(i) for i in range(tasks)])
        if isinstance(scales, list):
            scales = namespace(*scales).stack(scales)
        terms = {path: [(scales, leaf)] for path, leaf in switches.leaves.items()}
        return _add(base, terms, stacked=True)
    if not isinstance(switches, Mapping):
        raise SinewichError(
            f"the switches are of the type {type(switches).__name__}; expected a mapping from the "
            "name of a task to its switch, or what stack_switches makes of them"
        )
    scales = in_order(weights, list(switches))
    for (name, switch), scale in zip(switches.items(), scales, strict=True):
        check_fits(flat, switch, f"the switch {name!r}")
        for path, leaf in switch.leaves.items():
            terms.setdefault(path, []).append((scale, leaf))
    return _add(base, terms)


def stack_switches(switches: Iterable[Switch]) -> Switch:
    """T switches as one, whose arrays have a leading axis of T.

    Args:
      switches: with the same leaves, each with as many bits and knobs in all of them.

    Raises:
      SinewichError: none at all, a mapping, or switches that differ; the leaf is named.
    """
    if isinstance(switches, Mapping):
        raise SinewichError(
            "the switches to stack are a mapping, but a stack has no names; give its values() in "
            "the order of the weights, or merge the mapping as it is"
        )
    switches = list(switches)
    if not switches:
        raise SinewichError("there is no switch to stack; give at least one")
    for place, switch in enumerate(switches):
        check_switch(switch, f"the switch {place} of the stack")
    first = switches[0].leaves
    for place, switch in enumerate(switches):
        for path in sorted(first.keys() ^ switch.leaves.keys()):
            there, missing = (0, place) if path in first else (place, 0)
            raise SinewichError(
                f"the switch {there} of the stack has the leaf {path!r} and the switch {missing} "
                "has not; merge them as a mapping, or make them with the same leaves dense"
            )
        for path, leaf in switch.leaves.items():
            if _form(leaf) != _form(first[path]):
                raise SinewichError(
                    f"the leaf {path!r} is {_form(leaf)} in the switch {place} of the stack and "
                    f"{_form(first[path])} in the switch 0; merge them as a mapping"
                )
    return Switch({path: _stacked([s.leaves[path] for s in switches]) for path in first})


def _form(leaf: Change) -> str:
    """What leaves of one stack have in common."""
    if isinstance(leaf, DenseLeaf):
        return f"dense of the shape {leaf.shape}"
    knobs = "one knob" if not leaf.knob.shape else f"{leaf.knob.shape[0]} knobs"
    return f"switched with the shape {leaf.shape}, {leaf.bits} bit(s) an entry and {knobs}"


def _stacked(leaves: Sequence[Change]) -> Change:
    first = leaves[0]
    if isinstance(first, DenseLeaf):
        xp = namespace(*(leaf.delta for leaf in leaves))
        return DenseLeaf(xp.stack([xp.asarray(leaf.delta) for leaf in leaves]))
    xp = namespace(*(leaf.mask for leaf in leaves))
    arrays = {
        name: xp.stack([xp.asarray(getattr(leaf, name)) for leaf in leaves])
        for name in ("mask", "sign", "knob", "levels")
    }
    return LeafSwitch(**arrays, shape=first.shape)


def _add(
    base: Any,
    terms: Mapping[str, list[tuple[Any, Change]]],
    in_place: bool = False,
    stacked: bool = False,
) -> Any:
    """The base plus, for every leaf, the changes times their weights."""
    host: dict[str, list[tuple[np.ndarray, Change]]] = {}
    for path, entry in flatten_paths(base).items():  # whatever is refused is so before any sum
        if path not in terms:
            continue
        arrays = [entry, *(a for scale, change in terms[path] for a in (scale, *_arrays(change)))]
        if namespace(*arrays) is np:
            changes = _unstacked(*terms[path][0]) if stacked else terms[path]
            host[path] = [_scaled(path, *one) for one in changes if one[0] != 0]
        if in_place:
            _check_writeable(path, entry, path in host)

    def leaf(path: str, entry: Any) -> Any:
        if path in host:
            return _add_host(entry, host[path], in_place)
        return _add_traced()(entry, terms[path], stacked) if path in terms else entry

    return map_paths(leaf, base)


def _check_writeable(path: str, entry: Any, on_host: bool) -> None:
    if not on_host:
        raise SinewichError(
            f"the leaf {path!r} is an array of JAX, which cannot be written in place; donate the "
            "base to jax.jit instead"
        )
    if not (isinstance(entry, np.ndarray) and entry.flags.c_contiguous and entry.flags.writeable):
        raise SinewichError(
            f"the leaf {path!r} cannot be written in place; expected a NumPy array that is "
            "writeable and contiguous in C order"
        )


def _arrays(change: Change) -> tuple[Array, ...]:
    if isinstance(change, DenseLeaf):
        return (change.delta,)
    return change.mask, change.sign, change.knob, change.levels


def _unstacked(scales: Array, stack: Change) -> list[tuple[Array, Change]]:
    """The tasks of a stack, each with its weight."""
    columns = [[array[i] for array in _arrays(stack)] for i in range(len(scales))]
    if isinstance(stack, DenseLeaf):
        return [(scales[i], DenseLeaf(*arrays)) for i, arrays in enumerate(columns)]
    return [(scales[i], LeafSwitch(*arrays, stack.shape)) for i, arrays in enumerate(columns)]


def _add_host(entry: Any, scaled: list[tuple[np.ndarray, Change]], in_place: bool) -> np.ndarray:
    array = np.asarray(entry)
    result = array if in_place else np.empty(array.shape, array.dtype)
    source, target = array.reshape(-1), result.reshape(-1)
    rows = math.lcm(*(max(1, scale.size) for scale, _ in scaled))
    for part in pieces(array.size, rows):
        total = None
        for scale, change in scaled:
            step = _step(scale, change, part)
            if total is None or total.dtype != step.dtype:
                total = step if total is None else total + step
            else:
                np.add(total, step, out=total)
        piece = widen(source[part], np)
        if total is None:
            target[part] = piece
        elif piece.dtype == total.dtype == target.dtype:
            np.add(piece, total, out=target[part])
        else:
            target[part] = piece + total
    return result


def _scaled(path: str, scale: np.ndarray, change: Change) -> tuple[np.ndarray, Change]:
    """What the steps of a change are multiplied by, once their largest is known to be finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(change, DenseLeaf):
            delta, scaled = widen(change.delta, np), scale
            furthest = scale * np.array([delta.min(initial=0), delta.max(initial=0)])
        else:
            scaled = scale * np.asarray(change.knob)
            furthest = scaled * np.float32(max(1, 2 ** (change.bits - 1) - 1))
    if not np.isfinite(furthest).all():
        raise SinewichError(
            f"the weight {float(scale):g} moves the leaf {path!r} beyond the range of "
            f"{furthest.dtype.name}; give a smaller one"
        )
    return scaled, change


def _step(scale: np.ndarray, change: Change, part: slice) -> np.ndarray:
    """A piece of one task's change, float32, or wider where a dense leaf is."""
    if isinstance(change, DenseLeaf):
        return widen(np.asarray(change.delta).reshape(-1)[part], np) * scale
    step = decode(change, part).astype(np.float32)
    step.reshape(-1, scale.size)[:] *= scale
    return step


@functools.cache
def _add_traced() -> Callable[[Array, list[tuple[Any, Change]], bool], Array]:
    """The sum as a compiled function, so that leaves of equal shape share a compilation."""
    import jax
    import jax.numpy as jnp

    def step(scale: Array, change: Change) -> Array:
        if isinstance(change, DenseLeaf):
            return scale * widen(change.delta, jnp)
        units = decode(change).astype(jnp.float32).reshape(change.shape)
        return (scale * change.knob) * units

    def add(entry: Array, changes: list[tuple[Any, Change]], stacked: bool) -> Array:
        entry = jnp.asarray(entry)
        if stacked:
            changes = _unstacked(*changes[0])
        # Unrolled, and so fused to one pass; XLA for the CPU takes six times as long in a loop.
        total = step(*changes[0])
        for change in changes[1:]:
            total = total + step(*change)
        return (widen(entry, jnp) + total).astype(entry.dtype)

    return jax.jit(add, static_argnums=2)


def _unpacked(path: str, leaf: Change) -> Array:
    xp = namespace(*_arrays(leaf))
    if isinstance(leaf, DenseLeaf):
        return xp.array(widen(leaf.delta, xp))  # a copy, whatever its dtype
    check_single(path, leaf, "the switch")
    zeros = {path: xp.zeros(leaf.shape, np.float32)}
    return _add(zeros, {path: [(np.float32(1), leaf)]}, in_place=xp is np)[path]
