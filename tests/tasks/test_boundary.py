"""odsF without MATLAB: matching by hand, shifted lines, crests, and sums over a set."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinewich_jax.errors import SinewichError
from sinewich_jax.tasks import boundary

MASKS = hnp.arrays(bool, (5, 6), elements=st.booleans())


def brute(claimed: np.ndarray, truth: np.ndarray, reach: float) -> int:
    """The largest matching, by augmenting paths written out."""
    ours, theirs = np.argwhere(claimed), np.argwhere(truth)
    near = [[j for j, b in enumerate(theirs) if math.dist(a, b) <= reach] for a in ours]
    owner: dict[int, int] = {}

    def place(i: int, seen: set[int]) -> bool:
        for j in near[i]:
            if j not in seen:
                seen.add(j)
                if j not in owner or place(owner[j], seen):
                    owner[j] = i
                    return True
        return False

    return sum(place(i, set()) for i in range(len(ours)))


@settings(max_examples=60)
@given(MASKS, MASKS, st.sampled_from([0.0, 1.0, 1.5, 2.3]))
def test_matching_is_the_largest_one(claimed, truth, reach):
    assert boundary.match(claimed, truth, reach) == brute(claimed, truth, reach)


def test_two_claims_beside_one_true_pixel_are_one_match():
    claimed, truth = np.zeros((2, 5, 5), bool)
    truth[2, 2] = claimed[2, 1] = claimed[2, 3] = True
    assert boundary.match(claimed, truth, 1.0) == 1
    assert boundary.match(claimed, truth, 0.9) == 0


def line(column: int, size: int = 64) -> np.ndarray:
    made = np.zeros((size, size), np.float32)
    made[:, column] = 1.0
    return made


@pytest.mark.parametrize(("offset", "found"), [(0, True), (2, True), (3, False)])
def test_a_shifted_line_is_found_within_the_distance(offset, found):
    """At .0225 of a diagonal of 90.5 pixels the reach is 2.04 pixels."""
    score = boundary.BoundaryScore(max_distance=0.0225, suppress=False)
    score.add(0.8 * line(30 + offset), line(30))
    made = score.compute()
    assert made["ods"] == made["ois"] == (1.0 if found else 0.0)
    assert not found or made["ods_ap"] == 1.0


def test_counts_are_summed_before_dividing_and_images_choose_for_ois():
    """Two images, each with a right line and a wrong one, in opposite order of probability."""
    thresholds = (0.3, 0.6)
    score = boundary.BoundaryScore(suppress=False, thin_truth=False, thresholds=thresholds)
    score.add(0.8 * line(20) + 0.5 * line(40), line(20))
    score.add(0.5 * line(20) + 0.8 * line(40), line(20))
    made = score.compute()
    # At .3 every image has its line and a wrong one; at .6 one image has only the wrong one.
    sizes = np.array([64.0, 64.0])
    low = 2 * 0.5 * 1.0 / 1.5
    high = 2 * 0.5 * 0.5 / 1.0
    assert made["ods"] == pytest.approx(max(low, high), abs=0.02)
    assert made["ods_threshold"] == 0.3
    matched, claimed = sizes.sum(), 64.0 + 128.0
    precision, recall = matched / claimed, 1.0
    assert made["ois"] == pytest.approx(2 * precision * recall / (precision + recall), abs=0.02)


def test_suppression_keeps_crests_in_every_direction_and_fades_the_frame():
    rows, columns = np.indices((60, 60))
    for angle in np.linspace(0, np.pi, 7, endpoint=False):
        distance = (columns - 30) * np.cos(angle) + (rows - 30) * np.sin(angle)
        ridge = np.exp(-(distance**2) / (2 * 2.0**2))
        kept = boundary.non_maximum_suppression(ridge) > 0.3
        inner = kept[10:-10, 10:-10]
        assert inner.sum() >= 35  # a line of forty pixels stays a line
        assert np.all(np.abs(distance[kept]) < 1.1)  # and nothing else stays
    frame = boundary.non_maximum_suppression(np.ones((20, 20)))
    assert frame[0].max() == 0.0 and frame[5, 5] == 1.0


def test_shapes_that_differ_and_empty_sets():
    score = boundary.BoundaryScore()
    assert math.isnan(score.compute()["ods"])
    with pytest.raises(SinewichError, match="differ in shape"):
        score.add(np.zeros((4, 4)), np.zeros((4, 5)))
    score.add(np.zeros((8, 8)), np.zeros((8, 8)))
    assert score.compute()["ods"] == 0.0
