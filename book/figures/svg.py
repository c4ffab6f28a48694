"""A few shapes as SVG text, in one set of colours for light pages and one for dark ones."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Colours(NamedTuple):
    """Of one drawing; the accents are those of the book's logo."""

    ink: str
    muted: str
    line: str
    panel: str
    teal: str
    teal_panel: str
    violet: str
    violet_panel: str
    coral: str


LIGHT = Colours("#1c2333", "#566178", "#8b95a9", "#f3f5f9", "#0b7a75", "#e2f3f1", "#6d5ba6", "#efebf8", "#c0452c")
DARK = Colours("#eef1f7", "#aab4c8", "#6f7a90", "#1e2430", "#4fd1c5", "#133734", "#b8a9f0", "#2b2545", "#ff9b85")
MODES = {"light": LIGHT, "dark": DARK}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"


@dataclass
class Drawing:
    """Collects shapes in the order they are painted. Coordinates in pixels, y down."""

    width: int
    height: int
    title: str
    colours: Colours
    shapes: list[str] = field(default_factory=list)

    def add(self, tag: str, content: str = "", **attributes: object) -> None:
        """One element; underscores of attribute names become hyphens."""
        written = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
        self.shapes.append(f"<{tag}{written}>{content}</{tag}>" if content else f"<{tag}{written}/>")

    def text(self, x: float, y: float, words: str, *, colour: str = "", size: float = 14, **attributes: object) -> None:
        """Words on the base line y, centred at x unless `text_anchor` says otherwise."""
        given = {"text_anchor": "middle"} | attributes
        self.add("text", words, x=short(x), y=short(y), fill=colour or self.colours.ink, font_size=size, **given)

    def box(
        self, centre: float, top: float, width: float, height: float, fill: str, edge: str, *, radius: float = 6
    ) -> None:
        """A rectangle with round corners."""
        left = short(centre - width / 2)
        self.add("rect", x=left, y=top, width=width, height=height, rx=radius, fill=fill, stroke=edge, stroke_width=1.4)

    def arrow(self, *points: tuple[float, float], colour: str = "") -> None:
        """A broken line along the points that ends in an arrow head; the last stretch is level or upright."""
        colour = colour or self.colours.line
        (x0, y0), (x1, y1) = points[-2:]
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        path = " L".join(f"{short(x)} {short(y)}" for x, y in (*points[:-1], (x1 - 4 * dx, y1 - 4 * dy)))
        self.add("path", d=f"M{path}", stroke=colour, fill="none", stroke_width=1.6, stroke_linejoin="round")
        back, side = (x1 - 8 * dx, y1 - 8 * dy), (4.2 * dy, 4.2 * dx)
        head = ((x1, y1), (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1]))
        self.add("path", d="M" + " L".join(f"{short(x)} {short(y)}" for x, y in head) + " Z", fill=colour)

    def stop(self, x: float, y: float, *, upright: bool = False) -> None:
        """The mark on a line that no gradient passes; `upright` says that the line is."""
        for shift in (-2.5, 2.5):
            (x0, y0), (x1, y1) = (
                ((x - 7, y + shift), (x + 7, y + shift)) if upright else ((x + shift, y - 7), (x + shift, y + 7))
            )
            self.add(
                "path",
                d=f"M{short(x0)} {short(y0)} L{short(x1)} {short(y1)}",
                stroke=self.colours.coral,
                stroke_width=2.4,
            )

    def render(self) -> str:
        """The whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" font-family="{FONT}">'
        )
        return "\n".join((head, f"<title>{self.title}</title>", *self.shapes, "</svg>")) + "\n"


def short(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
