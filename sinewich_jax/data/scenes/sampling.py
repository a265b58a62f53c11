"""From a seed to a scene: camera, room, light, and one to five objects that can be seen.

The order of the draws is frozen: a change of it is a new data set (see `FORMAT`).
"""

from __future__ import annotations

import math

import numpy as np

from sinewich_jax.data.scenes import types as t
from sinewich_jax.data.scenes.draws import Draws
from sinewich_jax.data.scenes.objects import KINDS, Assembly, draw_look, hsv

FORMAT = "1.0.0"
"""Version of the data: raised whenever the same seed would give other bytes."""

SPLIT_OFFSETS = {"train": 0, "val": 1_000_000, "test": 2_000_000, "pretrain": 3_000_000}
"""First seed of every split; ranges are a million seeds long and never meet."""

ALONE = 0.1
"""Share of scenes that hold a single object."""

FIGURE_FIRST = 0.6
"""Share of scenes whose first object is a figure (later ones add to it)."""

_TRIES = 24


def sample_scene(seed: int) -> t.Scene:
    """The scene of ``seed``, a pure function of it.

    Args:
      seed: any integer from 0 to 2**128 - 1.

    Returns:
      A `Scene` of float32, int32 and bool NumPy arrays, padded to fixed counts. All draws and
      rotations are computed in float64 and rounded once.
    """
    draws = Draws(seed)
    key = draws.word() & 0xFFFFFFFF
    camera = _draw_camera(draws, key)
    planes, rows = _draw_room(draws)
    light = _draw_light(draws)
    build = Assembly()
    _draw_objects(draws, build, camera, planes)
    boxes = _pack(build.boxes, t.MAX_BOXES, 8)
    capsules = _pack(build.capsules, t.MAX_CAPSULES, 8)
    cones = _pack(build.cones, t.MAX_CONES, 6)
    rows += _surface_rows(build)
    return t.Scene(
        np.uint32(key),
        camera,
        light,
        planes,
        t.Boxes(boxes[:, 0:3], boxes[:, 3:6], boxes[:, 6:8]),
        t.Capsules(capsules[:, 0:3], capsules[:, 3:6], capsules[:, 6], capsules[:, 7]),
        t.Cones(cones[:, 0:3], cones[:, 3], cones[:, 4], cones[:, 5]),
        pack_surfaces(rows),
    )


