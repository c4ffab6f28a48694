"""The figures of evidence: what methods score over seeds, how they differ from one another, and for which classes."""

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from apd.plots.curves import spread_out
from apd.plots.page import Drawing, nothing
from apd.plots.style import FAINT, INK, WIDTH, colour_of, drawing, figure, quiet_axes
from apd.study.recipes import METHOD_NAMES
from apd.study.statistics import Comparison, spread

POINTS = 100.0
"""Scores are drawn and printed in per cent, differences in percentage points."""


def seed_points(axes: Axes, values: Sequence[float], row: float, colour: str, height: float = 0.16) -> None:
    """One small circle for each seed, spread over a `height` so that equal ones stay apart."""
    offsets = [height * (i - (len(values) - 1) / 2) / max(1, len(values) - 1) for i in range(len(values))]
    rows = [row + offset for offset in offsets]
    axes.scatter(values, rows, s=26, facecolors="none", edgecolors=colour, linewidths=1.2, alpha=0.9, zorder=3)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 16) for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.spines["left"].set_visible(False)


def signed(value: float, _place: object = None) -> str:
    """A tick's label with its sign."""
    return f"{value:+g}".replace("-", "−") if value else "0"


def outlying(comparison: Comparison) -> set[str]:
    """Methods so far from the others that a figure with all of them to scale would show nothing else.

    Eight times as far from the middle method as the methods are in the middle, and at least eight points.
    """
    means = {method: spread(comparison.values(method).values()).mean for method in comparison.arms}
    middle = statistics.median(means.values())
    usual = max(statistics.median(abs(mean - middle) for mean in means.values()), 0.01)
    return {method for method, mean in means.items() if abs(mean - middle) > 8 * usual}


