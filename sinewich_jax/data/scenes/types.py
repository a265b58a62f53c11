"""What a scene is: plain arrays in nested tuples, padded to fixed counts.

World axes: x to the right, y away from the camera, z up, in metres; the floor is ``z = 0``.
Every leaf is a NumPy array, so that a scene is a pytree that ``jax.vmap`` can batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SEMSEG_CLASSES = ("wall", "floor", "figure", "table", "lamp", "tree", "house", "ball")
PART_CLASSES = (
    "background",
    "head",
    "torso",
    "upper_arm",
    "lower_arm",
    "upper_leg",
    "lower_leg",
)
WALL, FLOOR, FIGURE, TABLE, LAMP, TREE, HOUSE, BALL = range(8)
HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(1, 7)
PLAIN, CHECK, STRIPE, SPECKLE = range(4)

MAX_OBJECTS = 5
MAX_PER_KIND = 2
PLANES = 3
MAX_BOXES = 2 * 5 + 2 * 2  # two tables and two houses
MAX_CAPSULES = 2 * 10 + 2  # two figures and two balls
MAX_CONES = 2 * 3 + 2 * 2 + 1  # two lamps, two trees and a house
FIRST_OBJECT = 3  # object ids 0, 1, 2 are the floor and the two walls


class Camera(NamedTuple):
    """A pinhole camera.

    Attributes:
      eye: float32 [3], position in the world.
      axes: float32 [3, 3], rows are the camera's x (right), y (down) and z (forward).
      focal: float32 [], focal length in image widths.
      noise: uint32 [], what the noise of this picture is hashed with.
    """

    eye: np.ndarray
    axes: np.ndarray
    focal: np.ndarray
    noise: np.ndarray


class Planes(NamedTuple):
    """Half spaces seen from inside: ``normal . p = offset``; normal [3, 3], offset [3]."""

    normal: np.ndarray
    offset: np.ndarray


class Boxes(NamedTuple):
    """Boxes turned about the vertical: centre [K, 3], half [K, 3], turn [K, 2] (cos, sin)."""

    centre: np.ndarray
    half: np.ndarray
    turn: np.ndarray


class Capsules(NamedTuple):
    """Capsules: centre [K, 3], unit axis [K, 3], half length [K], radius [K].

    A capsule of half length zero is a sphere.
    """

    centre: np.ndarray
    axis: np.ndarray
    half: np.ndarray
    radius: np.ndarray


class Cones(NamedTuple):
    """Upright capped cones: base [K, 3], height [K], radius at bottom and top [K].

    Equal radii make a capped cylinder.
    """

    base: np.ndarray
    height: np.ndarray
    bottom: np.ndarray
    top: np.ndarray


class Surfaces(NamedTuple):
    """What each primitive is and looks like; rows in the order planes, boxes, capsules, cones.

    Attributes:
      valid: bool [P], False for padding.
      semseg: int32 [P], class id.
      part: int32 [P], body part id, 0 outside figures.
      thing: int32 [P], object id: 0 floor, 1 and 2 walls, from 3 on the objects.
      texture: int32 [P], PLAIN, CHECK, STRIPE or SPECKLE.
      frequency: float32 [P], texture cells a metre.
      colour: float32 [P, 2, 3], the two linear RGB albedos that the texture mixes.
      origin: float32 [P, 3], origin of the texture's frame.
      turn: float32 [P, 2], (cos, sin) of the frame's rotation about the vertical.
    """

    valid: np.ndarray
    semseg: np.ndarray
    part: np.ndarray
    thing: np.ndarray
    texture: np.ndarray
    frequency: np.ndarray
    colour: np.ndarray
    origin: np.ndarray
    turn: np.ndarray


class Light(NamedTuple):
    """Sun and exposure: sun float32 [3] (unit, towards the sun), ambient [], exposure []."""

    sun: np.ndarray
    ambient: np.ndarray
    exposure: np.ndarray


class Scene(NamedTuple):
    """One scene; ``key`` is the uint32 that the textures are hashed with."""

    key: np.ndarray
    camera: Camera
    light: Light
    planes: Planes
    boxes: Boxes
    capsules: Capsules
    cones: Cones
    surfaces: Surfaces
