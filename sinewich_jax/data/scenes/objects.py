"""The six kinds of object, built of boxes, capsules and upright cones.

Each builder is a few lines in the object's own frame (x to its side, y to its front, z up, feet on
``z = 0``, sizes in metres before scaling) and draws its random details from one stream, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from sinewich_jax.data.scenes import types as t
from sinewich_jax.data.scenes.draws import Draws

Colour = tuple[float, float, float]
Point = tuple[float, float, float]


class Look(NamedTuple):
    """Two albedos, the texture that mixes them and its cells a metre."""

    colour: Colour
    second: Colour
    texture: int = t.PLAIN
    frequency: float = 1.0


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB of a hue in turns (any real number), saturation and value in [0, 1]."""

    def channel(n: int) -> float:
        k = (n + hue * 6.0) % 6.0
        return value - value * saturation * max(0.0, min(k, 4.0 - k, 1.0))

    return channel(5), channel(3), channel(1)


def draw_look(draws: Draws, colour: Colour, contrast: float = 0.45) -> Look:
    """A random texture that mixes ``colour`` with a darker or lighter version of itself."""
    texture = draws.choice((t.PLAIN, t.PLAIN, t.CHECK, t.STRIPE, t.SPECKLE))
    factor = 1.0 - draws.uniform(0.5, 1.0) * contrast
    frequency = draws.uniform(2.0, 6.0)
    return Look(colour, tuple(c * factor for c in colour), texture, frequency)


class Assembly:
    """Collects primitives in world coordinates, with what each one is.

    Attributes:
      boxes, capsules, cones: lists of (geometry, surface) rows.
    """

    def __init__(self):
        """Starts empty."""
        self.boxes: list[tuple] = []
        self.capsules: list[tuple] = []
        self.cones: list[tuple] = []
        self._semseg, self._thing = 0, 0
        self.place((0.0, 0.0), 0.0, 1.0)

    def start(self, semseg: int, thing: int) -> None:
        """What follows belongs to object ``thing`` of class ``semseg``."""
        self._semseg, self._thing = semseg, thing

    def place(self, position: tuple[float, float], yaw: float, scale: float) -> None:
        """Sets the frame of what follows: where it stands, where it faces, how large it is."""
        self._position, self._scale = position, scale
        self._turn = (math.cos(yaw), math.sin(yaw))

    def _world(self, point: Point) -> Point:
        (cos, sin), s = self._turn, self._scale
        x, y, z = (s * v for v in point)
        return (
            self._position[0] + cos * x - sin * y,
            self._position[1] + sin * x + cos * y,
            z,
        )

    def surface(self, look: Look, part: int = 0) -> tuple:
        """One row of the surface table: see `sampling.pack_surfaces`."""
        origin = (*self._position, 0.0)
        kinds = (1.0, self._semseg, part, self._thing, look.texture, look.frequency)
        return (*kinds, *look.colour, *look.second, *origin, *self._turn)

    def box(self, centre: Point, half: Point, look: Look) -> None:
        """Adds a box, turned with the object."""
        sizes = (self._scale * h for h in half)
        self.boxes.append(((*self._world(centre), *sizes, *self._turn), self.surface(look)))

    def capsule(self, start: Point, end: Point, radius: float, look: Look, part: int = 0) -> None:
        """Adds a capsule between two points; equal points make a sphere."""
        a, b = self._world(start), self._world(end)
        centre = [(p + q) / 2 for p, q in zip(a, b, strict=True)]
        along = [q - p for p, q in zip(a, b, strict=True)]
        length = math.sqrt(sum(v * v for v in along))
        axis = [v / length for v in along] if length > 1e-6 else [0.0, 0.0, 1.0]
        row = (*centre, *axis, length / 2, radius * self._scale)
        self.capsules.append((row, self.surface(look, part)))

    def cone(self, base: Point, height: float, bottom: float, top: float, look: Look) -> None:
        """Adds an upright capped cone standing at ``base``."""
        sizes = (self._scale * v for v in (height, bottom, top))
        self.cones.append(((*self._world(base), *sizes), self.surface(look)))


def _reach(start: Point, length: float, swing: float, spread: float) -> Point:
    """The end of a limb: hangs down at swing 0, swings forward, spreads to the side (radians)."""
    x, y, z = start
    down = length * math.cos(spread)
    return (
        x + length * math.sin(spread),
        y + down * math.sin(swing),
        z - down * math.cos(swing),
    )


def figure(build: Assembly, draws: Draws) -> None:
    """A walking person of ten capsules, 1.4 m tall, with random limb swing and clothes."""
    tone = hsv(draws.uniform(0.03, 0.09), draws.uniform(0.3, 0.6), draws.uniform(0.4, 0.9))
    skin = Look(tone, tone)
    shirt = draw_look(draws, hsv(draws.uniform(), draws.uniform(0.2, 0.8), draws.uniform(0.4, 0.9)))
    trousers = hsv(draws.uniform(), draws.uniform(0.1, 0.6), draws.uniform(0.15, 0.6))
    legs = Look(trousers, trousers)
    sleeve = draws.choice((skin, shirt))
    step = draws.uniform(-0.55, 0.55)
    limbs = []
    for side, swing in ((-1.0, step), (1.0, -step * draws.uniform(0.5, 1.0))):
        hip = (0.1 * side, 0.0, 0.7)
        knee = _reach(hip, 0.3, swing, 0.06 * side)
        foot = _reach(knee, 0.3, swing - draws.uniform(0.0, 0.6), 0.0)
        limbs.append((hip, knee, 0.085, legs, t.UPPER_LEG))
        limbs.append((knee, foot, 0.07, legs, t.LOWER_LEG))
    lowest = min(foot[2] for _, foot, *_ in limbs) - 0.07
    for side in (-1.0, 1.0):
        raised = draws.uniform() < 0.2
        swing = draws.uniform(2.0, 2.8) if raised else draws.uniform(-0.8, 0.8)
        spread = side * draws.uniform(0.15, 0.6)
        shoulder = (0.21 * side, 0.0, 1.06)
        elbow = _reach(shoulder, 0.25, swing, spread)
        hand = _reach(elbow, 0.24, swing + draws.uniform(0.0, 1.2), 0.6 * spread)
        limbs.append((shoulder, elbow, 0.068, shirt, t.UPPER_ARM))
        limbs.append((elbow, hand, 0.056, sleeve, t.LOWER_ARM))
    limbs.append(((0.0, 0.0, 0.76), (0.0, 0.0, 1.02), 0.17, shirt, t.TORSO))
    limbs.append(((0.0, 0.0, 1.31), (0.0, 0.0, 1.35), 0.14, skin, t.HEAD))
    for start, end, radius, look, part in limbs:
        start, end = ((x, y, z - lowest) for x, y, z in (start, end))
        build.capsule(start, end, radius, look, part)


