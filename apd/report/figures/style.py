"""How figures and tables look: HTML and SVG for light, dark and narrow pages, with small scripts (`live/`) beside."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Self

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from apd.perspective import ABSENT_LOGIT

ImageHW3 = NDArray[np.uint8]

INK, FAINT = "#010203", "#040506"
"""Stand for the page's text colour, and for the same at a third of its strength: in the SVG they are `currentColor`."""
# each keeps a contrast of 3 on white and on the dark page; names stand beside the marks, so hue never stands alone
METHOD_COLOURS = {
    "student": "#7d8796",
    "student_equal_seconds": "#4c86c9",
    "pixel_kd": "#c9742a",
    "apd_without_kd": "#9a6bd0",
    "apd": "#0e9384",
    "teacher": INK,
    # between detectors
    "roi_kd": "#c9742a",
    "roi_apd": "#0e9384",
    "dense_apd": "#9a6bd0",
}
VARIANT_COLOUR = "#8c7a5b"
"""Of what is no method of the study itself: an ablation's setting, another distillation method."""
WIDTH = 5.4
"""Inches of a full-width figure; type of 11 points then has the size of the text beside it, and 9 px on a phone."""

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
_SETTINGS = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "grid.color": FAINT,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold dollars
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "figure.constrained_layout.use": True,
}


@cache
def _beside(name: str) -> str:
    return (Path(__file__).parent / "live" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Drawing:
    """Something to show. Jupyter takes the HTML; a terminal and a reader who cannot see get the description."""

    html: str
    description: str
    caption: str = ""

    def captioned(self, caption: str) -> Self:
        """The same with a caption, which the page numbers; it says how to read the figure, without numbers of it."""
        return replace(self, caption=caption)

    def _repr_html_(self) -> str:
        tag, below = ("figure", f"<figcaption>{escape(self.caption)}</figcaption>") if self.caption else ("div", "")
        return f'<style>\n{_beside("page.css")}</style><{tag} class="apd-figure">{self.html}{below}</{tag}>'

    def __repr__(self) -> str:
        return self.description


class Markdown(str):
    """Text worded by rule from computed values."""

    __repr__ = _repr_markdown_ = str.__str__


def capitalised(text: str) -> str:
    """As a sentence starts; mIoU stays as it is written."""
    return text if text.startswith("mIoU") else text[0].upper() + text[1:]


def nothing(reason: str) -> Drawing:
    """What stands where a figure cannot be drawn yet."""
    return Drawing(f"<p><em>{escape(reason)}</em></p>", reason)


def table(frame: pd.DataFrame, caption: str) -> Drawing:
    """A table of text that is already formatted, its index as the first column; it scrolls inside itself."""
    shown = frame.style.format(escape="html").set_caption(f"<span>{escape(capitalised(caption))}</span>")
    for axis in (0, 1):
        shown = shown.format_index(escape="html", axis=axis).hide(names=True, axis=axis)
    text = shown.to_html(exclude_styles=True).replace("<table>", '<table class="dataframe">', 1)
    text = text.replace("&nbsp;", "").replace(" >", ">")  # of its template; cells are escaped
    html = f'<div class="apd-table" tabindex="0" role="region" aria-label="{escape(caption)}">\n{text}</div>'
    return Drawing(html, f"{caption}\n{frame.to_string(index_names=False)}")


def rows_table(rows: Mapping[Any, Mapping[str, str]], caption: str) -> Drawing:
    """A :func:`table` of rows by name, or by group and name; what a row lacks is a dash."""
    if not rows:
        return nothing(f"{caption}: 0 records yet.")
    frame, keys = pd.DataFrame(list(rows.values())).fillna("–"), list(rows)
    frame.index = pd.MultiIndex.from_tuples(keys) if isinstance(keys[0], tuple) else keys
    return table(frame, caption)


def colour_of(key: object) -> str:
    """The colour of a method of the study, or of the one that a tuple names; all other variants share one."""
    parts = key if isinstance(key, tuple) else (key,)
    return next((METHOD_COLOURS[part] for part in parts if part in METHOD_COLOURS), VARIANT_COLOUR)


@contextmanager
def figure(height: float = 3.2, width: float = WIDTH) -> Iterator[Figure]:
    """A figure in the book's style, made without pyplot; :func:`drawing` turns it into what a notebook shows."""
    theme = sns.axes_style("whitegrid") | sns.plotting_context("notebook", 11 / 12) | _SETTINGS
    with mpl.rc_context({**mpl.rcParamsDefault, **theme, "backend": mpl.get_backend()}):
        yield Figure(figsize=(width, height))


def drawing(fig: Figure, description: str) -> Drawing:
    """The figure as inline SVG, inside the `with` of :func:`figure`; the description is read aloud in its place."""
    if not description:
        raise ValueError("description is empty: say in a sentence what the figure shows")
    file = io.StringIO()
    # the same figure gives the same file, and no two share an id: what is defined in a hidden one is not there
    mpl.rcParams["svg.hashsalt"] = f"{description} {fig.get_size_inches()}"
    # the metadata's date would differ from run to run
    fig.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans', sans-serif", _FONTS)
    # several drawings share a page: groups lose their numbered ids, and the style keeps to its drawing
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("*{stroke", ".apd-drawing *{stroke")
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(rf"(fill|stroke): {FAINT}", r"\g<1>: currentColor; \g<1>-opacity: 0.28", svg)
    label = escape(description, quote=True).replace("\\", "\\\\")
    opening = (
        rf'<svg class="apd-drawing" style="max-width:{36 * fig.get_figwidth() / WIDTH:g}rem" viewBox="\1" role="img" '
        rf'aria-label="{label}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Drawing(re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', opening, svg, count=1).strip(), description)