def scores_over_seeds(comparisons: Sequence[Comparison]) -> Drawing:
    """Every method's score: a circle for each seed, a bar at the mean, its value beside it; the teacher as a line."""
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
    said, seen, outside, far = [], [], {}, outlying(comparison)
    for row, method in enumerate(comparison.arms):
        values = [POINTS * value for value in comparison.values(method).values()]
        mean, deviation, _count = spread(values)
        colour = colour_of(method)
        said.append(f"{comparison.names[method]} {mean:.1f}")
        if method in far:
            outside[row] = (mean, colour)
        else:
            seed_points(axes, values, row, colour)
            axes.plot([mean, mean], [row - 0.3, row + 0.3], color=colour, linewidth=3.5, zorder=4)
            seen += values
        width = "" if math.isnan(deviation) else f" ± {deviation:.1f}"
        axes.annotate(
            f"{mean:.1f}{width}",
            (1, row),
            xycoords=axes.get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    teacher = POINTS * comparison.teacher_score
    low, high = min(seen), max(seen)
    room = max(high - low, 0.5)
    near = low - 1.5 * room <= teacher <= high + 1.5 * room  # never for NaN, which is no teacher
    if near:
        low, high = min(low, teacher), max(high, teacher)
        axes.axvline(teacher, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    elif not math.isnan(teacher):  # drawn to scale it would press the methods into a corner
        where, side, arrow = (1, "right", " →") if teacher > high else (0, "left", "")
        axes.annotate(
            f"{'' if arrow else '← '}teacher {teacher:.1f}{arrow}",
            (where, 1.02),
            xycoords="axes fraction",
            ha=side,
            va="bottom",
        )
    margin = 0.08 * max(high - low, 0.5)
    axes.set_xlim(low - margin, high + margin)
    for row, (mean, colour) in outside.items():
        edge, marker = (low - margin / 2, "<") if mean < low else (high + margin / 2, ">")
        axes.plot([edge], [row], marker, color=colour, markersize=6, zorder=5)
    if near:
        inside = (teacher - low + margin) / (high - low + 2 * margin)
        axes.annotate(
            f"teacher {teacher:.1f}",
            (teacher, 1.02),
            xycoords=axes.get_xaxis_transform(),
            ha="right" if inside > 0.5 else "left",
            va="bottom",
        )
    _rows(axes, [comparison.names[method] for method in comparison.arms])
    axes.set_title(comparison.title, pad=22)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    quiet_axes(axes, grid="x")
    return ", ".join(said) + ("" if math.isnan(teacher) else f", teacher {teacher:.1f}")


def _compared_with(comparison: Comparison, reference: str) -> list[str]:
    """The other methods that have a seed in common with the reference."""
    seeds = comparison.arms.get(reference, {}).keys()
    return [method for method, arm in comparison.arms.items() if method != reference and arm.keys() & seeds]


def differences(comparisons: Sequence[Comparison], reference: str, confidence: float = 0.95) -> Drawing:
    """Each method minus the reference, paired by seed: circles for seeds, a bar for the interval of the mean."""
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
            methods = rows[comparison.title]
            for row, method in enumerate(methods):
                found = comparison.difference(method, reference, confidence)
                colour = colour_of(method)
                seed_points(axes, [POINTS * value for value in found.pairs.values()], row, colour)
                if not math.isnan(found.low):
                    ends = [POINTS * found.low, POINTS * found.high]
                    axes.plot(ends, [row, row], color=colour, linewidth=2.2, zorder=2)
                axes.plot([POINTS * found.mean] * 2, [row - 0.28, row + 0.28], color=colour, linewidth=3.5, zorder=4)
                said.append(f"{comparison.title}, {comparison.names[method]}: {POINTS * found.mean:+.1f}")
            axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
            _rows(axes, [comparison.names[method] for method in methods])
            axes.set_title(comparison.title)
            quiet_axes(axes, grid="x")
            axes.tick_params(labelbottom=axes is all_axes[-1])
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        all_axes[-1].xaxis.set_major_formatter(signed)
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
    level = torch.stack([record.scores.iou for record in comparison.arms[reference].values()]).mean(0).tolist()
    with figure(width=WIDTH, height=1.25 + 0.31 * len(names)) as fig:
        fig.suptitle(comparison.title, x=0.005, ha="left", fontweight="bold", fontsize=11.5)
        said = []
        all_axes = fig.subplots(1, len(methods), squeeze=False, sharex=True, sharey=True)[0]
        for axes, method in zip(all_axes, methods, strict=True):
            gains = (POINTS * comparison.class_gain(method, reference)).tolist()
            arm, base = comparison.arms[method], comparison.arms[reference]
            for row, k in enumerate(order):
                per_seed = [
                    POINTS * float(arm[s].scores.iou[k] - base[s].scores.iou[k]) for s in arm.keys() & base.keys()
                ]
                axes.barh(row, gains[k], height=0.5, color=colour_of(method), alpha=0.55, zorder=2)
                seed_points(axes, sorted(per_seed), row, colour_of(method))
            axes.axvline(0, color=INK, linewidth=1.0, zorder=1)
            name = textwrap.fill(comparison.names[method], 14)
            axes.set_title(name, fontsize=10.5, fontweight="normal", color=colour_of(method))
            _rows(axes, [f"{names[k]} {POINTS * level[k]:.0f}" for k in order])
            quiet_axes(axes, grid="x")
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(signed)
            said.append(f"{comparison.names[method]}: " + ", ".join(f"{names[k]} {gains[k]:+.1f}" for k in order))
        fig.supxlabel(f"IoU minus that of “{METHOD_NAMES[reference]}”, percentage points", fontsize=11)
        return drawing(fig, f"{comparison.title}, gains in IoU by class. " + "; ".join(said))


YARDSTICK = ("student", "student_equal_seconds")
"""What the plain student makes of more seconds."""


def score_against_seconds(comparison: Comparison) -> Drawing:
    """mIoU over the seconds that a run's training steps take: further up is better, further left is cheaper.

    A dashed line joins the plain student and the plain student of APD's seconds: what lies below it does less with its
    seconds than more steps of plain training do, as far as a straight line tells. Outlying methods are arrowheads at
    the edge.
    """
    if not comparison.arms:
        return nothing("No seconds can be drawn: there is no record yet.")
    far = outlying(comparison)
    with figure(height=max(3.3, 1.0 + 0.36 * len(comparison.arms))) as fig:
        axes = fig.subplots()
        said, marks = [], {}
        for method in comparison.arms:
            seconds = comparison.step_seconds(method) * comparison.iterations(method)
            values = [POINTS * value for value in comparison.miou(method).values()]
            mean = spread(values).mean
            marks[method] = (seconds, mean)
            said.append(f"{comparison.names[method]} {mean:.1f} in {seconds:.0f} seconds")
            if method not in far:
                axes.plot([seconds, seconds], [min(values), max(values)], color=colour_of(method), linewidth=2.2)
                axes.scatter([seconds], [mean], s=60, color=colour_of(method), zorder=3)
        low, high = axes.get_ylim()
        for method in far:
            seconds, mean = marks[method]
            marks[method] = (seconds, min(max(mean, low), high))
            axes.scatter(
                *marks[method], s=60, marker="v" if mean < low else "^", color=colour_of(method), clip_on=False
            )
        if all(method in marks for method in YARDSTICK):
            ends = zip(*(marks[method] for method in YARDSTICK), strict=True)
            axes.plot(*ends, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.set_ylim(low, high)
        _label_beside(axes, marks, comparison)
        axes.set_xlim(0, 1.08 * max(seconds for seconds, _ in marks.values()))
        axes.set_title(comparison.title)
        axes.set_xlabel("training steps of one run, seconds")
        axes.set_ylabel("mIoU, %")
        quiet_axes(axes, grid="y")
        return drawing(fig, f"{comparison.title}, mIoU and training seconds of a run. " + "; ".join(said))


def _label_beside(axes: Axes, marks: Mapping[str, tuple[float, float]], comparison: Comparison) -> None:
    """Names left of all marks, moved apart where they would overlap, with a thin line to the mark.

    Where there are many they take the whole height, evenly and in the order of the marks.
    """
    low, high = axes.get_ylim()
    if len(marks) > 6:
        order = sorted(marks, key=lambda method: marks[method][1])
        step = (high - low) / len(order)
        heights = [low + step * (order.index(method) + 0.5) for method in marks]
    else:
        heights = spread_out([mean for _, mean in marks.values()], 0.13 * (high - low))
        axes.set_ylim(min(low, *(height - 0.05 * (high - low) for height in heights)), max(high, *heights))
    left = 0.93 * min(seconds for seconds, _ in marks.values())
    for (method, mark), height in zip(marks.items(), heights, strict=True):
        axes.annotate(
            textwrap.fill(comparison.names[method], 16),
            mark,
            xytext=(left, height),
            ha="right",
            va="center",
            linespacing=0.95,
            color=colour_of(method),
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkB": 5, "relpos": (1, 0.5)},
        )
