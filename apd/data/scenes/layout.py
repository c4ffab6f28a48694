"""What stands where in a street scene, in metres: X right of the road's middle, Y up, Z forward from the camera."""

from collections import namedtuple
from collections.abc import Sequence
from itertools import chain, count
from typing import Any

import numpy as np

# an object's own deviation from the colour of its class, in OkLab (lightness, green-red, blue-yellow)
Tint = tuple[float, float, float]

FAR_END = 70.0  # metres to the houses that close the street

# horizon and vanishing point are fractions of the image's height and width, focal of sqrt(height * width)
Camera = namedtuple("Camera", "x height horizon vanishing focal")
# widths of half the road and of the pavement on each side, period of the dashed line (0: none), distance of the
# zebra crossing (0: none)
Road = namedtuple("Road", "half_width pavement dash crossing")
# column and row as fractions of the sky; lumps are (across, down, radius) in sizes of the cloud
Cloud = namedtuple("Cloud", "column row size lumps")
# Along the street, from depth near to depth far, on side -1 (left) or +1 (right). Of a building: roof 0 is flat, gable
# shows to the street, windows are kinds of pane 0..3, and end_seen: no next house hides the wall that faces the camera.
Building = namedtuple("Building", "side near far height setback storey bay roof gable shop windows end_seen tint")
Garden = namedtuple("Garden", "side near far height board hedge bumps tint hedge_tint")  # a fence with a hedge behind
SideStreet = namedtuple("SideStreet", "side near far")  # a gap between the houses with a road in it
# Objects at (x, z). Lumps of a tree's crown are (across, up, size) in radii; a lamp's bracket has a signed length over
# the road (0: none); a car crosses the image in the direction `across` or runs along the road (0), `away` shows its
# tail, and bonnet is the height of its lower body as a share; a railing is one panel of a fence at the kerb.
Tree = namedtuple("Tree", "x z height radius conifer lumps tint")
Lamp = namedtuple("Lamp", "x z height width bracket tint")
Sign = namedtuple("Sign", "x z bottom size shape pole tint")
Car = namedtuple("Car", "x z width height length bonnet away across tint")
Pedestrian = namedtuple("Pedestrian", "x z height stride facing tint")
Railing = namedtuple("Railing", "x z length height tint")
# sun is the side that the light comes from, skyline (width, height, is a tree, tint) of the far end; segments and
# objects are sorted from far to near
Layout = namedtuple("Layout", "camera road sun clouds skyline segments objects")

Segment = Building | Garden | SideStreet
Object = Tree | Lamp | Sign | Car | Pedestrian | Railing


class Dice:
    """Uniform random numbers one by one; only `Generator.random` is used, the most stable of NumPy's streams."""

    def __init__(self, *entropy: int) -> None:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        self._stream = chain.from_iterable(generator.random(512).tolist() for _ in count())

    def uniform(self, low: float, high: float) -> float:
        """A number from low up to, not including, high."""
        return low + (high - low) * next(self._stream)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return next(self._stream) < probability

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(next(self._stream) * (high - low + 1))

    def choose(self, options: Sequence[Any]) -> Any:
        """One of the options, all equally likely."""
        return options[int(next(self._stream) * len(options))]

    def tint(self, lightness: float, hue: float) -> Tint:
        """A deviation of at most so much in lightness and in each of the two colour directions."""
        return (self.uniform(-lightness, lightness), self.uniform(-hue, hue), self.uniform(-hue, hue))


def draw_layout(dice: Dice) -> Layout:
    """Draw one street. The stream is read in a fixed order; changing that order changes every scene."""
    half_width, pavement, dash = dice.uniform(2.9, 4.3), dice.uniform(2.3, 3.8), dice.choose((0.0, 5.0, 7.0, 9.0))
    road = Road(half_width, pavement, dash, crossing=dice.uniform(7.0, 16.0) if dice.chance(0.35) else 0.0)
    camera = Camera(
        x=dice.uniform(-0.5, 0.5) * road.half_width,
        height=dice.uniform(1.7, 2.8),
        horizon=dice.uniform(0.40, 0.54),
        vanishing=dice.uniform(0.34, 0.66),
        focal=dice.uniform(0.72, 0.95),
    )
    sun = dice.choose((-1, 1))
    clouds = tuple(_cloud(dice) for _ in range(dice.integer(0, 4)))
    skyline = tuple(
        (dice.uniform(3.0, 8.0), dice.uniform(4.0, 15.0), dice.chance(0.45), dice.tint(0.07, 0.03)) for _ in range(12)
    )
    town = dice.uniform(0.0, 1.0)  # suburb to city: how tall and how dense the houses are
    segments = sorted([*_row(dice, -1, town), *_row(dice, 1, town)], key=lambda segment: -segment.far)
    objects = sorted(_objects(dice, road, camera, segments), key=lambda each: -each.z)
    return Layout(camera, road, sun, clouds, skyline, tuple(segments), tuple(objects))


