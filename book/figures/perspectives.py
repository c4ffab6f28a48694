"""Why a perspective of its own may help an image: made-up pixels of two classes in three images.

The pixels have two features, so that a feature is a direction on the page. Each image turns all of its directions by
an angle of its own. Prototypes and answers are computed by the package, once over all images and once per image.
"""

from math import cos, radians, sin

import torch
from svg import Colours, Drawing, short
from torch import Tensor

from apd import class_prototypes, observe

CENTRES, TURNS, SPREAD, PIXELS = (26.0, 64.0), (-27.0, 0.0, 27.0), 5.0, 20
TITLE = "Pixels of two classes in three images, seen from one perspective and from three"


def made_up_pixels() -> tuple[Tensor, Tensor]:
    """Features (3, 2, 1, N), of different lengths only to keep the marks apart, and labels (3, 1, N)."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(2).repeat_interleave(PIXELS).expand(3, -1)
    angles = torch.tensor(CENTRES)[labels] + torch.tensor(TURNS)[:, None]
    angles = torch.deg2rad(angles + SPREAD * torch.randn(angles.shape, generator=generator))
    lengths = 0.8 + 0.26 * torch.rand(angles.shape, generator=generator)
    return torch.stack([angles.cos(), angles.sin()], 1).mul(lengths[:, None])[:, :, None], labels[:, None]


def draw(colours: Colours) -> Drawing:
    """The drawing in one set of colours."""
    d = Drawing(440, 520, TITLE, colours)
    features, labels = made_up_pixels()
    d.text(220, 24, "one perspective for all images", font_weight=650, size=15)
    _fan(d, (112, 240), 184, features, labels, "batch", (0, 1, 2))
    d.text(220, 312, "one perspective for each image", font_weight=650, size=15)
    for image, left in enumerate((36, 180, 324)):
        _fan(d, (left, 438), 96, features, labels, "image", (image,))
        d.text(left + 40, 468, f"image {image + 1}", size=13, colour=colours.muted)
    _legend(d)
    return d


def _fan(
    d: Drawing,
    origin: tuple[float, float],
    radius: float,
    features: Tensor,
    labels: Tensor,
    scope: str,
    shown: tuple[int, ...],
) -> None:
    """Pixels of the images `shown` around an origin, and the prototypes through which they are named."""
    prototypes, present = class_prototypes(features, labels, 2, scope=scope)
    answers = observe(features, prototypes, present).argmax(1)
    inks = (d.colours.teal, d.colours.violet)
    arc = " ".join(short(value) for value in _place(origin, radius, -14))
    end = " ".join(short(value) for value in _place(origin, radius, 106))
    d.add(
        "path",
        d=f"M{arc} A{short(radius)} {short(radius)} 0 0 0 {end}",
        fill="none",
        stroke=d.colours.line,
        stroke_width=1,
    )
    small = 3.4 if radius > 100 else 2.6
    for image in shown:
        for pixel, label in enumerate(labels[image, 0].tolist()):
            x, y = (features[image, :, 0, pixel] * radius * 0.94).tolist()
            at = (origin[0] + x, origin[1] - y)
            _mark(d, image, at, small, inks[label])
            if answers[image, 0, pixel] != label:
                d.add(
                    "circle",
                    cx=short(at[0]),
                    cy=short(at[1]),
                    r=small + 2.6,
                    fill="none",
                    stroke=d.colours.coral,
                    stroke_width=1.6,
                )
    for ink, (x, y) in zip(inks, prototypes[shown[0]].tolist(), strict=True):
        tip, side = (origin[0] + 0.7 * radius * x, origin[1] - 0.7 * radius * y), (-y * 4.5, -x * 4.5)
        back = (origin[0] + (0.7 * radius - 10) * x, origin[1] - (0.7 * radius - 10) * y)
        d.add(
            "path",
            d=f"M{short(origin[0])} {short(origin[1])} L{short(back[0])} {short(back[1])}",
            stroke=ink,
            stroke_width=2.6,
        )
        corners = (tip, (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1]))
        d.add("path", d="M" + " L".join(f"{short(a)} {short(b)}" for a, b in corners) + " Z", fill=ink)
    d.add("circle", cx=origin[0], cy=origin[1], r=3, fill=d.colours.ink)


def _place(origin: tuple[float, float], radius: float, degrees: float) -> tuple[float, float]:
    return origin[0] + radius * cos(radians(degrees)), origin[1] - radius * sin(radians(degrees))


def _mark(d: Drawing, image: int, at: tuple[float, float], r: float, ink: str) -> None:
    """Circle, square or triangle, by image."""
    x, y = at
    if image == 0:
        d.add("circle", cx=short(x), cy=short(y), r=r, fill=ink)
    elif image == 1:
        d.add("rect", x=short(x - r), y=short(y - r), width=2 * r, height=2 * r, fill=ink)
    else:
        corners = ((x, y - 1.3 * r), (x + 1.2 * r, y + r), (x - 1.2 * r, y + r))
        d.add("path", d="M" + " L".join(f"{short(a)} {short(b)}" for a, b in corners) + " Z", fill=ink)


def _legend(d: Drawing) -> None:
    c = d.colours
    for x, colour, words in ((24, c.teal, "road"), (104, c.violet, "pavement")):
        d.add("circle", cx=x, cy=500, r=5, fill=colour)
        d.text(x + 12, 504.5, words, size=13, text_anchor="start")
    d.add("circle", cx=214, cy=500, r=6, fill="none", stroke=c.coral, stroke_width=1.8)
    d.text(228, 504.5, "nearer the other class’s arrow", size=13, text_anchor="start")
