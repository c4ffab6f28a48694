"""How numbers, trials and results are read and worded, once for the whole book: what outperforms what, by how much."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd
from scipy import optimize, stats

from apd.config.identity import fingerprint
from apd.report.comparisons import BACKBONE_NAMES, HEAD_NAMES, Corrected
from apd.report.figures.style import Drawing, Markdown, capitalised, nothing, table
from apd.report.statistics import LONGER, Comparison, Difference, Spread, compare, spread
from apd.study.ablations import FACTORS, plain_variants, variant_names, variant_of_strength
from apd.study.campaigns import experiments_of
from apd.study.recipes import METHOD_NAMES, STUDENT_LEARNING_RATES, TEACHER_LEARNING_RATES
from apd.training.record import Record, read_record, records_folder
from apd.training.run import task_of

_FIXED = "\u00a0"  # a space at which no line is broken


def number(value: float, digits: int) -> str:
    """A number with that many decimals; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


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
    """The records of each campaign's planned runs by name, and how far each has got; default: the committed ones.

    FileNotFoundError where the folder of campaigns does not exist, RecordError where a file is no valid record.
    """
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"records={str(folder)!r}: there is no such folder; it should hold {', '.join(names)}")
    records, lines = {}, []
    for name in names:
        planned = {fingerprint(experiment) for experiment in experiments_of(name)}
        where = folder / name if folder else records_folder(name)
        found = [read_record(path) for path in sorted(where.glob("*.json"))]
        records[name] = [record for record in found if record.content["fingerprint"] in planned]
        missing = len(planned - {record.content["fingerprint"] for record in found})
        line = f"- {name}: {len(planned) - missing} of {len(planned)} planned runs have a record"
        if left_out := len(found) - len(records[name]):
            line += f"; {left_out} of other settings left out"
        to = f" --records {where}" if folder else ""
        lines.append(line + (f"; `apd campaign {name}{to}` runs the other {missing}." if missing else "."))
    return records, Markdown("\n".join(lines))


def beside_methods(campaigns: Mapping[str, Sequence[Record]], variants: Mapping[str, str]) -> list[Comparison]:
    """Comparisons of variants with the methods of the study, on the data of the variants.

    `variants`: the campaign of methods of each campaign of variants; those that share it become one comparison.
    """
    comparisons = []
    for methods in dict.fromkeys(variants.values()):
        joined = [name for name in variants if variants[name] == methods and name in campaigns]
        wanted = {experiment.data for name in joined for experiment in experiments_of(name)}
        records = [r for name in (methods, *joined) for r in campaigns[name] if r.experiment.data in wanted]
        comparisons += compare(records, METHOD_NAMES | variant_names())
    return comparisons


# Trials of learning rates and weights, on the validation split.


Trial = tuple[str, float, Record]
"""Whose trial it is, the value that was tried, and its record."""


def on_val(record: Record) -> dict[int, float]:
    """The run's headline score on val, mIoU or box AP, by the step after which it was measured."""
    task, noted = task_of(record.experiment), record.content["evaluations"]
    return {e["step"]: task.headline(e)[1] for e in noted if e["split"] == "val"}


def validation_score(record: Record) -> float:
    """The score on val after the last step; NaN where the run was not scored there."""
    return on_val(record).get(record.experiment.training.iterations, math.nan)


def trials(found: Iterable[Trial]) -> pd.DataFrame:
    """Mean score by whose trial (rows) and the value tried (columns); NaN with fewer records than another value."""
    rows = [(whose, value, validation_score(record)) for whose, value, record in found]
    grouped = pd.DataFrame(rows, columns=["whose", "value", "score"]).dropna().groupby(["whose", "value"], sort=False)
    mean, count = (grouped["score"].agg(how).unstack() for how in ("mean", "count"))
    return mean.where(count.eq(count.max(axis=1), axis=0)).sort_index(axis=1)


def trials_table(found: Iterable[Trial], name: str, caption: str, used: Mapping[str, float] | None = None) -> Drawing:
    """What was tried, a column's `name` with a place for the value, best of a row marked; `used` by the study."""
    mean = trials(found)
    if mean.empty:
        return nothing(f"{caption}: 0 trials have a score on val yet.")
    text = mean.map(lambda value: number(100 * value, 1))
    for whose, value in mean.idxmax(axis=1).items():
        text.loc[whose, value] += " ◂"
    text = text.rename(columns=name.format)
    if used:
        text["used"] = [f"{used[whose]:g}" for whose in text.index]
    shown = "in per cent on val after the last step, one seed; ◂ marks the best of a row; a dash: not run"
    return table(text, f"{caption} {shown}, or stopped by a loss that was not finite")


def learning_rate_trials(records: Iterable[Record]) -> list[Trial]:
    """The trials of each method's learning rate, of seed 0 and of the shortest length."""
    known = [r for r in records if r.experiment.seed == 0 and r.experiment.name.split("-")[0] in METHOD_NAMES]
    steps = min((record.experiment.training.iterations for record in known), default=0)
    trained = [(r.experiment.name.split("-")[0], r.experiment.training, r) for r in known]
    trained.sort(key=lambda one: list(METHOD_NAMES).index(one[0]))
    return [(METHOD_NAMES[method], t.learning_rate, r) for method, t, r in trained if t.iterations == steps]


