"""The mean label map: closed forms, and the numbers known for real photographs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sinewich_jax import tasks
from sinewich_jax.errors import DataError
from tests.helpers import data_root
from tests.tasks.examples import random_batch, small, update

ALL = tasks.names(tasks.DenseTask)


def score(task, logits, labels, valids, batch=16):
    metric = task.metric()
    state = metric.empty()
    for start in range(0, len(labels), batch):
        label, valid = labels[start : start + batch], valids[start : start + batch]
        tiled = np.broadcast_to(logits, (len(label), *logits.shape))
        state = metric.merge(state, update(metric)(tiled, label, valid))
    return metric.compute(state)


@pytest.mark.parametrize("name", ALL)
def test_the_baseline_of_one_label_is_that_label(name):
    task = small(name)
    _, label, valid = random_batch(task, 0, batch=1)
    logits = task.mean_label(label, valid)
    assert logits.dtype == np.float32
    assert logits.shape == (*label.shape[1:3], task.channels)
    assert np.all(np.isfinite(logits))
    values = score(task, logits, label, valid)
    best = values[task.primary]
    assert best == pytest.approx(1.0 if task.higher_is_better else 0.0, abs=1e-3)


def test_classes_go_by_majority_and_ties_to_the_commoner():
    task = tasks.make("semseg", channels=3)
    labels = np.array([[[0, 1, 2, 2]], [[0, 2, 2, 1]], [[1, 0, 2, 0]]], np.uint8)
    guess = task.predict(task.mean_label(labels, np.ones(labels.shape, bool)))
    np.testing.assert_array_equal(guess, [[0, 2, 2, 2]])


def test_probabilities_and_means():
    valid = np.ones((4, 1, 2), bool)
    edges = np.array([[[1, 0]], [[1, 0]], [[1, 1]], [[0, 0]]], np.uint8)
    probability = tasks.make("edge").predict(tasks.make("edge").mean_label(edges, valid))
    assert probability[0, 0] > 0.5 > probability[0, 1]
    valid[3, 0, 0] = valid[:, 0, 1] = False
    depths = np.array([[[1, 9]], [[2, 9]], [[6, 9]], [[50, 9]]], np.float32)
    mean = tasks.make("depth").mean_label(depths, valid)
    np.testing.assert_allclose(mean[0, :, 0], [3.0, 3.0])  # the second pixel is never valid


def test_images_without_a_person_do_not_count_for_the_parts():
    labels = np.array([[[1, 0]], [[0, 0]], [[0, 0]]], np.uint8)
    guess = tasks.make("human_parts").predict(
        tasks.make("human_parts").mean_label(labels, np.ones(labels.shape, bool))
    )
    np.testing.assert_array_equal(guess, [[1, 0]])


def test_unequal_sizes_and_empty_sets_are_refused():
    task = tasks.make("depth")
    pair = [np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)]
    with pytest.raises(DataError, match=r"label 1 has shape \(3, 2\) after 2 x 3"):
        task.mean_label(pair, [x > 0 for x in pair])
    with pytest.raises(DataError, match="none found"):
        task.mean_label(pair[:1], [pair[0] < 0])
    with pytest.raises(DataError, match="none found"):
        task.mean_label([], [])


def load(name, split):
    return np.load(data_root() / "dense" / f"{name}_{split}.npz")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "channels", "metric", "value"),
    [
        ("semseg", "semseg", 16, "miou", 0.132),
        ("human_parts", "parts", 7, "miou", 0.492),
        ("saliency", "saliency", 1, "miou2", 0.788),
    ],
)
def test_known_baselines_of_street_photographs(name, key, channels, metric, value):
    """Parts: 0.489 if the one test photograph without a person is scored, which ours skips."""
    task = tasks.make(name, channels=channels)
    train, test = (load("ccp_mtl_192x128", split)[key] for split in ("train", "test"))
    logits = task.mean_label(train, np.ones(train.shape, bool))
    values = score(task, logits, test, np.ones(test.shape, bool))
    assert values[metric] == pytest.approx(value, abs=6e-4)
    if name == "human_parts":
        every = dataclasses.replace(task, skip_background_only=False)
        values = score(every, logits, test, np.ones(test.shape, bool))
        assert values[metric] == pytest.approx(0.489, abs=6e-4)


@pytest.mark.slow
def test_known_baselines_of_a_kitchen():
    """Depth: the known numbers are those of the median map; the mean map has the lower RMSE."""
    train, test = (load("kitchen_rgbd_mtl_128x192", split) for split in ("train", "test"))

    def baseline(task, read):
        (label, valid), (other, mask) = read(train), read(test)
        return score(task, task.mean_label(label, valid), other, mask)

    def metres(data):
        return data["depth_mm"].astype(np.float32) / 1000, data["depth_mm"] > 0

    def vectors(data):
        return data["normals_i8"].astype(np.float32) / 127, np.any(data["normals_i8"] != 0, axis=-1)

    depths, known = metres(train)
    median = np.ma.median(np.ma.array(depths, mask=~known), axis=0).filled(0)[..., None]
    of_median = score(tasks.make("depth"), median, *metres(test))
    assert of_median["rmse"] == pytest.approx(0.527, abs=6e-4)
    assert of_median["abs_rel"] == pytest.approx(0.301, abs=6e-4)

    semseg = baseline(tasks.make("semseg", channels=6), lambda d: (d["semseg"], d["semseg"] != 255))
    depth = baseline(tasks.make("depth"), metres)
    normals = baseline(tasks.make("normals"), vectors)
    assert semseg["miou"] == pytest.approx(0.243, abs=6e-4)
    assert depth["rmse"] == pytest.approx(0.521, abs=6e-4)
    assert normals["mean_deg"] == pytest.approx(34.7, abs=0.06)
