"""The figures of evidence: what methods score over seeds, how they differ from one another, and for which classes."""

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from apd.report.figures.curves import label_marks
from apd.report.figures.page import Drawing, nothing
from apd.report.figures.style import INK, WIDTH, colour_of, drawing, figure, quiet_axes
from apd.report.statistics import Comparison, spread
from apd.study.recipes import METHOD_NAMES

POINTS = 100.0
"""Scores are drawn and printed in per cent, differences in percentage points."""


class Row(NamedTuple):
    """One row of a figure.

    Attributes:
        place: where it stands, in the units of the axis across.
        seeds: a value for each seed; their mean is drawn too.
        colour: of all of it.
        ends: of the interval of the mean, or quartiles about a median; NaN where there is none.
        text: what stands at the right.
        significant: whether that is bold.
    """

    place: float
    seeds: Sequence[float]
    colour: str
    ends: Sequence[float] = ()
    text: str = ""
    significant: bool = False


def draw_rows(axes: Axes, rows: Sequence[Row], *, aside: float = 0.26, alpha: float = 1.0) -> None:
    """Each row's mean as a bar and its interval as a line, its seeds as points below, its text at the right.

    Set the limits first where something may lie outside: an arrowhead at the edge says that a row goes on.

    Args:
        axes: what to draw on.
        rows: from the top.
        aside: from the line of a row to its seeds, in the units of `place`.
        alpha: strength of the marks.
    """
    colours = {row.place: row.colour for row in rows}
    look = {"orient": "y", "native_scale": True, "legend": False, "ax": axes}
    # a row's values are its mean and the ends, of which the median and the range are just what is to be drawn
    marks = [(value, row.place) for row in rows for value in (spread(row.seeds).mean, *row.ends)]
    x, y = zip(*marks, strict=True)
    bar = {"estimator": "median", "errorbar": ("pi", 100), "linestyle": "none", "marker": "|", "markersize": 15}
    bar |= {"markeredgewidth": 3.5, "err_kws": {"linewidth": 2.2}, "alpha": alpha}
    sns.pointplot(x=x, y=y, hue=y, palette=colours, **bar, **look)
    seeds = [(value, row.place) for row in rows for value in row.seeds]
    if seeds:
        x, y = zip(*seeds, strict=True)
        below = {place + aside: colour for place, colour in colours.items()}
        y = [place + aside for place in y]
        sns.stripplot(x=x, y=y, hue=y, palette=below, jitter=False, size=5, alpha=0.75 * alpha, linewidth=0, **look)
    axes.set(xlabel="", ylabel="")
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
        label_right(
            axes, row.place, row.text, fontweight="bold" if row.significant else "normal", alpha=(1 + alpha) / 2
        )


