"""Forest plots: many paired differences below one another, each with its interval and its seeds."""

import math
import textwrap
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from apd.report.comparisons import Corrected
from apd.report.figures.comparison import POINTS, Row, draw_rows, row_axes
from apd.report.figures.page import Drawing, nothing
from apd.report.figures.style import colour_of, drawing, figure
from apd.report.figures.tables import digits_of, interval, points
from apd.report.statistics import Difference

Key = TypeVar("Key", bound=Hashable)
LINE, GAP, ASIDE = 0.19, 0.13, 0.09
"""Inches that a line of a label takes, those between rows, and those from a row's line to its seeds."""
OUTLYING = 3.0
"""Rows this many times as far out as the nearest three quarters are drawn as arrows at the edge: they would squeeze
the others."""
BEYOND = 0.45
"""How far over the outermost seed an interval is drawn, as a share of the axis; an arrowhead says that it goes on."""


def forest(
    rows: Mapping[Key, Corrected],
    names: Mapping[Key, str],
    *,
    axis: str,
    groups: Mapping[Key, str] | None = None,
    title: str = "",
) -> Drawing:
    """Differences with their intervals, one row each, in the order given.

    A bar is the mean, a line its interval, a point a seed; the mean also stands at the right, bold where it still
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
        drawn = [row_of(rows[key], place, colour_of(key)) for (_, key), place in zip(lines, places, strict=True) if key]
        draw_rows(axes, drawn, aside=ASIDE)
        row_axes(axes, [text for text, _ in lines], places)
        for (_, key), label in zip(lines, axes.get_yticklabels(), strict=True):
            label.set_fontweight("normal" if key else "bold")
        axes.set_xlabel(textwrap.fill(axis, 46))
        axes.set_title(title)
        said = (f"{names[key]} {interval(row.found)}" for key, row in rows.items())
        return drawing(fig, f"{f'{title}, ' if title else ''}{axis}: " + "; ".join(said))


def _lines(
    rows: Mapping[Key, Corrected], names: Mapping[Key, str], groups: Mapping[Key, str]
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
    most = OUTLYING * max(_reach(kept[(3 * len(kept) + 3) // 4 - 1]), 0.0025)
    kept = [found for found in kept if _reach(found) <= most]
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


def row_of(row: Corrected, place: float, colour: str) -> Row:
    """One difference as a row: seeds, mean, interval, and the mean in words at the right, bold where it is sure."""
    found = row.found
    ends, text = (POINTS * found.low, POINTS * found.high), points(found.mean, digits_of(found))
    return Row(place, [POINTS * value for value in found.pairs.values()], colour, ends, text, row.significant)
