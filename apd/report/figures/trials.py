"""Campaigns and trials of learning rates and weights as a notebook reads them, and numbers as text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from apd.config.identity import fingerprint
from apd.report.comparisons import BACKBONE_NAMES, HEAD_NAMES
from apd.report.figures.style import Drawing, Markdown, nothing, table
from apd.report.statistics import Comparison, Difference, Spread, compare
from apd.study.ablations import FACTORS, plain_variants, variant_names, variant_of_strength
from apd.study.campaigns import experiments_of
from apd.study.recipes import METHOD_NAMES, STUDENT_LEARNING_RATES, TEACHER_LEARNING_RATES
from apd.training.record import Record, read_record
from apd.training.run import records_folder, task_of

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
    """The records of each campaign's planned runs by name, and sentences that say how far each has got.

    `folder` holds the folders of all campaigns; None is that of the committed records. FileNotFoundError where it does
    not exist, RecordError where a file is no valid record.
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
        lines.append(line + (f"; `apd campaign {name}` runs the other {missing}." if missing else "."))
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
