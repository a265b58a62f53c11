"""Rays against planes, boxes, capsules and cones in closed form, and the normals of what they hit.

Everything is written per component with ``+ - * /``, ``sqrt``, comparisons and ``where`` alone,
which IEEE 754 defines to the last bit; no matrix product and no float reduction, whose order
differs between machines. The array module ``xp`` is NumPy or ``jax.numpy``.

A ``Vec`` is a tuple (x, y, z) of arrays that broadcast: primitives along axis 0 and pixels along
axis 1, so a ray bundle has the shapes [1, 1] or [1, N] and a primitive's constants [K, 1].
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from sinewich_jax.data.scenes.types import PLANES, Boxes, Capsules, Cones, Planes, Scene

Array = Any
Vec = tuple[Array, Array, Array]

FAR = 1e9
"""Distance of a ray that hits nothing, in metres."""

NEAR = 1e-3
"""Hits nearer than this are the surface that the ray starts on, in metres."""

_TINY = 1e-9


def dot(a: Vec, b: Vec) -> Array:
    """Scalar product, summed from x to z."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vec, b: Vec) -> Vec:
    """Vector product."""
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def add(a: Vec, b: Vec) -> Vec:
    """Sum."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def subtract(a: Vec, b: Vec) -> Vec:
    """Difference."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def times(a: Vec, factor: Array) -> Vec:
    """Multiple."""
    return a[0] * factor, a[1] * factor, a[2] * factor


def unit(a: Vec, xp: ModuleType) -> Vec:
    """The vector at length one."""
    return times(a, 1.0 / xp.sqrt(dot(a, a)))


def columns(table: Array) -> Vec:
    """The columns of [K, 3] as a Vec of shape [K, 1]."""
    return table[:, 0:1], table[:, 1:2], table[:, 2:3]


def rows(table: Array, index: Array) -> Vec:
    """Rows of [K, 3] picked by ``index`` [N], as a Vec of shape [N]."""
    return table[:, 0][index], table[:, 1][index], table[:, 2][index]


def turn(a: Vec, cos: Array, sin: Array) -> Vec:
    """World to a frame that is rotated by the angle of ``(cos, sin)`` about the vertical."""
    return cos * a[0] + sin * a[1], cos * a[1] - sin * a[0], a[2]


def turn_back(a: Vec, cos: Array, sin: Array) -> Vec:
    """Inverse of `turn`."""
    return cos * a[0] - sin * a[1], cos * a[1] + sin * a[0], a[2]


def sign(positive: Array, xp: ModuleType) -> Array:
    """+1 where ``positive``, else -1, in float32 (two Python numbers would make a float64)."""
    return positive.astype(xp.float32) * 2.0 - 1.0


def _safe(x: Array, xp: ModuleType) -> Array:
    """``x`` with values that are too small to divide by replaced."""
    return xp.where(xp.abs(x) < _TINY, _TINY, x)


def hit_planes(planes: Planes, origin: Vec, ray: Vec, xp: ModuleType) -> Array:
    """Distance to every plane, ``(offset - n . o) / n . d``, when seen from inside; [3, N]."""
    normal = columns(planes.normal)
    facing = dot(normal, ray)
    t = (planes.offset[:, None] - dot(normal, origin)) / xp.where(facing < -1e-6, facing, -1.0)
    return xp.where((facing < -1e-6) & (t > NEAR), t, FAR)


def hit_boxes(boxes: Boxes, origin: Vec, ray: Vec, xp: ModuleType) -> Array:
    """Distance to every box by the slab test: enter the last slab before leaving one; [K, N]."""
    cos, sin = boxes.turn[:, 0:1], boxes.turn[:, 1:2]
    start = turn(subtract(origin, columns(boxes.centre)), cos, sin)
    along = turn(ray, cos, sin)
    near, far = None, None
    for o, d, half in zip(start, along, columns(boxes.half), strict=True):
        inverse = 1.0 / _safe(d, xp)
        middle, reach = -o * inverse, half * xp.abs(inverse)
        enter, leave = middle - reach, middle + reach
        near = enter if near is None else xp.maximum(near, enter)
        far = leave if far is None else xp.minimum(far, leave)
    return xp.where((near < far) & (near > NEAR), near, FAR)


