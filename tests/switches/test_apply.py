"""Switches on a base: packed is dense bit for bit, in both libraries, for one task and for many."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.core.ternary import pack_bits
from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import SinewichError
from sinewich_jax.switches.apply import (
    apply_switch,
    merge_switches,
    remove_switch,
    stack_switches,
    unpack,
)
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.make import make_switch

SHAPES = {"a/kernel": (24, 16), "a/bias": (21,), "scale": ()}


def tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    flat = {path: rng.laplace(size=shape).astype(dtype) for path, shape in SHAPES.items()}
    return {"a": {"kernel": flat["a/kernel"], "bias": flat["a/bias"]}, "scale": flat["scale"]}


def with_levels(seed, shape=(13, 6), bits=4, rows=False):
    """A leaf of several bits an entry, and what it says densely."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), shape)
    flat = np.abs(whole).ravel()
    planes = np.stack([pack_bits(flat >> i & 1) for i in range(bits - 1)])
    knob = rng.random(shape[-1:] if rows else ()).astype(np.float32)
    leaf = LeafSwitch(
        pack_bits(flat > 0), pack_bits(whole.ravel() > 0), np.asarray(knob), planes, shape
    )
    return leaf, knob * whole.astype(np.float32)


def assert_equal(found, expected):
    found, expected = flatten_paths(found), flatten_paths(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == np.asarray(leaf).dtype, path
        np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(leaf), path)


def dense(delta, **how):
    """Knob times ternary, written out."""
    switch = make_switch(delta, **how)

    def one(path, leaf):
        if isinstance(leaf, DenseLeaf):
            return leaf.delta
        bits = [
            np.unpackbits(p, count=leaf.size, bitorder="little") for p in (leaf.mask, leaf.sign)
        ]
        active, positive = (b.reshape(leaf.shape).astype(np.float32) for b in bits)
        return leaf.knob * active * (2 * positive - 1)

    return switch, {path: one(path, leaf) for path, leaf in switch.leaves.items()}


ROADS = {"host": apply_switch, "traced": jax.jit(apply_switch)}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("how", [{}, {"group": "row", "knob": "l1"}])
@pytest.mark.parametrize("weight", [1.0, 0.3, -1.0])
def test_packed_is_dense_bit_for_bit(road, how, weight):
    base = tree(0)
    switch, vector = dense(tree(1), **how)
    applied = flatten_paths(ROADS[road](base, switch, weight))
    for path, leaf in flatten_paths(base).items():
        knob = getattr(switch.leaves[path], "knob", None)
        change = vector[path] * np.float32(weight)
        if knob is not None:  # the weight meets the knob first
            change = np.float32(weight) * knob * np.sign(vector[path])
        np.testing.assert_array_equal(applied[path], leaf + change, path)


def test_unpacked_is_the_task_vector():
    switch, vector = dense(tree(1), group="row")
    for found in (unpack(switch), unpack(jax.tree.map(jnp.asarray, switch))):
        assert_equal(found, {"a": {"kernel": vector["a/kernel"], "bias": vector["a/bias"]},
                             "scale": vector["scale"]})  # fmt: skip
    mapped = jax.vmap(unpack)(stack_switches([switch, switch]))
    np.testing.assert_array_equal(mapped["a"]["kernel"][1], vector["a/kernel"])


def test_blocks_are_seamless():
    n = (1 << 17) + 1029  # a block and a piece that ends within a byte
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=n).astype(np.float32)}
    switch, vector = dense({"w": rng.laplace(size=n).astype(np.float32)})
    assert_equal(apply_switch(base, switch), {"w": base["w"] + vector["w"]})
    np.testing.assert_array_equal(unpack(switch)["w"], vector["w"])
    rows = {"w": rng.laplace(size=(30, 4999)).astype(np.float32)}
    switch, vector = dense(rows, group="row")
    np.testing.assert_array_equal(unpack(switch)["w"], vector["w"])


