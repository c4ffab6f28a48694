"""Many comparisons together: Holm's correction, APD's terms on and off, context shift, pairs of networks."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple, TypeVar

from scipy import stats

from apd.config.experiment import DataConfig, NetworkConfig
from apd.report.statistics import (
    Comparison,
    ComparisonError,
    Difference,
    Score,
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
    """p-values corrected for their number by Holm's rule, however they depend on one another; NaN stays NaN."""
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


def holm_corrected(differences: Mapping[Key, Difference]) -> dict[Key, Corrected]:
    """Each difference that has a pair, with its p-value corrected for the number of those that have two."""
    kept = {key: found for key, found in differences.items() if found.pairs}
    p_values = holm({key: p_value(found) for key, found in kept.items()})
    return {key: Corrected(found, p_values[key], p_values[key] < 1 - found.confidence) for key, found in kept.items()}


def corrected_gains(
    comparison: Comparison, variants: Iterable[str], reference: str, confidence: float = 0.95
) -> dict[str, Corrected]:
    """Variants minus one reference, corrected together; those without a seed in common with it are left out."""
    others = (key for key in variants if key != reference)
    return holm_corrected({key: comparison.difference(key, reference, confidence) for key in others})


# On/off designs: that of APD's four terms.


def subsets(factors: Sequence[str]) -> Iterator[Factors]:
    """Every combination of factors, none first, then those of one factor, and so on to all."""
    for size in range(len(factors) + 1):
        yield from map(frozenset, combinations(factors, size))


def factorial_effects(
    scores: Mapping[Factors, Mapping[int, float]], factors: Sequence[str]
) -> dict[Factors, dict[int, float]]:
    """Main effects and interactions of a full on/off design, one value for each seed that all combinations have.

    An effect: the mean of the combinations with an even number of its factors off, minus that of the others.
    """
    cells = list(subsets(factors))
    seeds = sorted(set.intersection(*(set(scores[cell]) for cell in cells)))

    def effect(of: Factors, seed: int) -> float:
        return math.fsum(scores[cell][seed] * (-1) ** len(of - cell) for cell in cells) / (len(cells) / 2)

    return {of: {seed: effect(of, seed) for seed in seeds} for of in cells if of}


def letters_of(on: Factors) -> str:
    """The letters of the terms that are on, joined by +, in their order."""
    return combination(tuple(letter in on for letter in TERMS.values()))


TERM_DESIGN: dict[Factors, str] = {
    on: (BY_CONSTRUCTION | COMPLETE).get(letters_of(on), "terms_" + letters_of(on).replace("+", "_").lower())
    for on in subsets(tuple(TERMS.values()))
}
"""All sixteen combinations of terms, with the key of the variant or method whose runs are theirs; none on first."""


def term_effects(comparison: Comparison, confidence: float = 0.95) -> dict[Factors, Corrected]:
    """Main effects and interactions of the terms on mIoU, corrected together; empty until a seed has all runs."""
    scores = {on: comparison.values(key) for on, key in TERM_DESIGN.items()}
    effects = factorial_effects(scores, tuple(TERMS.values()))
    return holm_corrected({of: mean_interval(values, confidence) for of, values in effects.items()})


# Context shift: built-in scenes from one appearance for all images to an appearance of each image's own.

SHIFT_NAMES = METHOD_NAMES | {v.key: f"+ APD, {v.name}" for v in option_variants() if v.key == "scope_batch"}
"""The methods and variants that are run at every context shift, by key."""


class ShiftSweep(NamedTuple):
    """What `method` gains over `reference` at each context shift, and its change from the least to the largest."""

    method: str
    reference: str
    gains: dict[float, Difference]
    change: Difference
    remark: str = ""

    @property
    def name(self) -> str:
        """What is compared with what, and the remark."""
        of = f"{SHIFT_NAMES[self.method]}, over {SHIFT_NAMES[self.reference].removeprefix('+ ')}"
        return f"{of}, {self.remark}" if self.remark else of


def by_context_shift(records: Sequence[Record]) -> dict[float, Comparison]:
    """The records' comparisons by context shift, in rising order; ComparisonError where they differ in more."""
    runs = [record.experiment for record in records]
    recipes = [stripped(e, any_length=True, data=replace(e.data, context_shift=0)) for e in runs]
    for record, recipe in zip(records, recipes, strict=True):
        if recipe != recipes[0] or recipe.data.name != "scenes":
            raise ComparisonError(f"{record.source}: expected scenes that differ in context shift, seed and distillers")
    return {comparison.data.context_shift: comparison for comparison in compare(records, SHIFT_NAMES)}


def sweep(
    comparisons: Mapping[float, Comparison],
    method: str = "apd",
    reference: str = "pixel_kd",
    confidence: float = 0.95,
    remark: str = "",
) -> ShiftSweep:
    """The gain of one method over another (keys of SHIFT_NAMES) in the comparisons of :func:`by_context_shift`."""
    found = {shift: one.difference(method, reference, confidence) for shift, one in comparisons.items()}
    gains = {shift: difference for shift, difference in found.items() if difference.pairs}
    ends = (gains[max(gains)].pairs, gains[min(gains)].pairs) if len(gains) > 1 else ({}, {})
    return ShiftSweep(method, reference, gains, paired_difference(*ends, confidence), remark)


