"""Parameter trees by path: every leaf has one name, ``"stage0/block1/kernel"``.

One walker serves all of it. It knows dicts, lists, tuples, NamedTuples and None by itself, and asks
JAX about anything else, but only where the caller has imported JAX already: a tree of NumPy arrays
never pays for that import.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sinewich_jax.errors import SinewichError

Tree = Any
"""Nested containers with leaves that are arrays (or anything with a shape and a dtype)."""


def flatten_paths(tree: Tree) -> dict[str, Any]:
    """The leaves of ``tree`` by their path.

    Dict keys, NamedTuple and dataclass fields and sequence positions are joined by ``"/"``, in
    JAX's leaf order (dict keys sorted). Empty containers and None hold no leaf and leave no trace;
    a tree that is one leaf has the path ``""``.

    Raises:
      SinewichError: when two leaves have the same path (a key that itself contains ``"/"``).

    Examples:
      >>> flatten_paths({"a": {"b": 1, "c": (2, 3)}})
      {'a/b': 1, 'a/c/0': 2, 'a/c/1': 3}
    """
    flat: dict[str, Any] = {}
    for path, leaf in _walk(tree, ""):
        _insert(flat, path, leaf)
    return flat


def unflatten_paths(flat: Mapping[str, Any]) -> Tree:
    """The nested dict whose paths are those of ``flat``: the inverse of :func:`flatten_paths`.

    Sequences and NamedTuples come back as dicts, because a path does not say which it was; to keep
    the structure of a tree use :func:`map_paths`.

    Raises:
      SinewichError: when one path is a leaf and also the beginning of another.
    """
    if set(flat) == {""}:
        return flat[""]
    nested: dict[str, Any] = {}
    made_here = {id(nested)}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = nested
        for depth, key in enumerate(parents):
            if key not in node:
                node[key] = {}
                made_here.add(id(node[key]))
            node = node[key]
            if id(node) not in made_here:
                prefix = "/".join(parents[: depth + 1])
                raise SinewichError(
                    f"the path {prefix!r} is both a leaf and a parent of {path!r}; rename one"
                )
        if last in node:
            raise SinewichError(f"the path {path!r} is both a leaf and a parent; rename one")
        node[last] = leaf
    return nested


def map_paths(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """``tree`` with ``function(path, leaf)`` in the place of every leaf, its containers kept."""
    return _rebuild(function, tree, "")


def split_tree(tree: Tree, rules: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Divides the leaves of ``tree`` by regular expressions on their paths.

    Args:
      tree: any tree of leaves.
      rules: ``(regex, label)`` pairs; a regex has to match the whole path and the first rule that
        does decides. Every leaf must be matched, so that a new parameter cannot fall through.

    Returns:
      A nested dict for every label of ``rules``, in their order, ``{}`` where nothing matched.
      :func:`merge_trees` puts them together again.

    Raises:
      SinewichError: when no rule matches a leaf.

    Examples:
      >>> split_tree({"body": {"w": 1}, "head": {"w": 2}}, [("head/.*", "train"), (".*", "frozen")])
      {'train': {'head': {'w': 2}}, 'frozen': {'body': {'w': 1}}}
    """
    compiled = [(re.compile(pattern), label) for pattern, label in rules]
    parts: dict[str, dict[str, Any]] = {label: {} for _, label in rules}
    for path, leaf in flatten_paths(tree).items():
        label = next((name for regex, name in compiled if regex.fullmatch(path)), None)
        if label is None:
            patterns = ", ".join(repr(pattern) for pattern, _ in rules)
            raise SinewichError(
                f"the leaf {path!r} is matched by none of the rules {patterns}; add a rule for it"
            )
        parts[label][path] = leaf
    return {label: unflatten_paths(flat) for label, flat in parts.items()}


def merge_trees(*trees: Tree) -> dict[str, Any]:
    """The union of trees with disjoint paths, as one nested dict.

    Raises:
      SinewichError: when a path is in more than one of them.
    """
    union: dict[str, Any] = {}
    for tree in trees:
        for path, leaf in flatten_paths(tree).items():
            _insert(union, path, leaf)
    return unflatten_paths(union)


def count(tree: Tree) -> int:
    """The number of array entries in ``tree``; shapes are enough (``jax.ShapeDtypeStruct``)."""
    return sum(math.prod(np.shape(leaf)) for leaf in flatten_paths(tree).values())


def tree_bytes(tree: Tree) -> int:
    """The number of bytes of the arrays of ``tree``; shapes and dtypes are enough."""
    return sum(_leaf_bytes(leaf) for leaf in flatten_paths(tree).values())


def _leaf_bytes(leaf: Any) -> int:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return math.prod(np.shape(leaf)) * dtype.itemsize


def _insert(flat: dict[str, Any], path: str, leaf: Any) -> None:
    if path in flat:
        raise SinewichError(f"the path {path!r} occurs twice; every leaf needs a path of its own")
    flat[path] = leaf


def _join(prefix: str, key: object) -> str:
    return f"{prefix}/{key}" if prefix else str(key)


def _walk(node: Tree, prefix: str) -> Iterator[tuple[str, Any]]:
    children = _children(node)
    if children is None:
        yield prefix, node
        return
    for key, child in children[0]:
        yield from _walk(child, _join(prefix, key))


def _rebuild(function: Callable[[str, Any], Any], node: Tree, prefix: str) -> Tree:
    children = _children(node)
    if children is None:
        return function(prefix, node)
    keyed, assemble = children
    return assemble([_rebuild(function, child, _join(prefix, key)) for key, child in keyed])


def _children(node: Tree) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]] | None:
    """The named children of a container and the way to put new ones in; None for a leaf.

    Exact types only: a subclass of tuple (a PartitionSpec of an older JAX) may well be a leaf.
    """
    if node is None:
        return [], lambda _: None
    kind = type(node)
    if kind is dict:
        keys = sorted(node)
        return [(key, node[key]) for key in keys], lambda new: dict(zip(keys, new, strict=True))
    if kind in (list, tuple):
        return list(enumerate(node)), kind
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return list(zip(node._fields, node, strict=True)), lambda new: kind(*new)
    registered = _jax_children(node)
    if registered is None and isinstance(node, Mapping):
        return _children(dict(node))
    return registered


def _jax_children(node: Tree) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]] | None:
    jax = sys.modules.get("jax")
    if jax is None or jax.tree_util.all_leaves([node]):
        return None
    keyed, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), child) for path, child in keyed
    ]
    return named, treedef.unflatten
