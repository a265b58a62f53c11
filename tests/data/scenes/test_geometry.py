"""Intersections against cases that can be worked out by hand, and against sampled rays."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.data.scenes import geometry as g
from sinewich_jax.data.scenes.shade import hash32
from sinewich_jax.data.scenes.types import Boxes, Capsules, Cones, Planes


def table(*rows):
    return np.array(rows, np.float32)


def rays(*directions):
    """Unit rays as a Vec [1, N]."""
    d = np.array(directions, np.float32)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    return tuple(d[None, :, i] for i in range(3))


def point(*xyz):
    return tuple(np.full((1, 1), v, np.float32) for v in xyz)


SPHERE = Capsules(table([0, 5, 0]), table([0, 0, 1]), table(0.0), table(1.0))
CAPSULE = Capsules(table([0, 5, 0]), table([0, 0, 1]), table(2.0), table(1.0))
BOX = Boxes(table([0, 5, 0]), table([1, 1, 1]), table([np.cos(np.pi / 4), np.sin(np.pi / 4)]))
CYLINDER = Cones(table([0, 5, -1]), table(2.0), table(1.0), table(1.0))
CONE = Cones(table([0, 5, -1]), table(2.0), table(1.0), table(0.0))


@pytest.mark.parametrize(
    ("hit", "shape", "origin", "direction", "expected"),
    [
        (g.hit_capsules, SPHERE, (0, 0, 0), (0, 1, 0), 4.0),
        (g.hit_capsules, SPHERE, (0, 0, 0.5), (0, 1, 0), 5 - np.sqrt(0.75)),
        (g.hit_capsules, SPHERE, (0, 0, 1.1), (0, 1, 0), g.FAR),
        (g.hit_capsules, SPHERE, (0, 9, 0), (0, 1, 0), g.FAR),
        (g.hit_capsules, CAPSULE, (0, 0, 1.9), (0, 1, 0), 4.0),
        (g.hit_capsules, CAPSULE, (0, 0, 2.5), (0, 1, 0), 5 - np.sqrt(0.75)),
        (g.hit_capsules, CAPSULE, (0, 5, 9), (0, 0, -1), 6.0),
        (g.hit_boxes, BOX, (0, 0, 0), (0, 1, 0), 5 - np.sqrt(2)),
        (g.hit_boxes, BOX, (0, 5, 7), (0, 0, -1), 6.0),
        (g.hit_boxes, BOX, (0, 0, 1.2), (0, 1, 0), g.FAR),
        (g.hit_cones, CYLINDER, (0, 0, 0), (0, 1, 0), 4.0),
        (g.hit_cones, CYLINDER, (0.2, 5.1, 9), (0, 0, -1), 8.0),
        (g.hit_cones, CYLINDER, (0.2, 5.1, -9), (0, 0, 1), 8.0),
        (g.hit_cones, CYLINDER, (0, 0, 1.1), (0, 1, 0), g.FAR),
        (g.hit_cones, CONE, (0, 0, 0), (0, 1, 0), 4.5),
        (g.hit_cones, CONE, (0.5, 5, 9), (0, 0, -1), 9.0),
        (g.hit_cones, CONE, (0, 0, 1.5), (0, 1, 0), g.FAR),
    ],
)
def test_distances_by_hand(hit, shape, origin, direction, expected):
    t = hit(shape, point(*origin), rays(direction), np)
    assert t.shape == (1, 1) and t.dtype == np.float32
    np.testing.assert_allclose(t[0, 0], expected, rtol=1e-5)


def test_planes_are_seen_from_inside_only():
    floor = Planes(table([0, 0, 1]), table(0.0))
    t = g.hit_planes(floor, point(0, 0, 2), rays((0, 0, -1), (0, 0, 1), (0, 1, -1)), np)
    np.testing.assert_allclose(t[0], [2.0, g.FAR, 2 * np.sqrt(2)], rtol=1e-6)


def test_one_direction_from_many_points_equals_many_rays_from_one_point():
    """The shadow rays' shapes take the other branch of the capsule's triple product."""
    generator = np.random.default_rng(0)
    axes = generator.normal(size=(6, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    capsules = Capsules(
        table(*generator.uniform(-1, 1, (6, 3))), table(*axes), table(*[0.4] * 6), table(*[0.3] * 6)
    )
    starts = generator.uniform(-1, 1, (50, 3)).astype(np.float32)
    starts[:, 1] -= 5
    direction = rays((0.1, 1.0, -0.05))
    many = g.hit_capsules(capsules, tuple(starts[None, :, i] for i in range(3)), direction, np)
    single = [g.hit_capsules(capsules, point(*start), direction, np)[:, 0] for start in starts]
    assert (many < g.FAR).any() and (many == g.FAR).any()
    np.testing.assert_allclose(many.T, single, rtol=1e-5)


def distance_to_surface(kind, p):
    """Signed-distance oracles of the shapes above, written differently from the intersections."""
    q = p - np.array([0, 5, 0])
    rho = np.hypot(q[:, 0], q[:, 1])
    if kind == "capsule":
        return np.hypot(rho, np.maximum(np.abs(q[:, 2]) - 2, 0)) - 1
    if kind == "box":
        u, v = (q[:, 0] + q[:, 1]) / np.sqrt(2), (q[:, 1] - q[:, 0]) / np.sqrt(2)
        return np.abs(np.stack([u, v, q[:, 2]])).max(0) - 1
    side = (rho - (1 - q[:, 2]) / 2) if kind == "cone" else rho - 1
    return np.maximum(side, np.abs(q[:, 2]) - 1)


@pytest.mark.parametrize(
    ("kind", "hit", "shape"),
    [
        ("capsule", g.hit_capsules, CAPSULE),
        ("box", g.hit_boxes, BOX),
        ("cylinder", g.hit_cones, CYLINDER),
        ("cone", g.hit_cones, CONE),
    ],
)
def test_hits_lie_on_the_surface_and_nothing_lies_before_them(kind, hit, shape):
    generator = np.random.default_rng(1)
    directions = np.stack(
        [generator.normal(0, 0.3, 400), np.ones(400), generator.normal(0, 0.3, 400)]
    )
    bundle = rays(*directions.T)
    eye = np.array([0.3, 0.0, 0.8], np.float32)
    t = hit(shape, point(*eye), bundle, np)[0].astype(np.float64)
    d = np.stack([c[0] for c in bundle], -1).astype(np.float64)
    found = t < g.FAR
    assert 20 < found.sum() < 390
    np.testing.assert_allclose(
        distance_to_surface(kind, eye + d[found] * t[found, None]), 0, atol=2e-5
    )
    reach = np.where(found, t - 0.02, 10.0)
    for share in np.linspace(0, 1, 60):
        assert (distance_to_surface(kind, eye + d * (share * reach)[:, None]) > 0).all()


def test_nearest_takes_the_first_of_equals():
    families = [table([3, 2, 9]), table([2, 2, 9], [1, 5, 9])]
    distance, index = g.nearest(families, np)
    np.testing.assert_array_equal(distance, [1, 2, 9])
    np.testing.assert_array_equal(index, [2, 0, 0])


def test_hash_is_a_permutation_with_good_low_bits():
    values = hash32(np.arange(1 << 16, dtype=np.uint32), np)
    assert len(np.unique(values)) == 1 << 16
    ones = [((values >> np.uint32(bit)) & np.uint32(1)).mean() for bit in range(32)]
    assert min(ones) > 0.49 and max(ones) < 0.51
