"""Many comparisons together: Holm's correction, APD's terms on and off, context shift, pairs of networks.

Of twenty intervals at 95 %, one leaves out zero by chance though there is no effect. Pure functions of records.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple, TypeVar

from scipy import stats

from apd.config.experiment import DataConfig, NetworkConfig, TeacherConfig
from apd.report.statistics import (
    Comparison,
    ComparisonError,
    Difference,
    check_alike,
    compare,
    mean_interval,
    method_of,
    paired_difference,
    spread,
    stripped,
)
from apd.study.ablations import BY_CONSTRUCTION, COMPLETE, TERMS, combination, option_variants
from apd.study.recipes import HEADS, METHOD_NAMES, PAIR_METHODS
from apd.training.record import Record

Key = TypeVar("Key")
Factors = frozenset[str]
"""The factors of a design that are on; the others are off."""


def p_value(found: Difference) -> float:
    """Two-sided p-value of Student's paired test; NaN below two pairs, 1 where all pairs are zero."""
    values = spread(found.pairs.values())
    if values.error == 0:
        return 0.0 if values.mean else 1.0
    return float(2 * stats.t.sf(abs(values.mean) / values.error, values.count - 1))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values corrected for their number by Holm's rule, however they depend on one another; NaN stays NaN.

    >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
    {'a': 0.03, 'b': 0.5, 'c': 0.04}
    """
    ordered = sorted((p, place) for place, p in enumerate(p_values.values()) if not math.isnan(p))
    keys, corrected, least = list(p_values), dict(p_values), 0.0
    for rank, (p, place) in enumerate(ordered):
        least = max(least, min(1.0, p * (len(ordered) - rank)))
        corrected[keys[place]] = least
    return corrected


class Corrected(NamedTuple):
    """A paired difference with its Holm-corrected p-value (NaN below two pairs), and whether that is significant."""

    found: Difference
    corrected: float
    significant: bool


def holm_corrected(differences: Mapping[Key, Difference], confidence: float = 0.95) -> dict[Key, Corrected]:
    """Each difference that has a pair, with its p-value corrected for the number of all of them."""
    kept = {key: found for key, found in differences.items() if found.pairs}
    p_values = holm({key: p_value(found) for key, found in kept.items()})
    return {key: Corrected(found, p_values[key], p_values[key] < 1 - confidence) for key, found in kept.items()}


def corrected_gains(
    comparison: Comparison, variants: Iterable[str], reference: str, confidence: float = 0.95
) -> dict[str, Corrected]:
    """Variants minus one reference, corrected together; those without a seed in common with it are left out."""
    found = {key: comparison.difference(key, reference, confidence) for key in variants if key != reference}
    return holm_corrected(found, confidence)


# On/off designs: that of APD's four terms.


def subsets(factors: Sequence[str]) -> Iterator[Factors]:
    """Every combination of factors, none first, then those of one factor, and so on to all."""
    for size in range(len(factors) + 1):
        yield from map(frozenset, combinations(factors, size))


def factorial_effects(
    scores: Mapping[Factors, Mapping[int, float]], factors: Sequence[str]
) -> dict[Factors, dict[int, float]]:
    """Main effects and interactions of a full on/off design, one value for each seed that all combinations have.

    An effect is the mean of the half of the combinations that has an even number of the effect's factors off, minus
    the mean of the other half. `scores` has one by seed for each combination; ValueError names one that is missing.

    >>> scores = {frozenset(on): {0: 0.5 + 0.1 * len(on)} for on in ("", "A", "B", "AB")}
    >>> {"".join(sorted(of)): round(effect[0], 3) for of, effect in factorial_effects(scores, "AB").items()}
    {'A': 0.1, 'B': 0.1, 'AB': 0.0}
    """
    cells = list(subsets(factors))
    for cell in cells:
        if cell not in scores:
            raise ValueError(f"scores lacks the combination {sorted(cell)}: expected all {len(cells)} of {factors}")
    seeds = sorted(set.intersection(*(set(scores[cell]) for cell in cells)))

    def effect(of: Factors, seed: int) -> float:
        return math.fsum(scores[cell][seed] * (-1) ** len(of - cell) for cell in cells) / (len(cells) / 2)

    return {of: {seed: effect(of, seed) for seed in seeds} for of in cells if of}


def letters_of(on: Factors) -> str:
    """The letters of the terms that are on, joined by +, in their order."""
    return combination(tuple(letter in on for letter in TERMS.values()))


def is_by_construction(on: Factors) -> bool:
    """Whether a combination only differs from another one by a regularisation that never reaches the student."""
    return "R" in on and letters_of(on) in BY_CONSTRUCTION


TERM_DESIGN: dict[Factors, str] = {
    on: (BY_CONSTRUCTION | COMPLETE).get(letters_of(on), "terms_" + letters_of(on).replace("+", "_").lower())
    for on in subsets(tuple(TERMS.values()))
}
"""All sixteen combinations of terms, with the key of the variant or method whose runs are theirs; none on first."""


def terms_left_out() -> dict[str, int]:
    """How many terms each combination lacks that has runs and is not the complete method, by key, few first."""
    rows = [(key, len(TERMS) - len(on)) for on, key in TERM_DESIGN.items() if not is_by_construction(on)]
    return {key: lacking for key, lacking in reversed(rows) if lacking}


def term_effects(comparison: Comparison, confidence: float = 0.95) -> dict[Factors, Corrected]:
    """Main effects and interactions of the terms on mIoU, corrected together; empty until a seed has all runs."""
    scores = {on: comparison.miou(key) for on, key in TERM_DESIGN.items()}
    effects = factorial_effects(scores, tuple(TERMS.values()))
    return holm_corrected({of: mean_interval(values, confidence) for of, values in effects.items()}, confidence)


# Context shift: built-in scenes from one appearance for all images to an appearance of each image's own.

SHIFT_NAMES = METHOD_NAMES | {v.key: f"+ APD, {v.name}" for v in option_variants() if v.key == "scope_batch"}
"""The methods and variants that are run at every context shift, by key."""


class ShiftSweep(NamedTuple):
    """What `method` gains over `reference` at each context shift, in rising order, and how that changes with it.

    `slopes` are least-squares slopes (mIoU per unit of context shift) of the seeds that have every shift of `gains`.
    """

    method: str
    reference: str
    gains: dict[float, Difference]
    slopes: Difference


def by_context_shift(records: Sequence[Record]) -> dict[float, Comparison]:
    """The records' comparisons by context shift, in rising order; ComparisonError where they differ in more."""
    recipes = []
    for record in records:
        data = replace(record.experiment.data, context_shift=0.0)
        recipes.append(stripped(record.experiment, any_length=True, data=data))
        if data.name != "scenes":
            raise ComparisonError(f"{record.source}: data {data.name!r} have no context shift")
        if recipes[-1] != recipes[0]:
            both = f"{record.source} and {records[0].source}"
            raise ComparisonError(f"{both} differ in more than context shift, seed and distillers")
    return {comparison.data.context_shift: comparison for comparison in compare(records, SHIFT_NAMES)}


