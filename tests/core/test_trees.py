"""Paths, splits and sizes of trees."""

from __future__ import annotations

import subprocess
import sys
from types import MappingProxyType
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from sinewich_jax.core import trees
from sinewich_jax.errors import SinewichError


class Moments(NamedTuple):
    count: int
    mean: dict


@flax.struct.dataclass
class State:
    step: int
    params: dict


KEYS = st.text("abcxyz_0", min_size=1, max_size=3)
NESTED = st.recursive(
    st.integers(), lambda children: st.dictionaries(KEYS, children, min_size=1, max_size=4)
)


@given(NESTED)
def test_flatten_and_unflatten_are_inverse(tree):
    assert trees.unflatten_paths(trees.flatten_paths(tree)) == tree


@given(NESTED)
def test_paths_are_those_of_jax_in_its_order(tree):
    expected = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    assert list(trees.flatten_paths(tree).items()) == expected


@given(NESTED)
def test_mapping_the_paths_keeps_the_tree(tree):
    flat = trees.flatten_paths(tree)
    assert trees.map_paths(lambda path, leaf: (path, leaf), tree) == jax.tree.map(
        lambda leaf: leaf,
        trees.unflatten_paths({path: (path, leaf) for path, leaf in flat.items()}),
    )


def test_every_kind_of_container_has_paths_and_survives_mapping():
    tree = {
        "optimizer": (Moments(1, {"w": 2}), [3, None, {}]),
        "state": State(4, freeze({"b": {"c": 5}})),
        "spec": PartitionSpec("data"),
        "shape": jax.ShapeDtypeStruct((2, 3), jnp.float32),
    }
    flat = trees.flatten_paths(tree)
    assert list(flat) == [
        "optimizer/0/count",
        "optimizer/0/mean/w",
        "optimizer/1/0",
        "shape",
        "spec",
        "state/step",
        "state/params/b/c",
    ]
    mapped = trees.map_paths(lambda path, _: path, tree)
    assert jax.tree.structure(mapped) == jax.tree.structure(tree)
    assert jax.tree.leaves(mapped) == list(flat)


def test_a_mapping_unknown_to_jax_is_read_as_a_dict():
    tree = MappingProxyType({"b": 1, "a": {"c": 2}})
    assert trees.flatten_paths(tree) == {"a/c": 2, "b": 1}
    assert trees.map_paths(lambda _, leaf: -leaf, tree) == {"a": {"c": -2}, "b": -1}


def test_a_single_leaf_has_the_empty_path():
    assert trees.flatten_paths(3.0) == {"": 3.0}
    assert trees.unflatten_paths({"": 3.0}) == 3.0


def test_the_first_rule_decides_and_every_label_is_there():
    params = {"stage0": {"lora_a": 1, "kernel": 2}, "head": {"kernel": 3}}
    rules = [(".*lora.*", "train"), ("head/.*", "train"), ("never", "unused"), (".*", "frozen")]
    parts = trees.split_tree(params, rules)
    assert parts == {
        "train": {"stage0": {"lora_a": 1}, "head": {"kernel": 3}},
        "unused": {},
        "frozen": {"stage0": {"kernel": 2}},
    }
    assert trees.merge_trees(*parts.values()) == params


def test_rules_match_whole_paths_and_must_cover_every_leaf():
    with pytest.raises(SinewichError, match="'head/kernel' is matched by none of the rules 'head'"):
        trees.split_tree({"head": {"kernel": 3}}, [("head", "train")])


@given(NESTED.filter(lambda tree: isinstance(tree, dict)), st.sampled_from("abcxyz_0"))
def test_split_and_merge_lose_nothing(tree, letter):
    parts = trees.split_tree(tree, [(f".*{letter}.*", "with"), (".*", "without")])
    assert trees.merge_trees(parts["with"], parts["without"]) == tree
    assert trees.count(parts["with"]) + trees.count(parts["without"]) == trees.count(tree)


@pytest.mark.parametrize(
    "call",
    [
        lambda: trees.flatten_paths({"a": {"b": 1}, "a/b": 2}),
        lambda: trees.merge_trees({"a": {"b": 1}}, {"a": {"b": 2}}),
        lambda: trees.unflatten_paths({"a/b": 1, "a/b/c": 2}),
        lambda: trees.unflatten_paths({"a/b/c": 2, "a/b": 1}),
        lambda: trees.merge_trees({"a": {"b": {"leaf": 1}}}, {"a": {"b": 2}}),
    ],
)
def test_paths_that_collide_are_named(call):
    with pytest.raises(SinewichError, match="'a/b'"):
        call()


def test_sizes_need_only_shapes():
    tree = {
        "w": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16),
        "b": np.zeros(5, np.float64),
        "n": 7,
        "key": jax.random.key(0),
    }
    assert trees.count(tree) == 12 + 5 + 1 + 1
    assert trees.tree_bytes({"w": tree["w"], "b": tree["b"]}) == 24 + 40
    assert trees.tree_bytes({"key": tree["key"]}) == 8
    assert trees.count({}) == trees.tree_bytes({}) == 0


def test_trees_of_numpy_arrays_do_not_import_jax():
    program = (
        "import sys; from sinewich_jax.core import trees\n"
        "tree = {'a': [1, {'b': 2}]}\n"
        "assert trees.map_paths(lambda p, x: p, tree) == {'a': ['a/0', {'b': 'a/1/b'}]}\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
