"""Draws what stands where in a street scene (`apd.data.scenes.world`) from one stream of random numbers.

The stream is read in a fixed order and by an amount that never depends on the size of the picture.
"""

from collections.abc import Sequence

from apd.data.scenes.world import (
    FAR_END,
    Building,
    Camera,
    Car,
    Cloud,
    Dice,
    Garden,
    Lamp,
    Layout,
    Pedestrian,
    Railing,
    Road,
    Segment,
    SideStreet,
    Sign,
    Thing,
    Tree,
)


def draw_layout(dice: Dice) -> Layout:
    """Draw one street. The stream is read in a fixed order; changing that order changes every scene."""
    road = Road(
        half_width=dice.uniform(2.9, 4.3),
        pavement=dice.uniform(2.3, 3.8),
        dash=dice.choose((0.0, 5.0, 7.0, 9.0)),
        crossing=dice.uniform(7.0, 16.0) if dice.chance(0.35) else 0.0,
    )
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
    things = sorted(_things(dice, road, camera, segments), key=lambda thing: -thing.z)
    return Layout(camera, road, sun, clouds, skyline, tuple(segments), tuple(things))


def _cloud(dice: Dice) -> Cloud:
    lumps = tuple(
        (dice.uniform(-1.0, 1.0), dice.uniform(-0.25, 0.1), dice.uniform(0.35, 0.8)) for _ in range(dice.integer(3, 5))
    )
    return Cloud(dice.uniform(0.0, 1.0), dice.uniform(0.1, 0.75), dice.uniform(0.05, 0.11), lumps)


def _row(dice: Dice, side: int, town: float) -> list[Segment]:
    """What lines one side of the street, from beside the camera to the far end."""
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
        side=side,
        near=near,
        far=far,
        height=storeys * storey + dice.uniform(0.4, 0.9),
        setback=dice.choose((0.0, 0.0, 0.3, 0.8)),
        storey=storey,
        bay=dice.uniform(1.9, 3.0),
        roof=dice.uniform(1.6, 3.0) if pitched else 0.0,
        gable=dice.chance(0.5),
        shop=dice.chance(0.4),
        windows=tuple(int(4 * number) for number in dice.numbers(15)),
        end_seen=True,
        tint=dice.tint(0.09, 0.045),
    )


def _garden(dice: Dice, side: int, near: float, far: float) -> Garden:
    return Garden(
        side=side,
        near=near,
        far=far,
        height=dice.uniform(1.0, 1.9),
        board=dice.uniform(0.35, 0.8),
        hedge=dice.uniform(2.2, 4.6),
        bumps=tuple(dice.uniform(-0.45, 0.45) for _ in range(8)),
        tint=dice.tint(0.07, 0.035),
        hedge_tint=dice.tint(0.06, 0.035),
    )