def label_right(axes: Axes, place: float, text: str, **style: object) -> None:
    """Text right of the axes at the height of a row, in a style of matplotlib's."""
    where = {"xycoords": axes.get_yaxis_transform(), "xytext": (8, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (1, place), **where, **style)


def row_axes(
    axes: Axes, labels: Sequence[str], places: Sequence[float] = (), *, zero: bool = True, ticks: int = 6
) -> None:
    """The axes of rows: labels at the left, a grid and `ticks` values below, and a line at zero for differences."""
    if not places:
        axes.set_ylim(len(labels) - 0.4, -0.5)
    axes.set_yticks(places or range(len(labels)), labels)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    if zero:
        axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
        axes.xaxis.set_major_formatter(signed)
    quiet_axes(axes, grid="x")


def signed(value: float, _place: object = None) -> str:
    """A tick's label with its sign."""
    return f"{value:+g}".replace("-", "−") if value else "0"


def outlying(comparison: Comparison) -> set[str]:
    """Methods so far from the others that a figure with all of them to scale would show nothing else.

    Five times as far from the middle method as the methods are in the middle, and at least five points.
    """
    means = {method: spread(comparison.values(method).values()).mean for method in comparison.arms}
    middle = statistics.median(means.values())
    usual = max(statistics.median(abs(mean - middle) for mean in means.values()), 0.01)
    return {method for method, mean in means.items() if abs(mean - middle) > 5 * usual}


def scores_over_seeds(comparisons: Sequence[Comparison]) -> Drawing:
    """Every method's score: a point for each seed, a bar at the mean, its value beside it; the teacher as a line."""
    if not comparisons:
        return nothing("No scores can be drawn: there is no record yet.")
    heights = [1.05 + 0.44 * len(c.arms) for c in comparisons]
    with figure(height=sum(heights)) as fig:
        fig.get_layout_engine().set(h_pad=0.1)
        said = []
        for axes, comparison in zip(
            fig.subplots(len(comparisons), 1, squeeze=False, height_ratios=heights)[:, 0], comparisons, strict=True
        ):
            said.append(f"{comparison.title}: {_draw_scores(axes, comparison)}")
        score = comparisons[-1].score.name
        fig.axes[-1].set_xlabel(f"{score}, %")
        return drawing(fig, f"{score} in per cent, mean over seeds. " + "; ".join(said))


def _draw_scores(axes: Axes, comparison: Comparison) -> str:
    rows, near, far = [], [], outlying(comparison)
    for place, method in enumerate(comparison.arms):
        values = [POINTS * value for value in comparison.values(method).values()]
        mean, deviation, _count = spread(values)
        text = f"{mean:.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")
        rows.append(Row(place, values, colour_of(method), text=text))
        near += [] if method in far else values
    teacher, low, high = POINTS * comparison.teacher_score, min(near), max(near)
    room = max(high - low, 0.5)
    if low - 1.5 * room <= teacher <= high + 1.5 * room:  # elsewhere it would press the methods into a corner
        low, high = min(low, teacher), max(high, teacher)
    margin = 0.08 * max(high - low, 0.5)
    axes.set_xlim(low - margin, high + margin)
    draw_rows(axes, rows)
    row_axes(axes, [textwrap.fill(comparison.names[method], 16) for method in comparison.arms], zero=False)
    axes.set_title(comparison.title, pad=22)
    said = ", ".join(
        f"{comparison.names[method]} {spread(rows[i].seeds).mean:.1f}" for i, method in enumerate(comparison.arms)
    )
    if math.isnan(teacher):
        return said
    axes.axvline(teacher, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"{'← ' if teacher < low else ''}teacher {teacher:.1f}{' →' if teacher > high else ''}",
        (min(max(teacher, low - margin), high + margin), 1.02),
        xycoords=axes.get_xaxis_transform(),
        ha="right" if 2 * teacher > low + high else "left",
        va="bottom",
    )
    return f"{said}, teacher {teacher:.1f}"


def _compared_with(comparison: Comparison, reference: str) -> list[str]:
    """The other methods that have a seed in common with the reference."""
    seeds = comparison.arms.get(reference, {}).keys()
    return [method for method, arm in comparison.arms.items() if method != reference and arm.keys() & seeds]