def hit_capsules(capsules: Capsules, origin: Vec, ray: Vec, xp: ModuleType) -> Array:
    """Distance to every capsule: a cylinder's side, or the sphere at the end beyond it; [K, N].

    With the unit axis ``u``, ``m = d . u`` and ``v = o - centre``, the cylinder's discriminant is
    ``(1 - m^2) r^2 - (d . (u x v))^2``: no large terms cancel, so float32 is enough.
    """
    axis, half = columns(capsules.axis), capsules.half[:, None]
    square = (capsules.radius * capsules.radius)[:, None]
    v = subtract(origin, columns(capsules.centre))
    m, level, along = dot(ray, axis), dot(v, axis), dot(ray, v)
    # The same triple product either way: the cross product is taken where it is the smaller array.
    narrow = ray[0].shape[-1] == 1
    volume = dot(v, cross(ray, axis)) if narrow else dot(ray, cross(axis, v))
    a = xp.maximum(1.0 - m * m, _TINY)
    h = a * square - volume * volume
    t_side = (level * m - along - xp.sqrt(xp.maximum(h, 0.0))) / a
    height = level + t_side * m
    end = xp.where(height > 0.0, half, -half)
    b = along - end * m
    h_end = b * b - (dot(v, v) - 2.0 * end * level + half * half - square)
    t_end = -b - xp.sqrt(xp.maximum(h_end, 0.0))
    on_side = xp.abs(height) <= half
    t = xp.where(on_side, t_side, t_end)
    return xp.where((h > 0.0) & (on_side | (h_end > 0.0)) & (t > NEAR), t, FAR)


def hit_cones(cones: Cones, origin: Vec, ray: Vec, xp: ModuleType) -> Array:
    """Distance to every upright capped cone: its side (two roots) or one of its caps; [K, N].

    The radius at height z is ``bottom + k z`` with ``k = (top - bottom) / height``. The quadratic
    is solved from the ray's closest approach to the axis, which keeps float32 accurate.
    """
    height, bottom, top = cones.height[:, None], cones.bottom[:, None], cones.top[:, None]
    k = (top - bottom) / height
    x, y, z = subtract(origin, columns(cones.base))
    dx, dy, dz = ray
    flat = xp.maximum(dx * dx + dy * dy, _TINY)
    shift = -(x * dx + y * dy) / flat
    px, py, pz = x + shift * dx, y + shift * dy, z + shift * dz
    radius = bottom + k * pz
    a = _safe(flat - k * k * dz * dz, xp)
    b = -k * radius * dz
    h = b * b - a * (px * px + py * py - radius * radius)
    root = xp.sqrt(xp.maximum(h, 0.0))
    best = FAR
    for t in ((-b - root) / a, (-b + root) / a):
        level = pz + t * dz
        t = t + shift
        good = (h > 0.0) & (level >= 0.0) & (level <= height) & (t > NEAR)
        best = xp.minimum(best, xp.where(good, t, FAR))
    rise = 1.0 / _safe(dz, xp)
    for level, edge in ((0.0, bottom), (height, top)):
        t = (level - z) * rise
        cx, cy = x + t * dx, y + t * dy
        good = (cx * cx + cy * cy <= edge * edge) & (t > NEAR)
        best = xp.minimum(best, xp.where(good, t, FAR))
    return best


def hit_objects(scene: Scene, origin: Vec, ray: Vec, xp: ModuleType) -> list[Array]:
    """Distances to the boxes, the capsules and the cones, `FAR` for padding; three of [K, N]."""
    families = (
        hit_boxes(scene.boxes, origin, ray, xp),
        hit_capsules(scene.capsules, origin, ray, xp),
        hit_cones(scene.cones, origin, ray, xp),
    )
    masked, first = [], PLANES
    for t in families:
        valid = scene.surfaces.valid[first : first + len(t)]
        masked.append(xp.where(valid[:, None], t, FAR))
        first += len(t)
    return masked


