"""The words for a street scene: what can stand in it, as plain numbers in metres, and the dice it is drawn with.

World: X to the right of the middle of the road, Y up from the ground, Z forward from the camera. Nothing here knows
about pixels or colours, so one (seed, split, index) is one street at every picture size and every `context_shift`.
`tint` is the object's own deviation from the colour of its class, in OkLab (lightness, green-red, blue-yellow).
"""

from collections.abc import Sequence
from itertools import chain, count, islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.specs import DatasetSpec, Sample

Choice = TypeVar("Choice")
Tint = tuple[float, float, float]

FAR_END = 70.0  # metres to the houses that close the street


class Dice:
    """Uniform random numbers by number; only `Generator.random` is used, the most stable of NumPy's streams."""

    def __init__(self, *entropy: int) -> None:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        self._stream = chain.from_iterable(generator.random(512).tolist() for _ in count())

    def uniform(self, low: float, high: float) -> float:
        """A number from low up to, not including, high."""
        return low + (high - low) * next(self._stream)

    def numbers(self, how_many: int) -> list[float]:
        """Several numbers from 0 up to, not including, 1."""
        return list(islice(self._stream, how_many))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return next(self._stream) < probability

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(next(self._stream) * (high - low + 1))

    def choose(self, options: Sequence[Choice]) -> Choice:
        """One of the options, all equally likely."""
        return options[int(next(self._stream) * len(options))]

    def tint(self, lightness: float, hue: float) -> Tint:
        """A deviation of at most so much in lightness and in each of the two colour directions."""
        return (self.uniform(-lightness, lightness), self.uniform(-hue, hue), self.uniform(-hue, hue))


class Camera(NamedTuple):
    """Where the picture is taken from; lengths in metres, the rest as fractions of the picture."""

    x: float
    height: float
    horizon: float  # row of the horizon / picture height
    vanishing: float  # column of the vanishing point / picture width
    focal: float  # focal length / sqrt(height * width)


class Road(NamedTuple):
    """The street we stand in; lengths in metres."""

    half_width: float
    pavement: float  # width of the pavement on each side
    dash: float  # period of the dashed middle line, 0 for none
    crossing: float  # distance of the zebra crossing, 0 for none


class Cloud(NamedTuple):
    """A cloud; `lumps` are (across, down, radius) of its parts in sizes of the cloud."""

    column: float
    row: float  # fraction of the sky, 0 at the top
    size: float
    lumps: tuple[tuple[float, float, float], ...]


class Building(NamedTuple):
    """A house whose front runs along the street from depth `near` to depth `far`."""

    side: int  # -1 left, +1 right of the road
    near: float
    far: float
    height: float
    setback: float
    storey: float
    bay: float
    roof: float  # height of a pitched roof, 0 for a flat one
    gable: bool  # the pitched roof shows a gable to the street
    shop: bool  # the ground floor is a row of shops
    windows: tuple[int, ...]  # 0..3, the kind of pane, bay by bay and storey by storey
    end_seen: bool  # the wall facing the camera is not hidden by the next house
    tint: Tint


class Garden(NamedTuple):
    """A fence along the pavement with a hedge behind it."""

    side: int
    near: float
    far: float
    height: float
    board: float  # width of one board of the fence
    hedge: float
    bumps: tuple[float, ...]
    tint: Tint
    hedge_tint: Tint


class SideStreet(NamedTuple):
    """A gap between the houses with a road in it."""

    side: int
    near: float
    far: float


class Tree(NamedTuple):
    """A tree on the pavement."""

    x: float
    z: float
    height: float
    radius: float
    conifer: bool
    lumps: tuple[tuple[float, float, float], ...]  # (across, up, size) of the crown's parts, in radii
    tint: Tint


class Lamp(NamedTuple):
    """A street lamp: stuff of class pole."""

    x: float
    z: float
    height: float
    width: float
    arm: float  # length of the arm over the road, signed; 0 for a plain pole
    tint: Tint


