"""Paints what is on the street, in metres; a sign's plate, a car and a pedestrian are each a region of their own."""

from collections.abc import Sequence

from apd.data.scenes.canvas import Detail
from apd.data.scenes.layout import Car, Lamp, Object, Pedestrian, Railing, Sign, Tint, Tree
from apd.data.scenes.street import CAR, FENCE, NEAREST, PEDESTRIAN, PLAIN, POLE, SIGN, TREE, View

Point = tuple[float, float, float]


class _Brush:
    """Paints shapes of one object, given in metres around (x, z), in shades of the object's colour."""

    def __init__(self, view: View, region: int, x: float, z: float, tint: Tint) -> None:
        self.view, self.canvas, self.region = view, view.canvas, region
        self.x, self.z, self.tint = x, z, tint
        self.scale, self.column, self.foot = view.scale(z), view.column(x, z), view.row(0.0, z)

    def part(self, lightness: float = 0.0, detail: Detail = Detail.NONE, share: float = 0.0) -> int:
        return self.canvas.new_part(self.region, self.tint, lightness, depth=self.z, detail=detail, share=share)

    def box(self, part: int, left: float, bottom: float, right: float, top: float) -> None:
        s, c, f = self.scale, self.column, self.foot
        self.canvas.rectangle(part, c + left * s, f - top * s, c + right * s, f - bottom * s)

    def shape(self, part: int, corners: Sequence[tuple[float, float]]) -> None:
        s, c, f = self.scale, self.column, self.foot
        self.canvas.polygon(part, [(c + a * s, f - b * s) for a, b in corners])

    def solid(self, part: int, corners: Sequence[Point]) -> None:
        """Convex polygon in space: (across, up, further away)."""
        focal, centre, horizon = self.view.focal, self.view.centre, self.view.horizon
        x, height = self.x - self.view.camera.x, self.view.camera.height
        seen = [(x + across, height - up, focal / (self.z + beyond)) for across, up, beyond in corners]
        self.canvas.polygon(part, [(centre + a * scale, horizon + b * scale) for a, b, scale in seen])

    def blob(self, part: int, x: float, y: float, across: float, up: float) -> None:
        s = self.scale
        self.canvas.ellipse(part, self.column + x * s, self.foot - y * s, across * s, up * s)

    def shadow(self, across: float, along: float, shift: float = 0.0) -> None:
        """Shadow on the ground, an ellipse of radii `across` and `along` metres moved away from the sun."""
        if across * self.scale < 2.0:  # cells; smaller shadows are not seen
            return
        down = self.foot - self.view.row(0.0, self.z + along)
        x = self.column - self.view.sun * shift * self.scale
        self.canvas.shadow(x, self.foot, across * self.scale, max(down, 0.08 * self.scale))


def paint_object(view: View, each: Object) -> None:
    """Paint one object over whatever is further away; one behind or beside the camera is left out."""
    if each.z < 4 * NEAREST:
        return
    # metres that it and its shadow reach to either side, at most, and to its far end
    reach, length = 0.6, 0.0
    match each:
        case Tree():
            paint, reach = _paint_tree, 1.7 * each.radius
        case Lamp():
            paint, reach = _paint_lamp, abs(each.bracket) + 0.8
        case Sign():
            paint, reach = _paint_sign, 0.8 * each.size
        case Railing():
            paint, length = _paint_railing, each.length
        case Pedestrian():
            paint = _paint_pedestrian
        case Car(across=0):
            paint, reach, length = _paint_car, 0.75 * each.width, each.length
        case Car():
            paint, reach = _paint_crossing_car, each.length / 2
    near, far = view.column(each.x, each.z), view.column(each.x, each.z + length)
    reach *= view.scale(each.z)
    if max(near, far) + reach > 0 and min(near, far) - reach < view.canvas.width:
        paint(view, each)


