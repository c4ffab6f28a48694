"""Paints the street itself, back to front; walls are planes of constant X, painted by a few array expressions."""

from math import floor, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apd.data.scenes.canvas import GROUND_PARTS, Canvas, Detail, Floats, Surface, cells
from apd.data.scenes.layout import FAR_END, Building, Camera, Garden, Layout, SideStreet, Tint
from apd.data.specs import SCENES

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN = range(SCENES.num_classes)
PLAIN: Tint = (0.0, 0.0, 0.0)
NEAREST = 0.4  # metres; nothing closer to the camera is drawn
_PAVING, _ASPHALT, _LINE, _KERB = range(GROUND_PARTS)


class View(NamedTuple):
    """A canvas and the projection of the world onto it."""

    canvas: Canvas
    camera: Camera
    sun: int
    focal: float  # cells
    centre: float  # column of the vanishing point
    horizon: float  # row of the horizon

    def scale(self, z: float) -> float:
        """Cells per metre at depth z."""
        return self.focal / z

    def column(self, x: float, z: float) -> float:
        """Column of a point X metres right of the road's middle at depth z."""
        return self.centre + (x - self.camera.x) * self.focal / z

    def row(self, y: float, z: float) -> float:
        """Row of a point Y metres above the ground at depth z."""
        return self.horizon + (self.camera.height - y) * self.focal / z


def begin(layout: Layout, height: int, width: int) -> View:
    """An empty canvas of height x width cells seen by the layout's camera, with one region for each class of stuff."""
    canvas = Canvas(height, width)
    for class_index in range(SCENES.num_classes):
        canvas.new_region(class_index)
    for darkness in (0.0, -0.17):
        for region, light, share in ((PAVEMENT, 0.0, 0.0), (ROAD, 0.0, 0.0), (ROAD, 0.0, 0.6), (PAVEMENT, 0.06, 0.0)):
            kind = dict(depth=FAR_END, detail=Detail.PAPER, share=share, surface=Surface.GROUND)
            canvas.new_part(region, PLAIN, light + darkness, **kind)
    camera = layout.camera
    focal = camera.focal * sqrt(height * width)
    return View(canvas, camera, layout.sun, focal, camera.vanishing * width, camera.horizon * height)


def paint_street(view: View, layout: Layout) -> None:
    """Everything that is not an object on the street."""
    _paint_sky(view, layout)
    _paint_far_end(view, layout)
    _paint_ground(view, layout)
    edge = layout.road.half_width + layout.road.pavement
    for segment in layout.segments:
        if segment.far > NEAREST:
            if isinstance(segment, Building):
                _paint_building(view, segment, edge + segment.setback)
            elif isinstance(segment, Garden):
                _paint_garden(view, segment, edge)


def _paint_sky(view: View, layout: Layout) -> None:
    canvas = view.canvas
    canvas.parts_HW[:] = canvas.new_part(SKY, PLAIN, depth=0.0)
    bright = canvas.new_part(SKY, PLAIN, 0.07, depth=0.0, detail=Detail.PAPER, share=0.25)
    for cloud in layout.clouds:
        size = cloud.size * sqrt(canvas.height * canvas.width)
        x, y = cloud.column * canvas.width, cloud.row * view.horizon
        shapes = [(x + 1.6 * a * size, y + b * size, 1.1 * r * size, 0.5 * r * size) for a, b, r in cloud.lumps]
        canvas.ellipses(bright, shapes, below=y + 0.1 * size)


def _paint_far_end(view: View, layout: Layout) -> None:
    canvas, scale = view.canvas, view.scale(FAR_END)
    foot = view.row(0.0, FAR_END)
    x = view.centre - scale * sum(width for width, *_ in layout.skyline) / 2
    for width, height, is_tree, tint in layout.skyline:
        right, top = x + width * scale, foot - height * scale
        if is_tree:
            part = canvas.new_part(TREE, tint, -0.02, depth=FAR_END)
            radius = 0.62 * (right - x)
            canvas.ellipse(part, (x + right) / 2, foot - 0.45 * height * scale, radius, 0.5 * height * scale)
            canvas.rectangle(part, x, foot - 0.4 * height * scale, right, foot)
        else:
            canvas.rectangle(canvas.new_part(BUILDING, tint, -0.03, depth=FAR_END), x, top, right, foot)
        x = right


