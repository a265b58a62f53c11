"""Pictures: shape, direction, and colours that every eye can tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax import tasks
from sinewich_jax.tasks import pictures
from tests.tasks.examples import random_batch, small

ALL = tasks.names(tasks.DenseTask)
GREYS = {tuple(int(c) for c in grey) for grey in pictures.HATCH}


@pytest.mark.parametrize("name", ALL)
def test_pictures_have_the_size_of_the_label_and_hatch_what_is_invalid(name):
    task = small(name)
    logits, label, valid = random_batch(task, 0, batch=1, height=12, width=13)
    label[~valid] = np.nan if label.dtype.kind == "f" else 0
    prediction = np.asarray(task.predict(logits))[0]
    for picture in (
        task.picture(label[0], valid[0]),
        task.error_picture(prediction, label[0], valid[0]),
    ):
        assert picture.shape == (12, 13, 3)
        assert picture.dtype == np.uint8
        assert {tuple(int(c) for c in p) for p in picture[~valid[0]]} == GREYS
    assert task.picture(prediction).shape == (12, 13, 3)


@pytest.mark.parametrize("name", ALL)
def test_no_error_is_dark_and_the_worst_is_coloured(name):
    task = small(name)
    _, label, valid = random_batch(task, 1, batch=1)
    label, everywhere = label[0], np.ones_like(valid[0])
    right = task.error_picture(label, label, everywhere)
    assert right.max() < 30
    wrong = {
        "semseg": (label + 1) % 5,
        "human_parts": (label + 1) % 5,
        "saliency": 1 - label,
        "edge": 1 - label,
        "depth": label + 100,
        "normals": -label,
    }[name]
    assert task.error_picture(wrong, label, everywhere).max(axis=-1).min() > 200


def test_false_alarms_are_red_and_misses_blue():
    picture = tasks.make("saliency").error_picture(np.array([[1.0, 0.0]]), np.array([[0, 1]]))
    assert picture[0, 0].argmax() == 0
    assert picture[0, 1].argmax() == 2


def test_a_facing_wall_is_light_blue_and_a_floor_green():
    picture = tasks.make("normals").picture(np.array([[[0.0, 0.0, -1.0], [0.0, -1.0, 0.0]]]))
    np.testing.assert_array_equal(picture[0], [[128, 128, 255], [128, 255, 128]])


def test_near_is_bright_and_far_is_dark_on_a_fixed_range():
    task = tasks.make("depth", picture_range=(1.0, 3.0))
    ramp = task.picture(np.linspace(0.5, 3.5, 64)[None])[0].astype(float)
    grey = ramp @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(grey) <= 0)
    assert grey[0] > 200
    assert grey[-1] < 40
    np.testing.assert_array_equal(ramp[0], task.picture(np.array([[1.0]]))[0, 0])


def test_the_range_can_come_from_data():
    depth = np.linspace(1.0, 5.0, 101, dtype=np.float32).reshape(1, 101)
    valid = depth < 4.9
    near, far = tasks.make("depth").fit_range([depth], [valid]).picture_range
    assert (near, far) == pytest.approx((1.08, 4.8), abs=0.05)


def test_the_ramps_are_even_steps_of_lightness():
    at = np.linspace(0, 1, 64)
    for ramp in (pictures.error_ramp, pictures.miss_ramp, pictures.depth_ramp):
        lightness = pictures.seen_by(ramp(at) / 255.0)[0, :, 0]
        steps = np.diff(lightness)
        assert steps.min() > 0
        assert steps.max() < 3 * np.median(steps)


@pytest.mark.parametrize(("count", "gap"), [(7, 0.1), (16, 0.07), (21, 0.07), (40, 0.045)])
def test_class_colours_stay_apart_for_every_eye(count, gap):
    colours = pictures.palette(count)
    assert colours.shape == (count, 3)
    views = pictures.seen_by(colours / 255.0)
    gaps = np.linalg.norm(views[:, :, None] - views[:, None], axis=-1)
    assert gaps[:, ~np.eye(count, dtype=bool)].min() > gap
    np.testing.assert_array_equal(colours[:7], pictures.palette(7))
    assert not GREYS & {tuple(int(c) for c in colour) for colour in colours}


def test_oklab_of_known_colours():
    """White, and the red of Ottosson's table (0.628, 0.225, 0.126)."""
    lab = pictures.seen_by(np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))[0]
    np.testing.assert_allclose(lab, [[1.0, 0.0, 0.0], [0.628, 0.225, 0.126]], atol=1e-3)
    np.testing.assert_allclose(pictures.oklab_to_srgb(lab), [[1, 1, 1], [1, 0, 0]], atol=1e-3)