def _paint_tree(view: View, tree: Tree) -> None:
    brush = _Brush(view, TREE, tree.x, tree.z, tree.tint)
    trunk = brush.part(-0.05, Detail.BARK, 0.75)
    dark, leaves, lit = brush.part(-0.07), brush.part(0.0), brush.part(0.07)
    brush.shadow(tree.radius, 0.6 * tree.radius, 0.6 * tree.radius)
    r = tree.radius
    brush.box(trunk, -0.1 * r, 0.0, 0.1 * r, tree.height - r)
    if tree.conifer:
        for level in range(3):
            foot, reach = 0.16 + 0.24 * level, r * (0.95 - 0.22 * level)
            tip = (0.0, tree.height * min(1.0, foot + 0.42))
            base = tree.height * foot
            brush.shape((dark, leaves, lit)[level], [(-reach, base), (reach, base), tip])
        return
    x, y, s = brush.column, brush.foot - (tree.height - r) * brush.scale, r * brush.scale
    crown = [(x + a * s, y - b * s, c * s, c * s) for a, b, c in tree.lumps]
    view.canvas.ellipses(dark, [*crown, (x, y, 0.75 * s, 0.75 * s)])
    toward = 0.16 * s
    view.canvas.ellipses(leaves, [(a + view.sun * toward, b - toward, 0.78 * c, 0.74 * c) for a, b, c, _ in crown])
    upper = sorted(crown, key=lambda lump: lump[1] - 0.5 * view.sun * lump[0])[:3]
    away = 1.9 * toward
    view.canvas.ellipses(lit, [(a + 1.9 * view.sun * toward, b - away, 0.42 * c, 0.36 * c) for a, b, c, _ in upper])


def _paint_lamp(view: View, lamp: Lamp) -> None:
    brush = _Brush(view, POLE, lamp.x, lamp.z, lamp.tint)
    post, shine = brush.part(-0.02), brush.part(0.08)
    w = lamp.width / 2
    brush.shadow(2.2 * w, 0.25, w)
    brush.box(post, -w, 0.0, w, lamp.height)
    brush.box(post, -1.6 * w, 0.0, 1.6 * w, 0.55)
    ends = sorted((0.3 * view.sun * w, view.sun * w))
    brush.box(shine, ends[0], 0.55, ends[1], lamp.height)
    if lamp.bracket:
        ends = sorted((0.0, lamp.bracket))
        brush.box(post, ends[0], lamp.height - 1.3 * w, ends[1], lamp.height)
        brush.blob(brush.part(0.05, Detail.LAMP, 0.4), lamp.bracket, lamp.height - w, 0.42, 0.2)
    else:
        brush.blob(brush.part(0.05, Detail.LAMP, 0.4), 0.0, lamp.height, 0.3, 0.3)


def _paint_sign(view: View, sign: Sign) -> None:
    post = _Brush(view, POLE, sign.x, sign.z, PLAIN)
    grey = post.part(0.0)
    r, y = sign.size / 2, sign.bottom + sign.size / 2
    post.shadow(0.25, 0.2)
    for x in (-0.5 * r, 0.5 * r) if sign.shape == "board" else (0.0,):
        post.box(grey, x - sign.pole / 2, 0.0, x + sign.pole / 2, y)
    brush = _Brush(view, view.canvas.new_region(SIGN, counted=True), sign.x, sign.z, sign.tint)
    rim, face, mark = brush.part(-0.06, Detail.PAPER, 0.35), brush.part(0.0), brush.part(0.0, Detail.RUBBER, 0.55)
    if sign.shape == "disc":
        brush.blob(rim, 0.0, y, r, r)
        brush.blob(face, 0.0, y, 0.84 * r, 0.84 * r)
        brush.box(mark, -0.5 * r, y - 0.14 * r, 0.5 * r, y + 0.14 * r)
    elif sign.shape == "triangle":
        for part, k in ((rim, 1.12), (face, 0.86)):
            brush.shape(part, [(-k * r, y - 0.62 * k * r), (k * r, y - 0.62 * k * r), (0.0, y + 1.1 * k * r)])
        brush.box(mark, -0.1 * r, y - 0.35 * r, 0.1 * r, y + 0.4 * r)
    elif sign.shape == "diamond":
        for part, k in ((rim, 1.1), (face, 0.88)):
            brush.shape(part, [(-k * r, y), (0.0, y - k * r), (k * r, y), (0.0, y + k * r)])
    elif sign.shape == "board":
        brush.box(rim, -1.35 * r, y - 0.8 * r, 1.35 * r, y + 0.8 * r)
        brush.box(face, -1.25 * r, y - 0.7 * r, 1.25 * r, y + 0.7 * r)
        for line in (-0.3, 0.2):
            brush.box(mark, -0.95 * r, y + line * r, 0.6 * r, y + (line + 0.18) * r)
    else:
        brush.box(face, -0.5 * r, y - 1.15 * r, 0.5 * r, y + 1.15 * r)
        red, lit = brush.part(0.0, Detail.RED, 0.8), brush.part(0.0, Detail.LIT, 0.5)
        for part, level in ((red, 0.7), (mark, 0.0), (lit, -0.7)):
            brush.blob(part, 0.0, y + level * r, 0.3 * r, 0.3 * r)