@pytest.mark.parametrize("rows", [False, True])
def test_levels_are_whole_numbers_of_knobs(rows):
    leaf, vector = with_levels(0, rows=rows)
    base = {"w": np.random.default_rng(1).normal(size=leaf.shape).astype(np.float32)}
    switch = Switch({"w": leaf})
    np.testing.assert_array_equal(unpack(switch)["w"], vector)
    assert_equal(apply_switch(base, switch), {"w": base["w"] + vector})
    traced = jax.jit(apply_switch)(base, switch)["w"]
    np.testing.assert_allclose(traced, base["w"] + vector, rtol=3e-7, atol=3e-7)
    both = merge_switches(base, {"x": switch, "y": switch}, [0.5, 0.25])["w"]
    np.testing.assert_allclose(both, base["w"] + 0.75 * vector, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("road", ROADS)
def test_a_bfloat16_base_is_rounded_once(road):
    base, (switch, vector) = tree(0, jnp.bfloat16), dense(tree(1))
    applied = flatten_paths(ROADS[road](base, switch))
    for path, leaf in flatten_paths(base).items():
        expected = (leaf.astype(np.float32) + vector[path]).astype(jnp.bfloat16)
        assert applied[path].dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(applied[path]), expected, path)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.float64])
def test_removing_gives_the_base_back_to_a_unit_in_the_last_place(dtype):
    base, switch = tree(0, dtype), make_switch(tree(1))
    back = flatten_paths(remove_switch(apply_switch(base, switch), switch))
    for path, leaf in flatten_paths(base).items():
        change = switch.leaves[path]
        step = np.abs(change.delta if isinstance(change, DenseLeaf) else change.knob)
        assert back[path].dtype == leaf.dtype
        largest = np.maximum(np.abs(leaf), step.astype(dtype)).astype(np.float64)
        bound = 2 * largest * float(jnp.finfo(dtype).eps)
        error = np.abs(back[path].astype(np.float64) - leaf.astype(np.float64))
        assert (error <= bound).all(), path


class Layer(NamedTuple):
    kernel: np.ndarray
    rest: list


def test_containers_and_what_is_not_named_stay():
    base = {"x": Layer(np.ones((4, 2), np.float32), [np.arange(3), np.float32(2)]), "y": (None,)}
    switch = make_switch({"x": {"kernel": np.ones((4, 2), np.float32)}}, alpha=0)
    applied = apply_switch(base, switch)
    assert type(applied["x"]) is Layer and applied["y"] == (None,)
    assert applied["x"].rest[0] is base["x"].rest[0]
    np.testing.assert_array_equal(applied["x"].kernel, 2)
    np.testing.assert_array_equal(base["x"].kernel, 1)
    vector = unpack(switch, like=base)
    assert type(vector["x"]) is Layer
    np.testing.assert_array_equal(vector["x"].rest[0], np.zeros(3))


def test_in_place_writes_into_the_base():
    base, (switch, _) = tree(0), dense(tree(1))
    expected, kernel = apply_switch(base, switch), base["a"]["kernel"]
    found = apply_switch(base, switch, in_place=True)
    assert found["a"]["kernel"] is kernel
    assert_equal(found, expected)
    remove_switch(found, switch, in_place=True)
    np.testing.assert_allclose(kernel, tree(0)["a"]["kernel"], atol=1e-6)


# --- many tasks ---------------------------------------------------------------------------------


def tasks(count=3):
    return {f"task{t}": make_switch(tree(10 + t), alpha=0.5 + 0.1 * t) for t in range(count)}


MERGES = {
    "mapping": lambda base, several, w: merge_switches(base, several, w),
    "stack": lambda base, several, w: merge_switches(base, stack_switches([*several.values()]), w),
}
MERGES |= {f"traced {name}": jax.jit(merge) for name, merge in list(MERGES.items())}


