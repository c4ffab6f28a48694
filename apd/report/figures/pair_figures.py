"""Pairs of networks in figures, tables and sentences: gain by pair, and kinship."""

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from apd.config.experiment import DataConfig
from apd.report.comparisons import Corrected, holm_corrected
from apd.report.designs import (
    ALL,
    HEAD_NAMES,
    PUBLISHED,
    Pair,
    crossed_minus_own,
    head_match,
    mean_gain,
)
from apd.report.figures.comparison import draw_rows, label_right, row_axes
from apd.report.figures.forest import ASIDE, GAP, LINE, limits, row_of
from apd.report.figures.page import Drawing, Words, nothing, table
from apd.report.figures.style import INK, colour_of, drawing, figure
from apd.report.figures.tables import interval, per_cent
from apd.report.figures.verdicts import tally
from apd.report.statistics import Difference, paired_difference, spread
from apd.study.recipes import METHOD_NAMES, PAIR_METHODS

TAUGHT = PAIR_METHODS[1:]
"""The methods that have a teacher."""
KINDS = {False: "one kind", True: "crossed"}
APART = 0.25
"""Inches between the two methods of a pair, so that the seeds of one do not lie among those of the other."""


def by_data(pairs: Sequence[Pair]) -> dict[DataConfig, list[Pair]]:
    """Pairs by their data, in their order."""
    found: dict[DataConfig, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.runs.data, []).append(pair)
    return found


def judged_gains(pairs: Sequence[Pair], confidence: float = 0.95) -> dict[tuple[str, str], Corrected]:
    """Gains over the student alone by pair and method, judged together; those without a seed in common are left out."""
    found = {(pair.name, method): pair.gain(method, confidence=confidence) for pair in pairs for method in TAUGHT}
    return holm_corrected({key: difference for key, difference in found.items() if difference.pairs}, confidence)


def gain_by_pair(pairs: Sequence[Pair], confidence: float = 0.95) -> Drawing:
    """Gain over the student alone by pair, one panel for each data set, and below them the published rows.

    Ours: a point for each seed, a bar at the mean, a line for the interval, the mean also at the right, bold where it
    withstands the correction for all rows of its panel. Published ones are diamonds under a heading of their own: they
    have one run, other data, and networks and schedules many times the size. All panels have one scale.
    """
    panels = [(those, rows) for those in by_data(pairs).values() if (rows := judged_gains(those, confidence))]
    if not panels:
        return nothing("No gain can be drawn: 0 pairs have a seed in common with the student alone.")
    heights = [_height(_grouped(those, rows)) for those, rows in panels]
    heights.append((LINE + GAP) * (len(PUBLISHED) + 1.6))
    ends = [limits([row.found for row in rows.values()]) for _, rows in panels]
    low, high = min(low for low, _ in ends), max([1.1 * row.gain for row in PUBLISHED] + [high for _, high in ends])
    with figure(height=sum(heights) + 0.62 * len(heights) + 0.75) as fig:
        fig.get_layout_engine().set(h_pad=0.06)
        all_axes = fig.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes in all_axes:  # one scale: a gain of a point is as long everywhere
            axes.set_xlim(low, high)
        said = []
        for axes, (those, rows), height in zip(all_axes, panels, heights, strict=False):
            axes.set_ylim(height, 0)
            axes.set_title(those[0].runs.title)
            _draw_panel(axes, _grouped(those, rows))
            told = "; ".join(f"{pair} {METHOD_NAMES[m]} {interval(row.found)}" for (pair, m), row in rows.items())
            said.append(f"{those[0].runs.title}: {told}")
        said.append(_draw_published(all_axes[-1]))
        all_axes[-1].set_xlabel("gain in mIoU over the student alone,\npercentage points")
        marks = [Line2D([], [], color=colour_of(m), linewidth=3, label=METHOD_NAMES[m]) for m in TAUGHT]
        legend = fig.legend(handles=marks, loc="outside upper left", ncols=2, handlelength=1.2)
        for text, method in zip(legend.get_texts(), TAUGHT, strict=True):
            text.set_color(colour_of(method))
        return drawing(fig, "Gain in mIoU over the student alone, percentage points. " + ". ".join(said))


