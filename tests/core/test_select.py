"""Selection: exact counts, ties by place, and the same threshold by all three roads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinewich_jax.core import select
from sinewich_jax.errors import ConfigError

SCORES = hnp.arrays(
    np.float32,
    st.sampled_from([1, 7, 24]),  # few shapes, each compiled once
    elements=st.one_of(
        st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 2.0**100, width=32, allow_subnormal=False)
    ),
)

TRACED_MASK = jax.jit(select.top_mask)
TRACED_THRESHOLD = jax.jit(
    lambda parts, count: select.shared_threshold(lambda: parts, count, traced=True)
)


def brute(scores: np.ndarray, count: int) -> np.ndarray:
    """The definition: sort by size, then by place."""
    order = np.lexsort((np.arange(scores.size), -scores.ravel()))[:count]
    mask = np.zeros(scores.size, bool)
    mask[order] = True
    return (mask & (scores.ravel() > 0)).reshape(scores.shape)


@settings(max_examples=60)
@given(SCORES, st.data())
def test_masks_are_those_of_a_sort(scores, data):
    count = data.draw(st.integers(1, scores.size))
    expected = brute(scores, count)
    np.testing.assert_array_equal(select.top_mask(scores, count), expected)
    np.testing.assert_array_equal(TRACED_MASK(scores, count), expected)
    assert select.kth_largest(scores, count) == np.sort(scores)[-count]


@pytest.mark.parametrize("kind", ["plain", "sorted", "coarse", "mostly zero", "equal", "striped"])
def test_large_arrays_are_bracketed_by_a_sample(kind):
    scores = np.abs(np.random.default_rng(0).laplace(0, 1, 600_000)).astype(np.float32)
    if kind == "sorted":
        scores.sort()
    elif kind == "coarse":
        scores = scores.round(1)
    elif kind == "mostly zero":
        scores[scores < 2] = 0
    elif kind == "equal":
        scores[:] = 1
    elif kind == "striped":  # the sample sees nothing but zeros
        scores[:: scores.size // select._SAMPLE] = 0
    ranked = np.sort(scores)
    for count in (1, 2, 120_000, 599_999, 600_000):
        assert select.kth_largest(scores, count) == ranked[-count]
        np.testing.assert_array_equal(select.top_mask(scores, count), brute(scores, count))


@settings(max_examples=60)
@given(SCORES, st.data())
def test_the_threshold_of_parts_is_that_of_the_whole(scores, data):
    count = data.draw(st.integers(1, scores.size))
    cut = scores.size // 3
    parts = (scores[:cut], scores[cut:])
    expected = np.sort(scores)[-count]
    assert select.shared_threshold(lambda: iter(parts), count) == expected
    assert TRACED_THRESHOLD(parts, count) == expected


@settings(max_examples=30)
@given(SCORES, st.data())
def test_several_cuts_over_the_same_parts(scores, data):
    counts = [data.draw(st.integers(1, scores.size)) for _ in range(2)]
    columns = [scores, scores[::-1].copy()]
    pieces = [tuple(column[i::2] for column in columns) for i in range(2)]
    keep = [lambda size, count=count: min(size, count) for count in counts]
    cuts = select.shared_cuts(lambda: iter(pieces), keep)
    for cut, count in zip(cuts, counts, strict=True):
        assert cut.threshold == np.sort(scores)[-count]
        assert cut.ties == count - (scores > cut.threshold).sum() >= 1
    on_device = [tuple(map(jnp.asarray, piece)) for piece in pieces]
    for cut, other in zip(cuts, select.shared_cuts(lambda: iter(on_device), keep), strict=True):
        assert cut.threshold == other.threshold and cut.ties == other.ties


def test_it_keeps_exactly_as_many_as_asked_for_and_none_that_are_zero():
    scores = np.abs(np.random.default_rng(0).standard_normal((300, 70))).astype(np.float32)
    for count in (1, 17, 20_999, 21_000):
        assert select.top_mask(scores, count).sum() == count
    scores[:, 1:] = 0
    assert select.top_mask(scores, 5_000).sum() == 300
    assert not select.top_mask(np.zeros(9, np.float32), 4).any()


def test_it_works_under_jit_and_sharded():
    scores = np.abs(np.random.default_rng(1).standard_normal((64, 16))).astype(np.float32)
    mask = TRACED_MASK
    np.testing.assert_array_equal(mask(scores, 100), select.top_mask(scores, 100))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = mask(jax.device_put(scores, rows), 100)
    np.testing.assert_array_equal(sharded, select.top_mask(scores, 100))


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
def test_a_density_keeps_a_fraction(density):
    assert select.keep_count(1000, 0.2) == 200
    assert select.keep_count(3, 0.01) == 1 and select.keep_count(3, 1) == 3
    with pytest.raises(ConfigError, match=r"density is .*above 0 and at most 1"):
        select.keep_count(10, density)