def weight_trials(records: Iterable[Record]) -> list[Trial]:
    """The trials of what a method's weights are multiplied with, of seed 0, by the method's name."""
    tried = [
        (v.name, factor, variant_of_strength(v, factor).distillers) for v in plain_variants() for factor in FACTORS
    ]
    of_seed = [record for record in records if record.experiment.seed == 0]
    return [(name, factor, r) for name, factor, of in tried for r in of_seed if r.experiment.distillers == of]


PAIR_RATES = {f"teacher {HEAD_NAMES[head]}": rate for head, rate in TEACHER_LEARNING_RATES.items()}
PAIR_RATES |= {f"student {BACKBONE_NAMES[backbone]}": rate for backbone, rate in STUDENT_LEARNING_RATES.items()}
"""The learning rates that pairs use: of a teacher by its head, of a student by its backbone."""


def pair_trials(records: Iterable[Record]) -> list[Trial]:
    """The trials of the learning rates of pairs, of several heads and methods, by the names of PAIR_RATES."""
    found = []
    for record in records:
        network, rate = record.experiment.network, record.experiment.training.learning_rate
        teaches = record.experiment.name.startswith("teacher-")
        whose = f"teacher {HEAD_NAMES[network.head]}" if teaches else f"student {BACKBONE_NAMES[network.backbone]}"
        found.append((whose, rate, record))
    return sorted(found, key=lambda trial: list(PAIR_RATES).index(trial[0]))


# Results in words.

POWER = 0.8
"""Probability with which a detectable difference is found; the usual choice."""


def detectable(found: Difference, seeds: int | None = None) -> float:
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
    critical = stats.t.ppf((1 + found.confidence) / 2, seeds - 1)
    shift = optimize.brentq(lambda s: stats.nct.sf(critical, seeds - 1, s) - POWER, 0, 10 * critical)
    return float(shift * values.deviation / math.sqrt(seeds))


def confidence_interval(found: Difference, *, sign: int = 1) -> str:
    """Such as "95 % CI 1.7 to 3.1", in percentage points; of the negated difference with `sign` -1."""
    low, high = sorted((sign * found.low, sign * found.high))
    ends = (points(end, digits_of(found)).removeprefix("+") for end in (low, high))
    return f"{100 * found.confidence:g} % CI {' to '.join(ends)}"


def statement(row: Corrected, method: str, reference: str, score: str = "mIoU") -> str:
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
        ends = confidence_interval(found, sign=sign)
        return f"{method} {verb} {reference} by {size} points of {score} ({ends}, {seeds})"
    ends = confidence_interval(found)
    missed = number(100 * detectable(found), 1)
    difference = f"{points(found.mean)} points of {score}, {ends}"
    return f"{method} and {reference} do not differ significantly ({difference}; detectable with {seeds}: {missed})"


def tally(rows: Iterable[Corrected], method: str, reference: str) -> str:
    """In how many comparisons a method is better than a reference, worse, or neither, and by how much.

    What stands before the last comma of `method` opens the sentence.

    >>> from apd.report.comparisons import holm_corrected
    >>> from apd.report.statistics import mean_interval
    >>> tally(holm_corrected({"scenes": mean_interval({0: 0.020, 1: 0.021, 2: 0.022})}).values(), "APD", "pixel KD")
    'APD outperforms pixel KD in 1 of 1 comparisons (by 2.1 points)'
    """
    given, comma, method = method.rpartition(", ")
    rows = [row for row in rows if not math.isnan(row.found.low)]
    digits = max((digits_of(row.found) for row in rows if row.significant), default=1)
    better = [row.found.mean for row in rows if row.significant and row.found.mean > 0]
    worse = [-row.found.mean for row in rows if row.significant and row.found.mean < 0]
    missed = [detectable(row.found) for row in rows if not row.significant]
    parts, whole = [], f" of {len(rows)} comparisons"
    for verb, sizes in {"outperforms": better, "underperforms": worse}.items():
        if sizes:
            parts.append(
                f"{verb} {'it' if parts else reference} in {len(sizes)}{whole} (by {_range(sizes, digits)} points)"
            )
            whole = ""
    said = f"{method} {' and '.join(parts) or 'has no runs yet'}"
    if missed and parts:
        others = "the other" if len(missed) == 1 else f"the other {len(missed)}"
        said += f"; in {others} there is no significant difference"
    elif missed:
        none = f"in none{whole} does" if len(missed) > 1 else "in the one comparison"
        said = f"{none} {method} {'differ' if len(missed) > 1 else 'does not differ'} significantly from {reference}"
    return f"{given}{comma}{said}" + (f" (detectable: {_range(missed)} points)" if missed else "")


def time_given(comparisons: Iterable[Comparison]) -> str:
    """How much of APD's training time the equal-time baseline had, such as "95.1 to 98.0 % of APD’s training time"."""
    known = [one for one in comparisons if LONGER in one.variants and "apd" in one.variants]
    shares = [one.run_seconds(LONGER) / one.run_seconds("apd") for one in known]
    return f"{_range(shares) if shares else '–'} % of APD’s training time"


def _range(parts: Sequence[float], digits: int = 1) -> str:
    return " to ".join(dict.fromkeys(f"{100 * part:.{digits}f}" for part in (min(parts), max(parts))))


def answer(*sentences: str) -> Drawing:
    """The box that opens a page: its answer in a few sentences, each starting with a capital and given a full stop."""
    said = " ".join(capitalised(sentence).rstrip(".") + "." for sentence in sentences)
    return Drawing(f'<div class="apd-answer" role="note"><p>{escape(said)}</p></div>', said)
