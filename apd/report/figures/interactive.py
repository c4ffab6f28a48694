"""Figures that answer a pointer: what a mark is, or what a cell of a picture is called, with its score.

Each is a static figure with a small script beside it (`live/`): nothing is loaded from anywhere, and a printed page or
one without scripts shows the figure as it is. Marks and cells can be reached by arrow keys too, and a screen reader is
told what they say.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from apd.perspective import ABSENT_LOGIT
from apd.report.figures.page import Drawing, Panel, panels
from apd.report.figures.style import drawing


class Mark(NamedTuple):
    """A mark of a figure that a pointer can find.

    Attributes:
        axes, x, y: where it is, in the axes' own units.
        lines: what is said of it.
        group: marks of one group are shown together; empty: alone.
    """

    axes: Axes
    x: float
    y: float
    lines: Sequence[str]
    group: str = ""


class View(NamedTuple):
    """What the cells of a grid are called from one point of view.

    Attributes:
        name: whose view.
        labels_hw: class of each cell.
        scores_hw: probability of that class, 0 to 1; None where there is none, as for true labels.
    """

    name: str
    labels_hw: Tensor
    scores_hw: Tensor | None = None


_PANEL = '<div class="apd-panel">'
"""What each panel of `apd.report.figures.page.panels` begins with."""


@cache
def _beside(name: str) -> str:
    return (Path(__file__).parent / "live" / name).read_text(encoding="utf-8")


def _live(inside: str, data: object, script: str, description: str, hint: str) -> Drawing:
    """A figure with its data and its script, which finds it by an id made of both: equal figures give equal files."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    name = f"apd-live-{hashlib.sha256((text + inside).encode()).hexdigest()[:12]}"
    html = (
        f'<style>{_beside("live.css")}</style><div class="apd-live" id="{name}" tabindex="0" role="group" '
        f'aria-label="{escape(f"interactive figure. {hint}", quote=True)}">{inside}'
        f'<p class="apd-hint">{escape(hint)}</p><script type="application/json">{text}</script>'
        f"<script>{_beside(script).replace('NAME', name)}</script></div>"
    )
    return Drawing(html, description)


def hoverable(fig: Figure, marks: Sequence[Mark], description: str) -> Drawing:
    """The figure as `apd.report.figures.style.drawing` gives it, with marks that tell what they are.

    Call it inside the `with` of `apd.report.figures.style.figure`.

    Args:
        fig: what was drawn.
        marks: what a pointer can find; arrow keys go through them in this order.
        description: see `drawing`.

    Raises:
        ValueError: there is no mark.
    """
    if not marks:
        raise ValueError("marks is empty: a figure with nothing to point at is a `drawing`")
    static = drawing(fig, description)  # lays the figure out, so that axes are where they will be seen
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', static.html).groups())
    lines: dict[str, int] = {}
    placed = []
    for mark in marks:
        x, y = mark.axes.transData.transform((mark.x, mark.y)) / (fig.bbox.width, fig.bbox.height)
        said = [lines.setdefault(line, len(lines)) for line in mark.lines]
        placed.append([round(x * width, 1), round((1 - y) * height, 1), said, mark.group])
    inside = f'{static.html}<div class="apd-tip" role="status" hidden></div>'
    hint = "Point at a mark, tap it, or use the arrow keys, to read what it is."
    return _live(inside, {"marks": placed, "lines": list(lines)}, "marks.js", description, hint)


def cell_panels(
    cells: Sequence[Panel],
    views: Sequence[View],
    class_names: Sequence[str],
    *,
    columns: int,
    least: str,
    below: str = "",
) -> Drawing:
    """Pictures of one image, with a frame that marks the same cell in all of them and what each view calls it.

    Args:
        cells: see `apd.report.figures.page.panels`; every picture shows the whole image, at any resolution.
        views: on one grid; labels outside the class names are told as ignored.
        class_names: K names.
        columns, least, below: see `panels`.

    Raises:
        ValueError: no view, or views on different grids.
    """
    grids = {tuple(view.labels_hw.shape) for view in views}
    if len(grids) != 1:
        raise ValueError(f"views are on the grids {sorted(grids)}: expected one grid for all, and at least one view")
    ((height, width),) = grids
    shown = panels(cells, columns=columns, least=least)
    told = []
    for view in views:
        labels = [k if 0 <= k < len(class_names) else -1 for k in view.labels_hw.flatten().tolist()]
        entry: dict[str, object] = {"name": view.name, "labels": labels}
        if view.scores_hw is not None:
            entry["scores"] = [round(100 * p) for p in view.scores_hw.flatten().tolist()]
        told.append(entry)
    data = {"width": width, "height": height, "names": list(class_names), "views": told}
    # what is read stands beside the first panel where there is room, below it on a phone
    first, *others = shown.html.split(_PANEL)[1:]
    said = '<div class="apd-said" role="status"></div>'
    inside = shown.html.split(_PANEL)[0] + _PANEL + first + said + "".join(_PANEL + other for other in others) + below
    hint = "Point at a cell, tap it, or use the arrow keys, to read what each view calls it."
    return _live(inside, data, "cells.js", shown.description, hint)


def view_of(name: str, logits_KHW: Tensor, present_K: Tensor) -> View:
    """What cells are called, among the present classes, by scores of classes such as logits or observations."""
    absent_K11 = ~present_K.cpu()[:, None, None]
    probability_KHW = logits_KHW.detach().float().cpu().masked_fill(absent_K11, ABSENT_LOGIT).softmax(0)
    best = probability_KHW.max(0)
    return View(name, best.indices, best.values)