@pytest.mark.parametrize("road", MERGES)
def test_a_merge_is_the_sum_and_one_weight_is_one_task(road):
    base, several = tree(0), tasks()
    names = list(several)
    vectors = [flatten_paths(unpack(switch)) for switch in several.values()]
    weights = np.float32([0.5, -0.25, 1.5])
    merged = flatten_paths(MERGES[road](base, several, weights))
    for path, leaf in flatten_paths(base).items():
        total = sum(
            float(w) * v[path].astype(np.float64) for w, v in zip(weights, vectors, strict=True)
        )
        np.testing.assert_allclose(merged[path], leaf + total, rtol=0, atol=2e-6)
    for place, name in enumerate(names):
        one = MERGES[road](base, several, np.eye(3, dtype=np.float32)[place])
        assert_equal(one, apply_switch(base, several[name]))


@settings(max_examples=30)
@given(st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6))
def test_merging_is_linear_in_the_weights(numbers):
    several = tasks()
    zero = jax.tree.map(np.zeros_like, tree(0))
    first, second = np.float32(numbers[:3]), np.float32(numbers[3:])
    one, two, both = (
        flatten_paths(merge_switches(zero, several, w)) for w in (first, second, first + second)
    )
    for path in both:
        if path != "scale":  # dense, and so without a knob
            knobs = sum(float(switch.leaves[path].knob) for switch in several.values())
            np.testing.assert_allclose(one[path] + two[path], both[path], rtol=0, atol=2e-6 * knobs)


def test_a_batch_of_routes_is_each_route():
    base, stack = tree(0), stack_switches([*tasks().values()])
    routes = np.random.default_rng(0).dirichlet(np.ones(3), 4).astype(np.float32)
    batch = jax.jit(jax.vmap(merge_switches, in_axes=(None, None, 0)))(base, stack, routes)
    for i, route in enumerate(routes):
        one = merge_switches(base, stack, route)
        np.testing.assert_allclose(batch["a"]["kernel"][i], one["a"]["kernel"], atol=1e-6, rtol=0)


def test_weights_have_names_and_tasks_have_leaves_of_their_own():
    base, several = tree(0), tasks()
    by_name = {"task2": 0.25, "task0": 0.5, "task1": 0.0}
    assert_equal(
        merge_switches(base, several, by_name), merge_switches(base, several, [0.5, 0.0, 0.25])
    )
    mixed = {
        "kernel": Switch({"a/kernel": several["task0"].leaves["a/kernel"]}),
        "bias": Switch({"a/bias": DenseLeaf(tree(5)["a"]["bias"])}),
        "rows": make_switch(tree(11), group="row"),
    }
    found = merge_switches(base, mixed, [1, 1, 0.5])
    traced = jax.jit(merge_switches)(base, mixed, [1, 1, 0.5])
    step = apply_switch(base, mixed["kernel"])
    step = apply_switch(apply_switch(step, mixed["bias"]), mixed["rows"], 0.5)
    for other in (found, traced):
        for path, leaf in flatten_paths(step).items():
            np.testing.assert_allclose(flatten_paths(other)[path], leaf, atol=2e-6, rtol=0)
    assert merge_switches(base, {}, {})["scale"] is base["scale"]


def test_no_dense_task_vector_is_made():
    """Beside its arguments and result, a merge of eight tasks needs less memory than one leaf."""
    plane = jax.ShapeDtypeStruct((8, 8192), jnp.uint8)
    knob = jax.ShapeDtypeStruct((8,), jnp.float32)
    levels = jax.ShapeDtypeStruct((8, 0, 8192), jnp.uint8)
    stack = Switch({"w": LeafSwitch(plane, plane, knob, levels, (256, 256))})
    base = {"w": jax.ShapeDtypeStruct((256, 256), jnp.float32)}
    compiled = jax.jit(merge_switches).lower(base, stack, knob).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 256 * 4


# --- refusals -----------------------------------------------------------------------------------

