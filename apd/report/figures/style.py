"""How line figures look: one size of type, one colour for each method, ink that follows the page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apd.report.figures.page import Drawing

INK = "#010203"
"""Stands for the page's text colour: in the finished SVG it is `currentColor`."""
FAINT = "#040506"
"""The same at a third of its strength, for grids and guides."""

# Each keeps a contrast of 3 on white and on the dark page; names stand beside the marks, so hue never stands alone.
METHOD_COLOURS = {
    "student": "#7d8796",
    "student_equal_seconds": "#4c86c9",
    "pixel_kd": "#c9742a",
    "apd_without_kd": "#9a6bd0",
    "apd": "#0e9384",
    "teacher": INK,
}
# between detectors: what is KD of boxes, APD of boxes, and APD of another kind, as in segmentation
METHOD_COLOURS |= {
    "roi_kd": METHOD_COLOURS["pixel_kd"],
    "roi_apd": METHOD_COLOURS["apd"],
    "dense_apd": METHOD_COLOURS["apd_without_kd"],
}
ARM_COLOUR = "#8c7a5b"
"""Of what is no method of the study itself: an ablation's setting, a method of others."""
WIDTH = 5.4
"""Inches of a full-width figure; type of 11 points then has the size of the text beside it, and 9 px on a phone."""

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
_SETTINGS = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "svg.hashsalt": "apd",  # the same figure gives the same file
    "figure.constrained_layout.use": True,
}
"""What differs from seaborn's theme: ink and grid that follow the page, no sheet behind it."""


def colour_of(method: str) -> str:
    """The colour of a method of the study, or the one that all other arms share."""
    return METHOD_COLOURS.get(method, ARM_COLOUR)


@contextmanager
def figure(width: float = WIDTH, height: float = 3.2) -> Iterator[Figure]:
    """A figure in the book's style; `drawing` turns it into what a notebook shows.

    Made without pyplot, so nothing is displayed twice and nothing is left open.
    """
    theme = sns.axes_style("whitegrid") | sns.plotting_context("notebook", 11 / 12) | _SETTINGS
    with mpl.rc_context({**mpl.rcParamsDefault, **theme, "backend": mpl.get_backend()}):
        yield Figure(figsize=(width, height))


def drawing(fig: Figure, description: str) -> Drawing:
    """The figure as inline SVG. Call it inside the `with` of `figure`.

    Args:
        fig: what was drawn.
        description: what the figure shows, in a sentence, with its main numbers; read aloud in place of it.
    """
    if not description:
        raise ValueError("description is empty: say in a sentence what the figure shows")
    file = io.StringIO()
    # the metadata's date would differ from run to run
    fig.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans', sans-serif", _FONTS)
    # several drawings share a page: groups lose their numbered ids, and the style keeps to its drawing
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("*{stroke", ".apd-drawing *{stroke")
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(rf"(fill|stroke): {FAINT}", r"\g<1>: currentColor; \g<1>-opacity: 0.28", svg)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', _opening(description), svg, count=1)
    return Drawing(svg.strip(), description)


def _opening(description: str) -> str:
    name = escape(description, quote=True).replace("\\", "\\\\")
    return (
        rf'<svg class="apd-drawing" viewBox="\1" role="img" aria-label="{name}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )


def quiet_axes(axes: Axes, *, grid: str) -> None:
    """Keep one grid ("x" or "y") and the spine across it, none beside rows: the rest carries no information."""
    axes.grid(visible=False, axis="y" if grid == "x" else "x")
    sns.despine(ax=axes, left=True, bottom=grid == "x")
