"""The renderer: golden bytes, exact geometry, label conventions, NumPy against jax.numpy."""

from __future__ import annotations

import hashlib

import jax
import numpy as np
import pytest

from sinewich_jax.data.scenes import (
    TASKS,
    render,
    render_batch,
    render_many,
    sample_scene,
    stack_scenes,
    step_aside,
)
from sinewich_jax.data.scenes import types as t
from sinewich_jax.data.scenes.labels import CREASE, centre_weights
from sinewich_jax.errors import DataError

GOLDEN = "91aab832bae6b69e292df7382442d8261c3867cecb52897b3c52916f660aaf8d"
SEEDS = (0, 3, 8, 11, 14, 1_000_000, 2_000_001, 3_000_007)
SIZE = 64


def digest(example) -> str:
    sha = hashlib.sha256(example["image"].tobytes())
    for task in TASKS:
        sha.update(example["labels"][task].tobytes())
    return sha.hexdigest()


@pytest.fixture(scope="module")
def examples():
    return {seed: render(sample_scene(seed), SIZE, SIZE) for seed in SEEDS}


def test_golden_scene():
    """Image and all six label maps of scene 0, to the bit: float32 IEEE 754 in a fixed order."""
    assert digest(render(sample_scene(0), 64, 64)) == GOLDEN


def test_a_step_aside_shows_the_same_scene_from_there_with_other_noise():
    scene = sample_scene(3)
    still = step_aside(scene, np.zeros(3))
    first, again = (render(s, SIZE, SIZE) for s in (scene, still))
    for task in TASKS:
        np.testing.assert_array_equal(first["labels"][task], again["labels"][task])
    change = first["image"].astype(int) - again["image"]
    assert 2 < change.std() < 12 and abs(change.mean()) < 0.1
    # A step forward brings every floor pixel nearer by less than the step times two.
    ahead = render(step_aside(scene, [0.0, 0.0, 0.5]), SIZE, SIZE)["labels"]["depth"]
    centre = np.s_[30:34, 30:34]
    np.testing.assert_allclose(
        ahead[centre].mean(), first["labels"]["depth"][centre].mean() - 0.5, atol=0.1
    )


def test_same_seed_same_bytes(examples):
    assert digest(render(sample_scene(3), SIZE, SIZE)) == digest(examples[3])
    assert len({digest(example) for example in examples.values()}) == len(SEEDS)


def test_shapes_and_dtypes():
    example = render(sample_scene(5), 24, 40)
    assert example["image"].shape == (24, 40, 3) and example["image"].dtype == np.uint8
    expected = {"normals": ((24, 40, 3), np.float32), "depth": ((24, 40), np.float32)}
    assert tuple(example["labels"]) == TASKS == tuple(example["valid"])
    for task in TASKS:
        shape, dtype = expected.get(task, ((24, 40), np.uint8))
        assert example["labels"][task].shape == shape
        assert example["labels"][task].dtype == dtype
        assert example["valid"][task].dtype == bool and example["valid"][task].all()
    only = render(sample_scene(5), 24, 40, image_only=True)
    assert list(only) == ["image"]
    np.testing.assert_array_equal(only["image"], example["image"])


def test_normals_are_unit_and_face_the_ray(examples):
    for seed, example in examples.items():
        normals = example["labels"]["normals"].astype(np.float64)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1.0, atol=1e-6)
        rays = pixel_rays(SIZE, float(sample_scene(seed).camera.focal))
        assert ((normals * rays).sum(-1) <= 1e-6).all()


def test_depth_is_that_of_a_room(examples):
    for example in examples.values():
        depth = example["labels"]["depth"]
        assert (depth > 1.0).all() and (depth < 12.0).all()


def pixel_rays(size: int, focal: float) -> np.ndarray:
    """[H, W, 3] in camera axes, z component 1."""
    x = (np.arange(size) + 0.5 - size / 2) / (focal * size)
    return np.stack([*np.meshgrid(x, x), np.ones((size, size))], axis=-1)


@pytest.mark.parametrize("axis", [0, 1])
def test_surfaces_run_perpendicular_to_their_normals(examples, axis):
    """The chord between two points of a circle is perpendicular to the mean of their normals."""
    angles = []
    for seed, example in examples.items():
        labels = example["labels"]
        rays = pixel_rays(SIZE, float(sample_scene(seed).camera.focal))
        points = rays * labels["depth"][..., None]
        chord = np.diff(points, axis=axis)
        here = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        there = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        mean = labels["normals"][here] + labels["normals"][there]
        cosine = (chord * mean).sum(-1)
        cosine /= np.linalg.norm(chord, axis=-1) * np.linalg.norm(mean, axis=-1)
        smooth = labels["edge"][here] == 0
        angles.append(np.degrees(np.arcsin(np.clip(np.abs(cosine[smooth]), 0, 1))))
    angles = np.concatenate(angles)
    assert np.median(angles) < 0.01
    assert np.percentile(angles, 99) < 1.0


def test_a_wall_is_where_the_plane_is(examples):
    """Back-projected floor and wall pixels satisfy their plane's equation."""
    for seed, example in examples.items():
        scene, labels = sample_scene(seed), example["labels"]
        points = pixel_rays(SIZE, float(scene.camera.focal)) * labels["depth"][..., None]
        world = points @ scene.camera.axes.astype(np.float64) + scene.camera.eye
        height = world[..., 2][labels["semseg"] == t.FLOOR]
        np.testing.assert_allclose(height, 0.0, atol=1e-4)
        walls = world[labels["semseg"] == t.WALL] @ scene.planes.normal[1:].T
        np.testing.assert_allclose((walls - scene.planes.offset[1:]).min(-1), 0.0, atol=1e-4)


