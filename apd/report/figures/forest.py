"""Figures of rows: a bar at the mean, a line for its interval, a point for each seed; scores and paired differences."""

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from apd.report.comparisons import Corrected
from apd.report.figures.style import INK, Drawing, colour_of, drawing, figure, nothing, quiet_axes
from apd.report.figures.trials import digits_of, interval, points
from apd.report.statistics import Comparison, Difference, spread

POINTS = 100.0
"""Scores are drawn and printed in per cent, differences in percentage points."""
LINE, GAP, ASIDE = 0.19, 0.13, 0.09
"""Inches that a line of a label takes, those between rows, and those from a row's line to its seeds."""
OUTLYING = 3.0
"""Rows this many times as far out as the nearest three quarters are arrows at the edge."""
BEYOND = 0.45
"""How far over the outermost seed an interval is drawn, as a share of the axis; an arrowhead says that it goes on."""


class Row(NamedTuple):
    """One row: where it stands, a value for each seed, its colour, and what stands at the right, bold if significant.

    `ends` are those of the interval of the mean, or quartiles about a median; NaN where there is none.
    """

    place: float
    seeds: Sequence[float]
    colour: str
    ends: Sequence[float] = ()
    text: str = ""
    significant: bool = False


def draw_rows(axes: Axes, rows: Sequence[Row], aside: float) -> None:
    """Each row's mean as a bar and its interval as a line, its seeds as points `aside` below, its text at the right.

    Set the limits first where something may lie outside: an arrowhead at the edge says that a row goes on.
    """
    for row in rows:
        seeds = {"linestyle": "none", "marker": "o", "markersize": 5, "markeredgewidth": 0, "alpha": 0.75}
        axes.plot(row.ends, [row.place] * len(row.ends), color=row.colour, linewidth=2.2)
        axes.plot(spread(row.seeds).mean, row.place, "|", color=row.colour, markersize=15, markeredgewidth=3.5)
        axes.plot(row.seeds, [row.place + aside] * len(row.seeds), color=row.colour, **seeds)
    low, high = axes.get_xlim()
    inwards = 0.015 * (high - low)
    for row in rows:
        values = [value for value in (*row.ends, *row.seeds) if not math.isnan(value)]
        for edge, marker, goes_on in (
            (low + inwards, "<", min(values) < low),
            (high - inwards, ">", max(values) > high),
        ):
            if goes_on:
                axes.plot([edge], [row.place], marker, color=row.colour, markersize=6, zorder=5)
        where = {"xycoords": axes.get_yaxis_transform(), "xytext": (8, 0), "textcoords": "offset points"}
        axes.annotate(
            row.text, (1, row.place), **where, va="center", fontweight="bold" if row.significant else "normal"
        )


def signed(value: float, _place: object = None) -> str:
    """A tick's label with its sign."""
    return f"{value:+g}".replace("-", "−") if value else "0"


