"""Figures of rows: a bar at the mean, a line for its interval, a point for each seed; scores and paired differences."""

import math
import textwrap
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from apd.report.comparisons import Corrected
from apd.report.figures import style
from apd.report.figures.answers import digits_of, interval, points
from apd.report.statistics import Comparison, Difference, spread

POINTS = 100.0
"""Scores are drawn and printed in per cent, differences in percentage points."""
LINE, GAP, ASIDE = 0.19, 0.13, 0.09
"""Inches that a line of a label takes, those between rows, and those from a row's line to its seeds."""
OUTLYING = 3.0
"""Rows this many times as far out as the nearest three quarters are arrows at the edge."""
FURTHER, NARROW = 1.5, 4.2
"""Inches that each further panel adds to the width, and the width with all panels below one another, for a phone."""
MARKS = "mean; line: its confidence interval, uncorrected; point: one seed"
HOW_TO_READ = f"{{}}. Bar: {MARKS}; coloured and bold: significant after Holm’s correction."
BEYOND = 0.45
"""How far over the outermost seed an interval is drawn, as a share of the axis; an arrowhead says that it goes on."""


class Row(NamedTuple):
    """A row: its place, a value for each seed, the ends of its interval (NaN: none), and its text at the right."""

    place: float
    seeds: Sequence[float]
    colour: str
    ends: Sequence[float] = ()
    text: str = ""
    significant: bool = False


def draw_rows(axes: Axes, rows: Sequence[Row], aside: float) -> None:
    """Means as bars, intervals as lines, seeds as points `aside` below; arrowheads at limits that were set before."""
    for row in rows:
        seeds = {"linestyle": "none", "marker": "o", "markersize": 5, "markeredgewidth": 0, "alpha": 0.75}
        axes.plot(row.ends, [row.place] * len(row.ends), color=row.colour, linewidth=2.2)
        axes.plot(spread(row.seeds).mean, row.place, "|", color=row.colour, markersize=15, markeredgewidth=3.5)
        axes.plot(row.seeds, [row.place + aside] * len(row.seeds), color=row.colour, **seeds)
    low, high = axes.get_xlim()
    inwards = 0.015 * (high - low)
    for row in rows:
        values = [value for value in (*row.ends, *row.seeds) if not math.isnan(value)]
        beyond = {(low + inwards, "<"): min(values) < low, (high - inwards, ">"): max(values) > high}
        for (edge, marker), goes_on in beyond.items():
            if goes_on:
                axes.plot([edge], [row.place], marker, color=row.colour, markersize=6, zorder=5)
        where = {"xycoords": axes.get_yaxis_transform(), "xytext": (8, 0), "textcoords": "offset points"}
        axes.annotate(
            row.text, (1, row.place), **where, va="center", fontweight="bold" if row.significant else "normal"
        )


def signed(value: float, _place: object = None) -> str:
    """A tick's label with its sign."""
    return f"{value:+g}".replace("-", "−") if value else "0"


class Column(NamedTuple):
    """One panel: its title, its row for each label that it has one for, its ends, and a dashed line with its text."""

    title: str
    rows: Mapping[Any, Row]
    limits: tuple[float, float]
    line: tuple[float, str] | None = None


def row_figure(labels: Mapping[Any, str], columns: Sequence[Column], axis: str, description: str) -> style.Drawing:
    """Panels side by side, and for a phone below one another; a label without a row in any panel is a heading."""
    beside = _panels(labels, [columns], axis, description)
    if len(columns) == 1:
        return beside
    return style.arranged(beside, _panels(labels, [[column] for column in columns], axis, description))


def _panels(labels: Mapping[Any, str], lines: Sequence[Sequence[Column]], axis: str, description: str) -> style.Drawing:
    """Lines of panels below one another, each with the labels of its rows at the left, from the top."""
    stacked, beside = len(lines) > 1, len(lines[0])
    width, across = NARROW if stacked else style.WIDTH + FURTHER * (beside - 1), 36 if beside == 1 else 20
    lines = [[c._replace(title=textwrap.fill(c.title, across)) for c in line] for line in lines]
    columns = [column for line in lines for column in line]
    headings = labels.keys() - {key for column in columns for key in column.rows}
    texts = [_labels_of(line, labels, headings, 16 if stacked else 24) for line in lines]
    heights = [[LINE * (1 + text.count("\n")) + GAP for text in of.values()] for of in texts]
    tall, apart = [sum(of) for of in heights], 0.5 if stacked else 0.4
    above = 0.2 * (1 + max(c.title.count("\n") for c in columns)) + 0.25 * any(c.line for c in columns)
    with style.figure(width=width, height=sum(tall) + (above + apart) * len(lines) + 0.4) as fig:
        fig.get_layout_engine().set(h_pad=apart - 0.36)
        grid = fig.subplots(len(lines), beside, sharey="row", squeeze=False, height_ratios=tall)
        for panels, line, of, each in zip(grid, lines, texts, heights, strict=True):
            places = {key: sum(each[:i]) + each[i] / 2 for i, key in enumerate(of)}
            for axes, column in zip(panels, line, strict=True):
                axes.set_xlim(*column.limits)
                axes.set_ylim(sum(each), 0)
                draw_rows(axes, [row._replace(place=places[key]) for key, row in column.rows.items()], ASIDE)
                axes.xaxis.set_major_locator(MaxNLocator(6 if width == style.WIDTH else 4, steps=[1, 2, 5, 10]))
                axes.set_title(column.title, pad=22 if column.line else None)
                if column.line is None:
                    axes.axvline(0, color=style.INK, linewidth=1.2, zorder=1)
                    axes.xaxis.set_major_formatter(signed)
                elif not math.isnan(column.line[0]):
                    _teacher(axes, *column.line)
                style.quiet_axes(axes, grid="x")
            panels[0].set_yticks(list(places.values()), list(of.values()))
            for key, label in zip(of, panels[0].get_yticklabels(), strict=True):
                label.set_fontweight("bold" if key in headings else "normal")
        fig.supxlabel(textwrap.fill(axis, 46 + 20 * (beside - 1)), fontsize="medium")
        return style.drawing(fig, description)