def table(build: Assembly, draws: Draws) -> None:
    """A top and four legs."""
    wood = hsv(draws.uniform(0.02, 0.13), draws.uniform(0.1, 0.7), draws.uniform(0.35, 0.95))
    top = draw_look(draws, wood, contrast=0.3)
    x, y = draws.uniform(0.38, 0.5), draws.uniform(0.28, 0.38)
    height = draws.uniform(0.5, 0.66)
    build.box((0.0, 0.0, height - 0.04), (x, y, 0.04), top)
    dark = tuple(c * 0.8 for c in wood)
    leg = (0.04, 0.04, height / 2 - 0.04)
    for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        build.box((sx * (x - 0.06), sy * (y - 0.06), leg[2]), leg, Look(dark, dark))


def lamp(build: Assembly, draws: Draws) -> None:
    """A base, a pole and a shade."""
    metal = hsv(draws.uniform(), draws.uniform(0.0, 0.3), draws.uniform(0.15, 0.6))
    cloth = hsv(draws.uniform(0.0, 0.2), draws.uniform(0.05, 0.6), draws.uniform(0.75, 1.0))
    height = draws.uniform(0.8, 1.05)
    shade = draw_look(draws, cloth, contrast=0.25)
    build.cone((0.0, 0.0, 0.0), 0.06, 0.22, 0.17, Look(metal, metal))
    build.cone((0.0, 0.0, 0.06), height, 0.035, 0.035, Look(metal, metal))
    build.cone((0.0, 0.0, height), 0.3, draws.uniform(0.24, 0.3), 0.14, shade)


def tree(build: Assembly, draws: Draws) -> None:
    """A trunk and a cone of leaves."""
    bark = hsv(draws.uniform(0.04, 0.1), draws.uniform(0.4, 0.7), draws.uniform(0.25, 0.5))
    green = hsv(draws.uniform(0.2, 0.42), draws.uniform(0.35, 0.85), draws.uniform(0.3, 0.75))
    leaves = Look(green, tuple(0.65 * c for c in green), t.SPECKLE, draws.uniform(4.0, 8.0))
    stem = draws.uniform(0.3, 0.45)
    build.cone((0.0, 0.0, 0.0), stem, 0.085, 0.07, Look(bark, bark))
    build.cone((0.0, 0.0, stem), draws.uniform(0.75, 1.0), draws.uniform(0.36, 0.46), 0.02, leaves)


def house(build: Assembly, draws: Draws) -> None:
    """Four walls, a door and a round roof."""
    paint = hsv(draws.uniform(), draws.uniform(0.05, 0.45), draws.uniform(0.6, 0.95))
    tiles = hsv(draws.uniform(-0.05, 0.08), draws.uniform(0.4, 0.8), draws.uniform(0.35, 0.7))
    wall = draw_look(draws, paint, contrast=0.3)
    roof = draw_look(draws, tiles)
    x, y = draws.uniform(0.3, 0.4), draws.uniform(0.28, 0.36)
    z = draws.uniform(0.22, 0.3)
    build.box((0.0, 0.0, z), (x, y, z), wall)
    door = tuple(0.4 * c for c in tiles)
    build.box((0.0, -y, 0.6 * z), (0.09, 0.015, 0.6 * z), Look(door, door))
    rim = math.sqrt(x * x + y * y) + 0.04
    build.cone((0.0, 0.0, 2 * z), draws.uniform(0.35, 0.5), rim, 0.02, roof)


def ball(build: Assembly, draws: Draws) -> None:
    """A sphere on the floor."""
    paint = hsv(draws.uniform(), draws.uniform(0.5, 0.95), draws.uniform(0.5, 0.95))
    radius = draws.uniform(0.2, 0.3)
    middle = (0.0, 0.0, radius)
    build.capsule(middle, middle, radius, draw_look(draws, paint, contrast=0.8))


class Kind(NamedTuple):
    """How to build a kind of object and how much room it takes (metres before scaling)."""

    build: Callable[[Assembly, Draws], None]
    radius: float
    middle: float


KINDS = {
    t.FIGURE: Kind(figure, 0.4, 0.75),
    t.TABLE: Kind(table, 0.55, 0.35),
    t.LAMP: Kind(lamp, 0.28, 0.65),
    t.TREE: Kind(tree, 0.44, 0.6),
    t.HOUSE: Kind(house, 0.52, 0.45),
    t.BALL: Kind(ball, 0.28, 0.25),
}
