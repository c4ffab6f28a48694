"""What a notebook shows: HTML that looks right on a light, a dark and a narrow page, and says in words what it is."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

PictureHW3 = NDArray[np.uint8]

# `!important`: the book's theme lays a white sheet under every picture and HTML output of a dark page.
_STYLE = """<style>
.text_html:has(.apd-figure){background:transparent!important;color:inherit!important;padding:0!important}
.apd-figure{margin:1rem 0;color:inherit}
.apd-figure svg.apd-drawing{display:block;width:100%;height:auto;max-width:36rem;margin:auto}
.apd-figure img{display:block;flex:1 1 0;width:100%;min-width:0;height:auto;image-rendering:pixelated;
background:transparent!important;padding:0!important;margin:0;filter:none!important;border-radius:3px}
.apd-panels{display:grid;gap:.9rem .8rem;grid-template-columns:repeat(auto-fill,
minmax(max(var(--least),calc((100% - (var(--columns) - 1)*.8rem)/var(--columns))),1fr))}
.apd-above{margin:1.4rem 0 .5rem}
.apd-panel{display:flex;flex-direction:column;gap:.25rem;line-height:1.3;font-size:.88rem}
.apd-panel .apd-pictures{display:flex;gap:3px}
.apd-panel .apd-note{opacity:.85}
.apd-key{display:flex;flex-wrap:wrap;gap:.3rem .9rem;margin-top:.8rem;font-size:.88rem;align-items:center}
.apd-key i{display:inline-block;width:1em;height:1em;border-radius:3px;margin-right:.4em;vertical-align:-.12em;
border:1px solid rgba(128,128,128,.6)}
.apd-key .apd-scale{width:8rem;max-width:40vw;height:.8em;border-radius:3px}
.apd-table{overflow-x:auto;container-type:inline-size}
.apd-table caption span{display:inline-block;position:sticky;left:0;max-width:100cqi}
.apd-table tbody th{text-align:left;font-weight:600;min-width:8.5rem;max-width:18rem}
.apd-table thead th{text-align:right;vertical-align:bottom}
.apd-table td{text-align:right;max-width:24rem}
.apd-table caption{caption-side:top;text-align:left;font-size:.92rem;padding-bottom:.4rem;color:inherit}
</style>"""


@dataclass(frozen=True)
class Drawing:
    """Something to show. Jupyter takes the HTML; a terminal and a reader who cannot see get the description."""

    html: str
    description: str

    def _repr_html_(self) -> str:
        return f'{_STYLE}<div class="apd-figure">{self.html}</div>'

    def __repr__(self) -> str:
        return self.description


@dataclass(frozen=True)
class Words:
    """Markdown that was worded by a rule from computed values."""

    markdown: str

    def _repr_markdown_(self) -> str:
        return self.markdown

    def __repr__(self) -> str:
        return self.markdown


@dataclass(frozen=True)
class Panel:
    """One cell of a grid: a picture, or several side by side, above its caption."""

    pictures: Sequence[PictureHW3]
    caption: str
    note: str = ""


def markdown(text: str) -> Words:
    """Show text as Markdown."""
    return Words(text)


def png(picture: PictureHW3) -> str:
    """A picture (H, W, 3) or (H, W, 4) of uint8 as a data address."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4):
        raise ValueError(f"picture is {picture.dtype} of shape {picture.shape}: expected uint8 (H, W, 3) or (H, W, 4)")
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def panels(cells: Sequence[Panel], *, columns: int, least: str = "8.5rem", below: str = "") -> Drawing:
    """A grid of pictures with captions: `columns` of them where there is room, fewer on a narrow page.

    Args:
        cells: in reading order.
        columns: most that stand in one row.
        least: smallest width of a cell, a CSS length; what decides when the grid folds.
        below: HTML under the grid, such as a `key`.
    """
    parts = []
    for cell in cells:
        name = escape(f"{cell.caption}, {cell.note}" if cell.note else cell.caption, quote=True)
        # class dark-light: the picture is meant for both modes, the theme leaves it alone
        pictures = "".join(
            f'<img class="dark-light" src="{png(p)}" width="{p.shape[1]}" height="{p.shape[0]}" '
            f'alt="{name if i == 0 else ""}">'
            for i, p in enumerate(cell.pictures)
        )
        note = f'<span class="apd-note">{escape(cell.note)}</span>' if cell.note else ""
        parts.append(
            f'<div class="apd-panel"><div class="apd-pictures">{pictures}</div>'
            f"<div><strong>{escape(cell.caption)}</strong> {note}</div></div>"
        )
    grid = f'<div class="apd-panels" style="--columns:{columns};--least:{least}">{"".join(parts)}</div>'
    said = "; ".join(f"{cell.caption} ({cell.note})" if cell.note else cell.caption for cell in cells)
    return Drawing(grid + below, f"pictures: {said}")


def key(entries: Sequence[tuple[str, tuple[int, int, int]]]) -> str:
    """HTML that names colours (RGB, 0..255)."""
    spans = (f'<span><i style="background:rgb{colour}"></i>{escape(name)}</span>' for name, colour in entries)
    return f'<div class="apd-key">{"".join(spans)}</div>'


def colour_scale(colours_N3: NDArray[np.uint8], low: str, high: str) -> str:
    """HTML of a colour bar between two words or numbers."""
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in colours_N3.tolist())
    bar = f'<span class="apd-scale" style="background:linear-gradient(90deg,{stops})"></span>'
    return f'<div class="apd-key"><span>{escape(low)}</span>{bar}<span>{escape(high)}</span></div>'


def table(frame: pd.DataFrame, caption: str) -> Drawing:
    """A table of text that is already formatted, its index as the first column; it scrolls inside itself."""
    text = frame.to_html(border=0, classes="dataframe", index_names=False, justify="unset")
    text = text.replace("<thead>", f"<caption><span>{escape(caption)}</span></caption>\n  <thead>", 1)
    name = escape(caption, quote=True)
    html = f'<div class="apd-table" tabindex="0" role="region" aria-label="{name}">\n{text}\n</div>'
    return Drawing(html, f"{caption}\n{frame.to_string(index_names=False)}")


def nothing(reason: str) -> Drawing:
    """What stands where a figure cannot be drawn yet."""
    return Drawing(f"<p><em>{escape(reason)}</em></p>", reason)


def stack(*drawings: Drawing) -> Drawing:
    """Several drawings, one below the other."""
    return Drawing("\n".join(d.html for d in drawings), "\n".join(d.description for d in drawings))