def _paint_ground(view: View, layout: Layout) -> None:
    canvas, road, camera = view.canvas, layout.road, view.camera
    first = cells(view.row(0.0, FAR_END), canvas.height, canvas.height)[0]
    scale = (canvas.rows[first:] - np.float32(view.horizon)) * np.float32(1 / camera.height)
    z = np.float32(view.focal) / scale
    canvas.parts_HW[first:] = _PAVING

    def strip(part: int, left: float, right: float, where: np.ndarray | None = None) -> None:
        a = scale * np.float32(left - camera.x) + np.float32(view.centre)
        b = scale * np.float32(right - camera.x) + np.float32(view.centre)
        canvas.rows_between(part, first, a, b if where is None else np.where(where, b, a))

    edge = road.half_width
    for side in (-1, 1):
        strip(_KERB, *sorted((side * edge, side * (edge + 0.22))))
    strip(_ASPHALT, -edge, edge)
    for segment in layout.segments:
        if isinstance(segment, SideStreet):
            crossing = (z > segment.near + 1.0) & (z < segment.far - 1.0)
            strip(_ASPHALT, *sorted((segment.side * (edge - 0.1), segment.side * 1000.0)), crossing)
    if road.dash:
        strip(_LINE, -0.09, 0.09, np.floor(z * np.float32(2 / road.dash)) % 2 == 0)
    else:
        for side in (-1, 1):
            strip(_LINE, *sorted((side * (edge - 0.3), side * (edge - 0.45))))
    if road.crossing:
        on_zebra = (z > road.crossing) & (z < road.crossing + 2.6)
        stripes = floor(2 * edge / 0.9)
        for number in range(stripes):
            left = -edge + (2 * edge - 0.9 * stripes) / 2 + 0.9 * number + 0.2
            strip(_LINE, left, left + 0.5, on_zebra)


class _Wall(NamedTuple):
    """The columns in which a plane along the street is seen between two depths."""

    first: int
    z: Floats  # depth per column
    scale: Floats  # cells per metre per column


def _wall(view: View, side: int, x: float, near: float, far: float) -> _Wall | None:
    """Columns of the plane X = side * x between two depths; None when it is outside the image or behind us."""
    distance = x - side * view.camera.x
    near = max(near, NEAREST)
    ends = sorted(view.centre + side * view.focal * distance / z for z in (near, far))
    first, last = cells(*ends, view.canvas.width)
    if first >= last:
        return None
    scale = np.float32(side) * (view.canvas.columns[first:last] - np.float32(view.centre)) * np.float32(1 / distance)
    return _Wall(first, np.float32(view.focal) / scale, scale)


def _paint_building(view: View, house: Building, x: float) -> None:
    canvas, near = view.canvas, max(house.near, NEAREST)
    shine = 0.035 if house.side != view.sun else -0.035
    depth = (near + house.far) / 2

    def part(lightness: float, *material: float, surface: Surface = Surface.WALL) -> int:
        return canvas.new_part(BUILDING, house.tint, lightness, *material, depth=depth, surface=surface)

    dark_pane = part(shine - 0.13, Detail.GLASS, 0.5)
    if house.near > NEAREST and house.end_seen:
        _paint_front(view, house, x, part(shine - 0.06, surface=Surface.FLAT), dark_pane)
    if house.roof:
        foot, top, middle = house.height, house.height + house.roof, (near + house.far) / 2
        eave, ridge = house.side * x, house.side * (x + 3.0)
        corners = [(eave, foot, near), (eave, foot, house.far)]
        corners += [(eave, top, middle)] if house.gable else [(ridge, top, house.far), (ridge, top, near)]
        tiles = part(shine - 0.12, surface=Surface.FLAT)
        canvas.polygon(tiles, [(view.column(a, c), view.row(b, c)) for a, b, c in corners])
    wall = _wall(view, house.side, x, near, house.far)
    if wall is None:
        return
    top = np.float32(view.horizon) - wall.scale * np.float32(house.height - view.camera.height)
    bottom = np.float32(view.horizon) + wall.scale * np.float32(view.camera.height)
    y0, y1 = cells(float(top.min()), float(bottom.max()), canvas.height)
    if y0 >= y1:
        return
    # Which bay every column is in and which storey every cell is in, and how far along it.
    bay_W, along_W = _split((wall.z - np.float32(near)) * np.float32(1 / house.bay))
    up_HW = (np.float32(view.horizon) - canvas.rows[y0:y1])[:, None] / wall.scale + np.float32(view.camera.height)
    storey_HW, above_HW = _split(up_HW * np.float32(1 / house.storey))
    plain = part(shine)
    panes = np.array([dark_pane, dark_pane, part(shine - 0.06, Detail.GLASS, 0.4), part(shine - 0.02, Detail.LIT, 0.5)])
    storeys, bays = floor(house.height / house.storey), int(bay_W.max()) + 1
    table = np.full((storeys + 1, bays), plain, dtype=np.uint16)
    number = 5 * np.arange(storeys)[:, None] + 2 * np.arange(bays)
    table[:storeys] = panes[np.array(house.windows)[number % len(house.windows)]]
    if house.shop:
        table[0, 0::2], table[0, 1::2] = part(shine - 0.1), dark_pane
    pane_HW = (above_HW > np.float32(0.32)) & (above_HW < np.float32(0.78))
    pane_HW &= np.abs(along_W - np.float32(0.5)) < np.float32(0.24)
    # Cells above and below the wall find no entry in the table; they are not painted.
    ids_HW = np.where(pane_HW, table.ravel().take(storey_HW * bays + bay_W, mode="clip"), np.uint16(plain))
    ids_HW[up_HW > np.float32(house.height - 0.35)] = part(shine + 0.05)
    inside = (up_HW >= 0) & (up_HW < np.float32(house.height))
    np.copyto(canvas.parts_HW[y0:y1, wall.first : wall.first + wall.z.size], ids_HW, where=inside)