class Sign(NamedTuple):
    """A traffic sign or traffic light on its post."""

    x: float
    z: float
    bottom: float
    size: float
    shape: str  # disc, triangle, diamond, board, lights
    pole: float
    tint: Tint


class Car(NamedTuple):
    """A car or a van; `z` is its near end, or its middle when it crosses."""

    x: float
    z: float
    width: float
    height: float
    length: float
    bonnet: float  # height of the lower body / height
    away: bool  # we see its tail
    across: int  # 0 along the road, else the direction in which it crosses the picture
    tint: Tint


class Pedestrian(NamedTuple):
    """A person walking."""

    x: float
    z: float
    height: float
    stride: float
    facing: int
    tint: Tint


class Railing(NamedTuple):
    """One panel of a fence at the kerb."""

    x: float
    z: float
    length: float
    height: float
    tint: Tint


Segment = Building | Garden | SideStreet
Thing = Tree | Lamp | Sign | Car | Pedestrian | Railing


class Layout(NamedTuple):
    """A whole street."""

    camera: Camera
    road: Road
    sun: int  # side the light comes from, -1 left, +1 right
    clouds: tuple[Cloud, ...]
    skyline: tuple[tuple[float, float, bool, Tint], ...]  # (width, height, is a tree, tint) of the far end
    segments: tuple[Segment, ...]  # far to near
    things: tuple[Thing, ...]  # far to near


# Data without meaning, in the place of data that are missing: what a step costs does not depend on what it sees.


class Noise:
    """One picture without meaning, in the place of data that are missing: random colours, labels in an 8×8 grid.

    Args:
        spec: whose classes the labels are.
        size: height and width in pixels.
    """

    def __init__(self, spec: DatasetSpec, size: tuple[int, int]) -> None:
        self.spec, self._size = spec, size

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        """The picture, the same every time."""
        random, (height, width) = torch.Generator().manual_seed(0), self._size
        grid = torch.randint(self.spec.num_classes, (8, 8), generator=random, dtype=torch.uint8)
        rows, columns = (torch.arange(side) * 8 // side for side in self._size)
        image_3HW = torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
        return Sample(image_3HW, grid[rows][:, columns].contiguous(), "noise")

    def fingerprint(self) -> str:
        """A text that no data have."""
        return "noise"


class NoiseThings:
    """One picture of random colours with eight things in it, whose boxes are spread evenly.

    Args:
        spec: whose classes the things are.
        size: height and width in pixels.
        masks: whether the things have masks, which fill their boxes.
    """

    def __init__(self, spec: InstanceSpec, size: tuple[int, int], *, masks: bool = True) -> None:
        self.spec, self._size, self._masks = spec, size, masks

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> InstanceSample:
        """The picture, the same every time."""
        random, (height, width) = torch.Generator().manual_seed(0), self._size
        tops, lefts = (part.ravel() for part in torch.meshgrid(torch.arange(2), torch.arange(4), indexing="ij"))
        corners_N4 = torch.stack([lefts, tops, lefts + 1, tops + 1], dim=1)
        boxes_N4 = corners_N4 * torch.tensor([width // 4, height // 2, width // 4, height // 2])
        count = len(boxes_N4)
        masks_NHW = torch.zeros(count, height, width, dtype=torch.bool) if self._masks else None
        if masks_NHW is not None:
            for mask_HW, (x0, y0, x1, y1) in zip(masks_NHW, boxes_N4.tolist(), strict=True):
                mask_HW[y0:y1, x0:x1] = True
        return InstanceSample(
            torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8),
            boxes_N4.float(),
            torch.randint(self.spec.num_classes, (count,), generator=random),
            masks_NHW,
            torch.zeros(count, dtype=torch.bool),
            torch.full((count,), float((height // 2) * (width // 4))),
            "noise",
        )

    def fingerprint(self) -> str:
        """A text that no data have."""
        return "noise"
