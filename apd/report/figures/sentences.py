"""Campaigns as a notebook reads them, numbers as text, and sentences about an outcome, worded by one rule."""

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from apd.report.comparisons import Corrected
from apd.report.figures.style import Markdown
from apd.report.statistics import Comparison, Difference, Spread, compare, paired_difference, planned_and_done
from apd.study.ablations import variant_names
from apd.study.campaigns import experiments_of
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record, read_record
from apd.training.run import records_folder

Key = TypeVar("Key", bound=Hashable)
_FIXED = "\u00a0"  # a space at which no line is broken
MOST_LISTED = 10
"""Of rows without a significant difference; a longer list is a wall of numbers that a table has better."""


def points(value: float, digits: int = 1) -> str:
    """A difference of two fractions in percentage points, with its sign: 0.0123 → "+1.2"."""
    if math.isnan(value):
        return "–"
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", "−")


def per_cent(values: Spread) -> str:
    """Mean and standard deviation of fractions, in per cent."""
    if not values.count:
        return "–"
    mean, deviation = f"{100 * values.mean:.1f}", f"{100 * values.deviation:.1f}"
    return mean if math.isnan(values.deviation) else f"{mean}{_FIXED}±{_FIXED}{deviation}"


def digits_of(difference: Difference) -> int:
    """Decimals that its interval needs: one, or more where an end that leaves out zero would read 0.0."""
    if not difference.significant:
        return 1
    nearest = min(abs(difference.low), abs(difference.high))
    return next(digits for digits in range(1, 9) if digits == 8 or float(f"{100 * nearest:.{digits}f}"))


def interval(difference: Difference) -> str:
    """A difference with its interval, in percentage points."""
    mean, low, high = (points(value, digits_of(difference)) for value in difference[:3])
    return mean if math.isnan(difference.low) else f"{mean}{_FIXED}[{low},{_FIXED}{high}]"


def read_campaigns(names: Sequence[str], folder: Path | None = None) -> tuple[dict[str, list[Record]], Markdown]:
    """The records of each campaign's planned runs by name, and sentences that say how far each has got.

    `folder` holds the folders of all campaigns; None is that of the committed records. FileNotFoundError where it does
    not exist, RecordError where a file is no valid record.
    """
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"records={str(folder)!r}: there is no such folder; it should hold {', '.join(names)}")
    records, lines = {}, []
    for name in names:
        planned, where = experiments_of(name), folder / name if folder else records_folder(name)
        found = [read_record(path) for path in sorted(where.glob("*.json"))]
        records[name], missing = planned_and_done(planned, found)
        line = f"- {name}: {len(planned) - missing} of {len(planned)} planned runs have a record"
        if left_out := len(found) - len(records[name]):
            line += f"; {left_out} of other settings left out"
        lines.append(line + (f"; `apd campaign {name}` runs the other {missing}." if missing else "."))
    return records, Markdown("\n".join(lines))


def beside_methods(campaigns: Mapping[str, Sequence[Record]], variants: Mapping[str, str]) -> list[Comparison]:
    """Comparisons in which variants stand beside the methods of the study, on the data of the variants.

    `variants` has, for each campaign of variants, the campaign of methods that goes with it. Unknown ones are passed
    over, and campaigns that share their methods become one comparison.
    """
    comparisons = []
    for methods in dict.fromkeys(variants.values()):
        joined = [name for name in variants if variants[name] == methods and name in campaigns]
        wanted = {experiment.data for name in joined for experiment in experiments_of(name)}
        records = [r for name in (methods, *joined) for r in campaigns[name] if r.experiment.data in wanted]
        comparisons += compare(records, METHOD_NAMES | variant_names())
    return comparisons


def tally(rows: Mapping[Key, Corrected], names: Mapping[Key, str], against: str, confidence: float = 0.95) -> str:
    """Differences to `against`, Holm-corrected together, sorted by what can be said of them, as a Markdown list."""
    headings = {
        "significantly above": "**significantly above**",
        "significantly below": "**significantly below**",
        "uncorrected": "significant only before the correction",
        "not significantly different from": "no significant difference",
        "not yet comparable with": "fewer than two seeds so far",
    }
    kinds: dict[str, list[str]] = {kind: [] for kind in headings}
    for key, (found, _, significant) in rows.items():
        kind = "uncorrected" if found.significant and not significant else found.verdict
        kinds[kind].append(f"“{names[key]}” {interval(found)}")
    lines = [f"Compared with {against}, Holm-corrected at {100 * confidence:g} %; differences: {len(rows)}.", ""]
    for kind, listed in kinds.items():
        if listed or kind.startswith("significantly"):
            many = kind == "not significantly different from" and len(listed) > MOST_LISTED
            text = "all others; their intervals stand in the table" if many else ", ".join(listed) or "none"
            lines.append(f"- {headings[kind]} ({len(listed)}): {text}")
    return "\n".join(lines)


def tallies(
    compared: Sequence[tuple[Comparison, Mapping[Key, Corrected]]],
    against: str,
    confidence: float = 0.95,
    names: Mapping[Key, str] | None = None,
) -> Markdown:
    """The tally of each comparison's rows under its title; `against` is the key of a method or variant, or words."""
    parts = [
        f"**{one.title}**. " + tally(rows, names or one.names, f"“{one.names.get(against, against)}”", confidence)
        for one, rows in compared
    ]
    return Markdown("\n\n".join(parts) or "There is nothing to compare: 0 records yet.")


def change_of_gains(
    comparisons: Sequence[Comparison], questions: Sequence[tuple[str, str]], confidence: float = 0.95
) -> Markdown:
    """How the gain of a method over another changes from the first comparison to the last, seed by seed."""
    lines = []
    for method, reference in questions:
        gains = [comparison.difference(method, reference, confidence) for comparison in comparisons]
        if len(gains) < 2 or not all(gain.pairs for gain in gains):
            lines.append(f"- “{METHOD_NAMES[method]}” over “{METHOD_NAMES[reference]}”: there are not two gains yet.")
            continue
        change = paired_difference(gains[-1].pairs, gains[0].pairs, confidence)
        lines.append(
            f"- The gain of “{METHOD_NAMES[method]}” over “{METHOD_NAMES[reference]}” is {interval(gains[0])} points "
            f"({comparisons[0].title}) and {interval(gains[-1])} ({comparisons[-1].title}). The second is "
            f"**{change.verdict}** the first: {interval(change)} points."
        )
    return Markdown("\n".join(lines))
