"""Boundaries and thinning, against OpenCV and scikit-image, and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from sinewich_jax.core.thinning import thin
from sinewich_jax.data.archives.edges import boundaries, edges

GOLDEN = np.load(Path(__file__).parent / "fixtures/edges.npz")
EIGHT = np.ones((3, 3), int)


@pytest.mark.parametrize("index", range(3))
def test_as_the_published_tools_make_them(index):
    classes = GOLDEN["maps"][index]
    np.testing.assert_array_equal(boundaries(classes), GOLDEN["boundaries"][index])
    np.testing.assert_array_equal(edges(classes), GOLDEN["edges"][index])


@pytest.mark.parametrize("index", range(5))
def test_thinning_of_noise(index):
    np.testing.assert_array_equal(thin(GOLDEN["noise"][index]), GOLDEN["noise_thin"][index])


def test_both_sides_of_a_change_are_marked_and_one_is_kept():
    classes = np.zeros((5, 8), np.uint8)
    classes[:, 4:] = 200
    assert np.argwhere(boundaries(classes)).tolist() == [[r, c] for r in range(5) for c in (3, 4)]
    thinned = edges(classes)
    assert thinned.dtype == np.uint8
    assert thinned.sum(axis=1).tolist() == [0, 1, 1, 1, 1]  # A corner goes, as everywhere.


def test_class_numbers_do_not_wrap():
    classes = np.array([[255, 0, 255, 0]] * 4, np.uint8)
    assert boundaries(classes).all()


def test_one_row_and_one_pixel():
    assert not boundaries(np.ones((1, 1), int)).any()
    assert boundaries(np.array([[0, 0, 1, 1]])).tolist() == [[False, True, True, False]]


@settings(max_examples=60)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_thinning_keeps_the_pieces(mask):
    before = mask.copy()
    thinned = thin(mask)
    np.testing.assert_array_equal(mask, before)
    assert not (thinned & ~mask).any()
    np.testing.assert_array_equal(thin(thinned), thinned)
    assert ndimage.label(thinned, EIGHT)[1] == ndimage.label(mask, EIGHT)[1]
