from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.core import neighbours
from sinewich_jax.errors import ConfigError

LIBRARIES = [pytest.param(lambda f: f, id="numpy"), pytest.param(jax.jit, id="jax")]


def plainly(features: np.ndarray, points: np.ndarray) -> np.ndarray:
    return ((features[:, None].astype(np.float64) - points[None]) ** 2).sum(-1)


@pytest.mark.parametrize("wrap", LIBRARIES)
def test_distances_are_those_of_differences(wrap):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((7, 20)).astype(np.float32)
    points = rng.standard_normal((5, 20)).astype(np.float32)
    found = wrap(neighbours.squared_distances)(features, points)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plainly(features, points), rtol=1e-5)


@pytest.mark.parametrize("wrap", LIBRARIES)
def test_far_from_the_origin_distances_do_not_cancel(wrap):
    rng = np.random.default_rng(1)
    features = (1e4 + rng.integers(-8, 8, (6, 16))).astype(np.float32)
    points = (1e4 + rng.integers(-8, 8, (9, 16))).astype(np.float32)
    found = wrap(neighbours.squared_distances)(features, points)
    np.testing.assert_allclose(found, plainly(features, points), rtol=1e-4, atol=1e-2)
    index = np.zeros((6, 1), int)
    exact = wrap(neighbours.squared_distances_to)(features, points, index)
    np.testing.assert_array_equal(exact[:, 0], plainly(features, points)[:, 0])


@pytest.mark.parametrize("wrap", LIBRARIES)
def test_a_feature_that_is_not_finite_is_infinitely_far_and_harms_no_other(wrap):
    features = np.float32([[0, 0], [np.nan, 0], [np.inf, 1], [3e38, -3e38], [1, 1]])
    points = np.float32([[0, 0], [0, 2]])
    found = np.asarray(wrap(neighbours.squared_distances)(features, points))
    assert np.isinf(found[1:4]).all()
    np.testing.assert_allclose(found[[0, 4]], [[0, 4], [2, 2]], atol=1e-6)


@settings(max_examples=60)
@given(st.data())
def test_the_nearest_are_those_of_a_stable_sort(data):
    rows, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    k = data.draw(st.integers(1, count))
    levels = st.sampled_from([0.0, 0.5, 1.0, 2.0, np.inf])  # few, so that most are ties
    flat = data.draw(st.lists(levels, min_size=rows * count, max_size=rows * count))
    distances = np.float32(flat).reshape(rows, count)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :k]
    found = neighbours.nearest(distances, k)
    np.testing.assert_array_equal(found.index, expected)
    np.testing.assert_array_equal(found.distances, np.take_along_axis(distances, expected, axis=1))


def test_numpy_and_jax_find_the_same_in_the_same_order():
    rng = np.random.default_rng(2)
    distances = rng.integers(0, 5, (20, 60)).astype(np.float32)
    by_numpy = neighbours.nearest(distances, 9)
    by_jax = jax.jit(lambda d: neighbours.nearest(d, 9))(distances)
    np.testing.assert_array_equal(by_numpy.index, by_jax.index)
    np.testing.assert_array_equal(by_numpy.distances, by_jax.distances)


@pytest.mark.parametrize("k", [0, 4])
def test_another_number_of_neighbours_is_refused(k):
    with pytest.raises(ConfigError, match=f"k is {k} for 3 points"):
        neighbours.nearest(np.zeros((2, 3), np.float32), k)


@pytest.mark.parametrize("wrap", LIBRARIES)
def test_unit_rows(wrap):
    rows = np.float32([[3, 4], [0, 0], [1e-30, 0], [1e36, 0], [-2e-38, 2e-38]])
    expected = [[0.6, 0.8], [0, 0], [1, 0], [1, 0], [-(0.5**0.5), 0.5**0.5]]
    np.testing.assert_allclose(wrap(neighbours.unit_rows)(rows), expected, rtol=1e-6)


@pytest.mark.parametrize("wrap", LIBRARIES)
def test_soft_neighbours_of_a_closed_form(wrap):
    squared = np.float32([[np.inf, 0.0, 2 * np.log(3)], [0.0, np.inf, 1e6]])
    found = wrap(neighbours.soft_neighbours)(squared, 2.0)
    np.testing.assert_allclose(found, [[0, 0.75, 0.25], [1, 0, 0]], rtol=1e-6)
