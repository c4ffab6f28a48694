"""The main results as the first page and the README show them: advice, figure and table, from the committed records.

    python book/figures/main_results.py

writes `book/_static/main-results-*.svg`, for either mode and for a phone, and what stands between the markers of
`book/intro.md`. A test compares both with the records.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from svg import FONT, MODES

from apd.report.comparisons import Corrected, corrected_gains, holm_corrected
from apd.report.detections import detection_comparisons
from apd.report.figures.answers import interval, number, per_cent, read_campaigns, tally, time_given
from apd.report.figures.forest import HOW_TO_READ, forest
from apd.report.figures.tables import QUESTIONS
from apd.report.statistics import DATA_NAMES, Comparison, compare, spread

BOOK = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- main results: by book/figures/main_results.py -->", "<!-- end of the main results -->"
SEGMENTATION = ("scenes-longer", "camvid-small", "facade-small")
PANELS = {
    "student": ("the baseline", "Compared with training without a teacher, at equal steps"),
    "pixel_kd": ("pixel KD", "Compared with pixel KD from the same teacher, at equal steps"),
    "student_equal_seconds": ("the equal-time baseline", "Compared with training without a teacher for {given}"),
}
"""What APD is compared with, and what that is."""


class Result(NamedTuple):
    """One score of a data set's runs; APD's key among them, and its differences, by what it is compared with."""

    name: str
    comparison: Comparison
    apd: str
    gains: Mapping[str, Corrected]

    def mean(self, method: str) -> str:
        """The method's score in per cent, with its standard deviation over seeds; a dash where it has no run."""
        return per_cent(spread(self.comparison.values(method).values()))


def results() -> list[Result]:
    """One for each data set and score that has two seeds of APD, corrected together as in its chapter."""
    campaigns, _ = read_campaigns([*SEGMENTATION, "scenes-detection"])
    found = []
    for comparison in (one for name in SEGMENTATION if campaigns[name] for one in compare(campaigns[name])):
        if len(comparison.values("apd")) < 2:
            continue
        corrected = holm_corrected({asked[:2]: comparison.difference(*asked[:2]) for asked in QUESTIONS})
        gains = {other: corrected["apd", other] for other in PANELS if ("apd", other) in corrected}
        data = comparison.data
        name = DATA_NAMES.get(data.name, f"Scenes, context shift {data.context_shift:g}")
        found.append(Result(name, comparison, "apd", gains))
    for comparison in detection_comparisons(campaigns["scenes-detection"]):
        gains = {
            panel: corrected_gains(comparison, comparison.variants, other)["roi_apd"]
            for panel, other in {"student": "student", "pixel_kd": "roi_kd"}.items()
        }
        found.append(Result(f"Scenes, detection ({comparison.score.name})", comparison, "roi_apd", gains))
    return found


def drawings(found: Sequence[Result]) -> dict[str, str]:
    """The figure as SVG files, by name: a panel for each reference, a row for each data set."""
    labels = {one.name: f"{one.name}, teacher {number(100 * one.comparison.teacher_score, 1)} %" for one in found}
    columns = {
        f"over {name}": {one.name: one.gains[reference] for one in found if reference in one.gains}
        for reference, (name, _) in PANELS.items()
    }
    both = re.findall("<svg.*?</svg>", forest(columns, labels, axis="gain of APD, percentage points").html, re.DOTALL)
    return {
        f"main-results{phone}-{mode}.svg": svg.replace("currentColor", colours.ink).replace(
            "<svg ", f'<svg font-family="{FONT}" ', 1
        )
        + "\n"
        for phone, svg in zip(("", "-narrow"), both, strict=True)
        for mode, colours in MODES.items()
    }


def described(found: Sequence[Result]) -> str:
    """What the figure shows, for those who cannot see it."""
    rows = {
        one.name: [f"{interval(row.found)} over {PANELS[key][0]}" for key, row in one.gains.items()] for one in found
    }
    said = "; ".join(f"{name}: {', '.join(gains)}" for name, gains in rows.items())
    return f"Gain of APD in percentage points, with 95 % confidence intervals. {said}.".replace("\u00a0", " ")


def advice(found: Sequence[Result]) -> list[str]:
    """Should I use APD? An item for each reference."""
    given, items = time_given(one.comparison for one in found), []
    for reference, (name, what) in PANELS.items():
        rows = [one.gains[reference] for one in found if reference in one.gains]
        items.append(f"- **{what.format(given=given)}:** {tally(rows, 'APD', name)}.")
    return items


def table(found: Sequence[Result]) -> list[str]:
    """The scores behind the figure, as Markdown."""
    lines = [
        "| test score, % | APD | pixel KD | equal-time baseline | baseline | teacher | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found:
        kd = "pixel_kd" if one.apd == "apd" else "roi_kd"
        methods = (one.apd, kd, "student_equal_seconds", "student")
        means = " | ".join(one.mean(method) for method in methods)
        teacher = number(100 * one.comparison.teacher_score, 1)
        counts = sorted({len(runs) for method in methods if (runs := one.comparison.values(method))})
        seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        lines.append(f"| {one.name} | {means} | {teacher} | {seeds} |")
    return lines


def page(found: Sequence[Result]) -> str:
    """What stands between the markers of the first page."""
    images = "\n".join(
        '<picture><source media="screen and (max-width: 600px)" '
        f'srcset="_static/main-results-narrow-{mode}.svg"><img class="only-{mode}" '
        f'src="_static/main-results-{mode}.svg" width="760" alt="{described(found)}"></picture>'
        for mode in MODES
    )
    read = HOW_TO_READ.format("Gain of APD, paired by seed")
    caption = f"{read} Below a data set stands the teacher’s score. Detectors have KD of boxes in place of pixel KD."
    return "\n".join(
        [
            "::::{admonition} Should I use APD? It depends on what you would do instead.",
            ":class: apd-answer",
            "",
            *advice(found),
            "",
            "Each comparison, one of them of detectors, has one pair of networks; the tests cover the student’s seed, "
            "not other teachers. In all but the one of detectors, images have {ref}`sides that do not fit <sides>` the "
            "networks’ stride; these runs are being repeated.",
            "::::",
            "",
            f'<figure class="align-center" id="main-results">\n<div>\n{images}\n</div>',
            f"<figcaption><p>{caption}</p></figcaption>\n</figure>",
            "",
            *table(found),
        ]
    )


def with_results(text: str, found: Sequence[Result]) -> str:
    """A page's text with what stands between its markers written anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{page(found)}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the files and say which."""
    found, intro = results(), BOOK / "intro.md"
    for name, drawn in drawings(found).items():
        (BOOK / "_static" / name).write_text(drawn, encoding="utf-8")
    intro.write_text(with_results(intro.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(BOOK / "_static" / "main-results-*.svg", intro, sep="\n")


if __name__ == "__main__":
    main()
