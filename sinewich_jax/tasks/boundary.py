"""The boundary benchmark behind published odsF, without MATLAB: suppression, thinning, matching.

    probability -> non-maximum suppression -> for each of 101 thresholds: binarise, thin,
    match one to one with the thinned truth within ``max_distance`` of the image's diagonal

    P = matched predictions / predictions,   R = matched truth / truth,   F = 2 P R / (P + R)

summed over the set before dividing. ``ods`` is the best F at one threshold for all images, ``ois``
lets every image choose its own, ``ods_ap`` is the area under precision against recall.

Convention of the BSDS and SEISM tools (Martin et al. 2004; Pont-Tuset and Marques 2013) as the
multi-task literature runs them: ``max_distance`` .0075 for PASCAL, .011 for NYUD; suppression as in
Dollar and Zitnick's structured edges (2015). Matching here is a maximum matching; the original is a
minimum-cost assignment, which matches as many and may choose other pairs. Two things are not done
here: NYUD's published truth is the outline of the strokes, ours is their centre line; and PASCAL's
is scored on a list of its own (``test_new``), ours on all of ``val``. The quick metric of
:mod:`sinewich_jax.tasks.edge` dilates instead of matching and gives other numbers: never mix them.

NumPy and SciPy on the host, about a tenth of a second an image and threshold at 480 x 640.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sinewich_jax.core.thinning import thin
from sinewich_jax.errors import SinewichError

THRESHOLDS = np.array([0.001, *np.linspace(0.01, 0.99, 99), 0.999])
"""A pixel is claimed where its probability is larger."""

MAX_DISTANCE = {"pascal_mt": 0.0075, "nyud_mt": 0.011}
"""Matching distance as a fraction of the image diagonal, by data set; elsewhere PASCAL's."""

_RADIUS = 4  # of the triangle filter before orientations are read
_BORDER = 5  # pixels over which the frame fades in
_MARGIN = 1.01  # a crest may be this much lower than its neighbours


@dataclasses.dataclass
class BoundaryScore:
    """Counts of a set of images, image by image.

    Attributes:
      max_distance: matching distance as a fraction of the image diagonal.
      suppress: thin the prediction by non-maximum suppression first.
      thin_truth: thin the truth, as the published evaluation does.
      thresholds: where predictions are binarised; rising.
    """

    max_distance: float = 0.0075
    suppress: bool = True
    thin_truth: bool = True
    thresholds: Sequence[float] = tuple(THRESHOLDS)
    _rows: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(
        self, probability: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None
    ) -> None:
        """Counts one image.

        Args:
          probability: float [H, W].
          truth: bool or {0, 1} [H, W].
          valid: bool [H, W]; other pixels are neither claimed nor true. None: all.

        Raises:
          SinewichError: arrays of different shapes.
        """
        if probability.shape != truth.shape or probability.ndim != 2:
            raise SinewichError(
                f"a boundary map {probability.shape} and its truth {truth.shape} differ in shape"
            )
        truth = truth > 0
        strength = non_maximum_suppression(probability) if self.suppress else probability
        if valid is not None:
            truth, strength = truth & valid, np.where(valid, strength, 0.0)
        truth = thin(truth) if self.thin_truth else truth
        reach = self.max_distance * math.hypot(*truth.shape)
        rows = []
        for threshold in self.thresholds:
            claimed = thin(strength > threshold)
            matched = match(claimed, truth, reach)
            rows.append((matched, int(claimed.sum()), int(truth.sum())))
        self._rows.append(np.array(rows, np.int64))

    def compute(self) -> dict[str, float]:
        """``ods``, ``ods_threshold``, ``ois`` and ``ods_ap``, NaN without an image; and how.

        How they were made: ``ods_distance``, the matching distance, and ``ods_images``.
        """
        made = {"ods_distance": self.max_distance, "ods_images": float(len(self._rows))}
        if not self._rows:
            return dict.fromkeys(("ods", "ods_threshold", "ois", "ods_ap"), math.nan) | made
        counts = np.stack(self._rows)  # (images, thresholds, 3)
        precision, recall, f = _scores(counts.sum(0))
        best = int(np.argmax(f))
        own = np.argmax(_scores(counts)[2], axis=1)
        picked = counts[np.arange(len(counts)), own].sum(0)
        # Recall grows as the threshold falls; each step is credited with the precision it has.
        steps = np.diff(recall[::-1], prepend=0.0)
        return {
            "ods": float(f[best]),
            "ods_threshold": float(self.thresholds[best]),
            "ois": float(_scores(picked)[2]),
            "ods_ap": float(np.sum(steps * precision[::-1])),
            **made,
        }


def _scores(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F of (..., 3) counts: matched, claimed, true."""
    matched, claimed, true = np.moveaxis(counts.astype(np.float64), -1, 0)
    precision = matched / np.maximum(claimed, 1)
    recall = matched / np.maximum(true, 1)
    return precision, recall, 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def match(claimed: np.ndarray, truth: np.ndarray, reach: float) -> int:
    """Most pairs (claimed pixel, true pixel) at most ``reach`` pixels apart, each pixel in one.

    Args:
      claimed: bool [H, W].
      truth: bool [H, W].
      reach: Euclidean distance in pixels.

    Returns:
      Their number (a maximum bipartite matching, Hopcroft and Karp 1973).
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching
    from scipy.spatial import KDTree

    ours, theirs = np.argwhere(claimed), np.argwhere(truth)
    if not len(ours) or not len(theirs):
        return 0
    near = KDTree(ours).query_ball_tree(KDTree(theirs), reach)
    sizes = np.fromiter(map(len, near), np.int64, len(near))
    columns = np.concatenate([np.asarray(row, np.int32) for row in near])
    pointers = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    graph = csr_array(
        (np.ones(len(columns), np.int8), columns, pointers), shape=(len(ours), len(theirs))
    )
    return int(np.sum(maximum_bipartite_matching(graph, perm_type="column") >= 0))


def non_maximum_suppression(probability: np.ndarray) -> np.ndarray:
    """Zero but on the crests of a boundary map, and faded out towards its frame.

    A pixel stays if, across the boundary, neither neighbour at distance one is higher by more than
    a hundredth. The direction across comes from second derivatives of the map after a triangle
    filter of radius 4.

    Args:
      probability: float [H, W].

    Returns:
      float [H, W].
    """
    from scipy import ndimage

    strength = np.asarray(probability, np.float64)
    ramp = np.concatenate([np.arange(1, _RADIUS + 2), np.arange(_RADIUS, 0, -1)])
    weights = ramp / (_RADIUS + 1) ** 2
    smooth = strength
    for axis in (0, 1):
        smooth = ndimage.correlate1d(smooth, weights, axis=axis, mode="reflect")
    dy, dx = np.gradient(smooth)
    dxy, dxx = np.gradient(dx)
    dyy = np.gradient(dy, axis=0)
    angle = np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5)), np.pi)

    rows, columns = np.indices(strength.shape, np.float64)
    keep = np.ones(strength.shape, bool)
    for side in (-1.0, 1.0):
        place = [rows + side * np.sin(angle), columns + side * np.cos(angle)]
        beside = ndimage.map_coordinates(strength, place, order=1, mode="nearest")
        keep &= _MARGIN * strength >= beside
    return (
        np.where(keep, strength, 0.0) * _fade(strength.shape[0])[:, None] * _fade(strength.shape[1])
    )


def _fade(length: int) -> np.ndarray:
    """0, 1/5, ... 1 over the first pixels of a side, and back over the last."""
    place = np.arange(length)
    return np.minimum(1.0, np.minimum(place, place[::-1]) / _BORDER)
