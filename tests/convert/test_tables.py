"""Position tables resize as the Swin authors do it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from sinewich_jax.convert.tables import centre_table, resize_table, window_of
from sinewich_jax.errors import CheckpointError
from sinewich_jax.nn.windows import relative_position_index


def table(window: int, heads: int = 3) -> np.ndarray:
    shape = ((2 * window - 1) ** 2, heads)
    return np.random.default_rng(window).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("small", "window"), [(7, 12), (12, 7), (4, 7), (1, 3), (7, 8)])
def test_equals_torchs_bicubic(small, window):
    """JAX's ``cubic-pytorch`` is torch's kernel (a = -0.75) without antialiasing."""
    before, side = table(small), 2 * window - 1
    square = before.reshape(2 * small - 1, 2 * small - 1, 3)
    golden = jax.image.resize(square, (side, side, 3), "cubic-pytorch", antialias=False)
    after = resize_table(before, window)
    assert after.dtype == np.float32
    np.testing.assert_allclose(
        after, golden.reshape(side * side, 3), atol=2e-5
    )  # its weights are float32


def test_the_same_window_changes_nothing():
    before = table(7)
    assert resize_table(before, 7) is before


def test_resizing_keeps_constants_and_symmetry():
    np.testing.assert_allclose(resize_table(np.full((169, 2), 3.5, np.float32), 12), 3.5, rtol=1e-6)
    square = table(7, 1).reshape(13, 13)
    odd = (square - square[::-1, ::-1]).reshape(-1, 1)
    after = resize_table(odd, 10)
    np.testing.assert_allclose(after, -after[::-1], atol=1e-6)


def test_a_centred_table_is_read_as_the_small_one():
    small = table(3)
    large = centre_table(small, 7)
    np.testing.assert_array_equal(
        large[relative_position_index(3, 7)], small[relative_position_index(3, 3)]
    )


@pytest.mark.parametrize("shape", [(168, 3), (4, 3), (169,), (0, 3)])
def test_what_is_no_table(shape):
    with pytest.raises(CheckpointError, match=r"expected \(\(2 \* window - 1\) \*\* 2, heads\)"):
        window_of(np.zeros(shape))
    with pytest.raises(CheckpointError, match="does not fit into the middle"):
        centre_table(table(7), 4)