def _row_figure(
    lines: Sequence[tuple[str, Row | None]],
    limits: tuple[float, float],
    axis: str,
    title: str,
    description: str,
    line: tuple[float, str] | None = None,
) -> Drawing:
    """Rows and headings (without a row) from the top; differences, or scores with a dashed `line` and its text."""
    heights = [LINE * (1 + label.count("\n")) + GAP for label, _ in lines]
    places = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]
    low, high = limits
    title = textwrap.fill(title, 36)
    with figure(height=sum(heights) + 0.75 + 0.25 * (len(title.splitlines()) + bool(line))) as fig:
        axes = fig.subplots()
        axes.set_xlim(low, high)
        axes.set_ylim(sum(heights), 0)
        rows = [row._replace(place=place) for (_, row), place in zip(lines, places, strict=True) if row]
        draw_rows(axes, rows, ASIDE)
        axes.set_yticks(places, [label for label, _ in lines])
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        if line is None:
            axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
            axes.xaxis.set_major_formatter(signed)
        quiet_axes(axes, grid="x")
        for (_, row), label in zip(lines, axes.get_yticklabels(), strict=True):
            label.set_fontweight("normal" if row else "bold")
        axes.set_xlabel(textwrap.fill(axis, 46))
        axes.set_title(title, pad=22 if line else None)
        if line and not math.isnan(line[0]):
            axes.axvline(line[0], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
            text = f"{'← ' if line[0] < low else ''}{line[1]}{' →' if line[0] > high else ''}"
            side, place = ("right", high) if 2 * line[0] > low + high else ("left", low)
            place = line[0] if low <= line[0] <= high else place
            axes.annotate(text, (place, 1.02), xycoords=axes.get_xaxis_transform(), ha=side, va="bottom")
        return drawing(fig, description)


def forest(
    rows: Mapping[Any, Corrected],
    names: Mapping[Any, str],
    *,
    axis: str,
    groups: Mapping[Any, str] | None = None,
    title: str = "",
) -> Drawing:
    """Differences (fractions of what `axis` says) with their intervals, one row each; bold where significant.

    `groups` are headings, each above neighbouring rows of one group. What leaves the figure ends in an arrowhead.
    """
    if not rows:
        return nothing(f"{title}: no difference can be drawn, because 0 rows have a seed in common with the reference.")
    lines: list[tuple[str, Row | None]] = []
    group = ""
    for key, (found, _, significant) in rows.items():
        if (groups or {}).get(key, "") != group:
            group = groups.get(key, "")
            lines.append((textwrap.fill(group, 22), None))
        seeds, ends = [POINTS * value for value in found.pairs.values()], (POINTS * found.low, POINTS * found.high)
        row = Row(0, seeds, colour_of(key), ends, points(found.mean, digits_of(found)), significant)
        lines.append((textwrap.fill(names[key], 22), row))
    said = "; ".join(f"{names[key]} {interval(row.found)}" for key, row in rows.items())
    description = f"{f'{title}, ' if title else ''}{axis}: {said}"
    return _row_figure(lines, limits([row.found for row in rows.values()]), axis, title, description)


def limits(differences: Sequence[Difference]) -> tuple[float, float]:
    """Ends of the axis in percentage points: all rows but outlying ones, zero, and intervals as far as is sensible."""

    def reach(found: Difference) -> float:
        return max(abs(value) for value in found.pairs.values())

    kept = sorted(differences, key=reach)
    most = OUTLYING * max(reach(kept[(3 * len(kept) + 3) // 4 - 1]), 0.0025)
    kept = [found for found in kept if reach(found) <= most]
    values = [value for found in kept for value in found.pairs.values()]
    low, high = min(0.0, *values), max(0.0, *values)
    beyond = BEYOND * max(high - low, 0.002)
    ends = [end for found in kept for end in (found.low, found.high) if not math.isnan(end)]
    low, high = max(low - beyond, min([low, *ends])), min(high + beyond, max([high, *ends]))
    margin = 0.06 * max(high - low, 0.002)
    return POINTS * (low - margin), POINTS * (high + margin)


def scores_over_seeds(comparison: Comparison) -> Drawing:
    """Every method's score: a point for each seed, a bar at the mean, its value beside it; the teacher as a line."""
    if not comparison.variants:
        return nothing("No scores can be drawn: there is no record yet.")
    lines, means, said = [], {}, []
    for method in comparison.variants:
        values = [POINTS * value for value in comparison.values(method).values()]
        mean, deviation, _ = spread(values)
        text = f"{mean:.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")
        lines.append((textwrap.fill(comparison.names[method], 22), Row(0, values, colour_of(method), text=text)))
        means[method] = mean
        said.append(f"{comparison.names[method]} {mean:.1f}")
    # a method five times as far from the middle one as methods are in the middle goes on beyond the edge
    middle = statistics.median(means.values())
    usual = max(statistics.median(abs(mean - middle) for mean in means.values()), 1.0)
    shown = [method for method, mean in means.items() if abs(mean - middle) <= 5 * usual]
    near = [POINTS * value for method in shown for value in comparison.values(method).values()]
    teacher, low, high = POINTS * comparison.teacher_score, min(near), max(near)
    room = max(high - low, 0.5)
    if low - 1.5 * room <= teacher <= high + 1.5 * room:  # elsewhere it would press the methods into a corner
        low, high = min(low, teacher), max(high, teacher)
    if not math.isnan(teacher):
        said.append(f"teacher {teacher:.1f}")
    margin = 0.08 * max(high - low, 0.5)
    axis = f"{comparison.score.name}, %"
    description = f"{comparison.title}, {comparison.score.name} in per cent, mean over seeds: {', '.join(said)}"
    ends, line = (low - margin, high + margin), (teacher, f"teacher {teacher:.1f}")
    return _row_figure(lines, ends, axis, comparison.title, description, line)