def _things(dice: Dice, road: Road, camera: Camera, segments: Sequence[Segment]) -> list[Thing]:
    edge, middle = road.half_width, road.half_width + road.pavement / 2
    things: list[Thing] = []
    for side in (-1, 1):
        kerb = side * (edge + 0.35)
        # The nearest depth at which something on this pavement is still inside the picture.
        share = camera.vanishing if side < 0 else 1.0 - camera.vanishing
        entry = camera.focal * (edge + 0.35 - side * camera.x) / share
        things += _street_furniture(dice, side, kerb, entry)
        if dice.chance(0.45):
            start, panel = entry + dice.uniform(-2.0, 6.0), dice.uniform(2.4, 3.2)
            tint, height = dice.tint(0.08, 0.05), dice.uniform(0.9, 1.2)
            things += [
                Railing(side * (edge + 0.2), start + panel * number, panel, height, tint)
                for number in range(dice.integer(2, 5))
            ]
        for _ in range(dice.integer(1, 4)):
            x = side * dice.uniform(edge + 0.4, edge + road.pavement - 0.3)
            things.append(_pedestrian(dice, x, entry + 0.3 + 13.0 * dice.uniform(0.0, 1.0) ** 2))
        if dice.chance(0.5):
            z = entry + dice.uniform(0.0, 8.0)
            for _ in range(dice.integer(1, 3)):
                things.append(_car(dice, side * (edge - 1.0), z, away=dice.chance(0.5)))
                z += dice.uniform(5.5, 8.0)
        z = entry + dice.uniform(2.5, 12.0)
        while z < 45.0 and dice.chance(0.72):
            things.append(_tree(dice, side * (middle + dice.uniform(-0.2, 0.6)), z))
            z += dice.uniform(5.0, 14.0)
    lane = edge * 0.48
    for side in (-1, 1):
        if dice.chance(0.75):
            things.append(_car(dice, side * lane, dice.uniform(6.5, 26.0), away=side > 0))
    if road.crossing and dice.chance(0.7):
        x = dice.uniform(-0.8, 0.8) * edge
        things.append(_pedestrian(dice, x, road.crossing + dice.uniform(0.5, 2.0)))
    for segment in segments:
        if isinstance(segment, SideStreet) and segment.near < 40.0 and dice.chance(0.5):
            z, direction = (segment.near + segment.far) / 2, dice.choose((-1, 1))
            things.append(_car(dice, segment.side * dice.uniform(0.0, edge + 5.0), z, away=True, across=direction))
    return things


def _street_furniture(dice: Dice, side: int, kerb: float, entry: float) -> list[Thing]:
    """Lamps at a regular distance, and signs between them."""
    furniture: list[Thing] = []
    height, width, tint = dice.uniform(5.0, 7.5), dice.uniform(0.26, 0.36), dice.tint(0.07, 0.04)
    arm = -side * dice.uniform(0.8, 1.8) if dice.chance(0.7) else 0.0
    z, spacing = entry + dice.uniform(0.3, 9.0), dice.uniform(9.0, 15.0)
    while z < 50.0:
        furniture.append(Lamp(kerb, z, height, width, arm, tint))
        z += spacing
    for depth in (dice.uniform(0.2, 5.0), dice.uniform(6.0, 14.0), dice.uniform(15.0, 25.0))[: dice.integer(1, 3)]:
        shape = dice.choose(("disc", "triangle", "diamond", "board", "lights"))
        furniture.append(
            Sign(
                x=kerb + side * dice.uniform(0.0, 0.5),
                z=entry + depth,
                bottom=dice.uniform(1.9, 2.7),
                size=dice.uniform(0.95, 1.35),
                shape=shape,
                pole=dice.uniform(0.16, 0.22),
                tint=dice.tint(0.08, 0.08),
            )
        )
    return furniture


def _tree(dice: Dice, x: float, z: float) -> Tree:
    height = dice.uniform(3.8, 6.8)
    lumps = tuple(
        (dice.uniform(-0.75, 0.75), dice.uniform(-0.55, 0.6), dice.uniform(0.45, 0.65))
        for _ in range(dice.integer(6, 8))
    )
    return Tree(x, z, height, height * dice.uniform(0.24, 0.32), dice.chance(0.2), lumps, dice.tint(0.065, 0.04))


def _car(dice: Dice, x: float, z: float, *, away: bool, across: int = 0) -> Car:
    van = dice.chance(0.2)
    return Car(
        x=x,
        z=z,
        width=dice.uniform(1.7, 1.95),
        height=dice.uniform(2.0, 2.5) if van else dice.uniform(1.4, 1.65),
        length=dice.uniform(4.4, 5.2) if van else dice.uniform(3.7, 4.5),
        bonnet=dice.uniform(0.5, 0.58),
        away=away,
        across=across,
        tint=dice.tint(0.13, 0.10),
    )


def _pedestrian(dice: Dice, x: float, z: float) -> Pedestrian:
    return Pedestrian(
        x, z, dice.uniform(1.5, 1.9), dice.uniform(-0.3, 0.3), dice.choose((-1, 1)), dice.tint(0.12, 0.09)
    )
