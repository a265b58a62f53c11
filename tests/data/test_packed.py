"""ccp and kitchen, read as their makers meant: the published baselines come out again."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import sinewich_jax.data as data
from tests.helpers import data_root


@functools.cache
def stacked(name: str, split: str) -> dict:
    """All labels and masks of a split, and the source."""
    source = data.load(name, split, data_dir=data_root())
    examples = [source[i] for i in range(len(source))]
    return {
        "source": source,
        "labels": {t: np.stack([e["labels"][t] for e in examples]) for t in source.tasks},
        "valid": {t: np.stack([e["valid"][t] for e in examples]) for t in source.tasks},
    }


def mean_map_miou(name: str, task: str, classes: int) -> float:
    """mIoU on test of the most frequent training class of each pixel."""
    train, test = stacked(name, "train"), stacked(name, "test")
    votes = [((train["labels"][task] == c) & train["valid"][task]).sum(0) for c in range(classes)]
    guess = np.argmax(votes, axis=0)[None]
    label, valid = test["labels"][task], test["valid"][task]
    inter = np.array([(valid & (label == c) & (guess == c)).sum() for c in range(classes)])
    union = np.array([(valid & ((label == c) | (guess == c))).sum() for c in range(classes)])
    return float((inter / union).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task", "classes", "published"),
    [
        ("ccp", "semseg", 16, 0.1321),
        ("ccp", "human_parts", 7, 0.4892),
        ("ccp", "saliency", 2, 0.7882),
        ("kitchen", "semseg", 6, 0.2425),
    ],
)
def test_mean_label_map_of_classes(name, task, classes, published):
    assert mean_map_miou(name, task, classes) == pytest.approx(published, abs=5e-4)


@pytest.mark.slow
def test_median_depth_map():
    train, test = stacked("kitchen", "train"), stacked("kitchen", "test")
    depth, valid = train["labels"]["depth"], train["valid"]["depth"]
    seen = valid.any(0)
    guess = np.zeros(seen.shape, np.float32)
    guess[seen] = np.nanmedian(np.where(valid, depth, np.nan)[:, seen], axis=0)
    label, valid = test["labels"]["depth"], test["valid"]["depth"]
    error = np.abs(guess - label)[valid]
    assert np.sqrt((error**2).mean()) == pytest.approx(0.5267, abs=5e-4)
    assert (error / label[valid]).mean() == pytest.approx(0.3013, abs=5e-4)


@pytest.mark.slow
def test_mean_normals_map():
    train, test = stacked("kitchen", "train"), stacked("kitchen", "test")
    guess = train["labels"]["normals"].sum(0)
    guess /= np.linalg.norm(guess, axis=-1, keepdims=True)
    cosine = (guess * test["labels"]["normals"]).sum(-1)[test["valid"]["normals"]]
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    assert angle.mean() == pytest.approx(34.68, abs=0.02)


@pytest.mark.slow
def test_kitchen_normals_face_the_viewer_and_fit_the_depth():
    """In camera axes x right, y down, z forward: the cross product of the back-projected depth."""
    test = stacked("kitchen", "test")
    depth, valid = test["labels"]["depth"][::5], test["valid"]["depth"][::5]
    normals = test["labels"]["normals"][::5]
    assert (normals[..., 2][valid] < 0).mean() > 0.98
    rows, columns = np.mgrid[: depth.shape[1], : depth.shape[2]]
    points = np.stack(
        [(columns - 96) / 157.5 * depth, (rows - 62.8) / 157.5 * depth, depth], axis=-1
    )
    right = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    facing = -np.cross(right, down)
    flat = (np.abs(right[..., 2]) < 0.05) & (np.abs(down[..., 2]) < 0.05)
    flat &= valid[:, 1:-1, 2:] & valid[:, 1:-1, :-2] & valid[:, 2:, 1:-1] & valid[:, :-2, 1:-1]
    facing = facing[flat] / np.linalg.norm(facing[flat], axis=-1, keepdims=True)
    cosine = (facing * normals[:, 1:-1, 1:-1][flat]).sum(-1)
    assert np.median(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "counts", "size", "channels"),
    [
        ("ccp", (700, 104), (192, 128), {"semseg": 16, "human_parts": 7, "saliency": 1, "edge": 1}),
        ("kitchen", (234, 47), (128, 192), {"semseg": 6, "normals": 3, "depth": 1, "edge": 1}),
    ],
)
def test_sources_say_what_they_hold(name, counts, size, channels):
    for split, count in zip(("train", "test"), counts, strict=True):
        held = stacked(name, split)
        source = held["source"]
        assert len(source) == count and source.size == size and source.channels == channels
        assert len(source.class_names["semseg"]) == channels["semseg"]
        for task in ("saliency", "edge"):
            if task in channels:
                assert set(np.unique(held["labels"][task])) == {0, 1}
                assert held["valid"][task].all()
    if name == "kitchen":
        np.testing.assert_array_equal(held["valid"]["depth"], held["valid"]["normals"])
        assert held["labels"]["depth"][held["valid"]["depth"]].min() > 0.3
        assert held["labels"]["depth"].max() < 5


@pytest.mark.slow
def test_labels_pass_the_tasks_own_checks():
    from sinewich_jax import tasks

    for name in ("ccp", "kitchen"):
        held = stacked(name, "test")
        for task in held["source"].tasks:
            made = tasks.make(task, channels=held["source"].channels[task])
            for i in range(0, len(held["source"]), 10):
                made.check_label(held["labels"][task][i], held["valid"][task][i], f"{name} {i}")
