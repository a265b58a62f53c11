"""The classes of a switch: what they say of themselves, and what JAX knows of them."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np

from sinewich_jax.switches import DenseLeaf, LeafSwitch, Switch

ZEROS = np.zeros(2, np.uint8)


def leaf(levels: int = 0) -> LeafSwitch:
    return LeafSwitch(ZEROS, ZEROS, np.float32(1), np.zeros((levels, 2), np.uint8), (5, 2))


def test_a_leaf_knows_its_size_and_bits():
    assert (leaf().size, leaf().bits, leaf(3).bits) == (10, 1, 4)
    assert DenseLeaf(np.zeros((2, 3))).shape == (2, 3)


def test_a_switch_is_a_tree_of_arrays_whose_shapes_stay():
    switch = Switch({"a": leaf(), "b": DenseLeaf(np.ones(3))})
    doubled = jax.tree.map(lambda x: x + x, switch)
    assert doubled.leaves["a"].shape == (5, 2) and float(doubled.leaves["a"].knob) == 2
    np.testing.assert_array_equal(doubled.leaves["b"].delta, 2 * np.ones(3))
    assert jax.jit(lambda s: s)(switch).leaves["a"].shape == (5, 2)


def test_leaves_may_be_older_than_the_import_of_jax():
    code = """
import sys
import numpy as np
from sinewich_jax.switches import apply_switch, make_switch
base = {"w": np.ones(9, np.float32)}
switch = make_switch({"w": np.arange(9, dtype=np.float32)})
assert "jax" not in sys.modules
import jax
on = apply_switch(jax.device_put(base), switch)
np.testing.assert_array_equal(on["w"], apply_switch(base, switch)["w"])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
