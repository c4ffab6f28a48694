"""The way of a batch through the method, drawn for a narrow screen: teacher on the left, student on the right."""

from svg import Colours, Drawing

TEACHER, MIDDLE, STUDENT = 112, 220, 328
BOX = 124
TITLE = "The way of a batch from image and labels to the four terms"


def draw(colours: Colours) -> Drawing:
    """The drawing in one set of colours."""
    d = Drawing(440, 806, TITLE, colours)
    _nets(d)
    _perspectives(d)
    _terms(d)
    _legend(d)
    return d


def _box(d: Drawing, centre: float, top: float, words: str, kind: str = "plain", *, width: float = BOX) -> None:
    c = d.colours
    fill, edge, ink = {
        "plain": (c.panel, c.line, c.ink),
        "frozen": (c.panel, c.line, c.muted),
        "student": (c.teal_panel, c.teal, c.ink),
        "teacher head": (c.violet_panel, c.violet, c.ink),
    }[kind]
    d.box(centre, top, width, 34, fill, edge)
    d.text(centre, top + 22, words, colour=ink)


def _pill(d: Drawing, centre: float, top: float, name: str, formula: str, kind: str, *, width: float = 108) -> None:
    fill = d.colours.violet if kind == "teacher head" else d.colours.teal
    paper = "#14181f" if d.colours.ink.startswith("#e") else "#ffffff"
    d.box(centre, top, width, 42, fill, fill, radius=21)
    d.text(centre, top + 18, name, colour=paper, font_weight=650)
    d.text(centre, top + 34, formula, colour=paper, size=12)


def _nets(d: Drawing) -> None:
    """Image, nets, features, heads, normalised pixels: y 8 to 322."""
    _box(d, MIDDLE, 8, "image", width=88)
    d.arrow((MIDDLE - 44, 25), (TEACHER, 25), (TEACHER, 72))
    d.arrow((MIDDLE + 44, 25), (STUDENT, 25), (STUDENT, 72))
    _box(d, TEACHER, 72, "teacher, frozen", "frozen")
    _box(d, STUDENT, 72, "student", "student")
    for centre, name, kind in ((TEACHER, "its head", "teacher head"), (STUDENT, "its head", "student")):
        d.arrow((centre, 106), (centre, 144))
        _box(d, centre, 144, "features")
        d.arrow((centre, 178), (centre, 216))
        _box(d, centre, 216, name, kind)
        d.arrow((centre, 250), (centre, 288))
        _box(d, centre, 288, "unit pixels")
    d.stop(TEACHER, 121, upright=True)
    d.text(MIDDLE, 238, "conv – ReLU", size=12, colour=d.colours.muted)
    d.text(MIDDLE, 253, "– conv", size=12, colour=d.colours.muted)
    d.text(MIDDLE, 302, "each of", size=12, colour=d.colours.muted)
    d.text(MIDDLE, 317, "length 1", size=12, colour=d.colours.muted)


def _perspectives(d: Drawing) -> None:
    """Prototypes from pixels and labels, observations from pixels and prototypes: y 322 to 526."""
    for centre, outside in ((TEACHER, -1), (STUDENT, 1)):
        d.arrow((centre, 322), (centre, 360))
        _box(d, centre, 360, "prototypes")
        d.arrow((centre, 394), (centre, 492))
        # around the prototypes: the same pixels are looked at through them
        edge, lane = centre + outside * BOX / 2, centre + outside * (BOX / 2 + 16)
        d.arrow((edge, 305), (lane, 305), (lane, 509), (edge, 509))
        _box(d, centre, 492, "observations")
    _box(d, MIDDLE, 360, "labels", width=56)
    d.arrow((MIDDLE - 28, 377), (TEACHER + BOX / 2, 377))
    d.arrow((MIDDLE + 28, 377), (STUDENT - BOX / 2, 377))
    d.text(MIDDLE, 346, "at the grid’s size", size=12, colour=d.colours.muted)


def _terms(d: Drawing) -> None:
    """The four terms: y 394 to 692."""
    for top, bottom in ((422, 394), (552, 526)):
        level = top + 21
        d.arrow((TEACHER + 40, bottom), (TEACHER + 40, level), (MIDDLE - 54, level))
        d.arrow((STUDENT - 40, bottom), (STUDENT - 40, level), (MIDDLE + 54, level))
        d.stop(TEACHER + 40, bottom + 14, upright=True)
    _pill(d, MIDDLE, 422, "alignment", "½ (1 − cosine)", "student")
    _pill(d, MIDDLE, 552, "observation", "KL divergence", "student")
    d.arrow((TEACHER - 20, 526), (TEACHER - 20, 612))
    _pill(d, TEACHER - 6, 612, "regularisation", "cross-entropy", "teacher head", width=136)
    _box(d, MIDDLE + 14, 616, "labels", width=56)
    d.arrow((MIDDLE - 14, 633), (TEACHER + 62, 633))
    # the classifiers’ logits: down the outer lanes
    for centre, outside in ((TEACHER, -1), (STUDENT, 1)):
        lane = MIDDLE + outside * 208
        d.arrow((centre + outside * BOX / 2, 89), (lane, 89), (lane, 693), (MIDDLE + outside * 54, 693))
        d.text(MIDDLE + outside * 110, 686, "logits", size=12, colour=d.colours.muted)
    d.stop(31, 89)
    _pill(d, MIDDLE, 672, "pixel_kd", "KL divergence", "student")


def _legend(d: Drawing) -> None:
    c = d.colours
    entries = (
        (c.teal, 18, 748, "trains the student’s side: net and head"),
        (c.violet, 18, 772, "trains the teacher’s head, nothing else"),
    )
    for colour, x, y, words in entries:
        d.add("circle", cx=x, cy=y - 4.5, r=6, fill=colour)
        d.text(x + 14, y, words, size=13, text_anchor="start")
    d.arrow((8, 791.5), (30, 791.5))
    d.stop(17, 791.5)
    d.text(36, 796, "no gradient passes here", size=13, text_anchor="start")