def test_parts_are_parts_of_figures(examples):
    seen = set()
    for example in examples.values():
        parts, semseg = example["labels"]["human_parts"], example["labels"]["semseg"]
        np.testing.assert_array_equal(parts > 0, semseg == t.FIGURE)
        seen |= set(np.unique(parts).tolist())
    assert seen == set(range(7))


def test_saliency_is_one_whole_object(examples):
    for example in examples.values():
        mask = example["labels"]["saliency"] == 1
        classes = np.unique(example["labels"]["semseg"][mask])
        assert len(classes) == 1 and classes[0] not in (t.WALL, t.FLOOR)


def test_saliency_picks_the_most_central_object():
    alone = next(
        scene
        for scene in map(sample_scene, range(100))
        if scene.surfaces.thing[scene.surfaces.valid].max() == t.FIRST_OBJECT
    )
    labels = render(alone, SIZE, SIZE)["labels"]
    np.testing.assert_array_equal(labels["saliency"] == 1, labels["semseg"] >= t.FIGURE)
    weights = centre_weights(64, 64)
    assert weights.max() <= 1023 and weights[32, 32] > weights[0, 32] > weights[0, 0]


def test_edges_hold_every_boundary_and_crease(examples):
    for example in examples.values():
        labels = example["labels"]
        edge, normals = labels["edge"], labels["normals"]
        for here, there in (
            (np.s_[:-1, :], np.s_[1:, :]),
            (np.s_[:, :-1], np.s_[:, 1:]),
        ):
            cosine = (normals[here] * normals[there]).sum(-1)
            must = (labels["semseg"][here] != labels["semseg"][there]) | (cosine < CREASE - 1e-5)
            must |= labels["human_parts"][here] != labels["human_parts"][there]
            assert (edge[here][must] == 1).all()
        assert 0.01 < edge.mean() < 0.35
        assert edge[-1, -1] == 0


def test_pictures_are_well_exposed():
    images = render_many(range(40, 72), 32, 32, image_only=True)["image"].astype(float)
    means = images.mean(axis=(1, 2, 3))
    assert means.min() > 50 and means.max() < 205
    assert (images.std(axis=(1, 2, 3)) > 8).all()


def test_resolution_changes_sampling_not_the_scene():
    small, large = (render(sample_scene(8), n, n)["labels"] for n in (32, 96))
    agree = small["semseg"] == large["semseg"][1::3, 1::3]  # the same pixel centres
    assert agree.mean() > 0.999
    same = np.isclose(small["depth"], large["depth"][1::3, 1::3], atol=1e-4)
    assert same.mean() > 0.999


def test_jax_agrees_with_numpy(examples):
    batch = stack_scenes([sample_scene(seed) for seed in SEEDS])
    made = jax.tree.map(np.asarray, render_batch(batch, SIZE, SIZE))
    for row, seed in enumerate(SEEDS):
        labels, other = examples[seed]["labels"], {k: v[row] for k, v in made["labels"].items()}
        for task in TASKS:
            assert other[task].dtype == labels[task].dtype
        for task in ("semseg", "human_parts", "saliency", "edge"):
            assert (labels[task] == other[task]).mean() >= 0.999, (seed, task)
        assert np.isclose(labels["depth"], other["depth"], atol=1e-3).mean() >= 0.999
        close = np.isclose(labels["normals"], other["normals"], atol=5e-3).all(-1)
        assert close.mean() >= 0.999
        difference = np.abs(examples[seed]["image"].astype(int) - made["image"][row].astype(int))
        assert (difference <= 2).mean() >= 0.99


def test_many_is_a_loop_and_reports_progress():
    calls = []
    seeds = [4, 9, 2, 7, 5]
    made = render_many(seeds, 16, 16, progress=lambda *a: calls.append(a), chunk=2)
    assert calls == [(2, 5), (4, 5), (5, 5)]
    for row, seed in enumerate(seeds):
        example = render(sample_scene(seed), 16, 16)
        np.testing.assert_array_equal(made["image"][row], example["image"])
        for task in TASKS:
            np.testing.assert_array_equal(made["labels"][task][row], example["labels"][task])
            assert made["valid"][task][row].all()


def test_many_in_jax_pads_the_last_chunk(examples):
    seeds = [*SEEDS[1:], 21, SEEDS[0], SEEDS[4]]
    made = render_many(seeds, SIZE, SIZE, backend="jax", chunk=len(SEEDS))
    assert made["image"].shape == (10, SIZE, SIZE, 3) and made["labels"]["depth"].shape[0] == 10
    for row, seed in ((0, SEEDS[1]), (8, SEEDS[0]), (9, SEEDS[4])):
        agree = made["labels"]["semseg"][row] == examples[seed]["labels"]["semseg"]
        assert agree.mean() >= 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([1], 16, 16, "torch"), "'torch' is unknown"), (([], 16, 16), "at least one seed")],
)
def test_many_says_what_is_wrong(arguments, message):
    with pytest.raises(DataError, match=message):
        render_many(*arguments)