def _paint_railing(view: View, railing: Railing) -> None:
    brush = _Brush(view, FENCE, railing.x, railing.z, railing.tint)
    h, end = railing.height, railing.length
    for part, low, high in ((brush.part(-0.01), 0.0, h), (brush.part(0.06), 0.7 * h, 0.85 * h)):
        brush.solid(part, [(0.0, low, 0.0), (0.0, high, 0.0), (0.0, high, end), (0.0, low, end)])


def _paint_pedestrian(view: View, person: Pedestrian) -> None:
    brush = _Brush(view, view.canvas.new_region(PEDESTRIAN, counted=True), person.x, person.z, person.tint)
    coat, sleeve, trousers = brush.part(0.02), brush.part(-0.04), brush.part(-0.13)
    skin, hair = brush.part(0.05, Detail.SKIN, 0.8), brush.part(-0.12, Detail.BARK, 0.6)
    h, step = person.height, person.stride
    brush.shadow(0.38, 0.3, 0.15)
    for foot in (-step - 0.06, step + 0.06):
        brush.shape(trousers, [(-0.13, 0.5 * h), (0.13, 0.5 * h), (foot + 0.085, 0.0), (foot - 0.085, 0.0)])
    fine = h * brush.scale > 8.0  # cells; on a smaller figure arms and hair are lost anyway
    for hand in () if not fine else (-0.27 - 0.5 * abs(step), 0.27 + 0.5 * abs(step)):
        top, end = 0.2 if hand > 0 else -0.2, 0.46 * h
        brush.shape(sleeve, [(top - 0.06, 0.81 * h), (top + 0.06, 0.81 * h), (hand + 0.055, end), (hand - 0.055, end)])
    brush.shape(coat, [(-0.24, 0.82 * h), (0.24, 0.82 * h), (0.2, 0.44 * h), (-0.2, 0.44 * h)])
    brush.blob(skin, 0.0, 0.91 * h, 0.115, 0.09 * h)
    if fine:
        brush.blob(hair, -0.03 * person.facing, 0.95 * h, 0.12, 0.055 * h)