def _cloud(dice: Dice) -> Cloud:
    ranges = (-1.0, 1.0), (-0.25, 0.1), (0.35, 0.8)
    lumps = tuple(tuple(dice.uniform(*limits) for limits in ranges) for _ in range(dice.integer(3, 5)))
    return Cloud(dice.uniform(0.0, 1.0), dice.uniform(0.1, 0.75), dice.uniform(0.05, 0.11), lumps)


def _row(dice: Dice, side: int, town: float) -> list[Segment]:
    segments: list[Segment] = []
    near, previous = dice.uniform(-4.0, 3.0), "none"
    while near < FAR_END:
        roll, stretch = dice.uniform(0.0, 1.0), 1.0 + max(0.0, near) / 30.0  # detail is lost on what is far away
        if roll < 0.17 and previous not in ("street", "none") and near > 9.0:
            previous, far = "street", near + dice.uniform(6.0, 9.0)
            segments.append(SideStreet(side, near, far))
        elif roll < 0.56 - 0.16 * town and previous != "garden":
            previous, far = "garden", near + stretch * dice.uniform(6.0, 13.0)
            segments.append(_garden(dice, side, near, far))
        else:
            previous, far = "house", near + stretch * dice.uniform(6.0, 13.0)
            house = _building(dice, side, near, far, town)
            before = segments[-1] if segments else None
            hidden = isinstance(before, Building) and before.height >= house.height + house.roof
            segments.append(house._replace(end_seen=not hidden))
        near = far
    return segments


def _building(dice: Dice, side: int, near: float, far: float, town: float) -> Building:
    storey = dice.uniform(2.7, 3.4)
    storeys = dice.integer(1, 2) + int(dice.uniform(0.4, 3.6) * town + dice.uniform(0.0, 1.0))
    pitched = storeys <= 3 and dice.chance(0.7)
    return Building(
        *(side, near, far),
        height=storeys * storey + dice.uniform(0.4, 0.9),
        setback=dice.choose((0.0, 0.0, 0.3, 0.8)),
        storey=storey,
        bay=dice.uniform(1.9, 3.0),
        roof=dice.uniform(1.6, 3.0) if pitched else 0.0,
        gable=dice.chance(0.5),
        shop=dice.chance(0.4),
        windows=tuple(dice.integer(0, 3) for _ in range(15)),
        end_seen=True,
        tint=dice.tint(0.09, 0.045),
    )


def _garden(dice: Dice, side: int, near: float, far: float) -> Garden:
    return Garden(
        *(side, near, far),
        height=dice.uniform(1.0, 1.9),
        board=dice.uniform(0.35, 0.8),
        hedge=dice.uniform(2.2, 4.6),
        bumps=tuple(dice.uniform(-0.45, 0.45) for _ in range(8)),
        tint=dice.tint(0.07, 0.035),
        hedge_tint=dice.tint(0.06, 0.035),
    )


