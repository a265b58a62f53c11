from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.fingerprint import fingerprint

TREE = {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(2, np.int32)}


def test_known_value():
    # Pinned: bases on users' disks are found by it.
    assert fingerprint({"a": np.arange(3, dtype=np.float32)}) == (
        "sha256:f1637666a28d7e96a837b7862da51ec311e7f253f9e166f7243bbe6e90dccec9"
    )


def test_independent_of_order_container_and_device():
    same = [
        {"b": TREE["b"], "a": TREE["a"]},
        {"a/w": TREE["a"]["w"], "b": TREE["b"]},
        jax.tree.map(jnp.asarray, TREE),
        jax.device_put(TREE, jax.devices()[3]),
        {"a": {"w": np.asfortranarray(TREE["a"]["w"])}, "b": TREE["b"].astype(">i4")},
    ]
    assert {fingerprint(tree) for tree in same} == {fingerprint(TREE)}


def test_sharded_leaves():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    leaf = np.arange(16.0, dtype=np.float32)
    assert fingerprint({"w": jax.device_put(leaf, sharding)}) == fingerprint({"w": leaf})


@pytest.mark.parametrize(
    "other",
    [
        {"a": {"w": TREE["a"]["w"]}, "c": TREE["b"]},
        {"a": {"w": TREE["a"]["w"].reshape(3, 2)}, "b": TREE["b"]},
        {"a": {"w": TREE["a"]["w"]}, "b": TREE["b"].view(np.uint32)},
        {"a": {"w": TREE["a"]["w"]}},
        {},
    ],
)
def test_another_name_shape_dtype_or_leaf_is_another_tree(other):
    assert fingerprint(other) != fingerprint(TREE)


@given(st.integers(0, 8 * TREE["a"]["w"].nbytes - 1))
def test_any_flipped_bit_changes_it(bit):
    raw = bytearray(TREE["a"]["w"].tobytes())
    raw[bit // 8] ^= 1 << bit % 8
    flipped = np.frombuffer(bytes(raw), np.float32).reshape(2, 3)
    assert fingerprint({"a": {"w": flipped}, "b": TREE["b"]}) != fingerprint(TREE)


def test_empty_scalar_and_bfloat16_leaves():
    trees = [
        {"a": np.zeros((0, 3))},
        {"a": np.float32(1)},
        {"a": np.ones(1, np.float32)},
        {"a": jnp.ones(1, jnp.bfloat16)},
        {"a": jnp.ones(1, jnp.float16)},
    ]
    assert len({fingerprint(tree) for tree in trees}) == len(trees)


def test_objects_have_none():
    with pytest.raises(CheckpointError, match="leaf 'a/b' is a object"):
        fingerprint({"a": {"b": object()}})
