"""Resizing maps to sizes that are data equals resizing them one by one."""

from __future__ import annotations

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.nn.resize import resize_bilinear, resize_in_frame

FRAME = (17, 14)
MAPS = np.random.default_rng(0).standard_normal((3, 6, 5, 2)).astype(np.float32)
in_frame = jax.jit(resize_in_frame, static_argnums=2)


@settings(max_examples=10)
@given(st.lists(st.tuples(st.integers(1, 17), st.integers(1, 14)), min_size=3, max_size=3))
def test_each_map_gets_its_own_size(sizes):
    framed = np.asarray(in_frame(MAPS, np.array(sizes, np.int32), FRAME))
    assert framed.shape == (3, *FRAME, 2)
    for one, (height, width), map_ in zip(framed, sizes, MAPS, strict=True):
        alone = resize_bilinear(map_, height, width)
        np.testing.assert_allclose(one[:height, :width], alone, atol=2e-6)
