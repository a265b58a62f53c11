"""Two pictures of one scene: true depth explains the second one, and other depths do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.data import scenes
from sinewich_jax.nn import parallax

SIZE = 64


@pytest.fixture(scope="module")
def pairs():
    """Pictures, true depth, pictures after a step, steps, focal lengths of eight scenes."""
    steps = np.random.default_rng(0).uniform(-0.8, 0.8, (8, 3)).astype(np.float32)
    first, second, depth, focal = [], [], [], []
    for seed, step in enumerate(steps):
        scene = scenes.sample_scene(seed)
        one = scenes.render(scene, SIZE, SIZE)
        two = scenes.render(scenes.step_aside(scene, step), SIZE, SIZE, image_only=True)
        first.append(one["image"])
        second.append(two["image"])
        depth.append(one["labels"]["depth"])
        focal.append(scene.camera.focal)
    colours = [jnp.asarray(np.stack(x), jnp.float32) / 64 for x in (first, second)]
    return jnp.asarray(np.stack(depth)), *colours, jnp.asarray(steps), jnp.asarray(np.stack(focal))


def test_a_wall_shifts_by_focal_length_times_step_over_distance():
    depth = jnp.full((1, 4, 6), 5.0)
    column, row = parallax.project(depth, jnp.array([[0.5, 0.0, 0.0]]), jnp.array([1.2]))
    np.testing.assert_allclose(column[0], [np.arange(6) + 0.5 - 1.2 * 6 * 0.5 / 5] * 4, atol=1e-6)
    np.testing.assert_allclose(row[0].T, [np.arange(4) + 0.5] * 6, atol=1e-6)
    # A step forward enlarges the picture about its centre.
    column, _ = parallax.project(depth, jnp.array([[0.0, 0.0, 2.5]]), jnp.array([1.2]))
    np.testing.assert_allclose(column[0, 0], 2 * (np.arange(6) + 0.5 - 3) + 3, atol=1e-6)


def test_sampling_reads_pixels_and_means_and_knows_its_border():
    picture = jnp.arange(12.0).reshape(1, 3, 4, 1)
    column, row = jnp.array([[[0.5, 1.0, 3.5, 4.0]]]), jnp.array([[[0.5, 1.0, 2.5, 2.5]]])
    values, inside = parallax.sample(picture, column, row)
    np.testing.assert_allclose(values[0, 0, :, 0], [0.0, 2.5, 11.0, 11.0])
    assert inside.tolist() == [[[True, True, True, False]]]


def test_true_depth_explains_the_second_picture(pairs):
    depth, *rest = pairs
    error = {scale: float(parallax.photometric_error(scale * depth, *rest)) for scale in
             (0.8, 0.9, 1.0, 1.1, 1.25)}  # fmt: skip
    assert min(error, key=error.get) == 1.0
    assert error[1.0] < 0.75 * min(error[0.8], error[1.25])
    flat = jnp.full_like(depth, float(depth.mean()))
    assert error[1.0] < 0.7 * float(parallax.photometric_error(flat, *rest))


def test_the_gradient_pulls_a_wrong_scale_to_the_right_one(pairs):
    depth, *rest = pairs
    slope = jax.grad(lambda scale: parallax.photometric_error(scale * depth, *rest))
    assert slope(0.93) < 0 < slope(1.07)
    assert np.isfinite(slope(1e-6))


def test_roughness_is_forgiven_at_edges():
    values = jnp.zeros((1, 4, 4)).at[:, :, 2:].set(1.0)
    plain, edge = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4, 3)).at[:, :, 2:].set(9.0)
    assert parallax.roughness(values, plain) == pytest.approx(1 / 3)
    assert parallax.roughness(values, edge) < 1e-6
    assert parallax.roughness(0 * values, edge) == 0.0