def _paint_car(view: View, car: Car) -> None:
    brush = _Brush(view, view.canvas.new_region(CAR, counted=True), car.x, car.z, car.tint)
    paint, side, roof = brush.part(0.0), brush.part(-0.05), brush.part(0.06)
    glass, dark = brush.part(-0.05, Detail.GLASS, 0.65), brush.part(-0.1, Detail.RUBBER, 0.75)
    lights = brush.part(0.0, Detail.RED if car.away else Detail.LAMP, 0.85)
    plate = brush.part(0.0, Detail.PAPER, 0.7)
    w, h, end, waist = car.width / 2, car.height, car.length, car.bonnet * car.height
    van = h > 1.9
    start = 0.03 if van else 0.07 if car.away else 0.26  # where the glass begins, as a share of the length
    slope, stop = (0.05, 0.98) if van else (0.13, 0.86)
    s = brush.scale
    brush.canvas.shadow(brush.column - 0.25 * view.sun * s, brush.foot, 1.12 * w * s, 0.22 * s)
    inner = -w if car.x > view.camera.x else w
    shade = 0.82 * inner
    # The darkness under the car counts as car: nothing of the road can be seen there.
    brush.solid(dark, [(-w, 0.12, 0.0), (w, 0.12, 0.0), (w, 0.12, end), (-w, 0.12, end)])
    brush.solid(side, [(inner, 0.28, 0.0), (inner, waist, 0.0), (inner, waist, end), (inner, 0.28, end)])
    top, front, back, rear = 0.82 * w, start * end, (start + slope) * end, (stop - slope) * end
    brush.solid(glass, [(inner, waist, front), (shade, h, back), (shade, h, rear), (inner, waist, stop * end)])
    for at in (0.18, 0.8):
        x, depth, radius = car.x + inner, car.z + at * end, 0.33
        across = abs(view.column(x, depth - radius) - view.column(x, depth + radius)) / 2
        across = max(across, 0.08 * view.scale(depth))
        brush.canvas.ellipse(dark, view.column(x, depth), view.row(radius, depth), across, radius * view.scale(depth))
    for x in (-0.78 * w, 0.78 * w):
        brush.box(dark, x - 0.12, 0.0, x + 0.12, 0.4)
    brush.solid(roof, [(-w, waist, 0.0), (w, waist, 0.0), (w, waist, front), (-w, waist, front)])
    brush.solid(roof, [(-top, h, back), (top, h, back), (top, h, rear), (-top, h, rear)])
    brush.solid(paint, [(-w, waist, front), (w, waist, front), (top, h, back), (-top, h, back)])
    wide, narrow, low, high = 0.86 * w, 0.74 * w, waist + 0.12 * (h - waist), waist + 0.86 * (h - waist)
    brush.solid(glass, [(-wide, low, front), (wide, low, front), (narrow, high, back), (-narrow, high, back)])
    brush.box(paint, -w, 0.28, w, waist)
    brush.box(dark, -w, 0.26, w, 0.42)
    for x in (-0.78 * w, 0.78 * w):
        brush.box(lights, x - 0.17, 0.62 * waist, x + 0.17, 0.82 * waist)
    brush.box(plate, -0.28, 0.46, 0.28, 0.6)


def _paint_crossing_car(view: View, car: Car) -> None:
    brush = _Brush(view, view.canvas.new_region(CAR, counted=True), car.x, car.z, car.tint)
    paint, roof = brush.part(0.0), brush.part(0.06)
    glass, dark = brush.part(-0.05, Detail.GLASS, 0.65), brush.part(-0.1, Detail.RUBBER, 0.75)
    half, h, waist, d = car.length / 2, car.height, car.bonnet * car.height, car.across
    brush.canvas.shadow(brush.column, brush.foot, 1.02 * half * brush.scale, 0.16 * brush.scale)
    van = h > 1.9
    nose, tail = (0.72, -0.98) if van else (0.5, -0.8)
    ends = (tail, waist), (tail + 0.14, h), (nose - 0.28, h), (nose, waist)
    cabin = [(d * half * a, b) for a, b in ends]
    brush.shape(roof, cabin)
    middle = d * half * (nose + tail) / 2
    brush.shape(glass, [(middle + 0.86 * (a - middle), waist + 0.84 * (b - waist)) for a, b in cabin])
    brush.box(roof, middle - 0.05, waist, middle + 0.05, h)
    brush.box(paint, -half, 0.26, half, waist)
    brush.box(dark, -half, 0.24, half, 0.36)
    for x in (-0.6 * half, 0.62 * half):
        brush.blob(dark, x, 0.34, 0.34, 0.34)
    ends = sorted((d * (half - 0.25), d * half))
    brush.box(brush.part(0.0, Detail.LAMP, 0.85), ends[0], 0.62 * waist, ends[1], 0.82 * waist)
