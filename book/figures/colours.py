"""The classes and their colours, as the catalogue has them."""

from svg import Colours, Drawing

from apd.data.specs import CLASS_COLOURS

ACROSS, TITLE = 3, "The classes and their colours"


def draw(colours: Colours) -> Drawing:
    """The drawing in one set of colours for its words; the classes keep theirs."""
    rows = -(-(len(CLASS_COLOURS) + 1) // ACROSS)
    d = Drawing(440, 34 * rows + 8, TITLE, colours)
    entries = {name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in CLASS_COLOURS.items()} | {"ignored": "#ffffff"}
    for place, (name, fill) in enumerate(entries.items()):
        x, y = 14 + place % ACROSS * 144, 8 + place // ACROSS * 34
        d.add("rect", x=x, y=y, width=34, height=24, rx=4, fill=fill, stroke=colours.line, stroke_width=1)
        d.text(x + 44, y + 17, name, text_anchor="start")
    return d
