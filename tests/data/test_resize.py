"""Resizing equals its formulas, and JAX where JAX means the same thing."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinewich_jax.data import resize as rs
from sinewich_jax.errors import DataError

SIZES = [((7, 9), (14, 18)), ((7, 9), (11, 13)), ((7, 9), (4, 5))]


def brute_force(array: np.ndarray, size: tuple[int, int], a: float) -> np.ndarray:
    """Cubic convolution written as four nested loops, straight from the definition."""

    def weight(d: float) -> float:
        d = abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    height, width = array.shape
    out = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = (i + 0.5) * height / size[0] - 0.5
            x = (j + 0.5) * width / size[1] - 0.5
            for r in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for c in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    pixel = array[min(max(r, 0), height - 1), min(max(c, 0), width - 1)]
                    out[i, j] += weight(y - r) * weight(x - c) * pixel
    return out


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_cubic_equals_definition_and_jax_pytorch_kernel(source, target):
    array = np.random.default_rng(0).random(source)
    ours = rs.resize(array, target, "cubic")
    np.testing.assert_allclose(ours, brute_force(array, target, -0.75), atol=1e-12)
    theirs = jax.image.resize(array.astype(np.float32), target, "cubic-pytorch", antialias=False)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_cubic_is_not_the_half_slope_kernel():
    array = np.random.default_rng(0).random((7, 9)).astype(np.float32)
    other = jax.image.resize(array, (14, 18), "cubic", antialias=False)
    assert 0.02 < np.abs(rs.resize(array, (14, 18), "cubic") - other).max() < 0.1


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_linear_equals_jax_without_antialias(source, target):
    array = np.random.default_rng(1).random(source).astype(np.float32)
    theirs = jax.image.resize(array, target, "linear", antialias=False)
    np.testing.assert_allclose(rs.resize(array, target, "linear"), theirs, atol=1e-6)


@pytest.mark.parametrize("target", [(4, 5), (3, 9), (2, 2)])
def test_antialias_equals_jax_inside(target):
    """JAX renormalises at the border, we clamp; away from it the widened kernels agree."""
    array = np.random.default_rng(2).random((31, 33))
    big = rs.resize(np.pad(array, 40, mode="edge"), (37, 37), "linear", antialias=True)
    theirs = jax.image.resize(
        np.pad(array, 40, mode="edge").astype(np.float32), (37, 37), "linear", antialias=True
    )
    np.testing.assert_allclose(big[4:-4, 4:-4], theirs[4:-4, 4:-4], atol=2e-6)
    plain = rs.resize(array, target, "linear")
    assert np.abs(rs.resize(array, target, "linear", antialias=True) - plain).max() > 0.05


@given(n_in=st.integers(1, 40), n_out=st.integers(1, 40))
def test_nearest_is_the_floor_rule(n_in, n_out):
    expected = [int(np.floor(i * n_in / n_out + 1e-9)) for i in range(n_out)]
    np.testing.assert_array_equal(rs.nearest_index(n_in, n_out), expected)


def test_nearest_table():
    assert rs.nearest_index(7, 4).tolist() == [0, 1, 3, 5]
    assert rs.nearest_index(3, 7).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_overshoot_is_clipped_not_wrapped():
    step = np.zeros((64, 64), np.float64)
    step[:, 32:] = 255
    smooth = rs.resize(step, (128, 128), "cubic")
    # Weight of the far neighbour a quarter pixel away: a t (1 - t)^2 at t = 1/4.
    assert smooth.min() == pytest.approx(-0.75 * 0.25 * 0.75**2 * 255)
    assert smooth.max() == pytest.approx(255 * (1 + 0.75 * 0.25 * 0.75**2))
    image = rs.resize_image(step.astype(np.uint8), (128, 128))
    assert (np.diff(image[0].astype(int)) >= 0).all()
    assert image[0, 0] == 0 and image[0, -1] == 255


def test_resize_wants_floats():
    with pytest.raises(DataError, match="resize_image"):
        rs.resize(np.zeros((4, 4), np.uint8), (8, 8))


def test_resize_example_keeps_depth_units_normals_and_masks():
    rng = np.random.default_rng(0)
    depth = rng.random((8, 6)).astype(np.float32) + 1
    valid = np.ones((8, 6), bool)
    valid[:, :3] = False
    normals = np.zeros((8, 6, 3), np.float32)
    normals[..., 2] = -1
    normals[:, :3] = (1, 0, 0)  # rubbish where it is not valid
    example = {
        "image": rng.integers(0, 256, (8, 6, 3), dtype=np.uint8),
        "labels": {"depth": depth, "normals": normals},
        "valid": {"depth": np.ones((8, 6), bool), "normals": valid},
    }
    out = rs.resize_example(example, (16, 12))
    assert out["image"].shape == (16, 12, 3) and out["image"].dtype == np.uint8
    assert set(np.unique(out["labels"]["depth"])) <= set(np.unique(depth))
    good = out["labels"]["normals"][out["valid"]["normals"]]
    np.testing.assert_allclose(good, np.broadcast_to([0, 0, -1], good.shape), atol=1e-6)
    assert out["valid"]["normals"].sum() == 16 * 6
    assert rs.resize_example(example, (8, 6))["image"] is example["image"]
