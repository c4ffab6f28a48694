"""The canvas scenes are painted on: a map of part numbers, filled back to front with exact shapes.

A *part* is a patch that gets one colour (a wall, its windows, a tyre); it belongs to a *region*: the object, or the
stuff, that the label maps show. Painting writes part numbers only, never colours, so labels cannot depend on light.
Only additions, products, quotients and square roots decide which cell is inside: the same on every IEEE machine.
Coordinates are in cells, y down; a cell is inside when its centre is.
"""

from collections.abc import Sequence
from enum import IntEnum
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apd.data.scene_layout import Tint

Floats = NDArray[np.float32]
GROUND_PARTS = 4
"""Parts below this number lie on the ground, and `part + GROUND_PARTS` is the same part in shadow."""


class Surface(IntEnum):
    """How a part lies in space, which decides how its texture is mapped and how depth varies over it."""

    FLAT = 0  # faces the camera at one depth
    GROUND = 1
    WALL = 2  # along the street


class Detail(IntEnum):
    """Materials that are not the colour of a class: they keep their own colour and share of the part."""

    NONE = 0
    GLASS = 1
    RUBBER = 2
    PAPER = 3
    SKIN = 4
    BARK = 5
    RED = 6
    LAMP = 7
    LIT = 8


class Part(NamedTuple):
    """What a patch looks like, relative to the colour of its class.

    `lightness` is added in OkLab to the tint's; `detail` replaces `share` of the class colour; `depth` in metres is
    for the haze (infinite: no haze, the sky has its own gradient).
    """

    region: int
    class_index: int
    tint: Tint
    lightness: float
    detail: Detail
    share: float
    depth: float
    surface: Surface


class Canvas:
    """Part numbers per cell (`parts_HW`) and what each number means (`parts`, `regions`)."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.parts_HW = np.zeros((height, width), dtype=np.uint16)
        self.rows = np.arange(height, dtype=np.float32) + np.float32(0.5)
        self.columns = np.arange(width, dtype=np.float32) + np.float32(0.5)
        self.parts: list[Part] = []
        self.regions: list[tuple[int, bool]] = []  # (class, is it a counted object)

    def new_region(self, class_index: int, *, thing: bool = False) -> int:
        """Start a region and return its number; every object that is counted has one of its own."""
        self.regions.append((class_index, thing))
        return len(self.regions) - 1

    def new_part(
        self,
        region: int,
        tint: Tint,
        lightness: float = 0.0,
        *,
        depth: float,
        detail: Detail = Detail.NONE,
        share: float = 0.0,
        surface: Surface = Surface.FLAT,
    ) -> int:
        """Start a part and return its number, to be handed to the drawing functions."""
        self.parts.append(Part(region, self.regions[region][0], tint, lightness, detail, share, depth, surface))
        return len(self.parts) - 1

    def rectangle(self, part: int, left: float, top: float, right: float, bottom: float) -> None:
        """Fill left <= x < right, top <= y < bottom."""
        x0, x1 = cells(left, right, self.width)
        y0, y1 = cells(top, bottom, self.height)
        if x0 < x1 and y0 < y1:
            self.parts_HW[y0:y1, x0:x1] = part

    def rows_between(self, part: int, first: int, left: Floats, right: Floats) -> None:
        """Fill left[i] <= x < right[i] in row first + i. The rows must lie on the canvas."""
        if left.size == 0:
            return
        x0, x1 = cells(float(left.min()), float(right.max()), self.width)
        if x0 >= x1:
            return
        columns = self.columns[x0:x1]
        inside = columns >= left[:, None]
        inside &= columns < right[:, None]
        np.putmask(self.parts_HW[first : first + left.size, x0:x1], inside, part)

    def columns_between(self, part: int, first: int, top: Floats, bottom: Floats) -> None:
        """Fill top[i] <= y < bottom[i] in column first + i. The columns must lie on the canvas."""
        if top.size == 0:
            return
        y0, y1 = cells(float(top.min()), float(bottom.max()), self.height)
        if y0 >= y1:
            return
        rows = self.rows[y0:y1, None]
        inside = rows >= top
        inside &= rows < bottom
        target = self.parts_HW[y0:y1, first : first + top.size]
        np.copyto(target, part, where=inside, casting="unsafe")

    def polygon(self, part: int, corners: Sequence[tuple[float, float]]) -> None:
        """Fill a convex polygon given by its corners (x, y), in either sense."""
        xs, ys = zip(*corners, strict=True)
        if max(xs) <= 0 or min(xs) >= self.width:
            return
        y0, y1 = cells(min(ys), max(ys), self.height)
        if y0 >= y1:
            return
        area = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
        rows = self.rows[y0:y1]
        left = right = None
        # A convex shape lies to one side of the whole line through each of its edges, so a row is bounded by the
        # rightmost of the lines on its left and the leftmost of those on its right.
        for i in range(len(xs)):
            rise = ys[i] - ys[i - 1]
            if rise == 0:
                continue
            slope = (xs[i] - xs[i - 1]) / rise
            crossing = rows * slope
            crossing += xs[i] - slope * ys[i]
            if (rise > 0) == (area > 0):
                right = crossing if right is None else np.minimum(right, crossing, out=right)
            else:
                left = crossing if left is None else np.maximum(left, crossing, out=left)
        if left is not None and right is not None:
            self.rows_between(part, y0, left, right)

    def ellipse(self, part: int, x: float, y: float, across: float, down: float) -> None:
        """Fill an upright ellipse with centre (x, y) and radii `across` and `down`."""
        self.ellipses(part, ((x, y, across, down),))

    def ellipses(self, part: int, shapes: Sequence[tuple[float, float, float, float]], below: float = np.inf) -> None:
        """Fill the union of upright ellipses (x, y, across, down), above the row `below` only."""
        x0, x1 = cells(min(s[0] - s[2] for s in shapes), max(s[0] + s[2] for s in shapes), self.width)
        bottom = min(max(s[1] + s[3] for s in shapes), below)
        y0, y1 = cells(min(s[1] - s[3] for s in shapes), bottom, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        x, y, across, down = np.array(shapes, dtype=np.float32).T[:, :, None]
        dx_sq = ((self.columns[x0:x1] - x) / across) ** 2
        dy_sq = ((self.rows[y0:y1] - y) / down) ** 2
        inside = (dy_sq[:, :, None] + dx_sq[:, None, :] < 1).any(axis=0)
        np.putmask(self.parts_HW[y0:y1, x0:x1], inside, part)

    def shadow(self, x: float, y: float, across: float, down: float) -> None:
        """Darken the ground within an ellipse; what stands on the ground, and every label, stays as it is."""
        x0, x1 = cells(x - across, x + across, self.width)
        y0, y1 = cells(y - down, y + down, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        target = self.parts_HW[y0:y1, x0:x1]
        dx_sq = ((self.columns[x0:x1] - np.float32(x)) / np.float32(across)) ** 2
        dy_sq = ((self.rows[y0:y1] - np.float32(y)) / np.float32(down)) ** 2
        inside = dy_sq[:, None] + dx_sq < 1
        inside &= target < GROUND_PARTS
        target[inside] += GROUND_PARTS


def cells(low: float, high: float, size: int) -> tuple[int, int]:
    """First and one past the last cell whose centre lies in low <= centre < high, cut to 0..size."""
    first = 0 if low <= 0.5 else size if low >= size else ceil(low - 0.5)
    last = 0 if high <= 0.5 else size if high >= size else ceil(high - 0.5)
    return first, last