def in_places(facade: Comparison) -> list[Comparison]:
    """A comparison on LabelMeFacade by the test split in the places of training, and by that out of place."""
    scores = {
        where: Score("mIoU", lambda record, split=split: record.scores_on(split).miou, lambda _: math.nan)
        for where, split in (("in place", "test"), ("out of place", "test_out_of_place"))
    }
    return [replace(facade.by(score), remark=where) for where, score in scores.items()]


# Pairs of networks: what each student gains from each teacher, and whether it matters that both have the same head.

HEAD_NAMES = {"psp": "PSPNet", "aspp": "DeepLabV3"}
BACKBONE_NAMES = {"resnet18": "ResNet-18", "mobilenetv2_050": "MobileNetV2", "test_efficientnet": "EfficientNet"}
BACKBONE_NAMES |= {f"efficientnet_lite{size}": f"EfficientNet-Lite{size}" for size in (0, 2)}
BACKBONE_NAMES |= {"mobilenetv2_100": "MobileNetV2 1.0"}
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
    """Sort records into pairs, those of one data set together, same-architecture ones first; baselines in each.

    Errors as of :func:`~apd.report.statistics.compare`.
    """
    alone, distilled = defaultdict[tuple, list[Record]](list), defaultdict[tuple, list[Record]](list)
    for record in records:
        run = record.experiment
        if method_of(run) in PAIR_METHODS:
            key = run.data, run.network, run.teacher
            (distilled[key] if run.distillers else alone[key[:2]]).append(record)
    found = defaultdict[DataConfig, list[Pair]](list)
    for (data, student, teacher), with_teacher in distilled.items():
        (runs,) = compare(with_teacher)
        if without := alone.get((data, student)):
            (plain,) = compare(without)
            # on CamVid every method has its own learning rate
            check_alike(plain.any_record, runs.any_record, lambda e: stripped(e, any_rate=True, teacher=None))
            runs = replace(runs, variants={**runs.variants, **plain.variants})
        found[data].append(Pair(student, teacher.network, runs))
    for pairs in found.values():
        pairs.sort(key=lambda p: (p.cross_architecture, HEADS.index(p.student.head)))
    return sorted(found.values(), key=lambda pairs: pairs[0].runs.data.name != "scenes")


def pair_gains(pairs: Sequence[Pair], confidence: float = 0.95) -> dict[tuple[str, str, str], Corrected]:
    """Gains over the baseline by heads, backbone and method, corrected together."""
    keys = [(pair, method) for pair in pairs for method in PAIR_METHODS[1:]]
    found = {
        (p.heads, BACKBONE_NAMES[p.student.backbone], method): p.runs.difference(method, "student", confidence)
        for p, method in keys
    }
    return holm_corrected(found)


def mean_gain(pairs: Sequence[Pair], method: str, confidence: float = 0.95) -> Difference:
    """Gain over the baseline, mean over pairs by seed, for the seeds that all of them have."""
    return mean_interval(_mean([pair.runs.difference(method, "student").pairs for pair in pairs]), confidence)


def head_match(pairs: Sequence[Pair], method: str, confidence: float = 0.95) -> dict[str, Difference]:
    """Cross- minus same-architecture, mean over both heads of the student, by student backbone and over ALL of them.

    Below zero, a teacher of the student's own architecture teaches more: either head teaches one student of each kind,
    so a better teacher does not count. Empty where students have one head only.
    """
    if len({pair.student.head for pair in pairs}) < len(HEADS):
        return {}
    signed = defaultdict[str, list[dict[int, float]]](list)
    for pair in pairs:
        # the mean over four roles with their signs is half of the difference of the means
        sign = 2 if pair.cross_architecture else -2
        scores = {seed: sign * value for seed, value in pair.runs.values(method).items()}
        signed[BACKBONE_NAMES[pair.student.backbone]].append(scores)
    found = {name: _mean(roles) if len(roles) == len(HEADS) ** 2 else {} for name, roles in signed.items()}
    found[ALL] = _mean(list(found.values()))
    return {name: mean_interval(values, confidence) for name, values in found.items()}


def head_match_rows(pairs: Sequence[Pair], confidence: float = 0.95) -> dict[tuple[str, str], Corrected]:
    """:func:`head_match` by method and backbone, corrected together."""
    found = {(m, name): row for m in PAIR_METHODS[1:] for name, row in head_match(pairs, m, confidence).items()}
    return holm_corrected(found)


def _mean(values: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean of several values by seed, for the seeds that all of them have."""
    seeds = sorted(set.intersection(*map(set, values))) if values else []
    return {seed: math.fsum(each[seed] for each in values) / len(values) for seed in seeds}
