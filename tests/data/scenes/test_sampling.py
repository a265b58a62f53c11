"""Seeds to scenes: the frozen stream, the statistics, and nothing degenerate."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.data import scenes
from sinewich_jax.data.scenes import types as t
from sinewich_jax.data.scenes.draws import Draws
from sinewich_jax.data.scenes.sampling import SPLIT_OFFSETS, sample_scene


def leaves(tree):
    return [np.asarray(x) for x in (tree if isinstance(tree, tuple) else [tree])]


def flat(scene):
    return [leaf for field in scene for leaf in leaves(field)]


def things(scene):
    surfaces = scene.surfaces
    return set(surfaces.thing[surfaces.valid & (surfaces.thing >= t.FIRST_OBJECT)].tolist())


@pytest.fixture(scope="module")
def many():
    return [sample_scene(seed) for seed in range(600)]


def test_the_stream_is_philox_word_by_word():
    draws = Draws(11)
    expected = np.random.Philox(key=11).random_raw(300)
    assert [draws.word() for _ in range(300)] == expected.tolist()


@given(st.integers(0, 2**63), st.integers(-5, 5), st.integers(0, 9))
@settings(max_examples=50)
def test_draws_stay_in_range(seed, low, span):
    draws = Draws(seed)
    assert low <= draws.integer(low, low + span) <= low + span
    assert 0.0 <= draws.uniform() < 1.0


@given(st.integers(0, 2**63))
@settings(max_examples=25)
def test_same_seed_same_scene_and_fixed_shapes(seed):
    one, two = flat(sample_scene(seed)), flat(sample_scene(seed))
    reference = flat(sample_scene(0))
    for a, b, c in zip(one, two, reference, strict=True):
        assert a.tobytes() == b.tobytes()
        assert a.shape == c.shape and a.dtype == c.dtype
        assert a.dtype != np.float64 and np.isfinite(a.astype(np.float64)).all()


def test_neighbouring_seeds_differ():
    keys = {int(sample_scene(seed).key) for seed in range(100)}
    assert len(keys) == 100


def test_share_of_figures_and_of_lonely_objects(many):
    figures = np.mean([(s.surfaces.semseg[s.surfaces.valid] == t.FIGURE).any() for s in many])
    counts = np.array([len(things(s)) for s in many])
    assert 0.62 < figures < 0.8
    assert 0.06 < (counts == 1).mean() < 0.15
    assert set(counts.tolist()) == {1, 2, 3, 4, 5}


def test_every_class_appears(many):
    seen = set()
    for scene in many:
        seen |= set(scene.surfaces.semseg[scene.surfaces.valid].tolist())
    assert seen == set(range(len(t.SEMSEG_CLASSES)))


def test_camera_is_orthonormal_inside_the_room_and_clear_of_objects(many):
    for scene in many:
        axes = scene.camera.axes
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(np.cross(axes[0], axes[1]), axes[2], atol=1e-6)
        eye = scene.camera.eye
        assert (scene.planes.normal @ eye - scene.planes.offset > 0.5).all()
        objects = scene.surfaces.valid & (scene.surfaces.thing >= t.FIRST_OBJECT)
        distance = np.linalg.norm(scene.surfaces.origin[objects, :2] - eye[:2], axis=1)
        assert distance.min() > 1.5


def test_objects_stand_apart(many):
    for scene in many:
        s = scene.surfaces
        places = [s.origin[s.valid & (s.thing == thing)][0, :2] for thing in things(scene)]
        for a, b in itertools.combinations(places, 2):
            assert np.linalg.norm(a - b) > 0.75 - 1e-6


def test_split_ranges_never_meet():
    starts = sorted(SPLIT_OFFSETS.values())
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 1_000_000
    assert set(SPLIT_OFFSETS) == {"train", "val", "test", "pretrain"}


def test_importing_the_scenes_is_light():
    code = (
        "import sys, sinewich_jax.data.scenes\n"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve():
    assert all(hasattr(scenes, name) for name in scenes.__all__)
