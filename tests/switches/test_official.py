"""Parity with the official code of T-Switch: masks, signs, knobs, and what is applied."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from sinewich_jax.switches.apply import apply_switch, merge_switches
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.make import METHODS, make_switch
from sinewich_jax.switches.planes import decode

FIXTURE = Path(__file__).parent / "fixtures" / "tswitch.npz"
ALPHAS = (0.3, 0.6, 0.9)
TASKS = 3


@functools.cache
def official():
    with np.load(FIXTURE) as file:
        arrays = {key: file[key] for key in file.files}
    assert json.loads(str(arrays["hp"]))["alphas"] == list(ALPHAS)
    return arrays


def tree(prefix):
    arrays = official()
    return {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + "/")}


def vector(task):
    base, expert = tree("in/base"), tree(f"in/expert{task}")
    return {path: expert[path] - base[path] for path in base}


def unpruned(delta, alpha):
    """Whether the count of a sign comes to nothing, where the official code prunes nothing."""
    counts = [int((delta > 0).sum()), int((delta < 0).sum())]
    return any(count and int(count * (1 - alpha)) == 0 for count in counts)


def assert_official(switch, task, alpha, held=lambda path: True):
    out = f"out/a{alpha}/expert{task}"
    masks, signs, knobs = (tree(f"{out}/{name}") for name in ("mask", "sign", "knob"))
    for path in filter(held, masks):
        ternary = masks[path].astype(int) * (2 * signs[path].astype(int) - 1)
        leaf = switch.leaves[path]
        np.testing.assert_array_equal(np.asarray(decode(leaf)), ternary.ravel(), path)
        np.testing.assert_allclose(leaf.knob, knobs[path], rtol=1e-6, err_msg=path)
    untouched = switch.leaves["zero"]
    assert float(untouched.knob) == 0 and not np.asarray(untouched.mask).any()
    assert isinstance(switch.leaves["logit_scale"], DenseLeaf)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("task", range(TASKS))
def test_masks_signs_and_knobs_are_the_official_ones(task, alpha):
    delta = vector(task)
    assert_official(make_switch(delta, alpha=alpha, compat=True), task, alpha)
    skipped = {path for path in delta if unpruned(delta[path], alpha)}
    assert 0 < len(skipped) < len(delta) - 2  # the fixture has leaves of both kinds
    assert_official(make_switch(delta, alpha=alpha), task, alpha, lambda path: path not in skipped)


SLOW = pytest.mark.slow
TRACED = jax.jit(make_switch, static_argnames=("alpha", "compat"))


FEW = ("blk.b", "logit_scale", "neg", "ten", "tie", "zero")  # each compiles for itself


@pytest.mark.parametrize(
    ("alpha", "few"),
    [(0.9, True), *(pytest.param(alpha, False, marks=SLOW) for alpha in ALPHAS)],
)
def test_they_are_the_official_ones_under_jit(alpha, few):
    for task in range(TASKS):
        delta = {path: leaf for path, leaf in vector(task).items() if path in FEW or not few}
        switch = TRACED(delta, alpha=alpha, compat=True)
        assert_official(switch, task, alpha, delta.__contains__)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_what_is_applied_is_the_official_tree_bit_for_bit(alpha):
    base = tree("in/base")
    for task in range(TASKS):
        switch = make_switch(vector(task), alpha=alpha, compat=True)
        knobs = tree(f"out/a{alpha}/expert{task}/knob")
        leaves = {
            path: dataclasses.replace(leaf, knob=knobs[path]) if path in knobs else leaf
            for path, leaf in switch.leaves.items()
        }
        applied = apply_switch(base, Switch(leaves))
        for path, expected in tree(f"out/a{alpha}/expert{task}/applied").items():
            np.testing.assert_array_equal(applied[path], expected, path)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_mixture_by_weights_is_the_official_one(alpha):
    switches = {
        f"expert{task}": make_switch(vector(task), alpha=alpha, compat=True)
        for task in range(TASKS)
    }
    routed = merge_switches(tree("in/base"), switches, official()["in/route_weights"])
    for path, expected in tree(f"out/a{alpha}/routed").items():
        np.testing.assert_allclose(routed[path], expected, rtol=0, atol=2e-7, err_msg=path)


def test_the_default_is_the_published_setting():
    delta = vector(0)
    named, plain = make_switch(delta, **METHODS["tswitch"]), make_switch(delta)
    for path, leaf in named.leaves.items():
        if isinstance(leaf, LeafSwitch):
            np.testing.assert_array_equal(leaf.mask, plain.leaves[path].mask)
            assert leaf.knob == plain.leaves[path].knob


def test_a_sign_whose_count_comes_to_nothing_is_dropped():
    delta = {"w": np.float32([1, -2, 3, -4, 5, -6, 7, -8, 9, -10])}
    leaf = make_switch(delta, alpha=0.9).leaves["w"]
    assert not leaf.mask.any() and leaf.knob == 0
    kept = make_switch(delta, alpha=0.9, compat=True).leaves["w"]
    assert np.bitwise_count(kept.mask).sum() == 10
