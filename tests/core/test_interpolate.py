"""Interpolation kernels: partition of unity, polynomials that they reproduce, the border."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinewich_jax.core.interpolate import CUBIC_A, cubic_weight, linear_weight, taps


@given(n_in=st.integers(1, 40), n_out=st.integers(1, 40))
def test_taps_sum_to_one_and_stay_inside(n_in, n_out):
    for method in ("linear", "cubic"):
        for antialias in (False, True):
            index, weight = taps(n_in, n_out, method, antialias)
            np.testing.assert_allclose(weight.sum(1), 1, atol=1e-12)
            assert index.min() >= 0 and index.max() < n_in


@given(shift=st.floats(0, 1))
def test_kernels_are_one_at_the_sample_and_sum_to_one_between(shift):
    assert cubic_weight(np.array(0.0)) == linear_weight(np.array(0.0)) == 1
    neighbours = np.array([-1.0, 0.0, 1.0, 2.0]) - shift
    for kernel in (cubic_weight, linear_weight):
        assert kernel(neighbours).sum() == pytest.approx(1)


def test_the_cubic_kernel_is_the_one_of_opencv_and_torch():
    # a t (1 - t)^2 of the far neighbours at t = 1/2
    assert CUBIC_A == -0.75
    assert cubic_weight(np.array(1.5)) == pytest.approx(-0.75 * 0.5**3)
