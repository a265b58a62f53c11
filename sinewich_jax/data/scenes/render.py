"""The renderer: one source for NumPy (the golden truth) and for ``jax.numpy`` (jit, vmap).

What is guaranteed: with NumPy, image and labels are made of IEEE 754 float32 ``+ - * / sqrt``,
comparisons and integer arithmetic in a fixed order, so the same scene gives the same bytes on
every machine. With ``jax.numpy`` the compiler may fuse and reorder: at least 99.9 % of the label
pixels agree, and the image differs by rounding except where a ray grazes a silhouette or shadow.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from sinewich_jax.data.scenes import geometry as g
from sinewich_jax.data.scenes import labels, shade
from sinewich_jax.data.scenes.types import PLANES, Scene, Surfaces

TASKS = ("semseg", "human_parts", "saliency", "normals", "depth", "edge")


def trim(scene: Scene) -> Scene:
    """The scene without padding (one row a family at least): the same picture, sooner.

    Args:
      scene: a padded scene of NumPy arrays.

    Returns:
      The scene with shorter tables; not for batches.
    """
    keep, families, first = [np.arange(PLANES)], [], PLANES
    for family in (scene.boxes, scene.capsules, scene.cones):
        size = len(family[0])
        count = max(1, int(scene.surfaces.valid[first : first + size].sum()))
        families.append(type(family)(*(leaf[:count] for leaf in family)))
        keep.append(np.arange(first, first + count))
        first += size
    index = np.concatenate(keep)
    boxes, capsules, cones = families
    surfaces = Surfaces(*(leaf[index] for leaf in scene.surfaces))
    return scene._replace(boxes=boxes, capsules=capsules, cones=cones, surfaces=surfaces)


def render(
    scene: Scene,
    height: int,
    width: int,
    xp: ModuleType = np,
    image_only: bool = False,
) -> dict[str, Any]:
    """The picture of a scene and the exact label maps of the six tasks.

    A pixel's ray goes through its centre (+ .5); the focal length is in image widths and pixels
    are square, so another aspect ratio shows more or less above and below.

    Args:
      scene: a scene from `sampling.sample_scene`.
      height: pixels.
      width: pixels.
      xp: ``numpy`` or ``jax.numpy``.
      image_only: leave the label maps out.

    Returns:
      ``{"image": uint8 [H, W, 3], "labels": {...}, "valid": {...}}``: semseg, human_parts,
      saliency and edge uint8 [H, W]; depth float32 [H, W], z-depth in metres; normals float32
      [H, W, 3], unit, in camera axes (x right, y down, z forward), facing the ray; validity bool
      [H, W], all True. With ``image_only`` just the image.
    """
    if xp is np:
        scene = trim(scene)
    axes = [tuple(scene.camera.axes[i, j] for j in range(3)) for i in range(3)]
    ray, forward = _rays(scene, height, width, xp)
    eye = g.columns(scene.camera.eye[None])
    bundle = tuple(c[None] for c in ray)
    planes = g.hit_planes(scene.planes, eye, bundle, xp)
    objects = g.hit_objects(scene, eye, bundle, xp)
    distance, index = g.nearest([planes, *objects], xp)
    depth = distance * forward
    point = g.add(tuple(c[0] for c in eye), g.times(ray, distance))
    normal = g.normals(scene, index, point, xp)
    normal = g.times(normal, g.sign(g.dot(normal, ray) <= 0.0, xp))
    lit = shade.light(scene, normal, point, xp)
    colour = shade.albedo(scene, index, point, depth, width, xp)
    image = shade.expose(scene, [c * lit for c in colour], xp).reshape(height, width, 3)
    if image_only:
        return {"image": image}
    shape = (height, width)
    surfaces = scene.surfaces
    thing, part = surfaces.thing[index].reshape(shape), surfaces.part[index].reshape(shape)
    camera = tuple(g.dot(axis, normal).reshape(shape) for axis in axes)
    found = {
        "semseg": surfaces.semseg[index].reshape(shape).astype(xp.uint8),
        "human_parts": part.astype(xp.uint8),
        "saliency": labels.saliency(thing, xp),
        "normals": xp.stack(g.unit(camera, xp), axis=-1),
        "depth": depth.reshape(shape),
        "edge": labels.edges(thing, part, camera, xp),
    }
    valid = {task: xp.ones(shape, bool) for task in TASKS}
    return {"image": image, "labels": found, "valid": valid}


def _rays(scene: Scene, height: int, width: int, xp: ModuleType) -> tuple[g.Vec, g.Array]:
    """Unit rays in world axes, Vec [N], and their share along the camera's z axis, [N]."""
    scale = 1.0 / (scene.camera.focal * float(width))
    x = (xp.arange(width, dtype=xp.float32) + (0.5 - width / 2)) * scale
    y = (xp.arange(height, dtype=xp.float32) + (0.5 - height / 2)) * scale
    x = xp.broadcast_to(x[None, :], (height, width)).reshape(-1)
    y = xp.broadcast_to(y[:, None], (height, width)).reshape(-1)
    forward = 1.0 / xp.sqrt(x * x + y * y + 1.0)
    right, down, ahead = scene.camera.axes
    ray = tuple((x * right[i] + y * down[i] + ahead[i]) * forward for i in range(3))
    return ray, forward