def sweep(
    comparisons: Mapping[float, Comparison], method: str = "apd", reference: str = "pixel_kd", confidence: float = 0.95
) -> ShiftSweep:
    """The gain of one method over another (keys of SHIFT_NAMES) in the comparisons of :func:`by_context_shift`."""
    for key in (method, reference):
        if key not in SHIFT_NAMES:
            raise ValueError(f"method {key!r}: expected one of {', '.join(SHIFT_NAMES)}")
    found = {shift: one.difference(method, reference, confidence) for shift, one in comparisons.items()}
    gains = {shift: difference for shift, difference in found.items() if difference.pairs}
    complete = set.intersection(*(set(gain.pairs) for gain in gains.values())) if len(gains) > 1 else set()
    slopes = {
        seed: float(stats.linregress(list(gains), [gain.pairs[seed] for gain in gains.values()]).slope)
        for seed in sorted(complete)
    }
    return ShiftSweep(method, reference, gains, mean_interval(slopes, confidence))


# Pairs of networks: what each student gains from each teacher, and whether it matters that both have the same head.

HEAD_NAMES = {"psp": "PSPNet", "aspp": "DeepLabV3"}
BACKBONE_NAMES = {
    "resnet18": "ResNet-18",
    "mobilenetv2_050": "MobileNetV2",
    "test_efficientnet": "EfficientNet",
    "efficientnet_lite0": "EfficientNet-Lite0",
}
"""What timm's names are called in figures and tables."""
ALL = "all backbones"
"""The key of the mean over student backbones."""


class Pair(NamedTuple):
    """A student and a teacher, with the runs of both together and of the baseline, by method of PAIR_METHODS."""

    student: NetworkConfig
    teacher: NetworkConfig
    runs: Comparison

    @property
    def cross_architecture(self) -> bool:
        """Whether teacher and student have different heads."""
        return self.student.head != self.teacher.head

    @property
    def heads(self) -> str:
        """The heads of both, the student's first."""
        return f"{HEAD_NAMES[self.student.head]} ← {HEAD_NAMES[self.teacher.head]}"


