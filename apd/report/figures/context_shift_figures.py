"""The dial in a figure, a table and a sentence: what APD gains over pixel KD as pictures get looks of their own."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import seaborn as sns

from apd.report.correlations import PerImage
from apd.report.designs import SHIFT_NAMES, ShiftSweep
from apd.report.figures.comparison import signed
from apd.report.figures.page import Drawing, Words, nothing, table
from apd.report.figures.style import INK, colour_of, drawing, figure, quiet_axes
from apd.report.figures.tables import interval
from apd.report.statistics import Comparison

POINTS = 100.0
STEP = 0.022
"""Sideways distance between the marks of two dials at one context shift, in units of the context shift."""


def dial_figure(dials: Sequence[ShiftSweep]) -> Drawing:
    """Gain over context shift: a point for each seed, a square at the mean, a bar for its interval."""
    shown = [dial for dial in dials if dial.gains]
    if not shown:
        return nothing("The dial cannot be drawn: 0 context shifts have records to compare.")
    with figure(height=3.9) as fig:
        axes = fig.subplots()
        said = []
        for place, dial in enumerate(shown):
            aside = STEP * (2 * place - len(shown) + 1)
            seeds = [(shift + aside, POINTS * v) for shift, gain in dial.gains.items() for v in gain.pairs.values()]
            ends = [(shift + aside, POINTS * v) for shift, gain in dial.gains.items() for v in gain[:3]]
            look = {"color": colour_of(dial.method), "native_scale": True, "legend": False, "ax": axes}
            # of the mean and the ends of its interval the median and the range are just what is to be drawn
            bar = {"estimator": "median", "errorbar": ("pi", 100), "marker": "s", "markersize": 6, "linewidth": 1.4}
            bar |= {"err_kws": {"linewidth": 3, "alpha": 0.45}}
            sns.pointplot(x=[x for x, _ in ends], y=[y for _, y in ends], label=_name(dial), **bar, **look)
            sns.stripplot(
                x=[x + STEP / 2 for x, _ in seeds], y=[y for _, y in seeds], jitter=False, size=4, alpha=0.75, **look
            )
            told = ", ".join(f"{POINTS * gain.mean:+.1f} at {shift:g}" for shift, gain in dial.gains.items())
            said.append(f"{_name(dial)}: {told}")
        axes.axhline(0, color=INK, linewidth=1.2, zorder=1)
        axes.set_xticks(sorted({shift for dial in shown for shift in dial.gains}))
        axes.set_xlabel("context shift")
        axes.set_ylabel("gain in mIoU, points")
        axes.yaxis.set_major_formatter(signed)
        quiet_axes(axes, grid="y")
        legend = fig.legend(loc="outside upper left", handlelength=1.4)
        for text, dial in zip(legend.get_texts(), shown, strict=True):
            text.set_color(colour_of(dial.method))
        return drawing(fig, "Gain in mIoU, percentage points, by context shift. " + "; ".join(said))


def _name(dial: ShiftSweep) -> str:
    return textwrap.fill(f"{SHIFT_NAMES[dial.method]}, over {SHIFT_NAMES[dial.reference].removeprefix('+ ')}", 56)


def dial_table(
    comparisons: Mapping[float, Comparison],
    dials: Sequence[ShiftSweep],
    images: Sequence[PerImage],
    confidence: float = 0.95,
) -> Drawing:
    """One row for each context shift: the teacher, how far own perspectives are from the shared one, and the gains.

    The share of the teacher's lead is the first dial's mean gain over the mean difference between teacher and
    reference: points weigh differently where there is more room above.
    """
    if not comparisons:
        return nothing("There is nothing to put into a table: 0 records yet.")
    numbers = {one.context_shift: one.numbers for one in images}
    rows = {}
    for shift, comparison in comparisons.items():
        measured = numbers.get(shift)
        row = {
            "teacher’s mIoU, %": f"{POINTS * comparison.teacher_miou:.1f}",
            "distance": "–" if measured is None else f"{_mean(measured['distance']):.3f}",
            "views disagree, %": "–" if measured is None else f"{POINTS * _mean(measured['disagreement']):.1f}",
        }
        for dial in dials:
            gain = dial.gains.get(shift)
            row[_name(dial)] = "–" if gain is None else interval(gain)
            if dial is dials[0]:
                row["share of the teacher’s lead, %"] = _share(dial, shift, comparison)
        rows[f"context shift {shift:g}"] = row
    caption = f"means over test images, and gains in points of mIoU with their {POINTS * confidence:g} % intervals"
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def _share(dial: ShiftSweep, shift: float, comparison: Comparison) -> str:
    """The mean gain as a share of what the teacher is ahead of the reference, over the seeds of the gain."""
    if shift not in dial.gains:
        return "–"
    reference = comparison.miou(dial.reference)
    lead = comparison.teacher_miou - _mean([reference[seed] for seed in dial.gains[shift].pairs])
    return f"{POINTS * dial.gains[shift].mean / lead:.0f}".replace("-", "−") if lead > 0 else "–"


def _mean(values: Iterable[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def dial_words(dials: Sequence[ShiftSweep], confidence: float = 0.95) -> Words:
    """Does the gain rise with the context shift? Worded by rule from the seeds' slopes."""
    lines = []
    for dial in dials:
        said = f"The gain of “{SHIFT_NAMES[dial.method]}” over “{SHIFT_NAMES[dial.reference]}” **{dial.verdict}**"
        seeds, shifts = len(dial.slopes.pairs), len(dial.gains)
        if math.isnan(dial.slopes.low):
            lines.append(f"- {said}: context shifts with a gain: {shifts}; seeds that have all of them: {seeds}.")
        else:
            lines.append(
                f"- {said} with the context shift: a full turn changes it by {interval(dial.slopes)} points of mIoU "
                f"(mean slope and {POINTS * confidence:g} % interval of {seeds} seeds, {shifts} context shifts)."
            )
    return Words("\n".join(lines) or "0 dials were asked for.")
