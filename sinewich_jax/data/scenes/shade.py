"""From what a ray hits to what the camera records: texture, sun, shadow, noise, gamma."""

from __future__ import annotations

from types import ModuleType

from sinewich_jax.data.scenes import geometry as g
from sinewich_jax.data.scenes.geometry import Array, Vec
from sinewich_jax.data.scenes.types import CHECK, PLAIN, STRIPE, Scene

NOISE = 0.015
"""Standard deviation of the sensor's noise, of full scale."""

_BIAS = 2e-3
_OFFSET = 0.37  # Keeps faces through the frame's origin off the border between two cells.


def hash32(x: Array, xp: ModuleType) -> Array:
    """Mixes every bit of a uint32 array into every other (the "lowbias32" integer hash)."""
    x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x7FEB352D)
    x = (x ^ (x >> xp.uint32(15))) * xp.uint32(0x846CA68B)
    return x ^ (x >> xp.uint32(16))


def _cells(x: Array, xp: ModuleType) -> Array:
    return xp.floor(x + _OFFSET).astype(xp.int32)


def albedo(
    scene: Scene, index: Array, point: Vec, depth: Array, width: int, xp: ModuleType
) -> list[Array]:
    """Textured albedo of the points that were hit.

    The contrast of a texture fades where one of its cells covers less than 3 pixels (gone at 1.5),
    which is what keeps far floors free of aliasing.

    Args:
      scene: the scene.
      index: int [N], rows of the surface table.
      point: Vec [N] in the world.
      depth: float [N], metres.
      width: image width in pixels.
      xp: array module.

    Returns:
      Three arrays [N], red, green and blue, linear.
    """
    s = scene.surfaces
    frequency, kind = s.frequency[index], s.texture[index]
    local = g.subtract(point, g.rows(s.origin, index))
    local = g.turn(local, s.turn[:, 0][index], s.turn[:, 1][index])
    u, v, w = (p * frequency for p in local)
    i, j, k = _cells(u, xp), _cells(v, xp), _cells(w, xp)
    check = (i + j + k) & 1
    stripe = _cells(u + w, xp) & 1
    mixed = i.astype(xp.uint32) * xp.uint32(0x9E3779B1)
    mixed = mixed ^ (j.astype(xp.uint32) * xp.uint32(0x85EBCA77))
    mixed = mixed ^ (k.astype(xp.uint32) * xp.uint32(0xC2B2AE3D)) ^ scene.key
    speckle = (hash32(mixed, xp) >> xp.uint32(24)).astype(xp.float32) * (1.0 / 255.0)
    mix = xp.where(kind == CHECK, check, stripe).astype(xp.float32)
    mix = xp.where(kind <= STRIPE, mix, speckle)
    pixels = scene.camera.focal * float(width) / (depth * frequency)
    fade = xp.clip((pixels - 1.5) * (1.0 / 1.5), 0.0, 1.0)
    mix = xp.where(kind == PLAIN, 0.0, 0.5 + (mix - 0.5) * fade)
    channels = []
    for channel in range(3):
        one, two = s.colour[:, 0, channel][index], s.colour[:, 1, channel][index]
        channels.append(one + (two - one) * mix)
    return channels


def light(scene: Scene, normal: Vec, point: Vec, xp: ModuleType) -> Array:
    """Irradiance ``ambient + (1 - ambient) max(0, n . sun)``, the sun cut off by any object.

    The ambient term is a sky: full for surfaces that look up, 70 % for those that look down.

    Args:
      scene: the scene.
      normal: Vec [N], unit, world axes.
      point: Vec [N], world.
      xp: array module.

    Returns:
      float [N].
    """
    sun = g.columns(scene.light.sun[None])
    lambert = xp.maximum(g.dot(normal, tuple(c[0] for c in sun)), 0.0)
    start = g.add(point, g.times(normal, _BIAS))
    blockers = g.hit_objects(scene, tuple(c[None] for c in start), sun, xp)
    for t in blockers:
        lambert = xp.where(t.min(axis=0) < g.FAR, 0.0, lambert)
    sky = scene.light.ambient * (0.85 + 0.15 * normal[2])
    return sky + (1.0 - scene.light.ambient) * lambert


def expose(scene: Scene, channels: list[Array], xp: ModuleType) -> Array:
    """Exposure, noise, gamma 3/4 and rounding to bytes.

    The noise is the sum of the four bytes of a hash of (picture, pixel, channel), which is close to
    a Gaussian and the same in every array module. The gamma of 1 / 1.333 is two square roots,
    because IEEE 754 defines those exactly and powers not.

    Args:
      scene: the scene.
      channels: three float arrays [N], linear.
      xp: array module.

    Returns:
      uint8 [N, 3].
    """
    linear = xp.stack(channels, axis=-1) * scene.light.exposure
    counter = xp.arange(linear.size, dtype=xp.uint32).reshape(linear.shape)
    key = scene.camera.noise
    bits = hash32(hash32(counter ^ key, xp) ^ key, xp)
    byte = xp.uint32(0xFF)
    total = (bits & byte) + ((bits >> xp.uint32(8)) & byte)
    total = total + ((bits >> xp.uint32(16)) & byte) + (bits >> xp.uint32(24))
    deviation = 147.80053  # of the sum of four uniform bytes: sqrt(4 (256^2 - 1) / 12)
    noise = (total.astype(xp.float32) - 510.0) * (NOISE / deviation)
    level = xp.sqrt(xp.clip(linear + noise, 0.0, 1.0))
    return (level * xp.sqrt(level) * 255.0 + 0.5).astype(xp.uint8)
