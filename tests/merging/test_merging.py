"""Merging: the algebra of its rules, the trees it takes, and the sentences it refuses with."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinewich_jax import merging
from sinewich_jax.errors import ConfigError, SinewichError

VALUES = st.floats(-1e3, 1e3, width=32)
LEAF = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4), elements=VALUES)


def family(experts: int = 3, seed: int = 0) -> tuple[dict, dict[str, dict]]:
    """A base with a nested, a bias and a counter leaf, and experts around it."""
    rng = np.random.default_rng(seed)

    def member() -> dict:
        return {
            "block": {"kernel": rng.standard_normal((4, 3)).astype(np.float32)},
            "bias": rng.standard_normal(5).astype(np.float32),
            "steps": np.int32(7),
        }

    return member(), {name: member() for name in "abcdefgh"[:experts]}


# --- algebra ------------------------------------------------------------------------------------


def test_average_and_task_arithmetic_are_their_formulas():
    base, experts = family()
    average = merging.merge("average", base, experts)
    arithmetic = merging.merge("task_arithmetic", base, experts, scale=0.4)
    kernels = [expert["block"]["kernel"] for expert in experts.values()]
    origin = base["block"]["kernel"]
    np.testing.assert_allclose(average["block"]["kernel"], np.mean(kernels, axis=0), atol=1e-6)
    expected = origin + 0.4 * (sum(kernels) - 3 * origin)
    np.testing.assert_allclose(arithmetic["block"]["kernel"], expected, atol=1e-6)
    assert average["steps"] == arithmetic["steps"] == 7


def test_the_average_is_task_arithmetic_with_one_over_t():
    base, experts = family(experts=4)
    average = merging.merge("average", base, experts)
    arithmetic = merging.merge("task_arithmetic", base, experts, scale=1 / 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), average, arithmetic)


@settings(max_examples=20)
@given(leaf=LEAF, count=st.integers(1, 7))
def test_identical_experts_average_to_themselves_bit_for_bit(leaf, count):
    experts = {str(i): {"w": leaf} for i in range(count)}
    merged = merging.merge("average", {"w": np.zeros_like(leaf)}, experts)
    np.testing.assert_array_equal(merged["w"], leaf)


@settings(max_examples=30)
@given(leaf=LEAF, data=st.data())
def test_a_task_vector_leads_from_the_base_to_the_expert_and_back(leaf, data):
    base = {"w": data.draw(hnp.arrays(np.float32, leaf.shape, elements=VALUES))}
    expert = {"w": leaf}
    vector = merging.task_vector(expert, base)
    there = merging.apply_task_vector(base, vector)
    back = merging.apply_task_vector(there, vector, scale=-1.0)
    np.testing.assert_allclose(there["w"], leaf, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(back["w"], base["w"], rtol=1e-6, atol=1e-3)


def test_one_expert_is_a_scaled_step_along_its_task_vector():
    base, experts = family(experts=1)
    merged = merging.merge("task_arithmetic", base, experts, scale=0.5)
    step = merging.apply_task_vector(base, merging.task_vector(experts["a"], base), scale=0.5)
    jax.tree.map(np.testing.assert_array_equal, merged, step)


# --- trees and arrays ---------------------------------------------------------------------------


class Pair(NamedTuple):
    first: object
    second: list


def test_the_containers_of_the_base_come_back():
    tree = Pair(np.ones(2, np.float32), [np.zeros(3, np.float32), None])
    merged = merging.merge("average", tree, {"a": tree})
    assert jax.tree.structure(merged) == jax.tree.structure(tree)
    assert isinstance(merged, Pair)


def test_numpy_stays_numpy_and_jax_stays_jax_with_the_same_numbers():
    base, experts = family()
    on_host = merging.merge("task_arithmetic", base, experts)
    on_device = merging.merge(
        "task_arithmetic", jax.tree.map(jnp.asarray, base), jax.tree.map(jnp.asarray, experts)
    )
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(on_host))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(on_device))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), on_host, on_device)


def test_it_can_be_traced():
    base, experts = jax.tree.map(jnp.asarray, family())
    traced = jax.jit(lambda base, experts: merging.merge("average", base, experts))(base, experts)
    plain = merging.merge("average", base, experts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), traced, plain)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_narrow_leaves_are_merged_in_float32_and_come_back_narrow(dtype):
    """Four small steps that would each vanish when rounded to bfloat16 one after the other."""
    base = {"w": np.ones(3, dtype)}
    step = np.array([0.0, 2.0**-7, 2.0**-6]).astype(np.float32)
    experts = {name: {"w": (1 + step).astype(dtype)} for name in "abcd"}
    merged = merging.merge("task_arithmetic", base, experts, scale=0.25)
    assert merged["w"].dtype == dtype
    np.testing.assert_array_equal(merged["w"].astype(np.float32), 1 + step)
    vector = merging.task_vector(experts["a"], base)["w"]
    assert vector.dtype == (np.float64 if dtype is np.float64 else np.float32)
    np.testing.assert_array_equal(vector, step)


def test_importing_and_merging_numpy_trees_needs_no_jax():
    program = (
        "import sys, numpy as np; from sinewich_jax import merging\n"
        "base, one = {'w': np.zeros(2)}, {'w': np.ones(2)}\n"
        "merged = merging.merge('average', base, {'a': one, 'b': base})\n"
        "assert merged['w'].tolist() == [0.5, 0.5], merged\n"
        "assert merging.task_vector(one, base)['w'].tolist() == [1, 1]\n"
        "assert not {'jax', 'flax', 'optax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- refusals -----------------------------------------------------------------------------------


def test_unknown_names_are_answered_with_the_nearest():
    base, experts = family()
    with pytest.raises(ConfigError, match=r"unknown merge rule 'averge' \(did you mean 'average'"):
        merging.merge("averge", base, experts)
    with pytest.raises(ConfigError, match=r"no option 'scael' \(did you mean 'scale'"):
        merging.merge("task_arithmetic", base, experts, scael=1.0)
    with pytest.raises(ConfigError, match=r"'average' has no option 'scale' \(known: weights\)"):
        merging.merge("average", base, experts, scale=1.0)


@pytest.mark.parametrize("experts", [{}, [{"w": np.ones(2)}], None])
def test_experts_need_names(experts):
    with pytest.raises(ConfigError, match="experts must be a mapping from names"):
        merging.merge("average", {"w": np.ones(2)}, experts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.pop("bias"), "the expert 'b' lacks 'bias'"),
        (lambda tree: tree["block"].update(head=np.ones(2)), "the expert 'b' has 'block/head'"),
        (
            lambda tree: tree["block"].update(kernel=np.ones((4, 2))),
            r"leaf 'block/kernel' has shape \(4, 2\) in the expert 'b' and \(4, 3\) in the base",
        ),
        (lambda tree: tree.update(steps=np.int32(8)), "'steps' holds int32 values that differ"),
        (lambda tree: tree.update(bias=np.ones(5, int)), "'bias' is int64 in the expert 'b'"),
        (lambda tree: tree.update(bias=np.array(list("abcde"))), "'bias' is <U1 in the expert 'b'"),
    ],
)
def test_trees_that_do_not_fit_are_named(change, message):
    base, experts = family()
    change(experts["b"])
    with pytest.raises(SinewichError, match=message):
        merging.merge("average", base, experts)


def test_task_vectors_check_their_trees_too():
    base, experts = family(experts=1)
    del experts["a"]["bias"]
    with pytest.raises(SinewichError, match="the trained tree lacks 'bias'"):
        merging.task_vector(experts["a"], base)
    with pytest.raises(SinewichError, match="the task vector lacks 'bias'"):
        merging.apply_task_vector(base, experts["a"])
