"""The canvas scenes are painted on: part numbers, filled back to front with exact shapes; coordinates in cells, y down.

A *part* is a patch of one colour (a wall, its windows, a tyre) of a *region*: the object, or the stuff, that the label
maps show. Only sums, products, quotients and square roots decide what is inside: the same on every IEEE machine.
"""

from collections.abc import Sequence
from enum import IntEnum
from math import ceil, inf, sqrt

import numpy as np
from numpy.typing import NDArray

from apd.data.scenes.layout import Tint

Floats = NDArray[np.float32]
GROUND_PARTS = 4  # parts below this number lie on the ground, and `part + GROUND_PARTS` is the same part in shadow
_FEW_ROWS = 12  # up to here a loop over rows is faster than array expressions

# how a part lies in space: facing the camera at one depth, on the ground, or as a wall along the street
Surface = IntEnum("Surface", "FLAT GROUND WALL", start=0)
# materials that are not the colour of a class: they keep their own colour and share of the part
Detail = IntEnum("Detail", "NONE GLASS RUBBER PAPER SKIN BARK RED LAMP LIT", start=0)


class Canvas:
    """Part numbers per cell (`parts_HW`) and what each number means (`parts`, `regions`)."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.parts_HW = np.zeros((height, width), dtype=np.uint16)
        self.rows = np.arange(height, dtype=np.float32) + np.float32(0.5)
        self.columns = np.arange(width, dtype=np.float32) + np.float32(0.5)
        # what is added in OkLab to the colour of a class, how much lighter that makes it, the class, a detail that
        # replaces a share of the colour, as much darker, the share, metres for the haze (0: none), and the surface
        self.parts: list[tuple[float, ...]] = []
        self.region_of_part: list[int] = []
        self.regions: list[tuple[int, bool]] = []  # (class, is it a counted object)

    def new_region(self, class_index: int, *, counted: bool = False) -> int:
        """Start a region and return its number; every object that is counted has one of its own."""
        self.regions.append((class_index, counted))
        return len(self.regions) - 1

    def new_part(
        self,
        region: int,
        tint: Tint,
        lightness: float = 0.0,
        detail: Detail = Detail.NONE,
        share: float = 0.0,
        *,
        depth: float,
        surface: Surface = Surface.FLAT,
    ) -> int:
        """Start a part and return its number, to be handed to the drawing functions."""
        self.region_of_part.append(region)
        self.parts.append((*tint, lightness, self.regions[region][0], detail, share, depth, surface))
        return len(self.parts) - 1

    def rectangle(self, part: int, left: float, top: float, right: float, bottom: float) -> None:
        """Fill left <= x < right, top <= y < bottom."""
        x0, x1 = cells(left, right, self.width)
        y0, y1 = cells(top, bottom, self.height)
        self.parts_HW[y0:y1, x0:x1] = part

    def rows_between(self, part: int, first: int, left: Floats, right: Floats) -> None:
        """Fill left[i] <= x < right[i] in row first + i. The rows must lie on the canvas."""
        self._between(part, self.parts_HW[first : first + left.size], self.columns, left, right)

    def columns_between(self, part: int, first: int, top: Floats, bottom: Floats) -> None:
        """Fill top[i] <= y < bottom[i] in column first + i. The columns must lie on the canvas."""
        self._between(part, self.parts_HW[:, first : first + top.size].T, self.rows, top, bottom)

    def _between(
        self, part: int, lines_XY: NDArray[np.uint16], centres_Y: Floats, low_X: Floats, high_X: Floats
    ) -> None:
        if low_X.size == 0:
            return
        first, last = cells(float(low_X.min()), float(high_X.max()), centres_Y.size)
        inside = centres_Y[first:last] >= low_X[:, None]
        inside &= centres_Y[first:last] < high_X[:, None]
        np.copyto(lines_XY[:, first:last], np.uint16(part), where=inside)

    def polygon(self, part: int, corners: Sequence[tuple[float, float]]) -> None:
        """Fill a convex polygon given by its corners (x, y), in either sense; the first three not in a line."""
        xs, ys = zip(*corners, strict=True)
        y0, y1 = cells(min(ys), max(ys), self.height)
        if y0 >= y1 or max(xs) <= 0 or min(xs) >= self.width:
            return
        # which way round the corners go, from the turn at the second
        turn = (xs[1] - xs[0]) * (ys[2] - ys[1]) - (xs[2] - xs[1]) * (ys[1] - ys[0])
        # a row is bounded by the rightmost of the lines through edges on its left and the leftmost of those on its
        # right; lines are (slope, column at y = 0)
        lefts, rights = [], []
        for i in range(len(xs)):
            rise = ys[i] - ys[i - 1]
            if rise != 0:
                slope = (xs[i] - xs[i - 1]) / rise
                (rights if (rise > 0) == (turn > 0) else lefts).append((slope, xs[i] - slope * ys[i]))
        if not lefts or not rights:
            return
        if y1 - y0 <= _FEW_ROWS:
            for i in range(y0, y1):
                y, left, right = i + 0.5, -inf, inf
                for slope, start in lefts:
                    left = edge if (edge := slope * y + start) > left else left
                for slope, start in rights:
                    right = edge if (edge := slope * y + start) < right else right
                # as `cells`, but a slice may run past the end by itself
                self.parts_HW[i, max(0, ceil(left - 0.5)) : max(0, ceil(right - 0.5))] = part
            return
        rows = self.rows[y0:y1]
        left_H = np.max([rows * slope + start for slope, start in lefts], axis=0)
        right_H = np.min([rows * slope + start for slope, start in rights], axis=0)
        self.rows_between(part, y0, left_H, right_H)

    def ellipse(self, part: int, x: float, y: float, across: float, down: float) -> None:
        """Fill an upright ellipse with centre (x, y) and radii `across` and `down`."""
        y0, y1 = cells(y - down, y + down, self.height)
        if y1 - y0 > _FEW_ROWS:
            self.ellipses(part, ((x, y, across, down),))
            return
        for i in range(y0, y1):
            reach = across * sqrt(max(0.0, 1.0 - ((i + 0.5 - y) / down) ** 2))
            self.parts_HW[i, max(0, ceil(x - reach - 0.5)) : max(0, ceil(x + reach - 0.5))] = part

    def ellipses(self, part: int, shapes: Sequence[tuple[float, float, float, float]], below: float = np.inf) -> None:
        """Fill the union of upright ellipses (x, y, across, down), above the row `below` only."""
        x0, x1 = cells(min([s[0] - s[2] for s in shapes]), max([s[0] + s[2] for s in shapes]), self.width)
        bottom = min(max([s[1] + s[3] for s in shapes]), below)
        y0, y1 = cells(min([s[1] - s[3] for s in shapes]), bottom, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        x, y, across, down = np.array(shapes, dtype=np.float32).T[:, :, None]
        dx_sq = ((self.columns[x0:x1] - x) / across) ** 2
        dy_sq = ((self.rows[y0:y1] - y) / down) ** 2
        np.putmask(self.parts_HW[y0:y1, x0:x1], (dy_sq[:, :, None] + dx_sq[:, None, :]).min(axis=0) < 1, part)

    def shadow(self, x: float, y: float, across: float, down: float) -> None:
        """Darken the ground within an ellipse; what stands on the ground, and every label, stays as it is."""
        for i in range(*cells(y - down, y + down, self.height)):
            reach = across * sqrt(max(0.0, 1.0 - ((i + 0.5 - y) / down) ** 2))
            target = self.parts_HW[i, slice(*cells(x - reach, x + reach, self.width))]
            target[target < GROUND_PARTS] += GROUND_PARTS


def cells(low: float, high: float, size: int) -> tuple[int, int]:
    """First and one past the last cell whose centre lies in low <= centre < high, cut to 0..size."""
    first = 0 if low <= 0.5 else size if low >= size else ceil(low - 0.5)
    last = 0 if high <= 0.5 else size if high >= size else ceil(high - 0.5)
    return first, last