def _split(values: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Whole and remaining part of numbers that matter only where they are positive."""
    whole = values.astype(np.intp)
    return whole, values - whole.astype(np.float32)


def _paint_front(view: View, house: Building, x: float, front: int, pane: int) -> None:
    """The wall that faces us at the near end of a house, seen where the next house is lower or missing."""
    canvas, z, side = view.canvas, house.near, house.side
    scale, edge, foot = view.scale(z), view.column(side * x, z), view.row(0.0, z)
    depth = 6.0 if house.roof else 11.0

    def box(part: int, near: float, low: float, far: float, high: float) -> None:
        left, right = sorted((edge + side * near * scale, edge + side * far * scale))
        canvas.rectangle(part, left, foot - high * scale, right, foot - low * scale)

    if not -depth * scale < edge < canvas.width + depth * scale:
        return
    box(front, 0.0, 0.0, depth, house.height)
    if house.roof:
        gable = [(0.0, house.height), (depth, house.height), (depth / 2, house.height + house.roof)]
        canvas.polygon(front, [(edge + side * a * scale, foot - b * scale) for a, b in gable])
    for storey in range(floor(house.height / house.storey)):
        for bay in range(int(depth / house.bay)):
            low, high = (storey + 0.32) * house.storey, (storey + 0.78) * house.storey
            box(pane, (bay + 0.26) * house.bay, low, (bay + 0.74) * house.bay, high)


def _paint_garden(view: View, garden: Garden, x: float) -> None:
    canvas, height = view.canvas, view.camera.height
    shine = 0.03 if garden.side != view.sun else -0.03
    depth = (max(garden.near, NEAREST) + garden.far) / 2
    dark, leaves = (canvas.new_part(TREE, garden.hedge_tint, shine + by, depth=depth) for by in (-0.06, 0.01))
    along = dict(depth=depth, surface=Surface.WALL)
    boards, gaps, rail = (canvas.new_part(FENCE, garden.tint, shine + by, **along) for by in (0.02, -0.04, 0.06))
    if garden.near > NEAREST:
        z, side = garden.near, garden.side
        ends = sorted((view.column(side * (x + 0.7), z), view.column(side * (x + 5.0), z)))
        canvas.rectangle(dark, ends[0], view.row(garden.hedge, z), ends[1], view.row(0.0, z))
        ends = sorted((view.column(side * x, z), view.column(side * (x + 5.0), z)))
        canvas.rectangle(gaps, ends[0], view.row(garden.height, z), ends[1], view.row(0.0, z))
    hedge = _wall(view, garden.side, x + 0.7, garden.near, garden.far)
    if hedge is not None:
        along = (hedge.z - np.float32(garden.near)) * np.float32(len(garden.bumps) / (garden.far - garden.near))
        number = np.clip(along.astype(np.int8), 0, len(garden.bumps) - 1)
        along -= number
        bumps = np.array(garden.bumps, dtype=np.float32)[number] + 4 * along * (1 - along) * np.float32(0.7)
        foot = hedge.scale * np.float32(height) + np.float32(view.horizon)
        top = foot - hedge.scale * (np.float32(garden.hedge) + bumps)
        canvas.columns_between(leaves, hedge.first, top, foot)
        canvas.columns_between(dark, hedge.first, foot - hedge.scale * np.float32(0.6 * garden.hedge) + 0 * top, foot)
    fence = _wall(view, garden.side, x, garden.near, garden.far)
    if fence is not None:
        foot = fence.scale * np.float32(height) + np.float32(view.horizon)
        top = foot - fence.scale * np.float32(garden.height)
        odd = (fence.z * np.float32(1 / garden.board)).astype(np.int16) % 2 == 0
        canvas.columns_between(boards, fence.first, top, foot)
        canvas.columns_between(gaps, fence.first, np.where(odd, top, foot), foot)
        canvas.columns_between(rail, fence.first, top, top + fence.scale * np.float32(0.2))