def _objects(dice: Dice, road: Road, camera: Camera, segments: Sequence[Segment]) -> list[Object]:
    edge, middle = road.half_width, road.half_width + road.pavement / 2
    objects: list[Object] = []
    for side in (-1, 1):
        # The nearest depth at which something on this pavement is still inside the image.
        share = camera.vanishing if side < 0 else 1.0 - camera.vanishing
        entry = camera.focal * (edge + 0.35 - side * camera.x) / share
        objects += _street_furniture(dice, side, side * (edge + 0.35), entry)
        if dice.chance(0.45):
            start, panel = entry + dice.uniform(-2.0, 6.0), dice.uniform(2.4, 3.2)
            tint, height = dice.tint(0.08, 0.05), dice.uniform(0.9, 1.2)
            x, panels = side * (edge + 0.2), range(dice.integer(2, 5))
            objects += [Railing(x, start + panel * number, panel, height, tint) for number in panels]
        for _ in range(dice.integer(1, 4)):
            x = side * dice.uniform(edge + 0.4, edge + road.pavement - 0.3)
            objects.append(_pedestrian(dice, x, entry + 0.3 + 13.0 * dice.uniform(0.0, 1.0) ** 2))
        if dice.chance(0.5):
            z = entry + dice.uniform(0.0, 8.0)
            for _ in range(dice.integer(1, 3)):
                objects.append(_car(dice, side * (edge - 1.0), z, away=dice.chance(0.5)))
                z += dice.uniform(5.5, 8.0)
        z = entry + dice.uniform(2.5, 12.0)
        while z < 45.0 and dice.chance(0.72):
            objects.append(_tree(dice, side * (middle + dice.uniform(-0.2, 0.6)), z))
            z += dice.uniform(5.0, 14.0)
    for side in (-1, 1):
        if dice.chance(0.75):
            objects.append(_car(dice, side * edge * 0.48, dice.uniform(6.5, 26.0), away=side > 0))
    if road.crossing and dice.chance(0.7):
        x = dice.uniform(-0.8, 0.8) * edge
        objects.append(_pedestrian(dice, x, road.crossing + dice.uniform(0.5, 2.0)))
    for segment in segments:
        if isinstance(segment, SideStreet) and segment.near < 40.0 and dice.chance(0.5):
            z, direction = (segment.near + segment.far) / 2, dice.choose((-1, 1))
            objects.append(_car(dice, segment.side * dice.uniform(0.0, edge + 5.0), z, away=True, across=direction))
    return objects


def _street_furniture(dice: Dice, side: int, kerb: float, entry: float) -> list[Object]:
    furniture: list[Object] = []
    height, width, tint = dice.uniform(5.0, 7.5), dice.uniform(0.26, 0.36), dice.tint(0.07, 0.04)
    bracket = -side * dice.uniform(0.8, 1.8) if dice.chance(0.7) else 0.0
    z, spacing = entry + dice.uniform(0.3, 9.0), dice.uniform(9.0, 15.0)
    while z < 50.0:
        furniture.append(Lamp(kerb, z, height, width, bracket, tint))
        z += spacing
    for depth in (dice.uniform(0.2, 5.0), dice.uniform(6.0, 14.0), dice.uniform(15.0, 25.0))[: dice.integer(1, 3)]:
        shape = dice.choose(("disc", "triangle", "diamond", "board", "lights"))
        x, bottom, size = kerb + side * dice.uniform(0.0, 0.5), dice.uniform(1.9, 2.7), dice.uniform(0.95, 1.35)
        furniture.append(Sign(x, entry + depth, bottom, size, shape, dice.uniform(0.16, 0.22), dice.tint(0.08, 0.08)))
    return furniture


def _tree(dice: Dice, x: float, z: float) -> Tree:
    height = dice.uniform(3.8, 6.8)
    ranges = (-0.75, 0.75), (-0.55, 0.6), (0.45, 0.65)
    lumps = tuple(tuple(dice.uniform(*limits) for limits in ranges) for _ in range(dice.integer(6, 8)))
    return Tree(x, z, height, height * dice.uniform(0.24, 0.32), dice.chance(0.2), lumps, dice.tint(0.065, 0.04))


def _car(dice: Dice, x: float, z: float, *, away: bool, across: int = 0) -> Car:
    van, width = dice.chance(0.2), dice.uniform(1.7, 1.95)
    height = dice.uniform(2.0, 2.5) if van else dice.uniform(1.4, 1.65)
    length = dice.uniform(4.4, 5.2) if van else dice.uniform(3.7, 4.5)
    return Car(x, z, width, height, length, dice.uniform(0.5, 0.58), away, across, dice.tint(0.13, 0.10))


def _pedestrian(dice: Dice, x: float, z: float) -> Pedestrian:
    height, stride = dice.uniform(1.5, 1.9), dice.uniform(-0.3, 0.3)
    return Pedestrian(x, z, height, stride, dice.choose((-1, 1)), dice.tint(0.12, 0.09))
