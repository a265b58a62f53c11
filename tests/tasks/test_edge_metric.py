"""Edge F by dilation matching, against counts made by hand and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sinewich_jax import tasks
from sinewich_jax.errors import ConfigError
from sinewich_jax.tasks.edge import spread
from tests.tasks.examples import update


def line(column, size=20):
    image = np.zeros((1, size, size), np.uint8)
    image[:, :, column] = 1
    return image


def score(label, probability, valid=None, **options):
    task = tasks.make("edge", **options)
    probability = np.clip(probability, 1e-6, 1 - 1e-6)
    logits = np.log(probability / (1 - probability)).astype(np.float32)[..., None]
    metric = task.metric()
    valid = np.ones(label.shape, bool) if valid is None else valid
    return metric.compute(metric.merge(metric.empty(), update(metric)(logits, label, valid)))


@pytest.mark.parametrize(("shift", "f"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)])
def test_a_line_matches_up_to_the_tolerance(shift, f):
    values = score(line(8), 0.9 * line(8 + shift), tolerance=2.0)
    assert values["f"] == f
    assert values["ap"] == f


def test_counts_by_hand():
    """One of two true lines found, and two lines claimed of which one is right."""
    label = line(4) | line(14)
    claim = 0.8 * (line(5) | line(9))
    values = score(label, claim, tolerance=1.0)
    assert (values["precision"], values["recall"], values["f"]) == (0.5, 0.5, 0.5)


def test_the_best_threshold_and_the_average_precision_by_hand():
    """0.9: half of the truth, all right. 0.4: the rest with as many false ones."""
    label = line(4) | line(14)
    claim = 0.9 * line(4) + 0.4 * (line(14) | line(9) | line(18))
    values = score(label, claim, tolerance=1.0)
    assert values["f"] == pytest.approx(2 * 1.0 * 0.5 / 1.5, abs=0.01)
    assert (values["precision"], values["recall"]) == (0.5, 1.0)
    assert values["ap"] == pytest.approx(0.5 * 1.0 + 0.5 * 0.5, abs=1e-6)


def test_each_image_may_choose_its_threshold():
    """A confident and a timid image, each with a weaker false line: no common threshold fits."""
    label = np.concatenate([line(4), line(4)])
    confident = 0.9 * line(4) + 0.6 * line(14)
    timid = 0.3 * line(4) + 0.1 * line(14)
    values = score(label, np.concatenate([confident, timid]), tolerance=1.0)
    assert values["f_image"] == 1.0
    assert values["f"] < 0.9


def test_an_image_without_edges_only_adds_false_claims():
    label = np.concatenate([line(4), 0 * line(4)])
    alone = score(label[:1], 0.9 * line(4))
    both = score(label, 0.9 * np.concatenate([line(4), line(4)]))
    assert alone["f"] == 1.0
    assert (both["precision"], both["recall"]) == (0.5, 1.0)


def test_invalid_pixels_neither_match_nor_count():
    label = line(4) | line(14)
    valid = np.ones(label.shape, bool)
    valid[:, :, 13:16] = False
    claim = 0.9 * (line(4) | line(15))
    assert score(label, claim, valid)["f"] == 1.0
    assert score(label, claim)["f"] == 1.0
    assert score(label & valid, claim)["f"] < 1.0


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.73, 2.5])
def test_dilation_is_a_disc(radius):
    rng = np.random.default_rng(0)
    scores = (rng.uniform(size=(2, 9, 11)) * (rng.uniform(size=(2, 9, 11)) < 0.1)).astype(
        np.float32
    )
    rows, columns = np.indices(scores.shape[1:])
    expected = np.zeros_like(scores)
    for b, y, x in np.ndindex(scores.shape):
        near = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
        expected[b, y, x] = scores[b][near].max()
    np.testing.assert_array_equal(spread(scores, radius), expected)


def test_the_default_tolerance_is_that_of_pascal():
    task = tasks.make("edge")
    assert task.pixels(64, 64) == 1.0
    assert task.pixels(448, 448) == pytest.approx(0.0075 * 448 * math.sqrt(2))
    with pytest.raises(ConfigError, match="tolerance is -1"):
        tasks.make("edge", tolerance=-1)
