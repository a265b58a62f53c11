"""Small switches, made here bit by bit: what files have to bring back does not depend on makers."""

from __future__ import annotations

import numpy as np

from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch, plane_bytes

BASE = {
    "block": {
        "kernel": np.linspace(-1, 1, 40 * 50, dtype=np.float32).reshape(40, 50),
        "bias": np.zeros(50, np.float32),
        "frozen": np.ones((3, 33), np.float32),
    },
    "head": {"kernel": np.ones((5, 7), np.float32), "none": np.zeros((0, 4), np.float32)},
    "scale": np.float32(2),
}


def packed(bits):
    return np.packbits(np.asarray(bits, np.uint8), axis=-1, bitorder="little")


def leaf(rng, shape, density, bits=1, rows=False):
    n = int(np.prod(shape))
    mask = rng.random(n) < density
    sign = mask & (rng.random(n) < 0.5)
    levels = np.zeros((0, plane_bytes(n)), np.uint8)
    if bits > 1:
        size = rng.integers(1, 2 ** (bits - 1), n)
        levels = packed([mask & (size >> bit & 1 == 1) for bit in range(bits - 1)])
    knob = rng.random(shape[-1]) if rows else rng.random()
    return LeafSwitch(packed(mask), packed(sign), np.asarray(knob, np.float32), levels, shape)


def task(seed, density=0.4):
    """Each kind of leaf that there is: ternary, by row, of levels, unchanged, empty and dense."""
    rng = np.random.default_rng(seed)
    return Switch(
        {
            "block/bias": leaf(rng, (50,), density, bits=3),
            "block/frozen": leaf(rng, (3, 33), 0.0),
            "block/kernel": leaf(rng, (40, 50), density, rows=seed % 2 == 1),
            "head/kernel": leaf(rng, (5, 7), 1.0),
            "head/none": leaf(rng, (0, 4), 0.5, rows=True),
            "scale": DenseLeaf(np.float32(rng.random())),
        }
    )


def arrays(switch):
    """Everything in a switch by name."""
    names = {DenseLeaf: ("delta",), LeafSwitch: ("mask", "sign", "knob", "levels")}
    return {
        f"{path}/{name}": np.asarray(getattr(one, name))
        for path, one in switch.leaves.items()
        for name in names[type(one)]
    }


def assert_same(found, expected):
    """Bit for bit, dtypes, shapes and order included."""
    assert list(found.leaves) == list(expected.leaves)
    for path, one in expected.leaves.items():
        assert type(found.leaves[path]) is type(one)
        assert tuple(found.leaves[path].shape) == tuple(one.shape)
    ours, theirs = arrays(found), arrays(expected)
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape), name
        assert ours[name].tobytes() == array.tobytes(), name
