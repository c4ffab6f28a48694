"""Forest plots: many paired differences below one another, each with its interval and its seeds."""

import math
import textwrap
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from apd.plots.comparison import POINTS, seed_points, signed
from apd.plots.page import Drawing, nothing
from apd.plots.style import INK, colour_of, drawing, figure, quiet_axes
from apd.plots.tables import digits_of, interval, points
from apd.study.many_comparisons import Judged
from apd.study.statistics import Difference

Key = TypeVar("Key", bound=Hashable)
LINE, GAP = 0.19, 0.13
"""Inches that a line of a label takes, and those between rows."""
OUTLYING = 3.0
"""Rows this many times as far out as the next ones are drawn as arrows at the edge: they would squeeze the others."""
BEYOND = 0.45
"""How far over the outermost seed an interval is drawn, as a share of the axis; an arrowhead says that it goes on."""


def forest(
    rows: Mapping[Key, Judged],
    names: Mapping[Key, str],
    *,
    axis: str,
    groups: Mapping[Key, str] | None = None,
    title: str = "",
) -> Drawing:
    """Differences with their intervals, one row each, in the order given.

    A bar is the mean, a line its interval, a circle a seed; the mean also stands at the right, bold where it still
    leaves out zero after the correction for the number of rows. Rows far outside and intervals that leave the figure
    end in an arrowhead.

    Args:
        rows: differences of fractions, judged together, by key.
        names: what to call a row, by key.
        axis: what the differences are, for the label of the axis.
        groups: headings by key; neighbouring rows of one group stand below one of them.
        title: of the figure.
    """
    if not rows:
        return nothing(f"{title}: no difference can be drawn, because 0 rows have a seed in common with the reference.")
    lines = _lines(rows, names, groups or {})
    heights = [LINE * (1 + text.count("\n")) + GAP for text, _ in lines]
    places = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]
    low, high = limits([row.found for row in rows.values()])
    with figure(height=sum(heights) + (1.0 if title else 0.75)) as fig:
        axes = fig.subplots()
        axes.set_xlim(low, high)
        axes.set_ylim(sum(heights), 0)
        axes.set_yticks(places, [text for text, _ in lines])
        axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
        for (_, key), place, label in zip(lines, places, axes.get_yticklabels(), strict=True):
            if key is None:
                label.set_fontweight("bold")
            else:
                draw_row(axes, rows[key], place, colour_of(key))
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(signed)
        axes.set_xlabel(textwrap.fill(axis, 46))
        axes.set_title(title)
        quiet_axes(axes, grid="x")
        said = (f"{names[key]} {interval(row.found)}" for key, row in rows.items())
        return drawing(fig, f"{f'{title}, ' if title else ''}{axis}: " + "; ".join(said))


def _lines(
    rows: Mapping[Key, Judged], names: Mapping[Key, str], groups: Mapping[Key, str]
) -> list[tuple[str, Key | None]]:
    """What stands at the left, from the top: headings (without a key) and rows."""
    lines: list[tuple[str, Key | None]] = []
    group = ""
    for key in rows:
        if groups.get(key, "") != group:
            group = groups.get(key, "")
            lines.append((textwrap.fill(group, 22), None))
        lines.append((textwrap.fill(names[key], 22), key))
    return lines


def limits(differences: Sequence[Difference]) -> tuple[float, float]:
    """Ends of the axis in percentage points: all rows but outlying ones, zero, and intervals as far as is sensible."""
    kept = sorted(differences, key=_reach)
    for place in range((3 * len(kept) + 3) // 4, len(kept)):  # a quarter of the rows at most
        if _reach(kept[place]) > OUTLYING * max(_reach(kept[place - 1]), 0.0025):
            kept = kept[:place]
            break
    values = [value for found in kept for value in found.pairs.values()]
    low, high = min(0.0, *values), max(0.0, *values)
    beyond = BEYOND * max(high - low, 0.002)
    ends = [end for found in kept for end in (found.low, found.high) if not math.isnan(end)]
    low, high = max(low - beyond, min([low, *ends])), min(high + beyond, max([high, *ends]))
    margin = 0.06 * max(high - low, 0.002)
    return POINTS * (low - margin), POINTS * (high + margin)


def _reach(found: Difference) -> float:
    """How far out the farthest seed is."""
    return max(abs(value) for value in found.pairs.values())


def draw_row(axes: Axes, row: Judged, place: float, colour: str) -> None:
    """One difference at a height: seeds, mean, interval, and the mean in words at the right, bold where it is sure."""
    low, high = axes.get_xlim()
    mean = POINTS * row.found.mean
    inside = [value for v in row.found.pairs.values() if low <= (value := POINTS * v) <= high]
    seed_points(axes, inside, place, colour, height=LINE)
    if low <= mean <= high:
        axes.plot([mean, mean], [place - 0.12, place + 0.12], color=colour, linewidth=3.5, zorder=4)
    if math.isnan(row.found.low):
        ends = (mean, mean)
    else:
        ends = (POINTS * row.found.low, POINTS * row.found.high)
        shown = [min(max(end, low), high) for end in ends]
        axes.plot(shown, [place, place], color=colour, linewidth=2.2, zorder=2, solid_capstyle="butt")
    inwards = 0.015 * (high - low)
    for goes_on, edge, marker in ((ends[0] < low, low + inwards, "<"), (ends[1] > high, high - inwards, ">")):
        if goes_on:
            axes.plot([edge], [place], marker, color=colour, markersize=6, zorder=5)
    axes.annotate(
        points(row.found.mean, digits_of(row.found)),
        (1, place),
        xycoords=axes.get_yaxis_transform(),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=INK,
        fontweight="bold" if row.sure else "normal",
    )