def _grouped(
    pairs: Sequence[Pair], rows: Mapping[tuple[str, str], Corrected]
) -> list[tuple[str, list[tuple[str, Corrected]]]]:
    """What stands in a panel, from the top: a heading (without rows) or a pair with its methods' rows."""
    lines: list[tuple[str, list[tuple[str, Corrected]]]] = []
    role = ""
    for pair in pairs:
        drawn = [(method, rows[pair.name, method]) for method in TAUGHT if (pair.name, method) in rows]
        if not drawn:
            continue
        if pair.role != role:
            role = pair.role
            lines.append((f"{role}\n{KINDS[pair.is_crossed]}", []))
        lines.append((pair.backbone, drawn))
    return lines


def _places(lines: Sequence[tuple[str, list[tuple[str, Corrected]]]]) -> Iterator[tuple[float, float]]:
    """Top and height, in inches, of each line."""
    top = 0.0
    for _, drawn in lines:
        height = GAP + (APART * len(drawn) or 2 * LINE)
        yield top, height
        top += height


def _height(lines: Sequence[tuple[str, list[tuple[str, Corrected]]]]) -> float:
    return sum(height for _, height in _places(lines))


def _draw_panel(axes: Axes, lines: Sequence[tuple[str, list[tuple[str, Corrected]]]]) -> None:
    middles, rows = [], []
    for (_, drawn), (top, height) in zip(lines, _places(lines), strict=True):
        middles.append(top + height / 2)
        for i, (method, row) in enumerate(drawn):
            rows.append(row_of(row, top + GAP / 2 + APART * (i + 0.5), colour_of(method)))
    draw_rows(axes, rows, aside=ASIDE)
    row_axes(axes, [text for text, _ in lines], middles)
    for label, (_, drawn) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if drawn else "bold")


def _draw_published(axes: Axes) -> str:
    """The published rows, on an axis of their own; returns them in words."""
    gains = [row.gain for row in PUBLISHED]
    axes.plot(gains, range(len(gains)), "D", color=INK, markerfacecolor="none", markersize=7, linestyle="none")
    for place, gain in enumerate(gains):
        label_right(axes, place, f"{gain:+.2f}")
    axes.set_ylim(len(gains) - 0.4, -2.2)
    heading = "PSPNet ResNet-18\n← PSPNet ResNet-101"
    row_axes(axes, [heading, *(row.data for row in PUBLISHED)], [-1.2, *range(len(gains))])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_title("published, in the code’s README:\nother data and scale, one run")
    told = ", ".join(f"{row.data} {row.gain:+.2f}" for row in PUBLISHED)
    return f"Published for APD, on other data, at another scale and without a spread: {told}"