def differences(comparisons: Sequence[Comparison], reference: str, confidence: float = 0.95) -> Drawing:
    """Each method minus the reference, paired by seed: points for seeds, a bar at the mean, a line for its interval."""
    rows = {c.title: _compared_with(c, reference) for c in comparisons}
    shown = [c for c in comparisons if rows[c.title]]
    if not shown:
        return nothing(f"No differences can be drawn: no seed has records of “{METHOD_NAMES[reference]}” and another.")
    heights = [0.85 + 0.44 * len(rows[c.title]) for c in shown]
    with figure(height=sum(heights) + 0.25) as fig:
        fig.get_layout_engine().set(h_pad=0.08)
        said = []
        all_axes = fig.subplots(len(shown), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for axes, comparison in zip(all_axes, shown, strict=True):
            methods, drawn = rows[comparison.title], []
            for place, method in enumerate(methods):
                found = comparison.difference(method, reference, confidence)
                values = [POINTS * value for value in found.pairs.values()]
                drawn.append(Row(place, values, colour_of(method), (POINTS * found.low, POINTS * found.high)))
                said.append(f"{comparison.title}, {comparison.names[method]}: {POINTS * found.mean:+.1f}")
            draw_rows(axes, drawn)
            row_axes(axes, [textwrap.fill(comparison.names[method], 16) for method in methods], ticks=8)
            axes.set_title(comparison.title)
            axes.tick_params(labelbottom=axes is all_axes[-1])
        label = f"mIoU minus that of “{METHOD_NAMES[reference]}”, percentage points"
        all_axes[-1].set_xlabel(textwrap.fill(label, 46))
        return drawing(fig, f"Difference in mIoU to {METHOD_NAMES[reference]}, percentage points. " + "; ".join(said))


def class_gains(comparison: Comparison, reference: str = "student") -> Drawing:
    """IoU gained over the reference, class by class, one column for each method of as many steps.

    Beside a class stands the reference's own IoU in per cent; the most frequent class is at the top.
    """
    methods = [m for m in ("pixel_kd", "apd_without_kd", "apd") if m in _compared_with(comparison, reference)]
    if not methods:
        return nothing(f"{comparison.title}: no seed has two records to compare.")
    names = comparison.any_record.class_names
    pixels = [sum(row) for row in comparison.any_record.content["confusion"]]
    order = sorted(range(len(names)), key=lambda k: -pixels[k])
    iou = {method: {seed: record.scores.iou for seed, record in arm.items()} for method, arm in comparison.arms.items()}
    level = POINTS * torch.stack(list(iou[reference].values())).mean(0)
    columns = {
        method: {
            f"{names[k]} {level[k]:.0f}": [
                POINTS * float(iou[method][seed][k] - iou[reference][seed][k])
                for seed in iou[method].keys() & iou[reference].keys()
            ]
            for k in order
        }
        for method in methods
    }
    axis = f"IoU minus that of “{METHOD_NAMES[reference]}”, percentage points"
    return gain_columns(columns, comparison.names, axis, comparison.title)


def gain_columns(
    columns: Mapping[str, Mapping[str, Sequence[float]]], names: Mapping[str, str], axis: str, title: str
) -> Drawing:
    """Gains in points, one column for each method and one row for each part: a point for each seed, a bar at the mean.

    Args:
        columns: by method and label of the part, its gain for each seed; all methods have the same parts.
        names: what the methods are called.
        axis, title: of the figure.
    """
    labels = list(next(iter(columns.values())))
    with figure(width=WIDTH, height=1.25 + 0.31 * len(labels)) as fig:
        fig.suptitle(title, x=0.005, ha="left", fontweight="bold", fontsize=11.5)
        said = []
        all_axes = fig.subplots(1, len(columns), squeeze=False, sharex=True, sharey=True)[0]
        for axes, (method, parts) in zip(all_axes, columns.items(), strict=True):
            draw_rows(axes, [Row(i, parts[label], colour_of(method)) for i, label in enumerate(labels)])
            row_axes(axes, labels, ticks=4)
            name = textwrap.fill(names[method], 14)
            axes.set_title(name, fontsize=10.5, fontweight="normal", color=colour_of(method))
            told = (f"{label.rsplit(' ', 1)[0]} {spread(parts[label]).mean:+.1f}" for label in labels)
            said.append(f"{names[method]}: {', '.join(told)}")
        fig.supxlabel(axis, fontsize=11)
        return drawing(fig, f"{title}, {axis}. " + "; ".join(said))


YARDSTICK = ("student", "student_equal_seconds")
"""What the plain student makes of more seconds."""


def score_against_seconds(comparison: Comparison) -> Drawing:
    """mIoU over the seconds that a run's training steps take: further up is better, further left is cheaper.

    Seconds are on a logarithmic axis; a line reaches from the lowest to the highest seed. A dashed line joins the plain
    student and the plain student of APD's seconds: what lies below it does less with its seconds than more steps of
    plain training do, as far as a straight line of seconds tells. Outlying methods are arrowheads at the edge.
    """
    if not comparison.arms:
        return nothing("No seconds can be drawn: there is no record yet.")
    far, names = outlying(comparison), comparison.names
    with figure(height=max(3.3, 1.1 + 0.34 * len(comparison.arms))) as fig:
        axes = fig.subplots()
        axes.set_xscale("log")
        said, marks, texts = [], {}, {}
        for method in comparison.arms:
            seconds = comparison.step_seconds(method) * comparison.iterations(method)
            values = [POINTS * value for value in comparison.miou(method).values()]
            mean = spread(values).mean
            marks[method], texts[method] = (seconds, mean), names[method]
            said.append(f"{names[method]} {mean:.1f} in {seconds:.0f} seconds")
            if method in far:
                texts[method] += f" {mean:.1f}"
            else:
                look = {"errorbar": ("pi", 100), "err_kws": {"linewidth": 2.2}, "native_scale": True, "ax": axes}
                sns.pointplot(x=[seconds] * len(values), y=values, color=colour_of(method), **look)
        low, high = axes.get_ylim()
        for method in far:
            seconds, mean = marks[method]
            marks[method] = (seconds, min(max(mean, low), high))
            axes.plot(*marks[method], "v" if mean < low else "^", color=colour_of(method), markersize=8, clip_on=False)
        if all(method in marks for method in YARDSTICK):
            ends = torch.tensor([marks[method] for method in YARDSTICK])
            axes.plot(
                *torch.lerp(ends[:1], ends[1:], torch.linspace(0, 1, 20)[:, None]).T, "--", color=INK, linewidth=1
            )
        axes.set_ylim(low, high)
        axes.set_xlim(0.88 * min(x for x, _ in marks.values()), 1.12 * max(x for x, _ in marks.values()))
        label_marks(axes, marks, texts)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set(xlabel="training steps of one run, seconds", ylabel="mIoU, %")
        axes.set_title(comparison.title)
        quiet_axes(axes, grid="y")
        return drawing(fig, f"{comparison.title}, mIoU and training seconds of a run. " + "; ".join(said))
