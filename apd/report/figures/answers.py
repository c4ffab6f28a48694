"""How a result is worded, once for the whole book: what outperforms what, by how much, and what could be missed."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from scipy import optimize, stats

from apd.report.comparisons import Corrected
from apd.report.figures.style import Drawing
from apd.report.figures.trials import digits_of, number, points
from apd.report.statistics import LONGER, Comparison, Difference, spread

POWER = 0.8
"""Probability with which a detectable difference is found; the usual choice."""


def detectable(found: Difference, confidence: float = 0.95, seeds: int | None = None) -> float:
    """Smallest true difference that a paired t-test would call significant with probability POWER.

    From the spread of `found`, for as many seeds as it has or for another number of `seeds`; uncorrected. NaN below two
    pairs.

    >>> from apd.report.statistics import mean_interval
    >>> round(detectable(mean_interval({0: -0.01, 1: 0.0, 2: 0.01})), 4)
    0.0326
    """
    values = spread(found.pairs.values())
    seeds = seeds or values.count
    if values.count < 2 or seeds < 2 or not values.deviation:
        return values.deviation and math.nan
    critical = stats.t.ppf((1 + confidence) / 2, seeds - 1)
    shift = optimize.brentq(lambda s: stats.nct.sf(critical, seeds - 1, s) - POWER, 0, 10 * critical)
    return float(shift * values.deviation / math.sqrt(seeds))


def confidence_interval(found: Difference, confidence: float = 0.95, *, sign: int = 1) -> str:
    """Such as "95 % CI 1.7 to 3.1", in percentage points; of the negated difference with `sign` -1."""
    low, high = sorted((sign * found.low, sign * found.high))
    ends = (points(end, digits_of(found)).removeprefix("+") for end in (low, high))
    return f"{100 * confidence:g} % CI {' to '.join(ends)}"


def statement(row: Corrected, method: str, reference: str, score: str = "mIoU", confidence: float = 0.95) -> str:
    """A comparison as a sentence without its full stop: the one wording of the book.

    "Outperforms" and "underperforms" only where the Holm-corrected test says so; else the smallest difference that
    could have been detected stands beside the interval.
    """
    found, seeds = row.found, f"{len(row.found.pairs)} seeds"
    if math.isnan(found.low):
        return f"{method} and {reference} cannot be compared yet: {len(found.pairs)} seed in common"
    if row.significant:
        verb, sign = ("outperforms", 1) if found.mean > 0 else ("underperforms", -1)
        size = points(sign * found.mean, digits_of(found)).removeprefix("+")
        ends = confidence_interval(found, confidence, sign=sign)
        return f"{method} {verb} {reference} by {size} points of {score} ({ends}, {seeds})"
    ends = confidence_interval(found, confidence)
    missed = number(100 * detectable(found, confidence), 1)
    difference = f"{points(found.mean)} points of {score}, {ends}"
    return (
        f"{method} and {reference} do not differ significantly ({difference}; "
        f"{seeds} detect a difference of {missed} or more)"
    )


def tally(rows: Iterable[Corrected], method: str, reference: str) -> str:
    """In how many comparisons a method is better than a reference, worse, or neither, and by how much.

    >>> from apd.report.comparisons import holm_corrected
    >>> from apd.report.statistics import mean_interval
    >>> tally(holm_corrected({"scenes": mean_interval({0: 0.020, 1: 0.021, 2: 0.022})}).values(), "APD", "pixel KD")
    'APD outperforms pixel KD in 1 of 1 comparisons (by 2.1 points)'
    """
    rows = [row for row in rows if not math.isnan(row.found.low)]
    better = [row.found.mean for row in rows if row.significant and row.found.mean > 0]
    worse = [-row.found.mean for row in rows if row.significant and row.found.mean < 0]
    missed = [detectable(row.found) for row in rows if not row.significant]
    parts, whole = [], f" of {len(rows)} comparisons"
    for verb, sizes in {"outperforms": better, "underperforms": worse}.items():
        if sizes:
            parts.append(f"{verb} {'it' if parts else reference} in {len(sizes)}{whole} (by {_range(sizes)} points)")
            whole = ""
    if missed:
        of = f"the other {len(missed)}" if parts else f"any{whole}"
        none = f"does not differ significantly from {'it' if parts else reference} in {of}"
        parts.append(f"{none} (differences of {_range(missed)} points or more would have been detected)")
    return f"{method} {', '.join(parts[:-1])}{' and ' * (len(parts) > 1)}{parts[-1] if parts else 'has no runs yet'}"


def time_given(comparisons: Iterable[Comparison]) -> str:
    """How much of APD's training time the equal-time baseline had, such as "95.1 to 98.0 % of APD’s training time"."""
    known = [one for one in comparisons if LONGER in one.variants and "apd" in one.variants]
    shares = [one.run_seconds(LONGER) / one.run_seconds("apd") for one in known]
    return f"{_range(shares) if shares else '–'} % of APD’s training time"


def _range(parts: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{100 * part:.1f}" for part in (min(parts), max(parts))))


def answer(*sentences: str) -> Drawing:
    """The box that opens a page: its answer in a few sentences, each starting with a capital and given a full stop."""
    said = " ".join(f"{sentence[0].upper()}{sentence[1:]}".rstrip(".") + "." for sentence in sentences)
    return Drawing(f'<div class="apd-answer" role="note"><p>{escape(said)}</p></div>', said)