def _labels_of(line: Sequence[Column], labels: Mapping[Any, str], headings: Set[Any], letters: int) -> dict[Any, str]:
    """The labels of the rows in a line of panels, each heading that has some of them above its first."""
    kept, above = {}, {}
    for key, label in labels.items():
        text = {key: textwrap.fill(label, letters)}
        if key in headings:
            above = text
        elif any(key in column.rows for column in line):
            kept, above = kept | above | text, {}
    return kept


def _teacher(axes: Axes, value: float, text: str) -> None:
    """A dashed line with its text above the panel, or only the text with an arrow where it lies outside."""
    low, high = axes.get_xlim()
    side, place = ("right", high) if 2 * value > low + high else ("left", low)
    if low <= value <= high:
        place = value
        axes.axvline(value, color=style.INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    text = f"{'← ' if value < low else ''}{text}{' →' if value > high else ''}"
    axes.annotate(text, (place, 1.02), xycoords=axes.get_xaxis_transform(), ha=side, va="bottom")


def forest(
    columns: Mapping[str, Mapping[Any, Corrected]],
    names: Mapping[Any, str],
    *,
    axis: str,
    groups: Mapping[Any, str] | None = None,
) -> style.Drawing:
    """Differences (fractions of what `axis` says) with their intervals: a panel for each title, bold where significant.

    `groups` are headings, each above neighbouring rows of one group. What leaves the figure ends in an arrowhead.
    """
    columns = {title: rows for title, rows in columns.items() if rows}
    if not columns:
        return style.nothing("No difference can be drawn, because 0 rows have a seed in common with the reference.")
    labels, keys = dict[Any, str](), [*dict.fromkeys(key for rows in columns.values() for key in rows)]
    if groups:
        order = list(dict.fromkeys(groups[key] for key in keys))
        keys.sort(key=lambda key: order.index(groups[key]))
    for key in keys:
        if groups:
            labels.setdefault(("heading", groups[key]), groups[key])
        labels[key] = names[key]
    drawn, said = [], []
    for title, rows in columns.items():
        found = {key: row.found for key, row in rows.items()}
        drawn.append(Column(title, {key: _difference(row) for key, row in rows.items()}, limits([*found.values()])))
        gains = "; ".join(f"{names[key]} {interval(one)}" for key, one in found.items())
        said.append(f"{f'{title}, ' if title else ''}{axis}: {gains}")
    return row_figure(labels, drawn, axis, ". ".join(said)).captioned(HOW_TO_READ.format(style.capitalised(axis)))


def _difference(row: Corrected) -> Row:
    found = row.found
    seeds, ends = [POINTS * value for value in found.pairs.values()], (POINTS * found.low, POINTS * found.high)
    colour = style.METHOD_COLOURS[("apd" if found.mean > 0 else "pixel_kd") if row.significant else "student"]
    return Row(0, seeds, colour, ends, points(found.mean, digits_of(found)), row.significant)


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


def scores_over_seeds(*comparisons: Comparison) -> style.Drawing:
    """Every method's score, a panel for each comparison: points are seeds, bars means with their value beside them."""
    comparisons = tuple(comparison for comparison in comparisons if comparison.variants)
    if not comparisons:
        return style.nothing("No scores can be drawn: there is no record yet.")
    labels = {method: one.names[method] for one in comparisons for method in one.variants}
    columns, said = zip(*map(_scores, comparisons), strict=True)
    score, ends = comparisons[0].score.name, [(*column.limits, column.line[0]) for column in columns]
    drawn = row_figure(labels, columns, f"{score}, %", ". ".join(said))
    outside = [teacher < low or teacher > high for low, high, teacher in ends if not math.isnan(teacher)]
    caption = f"{score}. Bar and number: mean over seeds ± standard deviation; point: one seed"
    caption += "; dashed line: the teacher" * (False in outside) + "; arrow: the teacher is further out" * any(outside)
    return drawn.captioned(f"{caption}.")


def _scores(comparison: Comparison) -> tuple[Column, str]:
    """One comparison's panel, and what it shows."""
    rows, said = {}, []
    for method in comparison.variants:
        values = [POINTS * value for value in comparison.values(method).values()]
        mean, deviation, _ = spread(values)
        text = f"{mean:.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")
        rows[method] = Row(0, values, style.colour_of(method), text=text)
        said.append(f"{comparison.names[method]} {mean:.1f}")
    near = [value for row in rows.values() for value in row.seeds]
    teacher, low, high = POINTS * comparison.teacher_score, min(near), max(near)
    room = max(high - low, 0.5)
    if low - 1.5 * room <= teacher <= high + 1.5 * room:  # elsewhere it would press the methods into a corner
        low, high = min(low, teacher), max(high, teacher)
    if not math.isnan(teacher):
        said.append(f"teacher {teacher:.1f}")
    margin = 0.08 * max(high - low, 0.5)
    description = f"{comparison.title}, {comparison.score.name} in per cent, mean over seeds: {', '.join(said)}"
    line = teacher, f"teacher {teacher:.1f}"
    return Column(comparison.title, rows, (low - margin, high + margin), line), description