def nearest(families: list[Array], xp: ModuleType) -> tuple[Array, Array]:
    """The first thing that each ray meets.

    Args:
      families: distances [K, N], one array a family of primitives, in the order of `Surfaces`.
      xp: array module.

    Returns:
      The distance, float32 [N], and the row of the surface table, int32 [N]; of equal distances
      the first row wins.
    """
    distance, index, first = None, None, 0
    for t in families:
        best = t.min(axis=0)
        which = t.argmin(axis=0).astype(xp.int32) + first
        if distance is None:
            distance, index = best, which
        else:
            index = xp.where(best < distance, which, index)
            distance = xp.minimum(best, distance)
        first += len(t)
    return distance, index


def _box_normals(boxes: Boxes, index: Array, point: Vec, xp: ModuleType) -> Vec:
    cos, sin = boxes.turn[:, 0][index], boxes.turn[:, 1][index]
    local = turn(subtract(point, rows(boxes.centre, index)), cos, sin)
    x, y, z = (p / h for p, h in zip(local, rows(boxes.half, index), strict=True))
    ax, ay, az = xp.abs(x), xp.abs(y), xp.abs(z)
    on_z = (az >= ax) & (az >= ay)
    on_x = ~on_z & (ax >= ay)
    face = [
        xp.where(on, sign(value > 0, xp), 0.0)
        for on, value in ((on_x, x), (~on_z & ~on_x, y), (on_z, z))
    ]
    return turn_back((face[0], face[1], face[2]), cos, sin)


def _capsule_normals(capsules: Capsules, index: Array, point: Vec, xp: ModuleType) -> Vec:
    axis, half = rows(capsules.axis, index), capsules.half[index]
    v = subtract(point, rows(capsules.centre, index))
    level = xp.clip(dot(v, axis), -half, half)
    return unit(subtract(v, times(axis, level)), xp)


def _cone_normals(cones: Cones, index: Array, point: Vec, xp: ModuleType) -> Vec:
    height, bottom, top = cones.height[index], cones.bottom[index], cones.top[index]
    k = (top - bottom) / height
    x, y, z = subtract(point, rows(cones.base, index))
    radius = xp.maximum(xp.sqrt(x * x + y * y), _TINY)
    side, low, high = xp.abs(radius - bottom - k * z), xp.abs(z), xp.abs(z - height)
    on_side = (side <= low) & (side <= high)
    length = 1.0 / xp.sqrt(1.0 + k * k)
    cap = sign(high < low, xp)
    return (
        xp.where(on_side, x / radius * length, 0.0),
        xp.where(on_side, y / radius * length, 0.0),
        xp.where(on_side, -k * length, cap),
    )


def normals(scene: Scene, index: Array, point: Vec, xp: ModuleType) -> Vec:
    """Outward unit normals of the primitives that were hit.

    Args:
      scene: the scene.
      index: int [N], row of the primitive in the surface table.
      point: Vec [N] in the world.
      xp: array module.

    Returns:
      Vec of shape [N] in world axes.
    """
    counts = (PLANES, *(len(f[0]) for f in (scene.boxes, scene.capsules, scene.cones)))
    first, picked = 0, []
    for count in counts:
        picked.append(xp.clip(index - first, 0, count - 1))
        first += count
    found = rows(scene.planes.normal, picked[0])
    families = (
        (PLANES, _box_normals(scene.boxes, picked[1], point, xp)),
        (PLANES + counts[1], _capsule_normals(scene.capsules, picked[2], point, xp)),
        (first - counts[3], _cone_normals(scene.cones, picked[3], point, xp)),
    )
    for start, candidate in families:
        found = tuple(
            xp.where(index >= start, new, old) for new, old in zip(candidate, found, strict=True)
        )
    return found