def step_aside(scene: t.Scene, step: np.ndarray) -> t.Scene:
    """The same scene from a camera that has moved without turning; its picture has other noise.

    Args:
      scene: a scene from `sample_scene`.
      step: float [3], metres along the camera's own axes (right, down, forward).
    """
    camera = scene.camera
    eye = _float(camera.eye + np.asarray(step, np.float64) @ camera.axes)
    noise = np.uint32((int(camera.noise) * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF)
    return scene._replace(camera=camera._replace(eye=eye, noise=noise))


def _float(value) -> np.ndarray:
    return np.asarray(value, np.float32)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(float(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2))


def _draw_camera(draws: Draws, noise: int) -> t.Camera:
    eye = np.array([draws.uniform(-0.8, 0.8), -draws.uniform(3.2, 4.4), draws.uniform(0.9, 2.2)])
    aim = [draws.uniform(-0.3, 0.3), draws.uniform(-0.3, 0.3), draws.uniform(0.35, 0.65)]
    forward = _unit(np.array(aim) - eye)
    right = _unit(np.array([forward[1], -forward[0], 0.0]))
    axes = np.stack([right, np.cross(forward, right), forward])
    focal = draws.uniform(0.95, 1.25)
    return t.Camera(_float(eye), _float(axes), _float(focal), np.uint32(noise))


def _draw_room(draws: Draws) -> tuple[t.Planes, list[tuple]]:
    """Floor and two walls; the side wall stands where the back wall recedes from the camera."""
    yaw = draws.uniform(-0.5, 0.5)
    back, side = draws.uniform(2.2, 3.5), draws.uniform(2.2, 3.5)
    cos, sin = math.cos(yaw), math.sin(yaw)
    hand = 1.0 if yaw > 0 else -1.0
    normal = [[0.0, 0.0, 1.0], [sin, -cos, 0.0], [-hand * cos, -hand * sin, 0.0]]
    planes = t.Planes(_float(normal), _float([0.0, -back, -side]))
    room = Assembly()
    room.place((0.0, 0.0), yaw, 1.0)
    floor = hsv(draws.uniform(0.0, 0.16), draws.uniform(0.05, 0.55), draws.uniform(0.35, 0.8))
    room.start(t.FLOOR, 0)
    rows = [room.surface(draw_look(draws, floor, contrast=0.35))]
    paint = hsv(draws.uniform(), draws.uniform(0.0, 0.35), draws.uniform(0.5, 0.95))
    look = draw_look(draws, paint, contrast=0.2)
    for thing in (1, 2):
        room.start(t.WALL, thing)
        rows.append(room.surface(look))
    return planes, rows


def _draw_light(draws: Draws) -> t.Light:
    """A sun at the camera's side, so that the visible walls are lit."""
    azimuth, height = draws.uniform(-1.1, 1.1), draws.uniform(0.6, 1.2)
    flat = math.cos(height)
    sun = [flat * math.sin(azimuth), -flat * math.cos(azimuth), math.sin(height)]
    ambient, exposure = draws.uniform(0.25, 0.45), draws.uniform(0.8, 1.2)
    return t.Light(_float(sun), _float(ambient), _float(exposure))


def _draw_kinds(draws: Draws) -> list[int]:
    """Classes of the objects to place, at most two of each."""
    count = 1 if draws.uniform() < ALONE else draws.integer(2, t.MAX_OBJECTS)
    others = [kind for kind in KINDS if kind != t.FIGURE]
    first = t.FIGURE if draws.uniform() < FIGURE_FIRST else draws.choice(others)
    kinds = [first]
    while len(kinds) < count:
        options = [kind for kind in KINDS if kinds.count(kind) < t.MAX_PER_KIND]
        kinds.append(draws.choice(options))
    return kinds


def _draw_objects(draws: Draws, build: Assembly, camera: t.Camera, planes: t.Planes) -> None:
    """Places objects where they are in view, apart, and clear of the walls.

    An object for which no such place is found in a fixed number of tries is left out; the first
    one then stands at the origin, which every camera sees.
    """
    placed: list[tuple[float, float, float, float]] = []
    for kind in _draw_kinds(draws):
        scale, yaw = draws.uniform(0.75, 1.25), draws.uniform(0.0, 2 * math.pi)
        radius, middle = scale * KINDS[kind].radius, scale * KINDS[kind].middle
        for _ in range(_TRIES):
            x, y = draws.uniform(-1.5, 1.5), draws.uniform(-1.5, 1.5)
            column = _column_in_view(camera, x, y, middle, radius)
            if column is None or not _clear_of_walls(planes, x, y, radius):
                continue
            if all(_apart((x, y, radius, column), other) for other in placed):
                break
        else:
            if placed:
                continue
            x = y = column = 0.0
        placed.append((x, y, radius, column))
        build.start(kind, t.FIRST_OBJECT + len(placed) - 1)
        build.place((x, y), yaw, scale)
        KINDS[kind].build(build, draws)


def _column_in_view(camera: t.Camera, x: float, y: float, z: float, radius: float) -> float | None:
    """Image column of a point, in [-1, 1], or None when it is too near the rim or the camera."""
    (ex, ey, ez), focal = camera.eye.tolist(), float(camera.focal)
    dx, dy, dz = x - ex, y - ey, z - ez
    right, down, forward = (a * dx + b * dy + c * dz for a, b, c in camera.axes.tolist())
    if forward < 1.8 + radius:
        return None
    column, row = 2 * focal * right / forward, 2 * focal * down / forward
    return column if abs(column) < 0.75 and abs(row) < 0.8 else None


def _clear_of_walls(planes: t.Planes, x: float, y: float, radius: float) -> bool:
    walls = zip(planes.normal[1:].tolist(), planes.offset[1:].tolist(), strict=True)
    return all(normal[0] * x + normal[1] * y - offset > radius for normal, offset in walls)


def _apart(one: tuple, other: tuple) -> bool:
    """At least .75 m apart, not inside each other, and not exactly behind one another."""
    distance = math.hypot(one[0] - other[0], one[1] - other[1])
    return distance > max(0.75, one[2] + other[2]) and abs(one[3] - other[3]) > 0.2


def _pack(entries: list[tuple], count: int, width: int) -> np.ndarray:
    """Rows of geometry as float32 [count, width]; padding is a tiny thing that is never valid."""
    table = np.ones((count, width), np.float32)
    if entries:
        table[: len(entries)] = [row for row, _ in entries]
    return table


def _surface_rows(build: Assembly) -> list[tuple]:
    padding = (0.0,) * 17
    rows: list[tuple] = []
    sizes = (
        (build.boxes, t.MAX_BOXES),
        (build.capsules, t.MAX_CAPSULES),
        (build.cones, t.MAX_CONES),
    )
    for entries, count in sizes:
        rows += [surface for _, surface in entries] + [padding] * (count - len(entries))
    return rows


def pack_surfaces(rows: list[tuple]) -> t.Surfaces:
    """The surface table from rows of 17 numbers.

    Args:
      rows: valid, semseg, part, thing, texture, frequency, colour (3), second colour (3),
        origin (3), cosine, sine, for every primitive in the order of `Surfaces`.

    Returns:
      The same as `Surfaces`.
    """
    table = np.asarray(rows, np.float32)
    kinds = table[:, :5].astype(np.int32)
    return t.Surfaces(
        kinds[:, 0] > 0,
        kinds[:, 1],
        kinds[:, 2],
        kinds[:, 3],
        kinds[:, 4],
        table[:, 5],
        table[:, 6:12].reshape(-1, 2, 3),
        table[:, 12:15],
        table[:, 15:17],
    )
