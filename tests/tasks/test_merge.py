"""A metric is a sum: any split into batches, any order and any sharding gives the same result."""

from __future__ import annotations

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sinewich_jax import tasks
from tests.tasks.examples import loss, random_batch, small, update

ALL = tasks.names(tasks.DenseTask)
IMAGES = 5


@functools.cache
def image_set(name):
    """Five images: one entirely invalid, one with an empty (or single-class) label."""
    task = small(name)
    logits, label, valid = random_batch(task, 5, batch=IMAGES)
    valid[2] = False
    if label.dtype == np.uint8:
        label[4] = 0
    return logits, label, valid


@functools.cache
def state_of(name, start, stop):
    return update(small(name).metric())(*(x[start:stop] for x in image_set(name)))


def assert_same(a, b):
    for key in a:
        a_value, b_value = np.asarray(a[key]), np.asarray(b[key])
        if a_value.dtype.kind == "i":
            np.testing.assert_array_equal(a_value, b_value, err_msg=key)
        else:
            np.testing.assert_allclose(a_value, b_value, rtol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", ALL)
@hypothesis.settings(max_examples=15)
@hypothesis.given(cuts=st.sets(st.integers(1, IMAGES - 1)), order=st.randoms(use_true_random=False))
def test_any_split_gives_the_same_state(name, cuts, order):
    metric = small(name).metric()
    edges = [0, *sorted(cuts), IMAGES]
    states = [state_of(name, a, b) for a, b in itertools.pairwise(edges)]
    order.shuffle(states)
    merged = functools.reduce(metric.merge, states, metric.empty())
    whole = metric.merge(metric.empty(), state_of(name, 0, IMAGES))
    assert_same(merged, whole)
    assert metric.compute(merged) == pytest.approx(metric.compute(whole), rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_merge_is_associative_commutative_and_has_a_neutral_element(name):
    metric = small(name).metric()
    a, b, c = (state_of(name, i, j) for i, j in ((0, 2), (2, 3), (3, 5)))
    assert_same(metric.merge(metric.merge(a, b), c), metric.merge(a, metric.merge(b, c)))
    assert_same(metric.merge(a, b), metric.merge(b, a))
    assert_same(metric.merge(a, metric.empty()), a)
    merged = metric.merge(a, b)
    assert {x.dtype for x in merged.values()} <= {np.dtype(np.int64), np.dtype(np.float64)}
    assert merged.keys() == metric.empty().keys()
    assert all(merged[k].shape == metric.empty()[k].shape for k in merged)


@pytest.mark.parametrize("name", ALL)
def test_padding_with_invalid_examples_changes_nothing(name):
    metric = small(name).metric()
    padded = [np.concatenate([x[:1], x[:1], x[:1]]) for x in image_set(name)]
    padded[2][1:] = False
    assert_same(update(metric)(*padded), state_of(name, 0, 1))


@pytest.mark.parametrize("name", ALL)
def test_a_sharded_batch_gives_the_same_state(name):
    task = small(name)
    batch = random_batch(task, 6, batch=8)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    shared = [jax.device_put(x, sharding) for x in batch]
    assert_same(update(small(name).metric())(*shared), update(small(name).metric())(*batch))
    np.testing.assert_allclose(loss(task)(*shared), loss(task)(*batch), rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_long_sums_keep_their_digits(name):
    """A quarter of a million pixels in one float32 sum, against float64 over single images."""
    metric, task = small(name).metric(), small(name)
    batch = random_batch(task, 7, batch=4, height=256, width=256)
    whole = update(small(name).metric())(*batch)
    parts = [update(small(name).metric())(*(x[i : i + 1] for x in batch)) for i in range(4)]
    merged = functools.reduce(metric.merge, parts)
    assert_same(whole, merged)


@pytest.mark.parametrize("name", ALL)
def test_a_state_is_small_and_has_only_32_bit_numbers(name):
    state = state_of(name, 0, 1)
    assert {str(x.dtype) for x in state.values()} <= {"int32", "float32"}
    assert sum(x.size for x in state.values()) < 5000
