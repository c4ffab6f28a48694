"""The sixteen on/off combinations of APD's four terms in one picture: which are on, and what the student scores."""

import math

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from apd.report.designs import combinations_of_terms, is_by_construction, letters_of, variant_of_terms
from apd.report.figures.comparison import POINTS, Row, draw_rows
from apd.report.figures.page import Drawing, nothing
from apd.report.figures.style import FAINT, INK, colour_of, drawing, figure, quiet_axes
from apd.report.statistics import Comparison, spread
from apd.study.ablations import TERMS

ROW = 0.34
"""Inches between rows."""


def term_combinations(comparison: Comparison) -> Drawing:
    """Every combination of terms: dots for those that are on, a point for each seed's mIoU, a bar at the mean.

    Combinations without a run of their own, whose student is that of another, are drawn fainter. Best at the top.
    """
    scores = {on: comparison.miou(variant_of_terms(on)) for on in combinations_of_terms()}
    known = {on: spread(values.values()) for on, values in scores.items() if values}
    if not known:
        return nothing(f"{comparison.title}: 0 of {len(scores)} combinations of terms have a record.")
    order = sorted(known, key=lambda on: -known[on].mean)
    with figure(height=1.35 + ROW * len(order)) as fig:
        fig.get_layout_engine().set(w_pad=0.03)
        dots, axes = fig.subplots(1, 2, sharey=True, width_ratios=(1.15, 3))
        _draw_dots(dots, order)
        said = []
        rows: dict[bool, list[Row]] = {False: [], True: []}
        for place, on in enumerate(order):
            seeds, error = [POINTS * value for value in scores[on].values()], POINTS * known[on].error
            text = f"{POINTS * known[on].mean:.2f}"
            said.append(f"{letters_of(on) or 'none'} {text}")
            text += "" if math.isnan(error) else f" ± {error:.2f}"
            rows[is_by_construction(on)].append(Row(place, seeds, colour_of(variant_of_terms(on)), text=text))
        draw_rows(axes, rows[False])
        if rows[True]:
            draw_rows(axes, rows[True], alpha=0.45)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        quiet_axes(axes, grid="x")
        axes.margins(x=0.08)
        axes.set_xlabel("mIoU, %")
        fig.suptitle(comparison.title, x=0.005, ha="left", fontweight="bold", fontsize=11.5)
        return drawing(fig, f"{comparison.title}, mIoU in per cent by the terms that are on: " + "; ".join(said))


def _draw_dots(axes: Axes, order: list[frozenset[str]]) -> None:
    """A column for each term: a filled dot where it is on, a faint one where it is off."""
    columns = list(TERMS.values())
    for row, on in enumerate(order):
        here = [i for i, letter in enumerate(columns) if letter in on]
        axes.scatter(range(len(columns)), [row] * len(columns), s=26, color=FAINT, zorder=1)
        axes.scatter(here, [row] * len(here), s=46, color=INK, zorder=3)
        if here:
            axes.plot([here[0], here[-1]], [row, row], color=INK, linewidth=1.4, zorder=2)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylim(len(order) - 0.45, -0.55)
    axes.set_xticks(range(len(columns)), columns)
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
