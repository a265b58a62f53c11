"""Which leaf lies where: shardings by rules on paths, with every leaf covered."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.errors import ConfigError, did_you_mean

Rules = Sequence[tuple[str, PartitionSpec]]


def sharding_tree(
    abstract_tree: Any,
    mesh: Mesh,
    rules: Rules,
    on_indivisible: Literal["error", "replicate"] = "error",
) -> Any:
    """A ``NamedSharding`` for every leaf, chosen by the first rule that matches its path.

    Args:
      abstract_tree: pytree of arrays or ``ShapeDtypeStruct``.
      mesh: the mesh that the specs speak of.
      rules: ``(regular expression, PartitionSpec)``; the expression has to match the whole path
        (keys joined by ``/``). End with ``(".*", PartitionSpec())`` to replicate the rest.
      on_indivisible: what to do with a dimension that its mesh axes do not divide:
        ``"error"``, or ``"replicate"`` that one dimension.

    Returns:
      A tree of the same structure.

    Raises:
      ConfigError: a leaf that no rule matches, a rule that names an unknown mesh axis, a spec
        longer than the leaf's shape, or a dimension that does not divide.

    Examples:
      >>> rules = [(".*/kernel", PartitionSpec(None, "model")), (".*", PartitionSpec())]
      >>> sharding_tree(jax.eval_shape(init), mesh, rules)
    """
    if on_indivisible not in ("error", "replicate"):
        raise ConfigError(
            f"on_indivisible is {on_indivisible!r}"
            f"{did_you_mean(on_indivisible, ['error', 'replicate'])}"
        )
    compiled = [(re.compile(pattern), spec) for pattern, spec in rules]
    for pattern, spec in compiled:
        _check_axes(pattern.pattern, spec, mesh)

    def choose(name: str, leaf: Any) -> NamedSharding:
        for pattern, spec in compiled:
            if pattern.fullmatch(name):
                return NamedSharding(mesh, _fitted(name, leaf.shape, spec, mesh, on_indivisible))
        raise ConfigError(
            f"no sharding rule matches leaf {name!r} of shape {tuple(leaf.shape)}; add a rule, or "
            "end the rules with ('.*', PartitionSpec())"
        )

    return map_paths(choose, abstract_tree)


def state_shardings(abstract_state: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings of an optimizer's state: moments lie where their parameter lies.

    A leaf inherits the sharding of the parameter whose path is the longest suffix of its own and
    whose shape is the same; every other leaf (counters, factored statistics) is replicated. No leaf
    is left without a sharding: a counter that a jitted ``init`` leaves on one device is committed
    there by a restore, and the next step then fails with "incompatible devices".

    Args:
      abstract_state: ``jax.eval_shape(tx.init, params)``.
      params: the parameters as ``ShapeDtypeStruct`` with shardings
        (:func:`abstract_with_shardings`), as a tree or as ``{"path/of/leaf": struct}``.
      mesh: the mesh for the replicated leaves.

    Returns:
      A tree of ``NamedSharding`` with the structure of ``abstract_state``.
    """
    by_path = flatten_paths(params)

    def choose(name: str, leaf: Any) -> NamedSharding:
        parts = name.split("/")
        for start in range(len(parts)):
            parameter = by_path.get("/".join(parts[start:]))
            if parameter is not None:
                if tuple(parameter.shape) == tuple(leaf.shape):
                    return parameter.sharding
                break
        return NamedSharding(mesh, PartitionSpec())

    return map_paths(choose, abstract_state)


def abstract_with_shardings(tree: Any, shardings: Any) -> Any:
    """``ShapeDtypeStruct`` leaves that carry their sharding: what a restore is told to fill.

    Args:
      tree: pytree of arrays or ``ShapeDtypeStruct``.
      shardings: tree of the same structure.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def unsharded_fraction(shardings: Any, abstract: Any, axis: str) -> float:
    """The fraction of all elements in leaves that are not cut along a mesh axis.

    A test that pins it below a few per cent notices a large leaf that no rule shards.

    Args:
      shardings: tree of ``NamedSharding``.
      abstract: tree of the same structure with shapes.
      axis: name of a mesh axis.

    Returns:
      A number in [0, 1]; 0 for an empty tree.
    """
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract)]
    whole = [
        size
        for size, sharding in zip(sizes, jax.tree.leaves(shardings), strict=True)
        if axis not in {name for entry in sharding.spec for name in _axes(entry)}
    ]
    return sum(whole) / sum(sizes) if sizes else 0.0


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a ``PartitionSpec``."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _check_axes(pattern: str, spec: PartitionSpec, mesh: Mesh) -> None:
    for entry in spec:
        for axis in _axes(entry):
            if axis not in mesh.shape:
                raise ConfigError(
                    f"the sharding rule for {pattern!r} names mesh axis {axis!r}"
                    f"{did_you_mean(axis, mesh.axis_names)}"
                )


def _fitted(
    name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh, on_indivisible: str
) -> PartitionSpec:
    if len(spec) > len(shape):
        raise ConfigError(
            f"leaf {name!r} has shape {tuple(shape)}, but its rule {spec} speaks of {len(spec)} "
            "dimensions; write a rule for leaves of this rank before it"
        )
    entries = list(spec)
    for dim, entry in enumerate(spec):
        parts = math.prod(mesh.shape[axis] for axis in _axes(entry))
        if shape[dim] % parts == 0:
            continue
        if on_indivisible == "error":
            raise ConfigError(
                f"dimension {dim} of leaf {name!r} (shape {tuple(shape)}) has {shape[dim]} "
                f"elements, which mesh axis {'*'.join(_axes(entry))!r} of size {parts} does not "
                "divide; choose another mesh or rule, or on_indivisible='replicate'"
            )
        entries[dim] = None
    return PartitionSpec(*entries)