SWITCH = make_switch({"w": np.float32([[1, -2], [3, 4]])})


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"v": np.zeros((2, 2))}, r"changes the leaf 'w', which the base has not \(known: v\)"),
        ({"w": np.zeros((2, 3))}, r"'w' of shape \(2, 2\), but in the base its shape is \(2, 3\)"),
        ({"w": np.zeros((2, 2), int)}, "'w' by real numbers, but in the base it holds int64"),
    ],
)
def test_switches_that_do_not_fit(base, message):
    for call in (apply_switch, remove_switch):
        with pytest.raises(SinewichError, match=f"the switch .*{message}"):
            call(base, SWITCH)
    with pytest.raises(SinewichError, match=f"the switch 'pets' .*{message}"):
        merge_switches(base, {"pets": SWITCH}, [1.0])
    with pytest.raises(SinewichError, match=f"the stacked switch .*{message}"):
        merge_switches(base, stack_switches([SWITCH]), [1.0])
    with pytest.raises(SinewichError, match="the switch changes the leaf 'w'"):
        jax.eval_shape(apply_switch, base, SWITCH)


def test_calls_that_cannot_be():
    base = {"w": np.zeros((2, 2), np.float32)}
    stack = stack_switches([SWITCH, SWITCH])
    with pytest.raises(SinewichError, match="merge stacked switches with merge_switches"):
        apply_switch(base, stack)
    with pytest.raises(SinewichError, match="merge stacked switches with merge_switches"):
        unpack(stack)
    with pytest.raises(SinewichError, match="no leading axis in common"):
        merge_switches(base, SWITCH, [1.0])
    with pytest.raises(SinewichError, match=r"weight has the shape \(2,\); expected one number"):
        apply_switch(base, SWITCH, np.ones(2))
    with pytest.raises(SinewichError, match=r"weights have the shape \(3,\); expected \(2,\)"):
        merge_switches(base, stack, [1, 2, 3])
    with pytest.raises(SinewichError, match=r"a weight for 'cras', .* \(did you mean 'cars'\?\)"):
        merge_switches(base, {"cars": SWITCH}, {"cras": 1.0})
    with pytest.raises(SinewichError, match="no weight for the switch 'pets'"):
        merge_switches(base, {"cars": SWITCH, "pets": SWITCH}, {"cars": 1.0})
    with pytest.raises(SinewichError, match="'w' is an array of JAX, which cannot be written in"):
        apply_switch({"w": jnp.zeros((2, 2))}, SWITCH, in_place=True)
    with pytest.raises(SinewichError, match="'w' cannot be written in place"):
        apply_switch({"w": np.zeros((2, 4), np.float32)[:, ::2]}, SWITCH, in_place=True)


def test_stacks_that_cannot_be():
    delta = {"w": np.float32([[1, -2], [3, 4]])}
    with pytest.raises(SinewichError, match="no switch to stack"):
        stack_switches([])
    with pytest.raises(SinewichError, match=r"0 of the stack has the leaf 'w' and the sw.* 1"):
        stack_switches([SWITCH, Switch({})])
    with pytest.raises(SinewichError, match=r"'w' is switched .* and 2 knobs in the switch 1 "):
        stack_switches([SWITCH, make_switch(delta, group="row")])
    with pytest.raises(SinewichError, match=r"'w' is dense of the shape .* in the switch 1 "):
        stack_switches([SWITCH, make_switch(delta, keep_dense="w")])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("2", "holds str; expected real numbers"),
        (None, "holds NoneType; expected real numbers"),
        (1j, "holds complex; expected real numbers"),
        (np.complex64(1), "holds complex64"),
        ([1.0, 10.0], r"has the shape \(2,\); expected one number"),
        ([[1.0], [1.0, 2.0]], r"has the shape \(2,\); expected one number"),
        (float("nan"), "is not finite in float32"),
        (jnp.float32(np.inf), "is not finite in float32"),
        pytest.param(10**400, "is not finite in float32", id="huge"),
        (1e39, "is not finite in float32"),
    ],
)
def test_weights_that_are_none(weight, message):
    base = {"w": np.zeros((2, 2), np.float32)}
    for call in (apply_switch, remove_switch):
        with pytest.raises(SinewichError, match=f"the weight {message}"):
            call(base, SWITCH, weight)
    for switches in ({"a": SWITCH}, stack_switches([SWITCH])):
        with pytest.raises(SinewichError, match=f"the weight of the switch '.' {message}"):
            merge_switches(base, switches, [weight])
    with pytest.raises(SinewichError, match=f"the weight of the switch 'a' {message}"):
        merge_switches(base, {"a": SWITCH}, {"a": weight})


