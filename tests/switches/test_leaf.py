"""The classes of a switch: what they say of themselves, and what JAX knows of them."""

from __future__ import annotations

import pickle
import subprocess
import sys

import jax
import numpy as np

from sinewich_jax.switches import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches import leaf as module

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


def test_switches_older_than_jax_go_into_jit():
    code = """
import numpy as np
from sinewich_jax import switches
switch = switches.make_switch({"w": np.arange(9, dtype=np.float32), "b": np.float32(2)})
import jax
base = jax.device_put({"w": np.ones(9, np.float32), "b": np.float32(1)})
on = jax.jit(switches.apply_switch, donate_argnums=0)(base, switch)
np.testing.assert_array_equal(on["b"], 3)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_unpickled_leaves_are_made_known_too(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "register_pytrees", lambda: calls.append(1))
    for one in (leaf(3), DenseLeaf(np.ones(3))):
        calls.clear()
        other = pickle.loads(pickle.dumps(one))
        assert calls and other.shape == one.shape
        for name, value in vars(one).items():
            np.testing.assert_array_equal(getattr(other, name), value)