def pairs_of(records: Sequence[Record]) -> list[list[Pair]]:
    """Sort records into pairs, those of one data set together, same-architecture ones first, in the records' order.

    A baseline knows no teacher, so its runs stand beside each of its teachers. Other methods than PAIR_METHODS and
    students without a teacher's records are passed over. Errors as of :func:`~apd.report.statistics.compare`.
    """
    alone: dict[tuple[DataConfig, NetworkConfig], list[Record]] = {}
    distilled: dict[tuple[DataConfig, NetworkConfig, TeacherConfig], list[Record]] = {}
    for record in records:
        experiment = record.experiment
        if method_of(experiment) in PAIR_METHODS and experiment.distillers:
            distilled.setdefault((experiment.data, experiment.network, experiment.teacher), []).append(record)
        elif method_of(experiment) in PAIR_METHODS:
            alone.setdefault((experiment.data, experiment.network), []).append(record)
    found: dict[DataConfig, list[Pair]] = {}
    for (data, student, teacher), with_teacher in distilled.items():
        (runs,) = compare(with_teacher)
        if without := alone.get((data, student)):
            (plain,) = compare(without)
            # on CamVid every method has its own learning rate
            check_alike(plain.any_record, runs.any_record, lambda e: stripped(e, any_rate=True, teacher=None))
            runs = replace(runs, variants={**runs.variants, **plain.variants})
        found.setdefault(data, []).append(Pair(student, teacher.network, runs))
    ordered = [
        sorted(pairs, key=lambda p: (p.cross_architecture, HEADS.index(p.student.head))) for pairs in found.values()
    ]
    return sorted(ordered, key=lambda pairs: pairs[0].runs.data.name != "scenes")


def pair_gains(pairs: Sequence[Pair], confidence: float = 0.95) -> dict[tuple[str, str, str], Corrected]:
    """Gains over the baseline by heads, backbone and method, corrected together."""
    keys = [(pair, method) for pair in pairs for method in PAIR_METHODS[1:]]
    found = {
        (p.heads, BACKBONE_NAMES[p.student.backbone], method): p.runs.difference(method, "student", confidence)
        for p, method in keys
    }
    return holm_corrected(found, confidence)


def mean_gain(pairs: Sequence[Pair], method: str, confidence: float = 0.95) -> Difference:
    """Gain over the baseline, mean over pairs by seed, for the seeds that all of them have."""
    return mean_interval(_mean([pair.runs.difference(method, "student").pairs for pair in pairs]), confidence)


def cross_minus_same(pairs: Sequence[Pair], method: str) -> dict[NetworkConfig, dict[int, float]]:
    """For each student that has both teachers, by seed: mIoU from the teacher of the other head minus from its own.

    The baseline cancels. The difference also holds whatever makes one teacher better than the other for any student;
    :func:`head_match` does not. ValueError for pairs of several data sets.
    """
    if len({pair.runs.data for pair in pairs}) > 1:
        raise ValueError("pairs are of several data sets: expected those of one, as differences are taken within it")
    scores: dict[NetworkConfig, dict[bool, Mapping[int, float]]] = {}
    for pair in pairs:
        scores.setdefault(pair.student, {})[pair.cross_architecture] = pair.runs.miou(method)
    both = {student: of for student, of in scores.items() if len(of) == 2}
    return {student: dict(paired_difference(of[True], of[False]).pairs) for student, of in both.items()}


def head_match(pairs: Sequence[Pair], method: str, confidence: float = 0.95) -> dict[str, Difference]:
    """Cross- minus same-architecture, mean over both heads of the student: by student backbone, and over all of them.

    In that mean either head teaches one student of each kind, so a teacher that is simply the better one does not
    count: below zero, a teacher of the student's own architecture teaches more. The last key is ALL, the mean over
    backbones for the seeds that have all of them.
    """
    halves: dict[str, list[dict[int, float]]] = {BACKBONE_NAMES[pair.student.backbone]: [] for pair in pairs}
    for student, values in cross_minus_same(pairs, method).items():
        halves[BACKBONE_NAMES[student.backbone]].append(values)
    complete = {name: _mean(both) if len(both) == len(HEADS) else {} for name, both in halves.items()}
    complete[ALL] = _mean(list(complete.values()))
    return {name: mean_interval(values, confidence) for name, values in complete.items()}


def head_match_rows(pairs: Sequence[Pair], confidence: float = 0.95) -> dict[tuple[str, str], Corrected]:
    """:func:`head_match` by method and backbone, corrected together.

    Where students have one head only, the :func:`cross_minus_same` of each, in which the better teacher counts, too.
    """
    found = {}
    for method in PAIR_METHODS[1:]:
        if len({pair.student.head for pair in pairs}) == len(HEADS):
            found |= {(method, name): row for name, row in head_match(pairs, method, confidence).items()}
        else:
            for student, values in cross_minus_same(pairs, method).items():
                found[method, f"one {HEAD_NAMES[student.head]}"] = mean_interval(values, confidence)
    return holm_corrected(found, confidence)


def _mean(values: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean of several values by seed, for the seeds that all of them have."""
    seeds = sorted(set.intersection(*map(set, values))) if values else []
    return {seed: math.fsum(each[seed] for each in values) / len(values) for seed in seeds}