def test_whole_numbers_are_weights():
    base = {"w": np.zeros((2, 2), np.float32)}
    expected = remove_switch(base, SWITCH)
    for one in (np.uint8(1), jnp.uint8(1), True, np.array(1)):
        assert_equal(remove_switch(base, SWITCH, one), expected)
    assert np.isfinite(apply_switch(base, SWITCH, 10**30)["w"]).all()
    for found in (np.uint8([1]), np.ones(1, bool), [np.float64(1)]):
        assert_equal(merge_switches(base, {"a": SWITCH}, found), apply_switch(base, SWITCH))
    with pytest.raises(SinewichError, match="the array of weights holds complex128"):
        merge_switches(base, {"a": SWITCH}, np.ones(1, complex))


def test_a_step_beyond_float32_is_refused():
    base, dense_leaf = {"w": np.zeros(3, np.float32)}, DenseLeaf(np.float32([1, -20, 0]))
    leaf = make_switch({"w": np.float32([20, 0, 0])}, alpha=0).leaves["w"]
    for change in (leaf, dense_leaf):
        with pytest.raises(
            SinewichError, match=r"weight 1e\+38 moves the leaf 'w' beyond the range"
        ):
            apply_switch(base, Switch({"w": change}), 1e38, in_place=True)
    fine, (levels, _) = {"w": np.zeros((13, 6), np.float32)}, with_levels(0)
    with pytest.raises(SinewichError, match="beyond the range of float32"):
        apply_switch(fine, Switch({"w": levels}), 3e38)


def test_dense_leaves_are_exact():
    base, delta = {"w": np.array([1.0, 2.0])}, {"w": np.array([1e-12, 1e300])}
    switch = make_switch(delta, keep_dense="w")
    assert_equal(apply_switch(base, switch), {"w": base["w"] + delta["w"]})
    assert_equal(unpack(switch), delta)
    small = {"w": np.float32([1, 2])}
    both = {
        "x": make_switch(small, alpha=0),
        "y": make_switch({"w": delta["w"][:1].repeat(2)}, keep_dense="w"),
    }
    knob = float(both["x"].leaves["w"].knob)
    for switches in (both, dict(reversed(both.items()))):
        found = merge_switches(base, switches, [1, 1])
        np.testing.assert_array_equal(found["w"], base["w"] + (knob + 1e-12))
    with jax.enable_x64(True):
        traced = jax.jit(apply_switch)(base, switch)
        assert_equal(traced, {"w": base["w"] + delta["w"]})


def test_nothing_is_written_where_one_leaf_cannot_be():
    base = {"a": np.zeros(3, np.float32), "b": np.zeros(6, np.float32)[::2]}
    switch = make_switch({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)})
    with pytest.raises(SinewichError, match="'b' cannot be written in place"):
        apply_switch(base, switch, in_place=True)
    assert not base["a"].any()


def test_what_is_no_switch():
    base = {"w": np.zeros((2, 2), np.float32)}
    for call in (lambda: apply_switch(base, base), lambda: unpack(base)):
        with pytest.raises(
            SinewichError, match="the switch is of the type dict; expected a Switch"
        ):
            call()
    with pytest.raises(SinewichError, match="are of the type list; expected a mapping"):
        merge_switches(base, [SWITCH, SWITCH], [1, 1])
    with pytest.raises(SinewichError, match="are a mapping, but a stack has no names"):
        stack_switches({"a": SWITCH})
    with pytest.raises(SinewichError, match="the switch 1 of the stack is of the type dict"):
        stack_switches([SWITCH, base])
    assert stack_switches(SWITCH for _ in range(2)).leaves["w"].mask.shape == (2, 1)