def pairs_table(pairs: Sequence[Pair], confidence: float = 0.95) -> Drawing:
    """One row for each pair of one data set: the teacher, the student alone, and what each method adds to it."""
    if not pairs:
        return nothing("There is no pair to list: 0 records yet.")
    rows = {}
    for pair in pairs:
        gains = {m: pair.gain(m, confidence=confidence) for m in TAUGHT}
        rows[pair.role, pair.backbone] = {
            "teacher’s mIoU, %": f"{100 * pair.runs.teacher_miou:.1f}",
            "student alone, %": per_cent(spread(pair.runs.miou("student").values())),
            **{METHOD_NAMES[m]: interval(gain) if gain.pairs else "–" for m, gain in gains.items()},
            "seeds": ", ".join(dict.fromkeys(str(len(gain.pairs)) for gain in gains.values())),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(rows)
    caption = (
        f"{pairs[0].runs.title}: mean ± standard deviation over seeds; gains over the student alone in points of mIoU, "
        f"with their {100 * confidence:g} % intervals"
    )
    return table(frame, caption)


def gains_in_words(pairs: Sequence[Pair], confidence: float = 0.95) -> Words:
    """For each data set, which gains over the student alone are above or below zero, judged together."""
    parts = []
    for those in by_data(pairs).values():
        rows = judged_gains(those, confidence)
        names = {key: f"{key[0]}, {METHOD_NAMES[key[1]]}" for key in rows}
        means = [line for method in TAUGHT for line in _mean_gains(those, method, confidence)]
        told = tally(rows, names, "the same student alone", confidence)
        parts.append("\n".join([f"**{those[0].runs.title}**\n", *means, "", told]))
    return Words("\n\n".join(parts) or "There is no gain to judge: 0 pairs have records yet.")


def _mean_gains(pairs: Sequence[Pair], method: str, confidence: float) -> Iterator[str]:
    for crossed in (False, True):
        those = [pair for pair in pairs if pair.is_crossed is crossed]
        found = mean_gain(those, method, confidence)
        what = f"{'crossed pairs' if crossed else 'pairs of one kind'} ({len(those)})"
        if found.pairs:
            seeds = f"{len(found.pairs)} {'seed' if len(found.pairs) == 1 else 'seeds'}"
            said = f"**{found.verdict}** the students alone, {interval(found)} points of mIoU, {seeds}"
        else:
            said = "0 seeds have the runs of all of them"
        yield f"- “{METHOD_NAMES[method]}”, mean over {what}: {said}."


def kinship_rows(pairs: Sequence[Pair], confidence: float = 0.95) -> dict[tuple[str, str], Corrected]:
    """Crossed minus of one kind by method and backbone, judged together; see :func:`~apd.report.designs.head_match`."""
    found = {
        (method, name): difference
        for method in TAUGHT
        for name, difference in head_match(pairs, method, confidence).items()
        if difference.pairs
    }
    return holm_corrected(found, confidence)


def kinship_names(
    rows: Mapping[tuple[str, str], Corrected],
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """What the rows of :func:`kinship_rows` are called, and the method that they stand below."""
    return {key: key[1] for key in rows}, {key: METHOD_NAMES[key[0]] for key in rows}


def published_table() -> Drawing:
    """The published rows that have both scores, with where they stand."""
    rows = {
        row.data: {"alone": f"{row.alone:.2f}", "with APD": f"{row.taught:.2f}", "gain": f"{row.gain:+.2f}"}
        for row in PUBLISHED
    }
    caption = (
        "published for APD, PSPNet ResNet-18 ← PSPNet ResNet-101: mIoU in per cent on val, as the README of the "
        "released code has it (github.com/dvlab-research/APD); not measured here"
    )
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def kinship_in_words(pairs: Sequence[Pair], confidence: float = 0.95) -> Words:
    """Is a crossed pair worse than one of one kind? Worded by rule, for each data set and method.

    Where both heads are in both roles the mean over them is told; elsewhere the one student's own difference, with what
    it leaves open.
    """
    lines = []
    for those in by_data(pairs).values():
        balanced = {method: head_match(those, method, confidence)[ALL] for method in TAUGHT}
        has_both = len({pair.student.head for pair in those}) == 2
        lines.append(f"**{those[0].runs.title}**\n")
        for method in TAUGHT:
            if has_both:
                count = len({pair.backbone for pair in those})
                what = f"mean over {count} student {'backbone' if count == 1 else 'backbones'} and both heads"
                lines.append(_line(method, balanced[method], what, confidence))
            single = {} if has_both else crossed_minus_own(those, method)
            if not has_both and not single:
                lines.append(f"- “{METHOD_NAMES[method]}”: 0 students have runs with both teachers.")
            for student, values in single.items():
                found = paired_difference(values, dict.fromkeys(values, 0.0), confidence)
                what = f"one student, {HEAD_NAMES[student.head]}, so that the better of two teachers counts as well"
                lines.append(_line(method, found, what, confidence))
        if has_both and (both := _apart(balanced, confidence)).pairs:
            said = f"that of “{METHOD_NAMES['apd']}” is **{both.verdict}** that of “{METHOD_NAMES['pixel_kd']}”"
            lines.append(f"- Crossed minus own kind: {said}, {interval(both)} points.")
        lines.append("")
    return Words("\n".join(lines) or "Crossed pairs cannot be held against others: 0 pairs have records yet.")


def _apart(balanced: Mapping[str, Difference], confidence: float) -> Difference:
    return paired_difference(balanced["apd"].pairs, balanced["pixel_kd"].pairs, confidence)


def _line(method: str, found: Difference, what: str, confidence: float) -> str:
    if not found.pairs:
        return f"- “{METHOD_NAMES[method]}”: 0 seeds have all the runs that are needed ({what})."
    said = f"“{METHOD_NAMES[method]}” from a teacher of the other kind is **{found.verdict}** that from one of its own"
    level = "" if math.isnan(found.low) else f", {100 * confidence:g} % interval"
    seeds = f"{len(found.pairs)} {'seed' if len(found.pairs) == 1 else 'seeds'}"
    return f"- {said}: {interval(found)} points of mIoU{level}, {seeds}; {what}."
