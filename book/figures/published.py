"""The published gains of APD beside those of this study's records: a drawing, a table, and the answer in sentences."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from svg import Colours, Drawing, short

from apd.report.figures.answers import interval, points, read_campaigns
from apd.report.statistics import DATA_NAMES, LONGER, Comparison, Difference, compare, mean_interval
from apd.study.campaigns import CAMPAIGNS
from apd.study.published_recipes import PUBLISHED

OURS = (
    "scenes-tiny",
    "scenes-longer",
    "camvid-small",
    "facade-small",
    "camvid-pretrained",
    "camvid-full",
    "facade-full",
)
"""The campaigns that have a baseline, its equal-time run and APD; those without records yet are passed over."""
NAMES = {"cityscapes": "Cityscapes", "ade20k": "ADE20K", "pascal_context": "PASCAL-Context"}
ROW, LEFT, RIGHT = 40, 196, 446

Mark = Callable[[Drawing, float, float, str], None]


class Gain(NamedTuple):
    """What APD gains on one data set over the baseline and over the equal-time baseline; published: one number."""

    name: str
    remark: str
    over_baseline: Difference
    equal_time: Difference | None = None


def published() -> list[Gain]:
    """One number each, so a mean without an interval."""
    found = {name: mean_interval({0: (p.with_apd - p.alone) / 100}) for name, p in PUBLISHED.items() if name in NAMES}
    return [Gain(NAMES[name], "published", gain) for name, gain in found.items()]


@cache
def ours() -> list[Gain]:
    """From the committed records, of every data set that has three seeds of APD, as two give an interval beyond use."""
    campaigns, _ = read_campaigns([name for name in OURS if name in CAMPAIGNS])
    rows = []
    for comparison in (one for records in campaigns.values() for one in compare(records)):
        gain, equal = (comparison.difference("apd", other) for other in ("student", LONGER))
        if len(gain.pairs) > 2:
            rows.append(Gain(*_named(comparison), gain, equal if len(equal.pairs) > 1 else None))
    return rows


def _named(comparison: Comparison) -> tuple[str, str]:
    data, runs = comparison.data, comparison.variants["apd"].values()
    seeds = len(comparison.difference("apd", "student").pairs)
    remark = f"{next(iter(runs)).experiment.training.iterations} steps, {seeds} seeds"
    start = "" if comparison.any_record.experiment.network.weights == "none" else "pretrained, "
    if data.name == "scenes":
        return f"Scenes, shift {data.context_shift:g}", remark
    size = f", {data.height}×{data.width}" if data.height else ""
    return f"{DATA_NAMES[data.name]}{size}", start + remark


def draw(colours: Colours) -> Drawing:
    """A dot for each gain, with its interval where there is one."""
    rows = [*published(), *ours()]
    d = Drawing(460, 92 + ROW * len(rows), "Gains of APD in points of mIoU, published and measured here", colours)
    ends = [end for row in rows for one in row[2:] if one for end in one[:3] if end == end]
    low, high = min(0, *ends), max(ends)

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    bottom = 56 + ROW * len(rows)
    for tick in range(-20, 21):
        if low <= tick / 100 <= high and tick % (2 if high - low > 0.06 else 1) == 0:
            line = colours.muted if tick == 0 else colours.panel
            d.add("path", d=f"M{short(x(tick / 100))} 48 V{bottom}", stroke=line, stroke_width=1)
            d.text(x(tick / 100), bottom + 16, points(tick / 100, 0), size=12, colour=colours.muted)
    d.text((LEFT + RIGHT) / 2, bottom + 33, "gain of APD, points of mIoU", size=12, colour=colours.muted)
    for left, words, colour, mark in (
        (8, "published", colours.coral, _diamond),
        (106, "over baseline", colours.teal, _dot),
        (236, "over equal-time baseline", colours.violet, _ring),
    ):
        mark(d, left + 6, 22, colour)
        d.text(left + 18, 27, words, size=13, text_anchor="start")
    for number, row in enumerate(rows):
        y = 64 + ROW * number
        d.text(8, y + 3, row.name, text_anchor="start")
        d.text(8, y + 18, row.remark, size=12, colour=colours.muted, text_anchor="start")
        first = _diamond if row.remark == "published" else _dot
        _gain(d, row.over_baseline, x, y + 2, colours.coral if first is _diamond else colours.teal, first)
        if row.equal_time:
            _gain(d, row.equal_time, x, y + 14, colours.violet, _ring)
    return d


def _gain(d: Drawing, found: Difference, x: Callable[[float], float], y: float, colour: str, mark: Mark) -> None:
    if found.low == found.low:
        whisker = f"M{short(x(found.low))} {y} H{short(x(found.high))}"
        d.add("path", d=whisker, stroke=colour, stroke_width=2)
    mark(d, x(found.mean), y, colour)


def _dot(d: Drawing, x: float, y: float, colour: str) -> None:
    d.add("circle", cx=short(x), cy=y, r=5, fill=colour)


def _ring(d: Drawing, x: float, y: float, colour: str) -> None:
    paper = "#14181f" if d.colours.ink.startswith("#e") else "#ffffff"
    d.add("circle", cx=short(x), cy=y, r=4.2, fill=paper, stroke=colour, stroke_width=2)


def _diamond(d: Drawing, x: float, y: float, colour: str) -> None:
    d.add("path", d=f"M{short(x - 6)} {y} l6 -6 l6 6 l-6 6 Z", fill=colour)


def table() -> Iterator[str]:
    """The drawing's numbers as lines of a Markdown table."""
    yield "| data set | runs | APD − baseline | APD − equal-time baseline |"
    yield "| --- | --- | ---: | ---: |"
    for row in published():
        yield f"| {row.name} | published | {points(row.over_baseline.mean, 2)} | not reported |"
    for row in ours():
        later = interval(row.equal_time) if row.equal_time else "–"
        yield f"| {row.name} | {row.remark} | {interval(row.over_baseline)} | {later} |"


def answer() -> str:
    """What is published, in a sentence."""
    low, high = (points(how(row.over_baseline.mean for row in published()), 2)[1:] for how in (min, max))
    return (
        f"The authors report gains of {low} to {high} points of mIoU over the baseline on three data sets, one number "
        "each, for one pair of networks; how many runs stand behind it is not said. No publication that could be read "
        "compares APD with a baseline of equal training time, or reports its spread over seeds. The figure shows the "
        "published gains beside those of this study."
    )