def arranged(wide: Drawing, narrow: Drawing) -> Drawing:
    """Two arrangements of the same; the page shows, and reads out, the second on a phone and else the first."""
    return Drawing(f'<div class="apd-arranged">{wide.html}{narrow.html}</div>', wide.description)


def quiet_axes(axes: Axes, *, grid: str) -> None:
    """Keep one grid ("x" or "y") and the spine across it, none beside rows: the rest carries no information."""
    axes.grid(visible=False, axis="y" if grid == "x" else "x")
    sns.despine(ax=axes, left=True, bottom=grid == "x")


@dataclass(frozen=True)
class Panel:
    """One cell of a grid: an image, or several side by side, above its caption."""

    images: Sequence[ImageHW3]
    caption: str
    note: str = ""


def png(image: ImageHW3) -> str:
    """An image (H, W, 3) or (H, W, 4) of uint8 as a data address."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


_PANEL = '<div class="apd-panel">'


def panels(cells: Sequence[Panel], *, columns: int, least: str = "8.5rem", below: str = "") -> Drawing:
    """A grid of images with captions: at most `columns` in a row, fewer where a cell would be less than `least` wide.

    `least` is a CSS length; `below` is HTML under the grid, such as a :func:`key`.
    """
    parts = []
    for cell in cells:
        name = escape(f"{cell.caption}, {cell.note}" if cell.note else cell.caption, quote=True)
        # class dark-light: the image is meant for both modes, the theme leaves it alone
        images = "".join(
            f'<img class="dark-light" src="{png(image)}" width="{image.shape[1]}" height="{image.shape[0]}" '
            f'alt="{name if i == 0 else ""}">'
            for i, image in enumerate(cell.images)
        )
        note = f'<span class="apd-note">{escape(cell.note)}</span>' if cell.note else ""
        caption = f"<div><strong>{escape(cell.caption)}</strong> {note}</div>"
        parts.append(f'{_PANEL}<div class="apd-pictures">{images}</div>{caption}</div>')
    grid = f'<div class="apd-panels" style="--columns:{columns};--least:{least}">{"".join(parts)}</div>'
    names = "; ".join(f"{cell.caption} ({cell.note})" if cell.note else cell.caption for cell in cells)
    return Drawing(grid + below, f"images: {names}")


def key(entries: Sequence[tuple[str, tuple[int, int, int]]]) -> str:
    """HTML that names colours (RGB, 0..255)."""
    spans = (f'<span><i style="background:rgb{colour}"></i>{escape(name)}</span>' for name, colour in entries)
    return f'<div class="apd-key">{"".join(spans)}</div>'


class View(NamedTuple):
    """What the cells of a grid are called in one view: classes, and their probabilities where there are any."""

    name: str
    labels_hw: Tensor
    scores_hw: Tensor | None = None


def cell_panels(
    cells: Sequence[Panel],
    views: Sequence[View],
    class_names: Sequence[str],
    *,
    columns: int,
    least: str,
    below: str = "",
) -> Drawing:
    """:func:`panels` of one image; a frame marks a cell in all, with what each view calls it (others: ignored)."""
    grids = {tuple(view.labels_hw.shape) for view in views}
    if len(grids) != 1:
        raise ValueError(f"views are on the grids {sorted(grids)}: expected one grid for all, and at least one view")
    ((height, width),) = grids
    entries = []
    for view in views:
        labels = [k if 0 <= k < len(class_names) else -1 for k in view.labels_hw.flatten().tolist()]
        entries.append({"name": view.name, "labels": labels})
        if view.scores_hw is not None:
            entries[-1]["scores"] = [round(100 * p) for p in view.scores_hw.flatten().tolist()]
    data = {"width": width, "height": height, "names": list(class_names), "views": entries}
    shown = panels(cells, columns=columns, least=least)
    # what is read stands beside the first panel where there is room, below it on a phone
    before, first, *others = shown.html.split(_PANEL)
    said = '<div class="apd-said" role="status"></div>'
    inside = _PANEL.join([before, first + said, *others]) + below
    hint = "Point at a cell, tap it, or use the arrow keys, to read what each view calls it."
    # the script finds its figure by an id made of all of it: equal figures give equal files
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    name = f"apd-live-{hashlib.sha256((text + inside).encode()).hexdigest()[:12]}"
    html = (
        f'<style>{_beside("live.css")}</style><div class="apd-live" id="{name}" tabindex="0" role="group" '
        f'aria-label="interactive figure. {hint}">{inside}'
        f'<p class="apd-hint">{hint}</p><script type="application/json">{text}</script>'
        f"<script>{_beside('cells.js').replace('NAME', name)}</script></div>"
    )
    return Drawing(html, shown.description)


def view_of(name: str, logits_KHW: Tensor, present_K: Tensor) -> View:
    """What cells are called, among the present classes, by scores of classes such as logits or observations."""
    absent_K11 = ~present_K.cpu()[:, None, None]
    best = logits_KHW.detach().float().cpu().masked_fill(absent_K11, ABSENT_LOGIT).softmax(0).max(0)
    return View(name, best.indices, best.values)


def slider(frames: Sequence[tuple[str, Drawing | Sequence[Panel]]], caption: str, *, label: str = "Shown") -> Drawing:
    """Drawings, or images as of :func:`panels`, by what a slider says of each; in print and without a script, all."""
    if len(frames) < 2:
        raise ValueError(f"a slider over {len(frames)} frames: expected at least two")
    parts, said = [], []
    for name, one in frames:
        shown = one if isinstance(one, Drawing) else panels(one, columns=len(one))
        parts.append(f'<div class="apd-frame"><p class="apd-frame-name">{escape(name)}</p>{shown.html}</div>')
        said.append(f"{name}: {shown.description}")
    ends = f'min="0" max="{len(frames) - 1}" value="0" step="1"'
    # a browser brings a slider back where it was before a reload, but not what depends on it
    control = (
        f'<label class="apd-range">{escape(label)}: <span></span><input type="range" autocomplete="off" {ends}></label>'
    )
    inside = f'{control}<div class="apd-frames">{"".join(parts)}</div><figcaption>{escape(caption)}</figcaption>'
    name = f"apd-slider-{hashlib.sha256(inside.encode()).hexdigest()[:12]}"
    html = (
        f'<style>{_beside("slider.css")}</style><figure class="apd-figure apd-slider" id="{name}">{inside}'
        f"<script>{_beside('slider.js').replace('NAME', name)}</script></figure>"
    )
    return Drawing(html, "\n".join([caption, *said]))
