"""Comparisons by design: on/off combinations of APD's terms, a sweep of context shift, crossed pairs of networks.

Pure functions of records, as :mod:`apd.report.statistics`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scipy import stats

from apd.config.experiment import DataConfig, NetworkConfig, TeacherConfig
from apd.report.comparisons import Corrected, Factors, factorial_effects, holm_corrected, subsets
from apd.report.statistics import (
    Comparison,
    ComparisonError,
    Difference,
    check_alike,
    compare,
    mean_interval,
    method_of,
    paired_difference,
    stripped,
)
from apd.study.ablations import BY_CONSTRUCTION, COMPLETE, TERMS, combination, option_variants
from apd.study.recipes import HEADS, METHOD_NAMES, PAIR_METHODS
from apd.training.record import Record

# The full on/off design of APD's four terms.


def letters_of(on: Factors) -> str:
    """The letters of the terms that are on, joined by +, in the order of the terms."""
    return combination(tuple(letter in on for letter in TERMS.values()))


def variant_of_terms(on: Factors) -> str:
    """The key of the variant or method whose runs are those of a combination of terms.

    >>> variant_of_terms(frozenset({"R", "KD"})), variant_of_terms(frozenset({"A", "O"}))
    ('pixel_kd', 'terms_a_o')
    """
    letters = letters_of(on)
    return (BY_CONSTRUCTION | COMPLETE).get(letters, "terms_" + letters.replace("+", "_").lower())


def is_by_construction(on: Factors) -> bool:
    """Whether a combination only differs from another one by a regularisation that never reaches the student."""
    return "R" in on and letters_of(on) in BY_CONSTRUCTION


def combinations_of_terms() -> Iterator[Factors]:
    """All sixteen, none on first."""
    return subsets(tuple(TERMS.values()))


def terms_left_out() -> dict[str, int]:
    """How many terms each combination lacks that has runs and is not the complete method, by key, few first."""
    incomplete = [on for on in combinations_of_terms() if len(on) < len(TERMS) and not is_by_construction(on)]
    return {variant_of_terms(on): len(TERMS) - len(on) for on in reversed(incomplete)}


def term_effects(comparison: Comparison, confidence: float = 0.95) -> dict[Factors, Corrected]:
    """Main effects and interactions of the terms on mIoU, corrected together; empty until a seed has all runs."""
    scores = {on: comparison.miou(variant_of_terms(on)) for on in combinations_of_terms()}
    effects = factorial_effects(scores, tuple(TERMS.values()))
    return holm_corrected(
        {of: mean_interval(values, confidence) for of, values in effects.items() if values}, confidence
    )


# Context shift: built-in scenes from one appearance for all images to an appearance of each image's own.

SHIFT_NAMES = METHOD_NAMES | {arm.key: f"+ APD, {arm.name}" for arm in option_variants() if arm.key == "scope_batch"}
"""The methods and variants that are run at every context shift, by key."""


class ShiftSweep(NamedTuple):
    """What `method` gains over `reference` at each context shift, and how that changes with it."""

    method: str
    reference: str
    gains: dict[float, Difference]
    """Context shift -> difference in mIoU, paired by seed; rising order."""
    slopes: Difference
    """Least-squares slopes (mIoU per unit of context shift) of the seeds that have every context shift of `gains`."""

    @property
    def verdict(self) -> str:
        """One of "rises", "falls", "neither rises nor falls for certain" and "cannot be followed yet"."""
        if math.isnan(self.slopes.low):
            return "cannot be followed yet"
        if self.slopes.low > 0:
            return "rises"
        return "falls" if self.slopes.high < 0 else "neither rises nor falls for certain"


def by_context_shift(records: Sequence[Record]) -> dict[float, Comparison]:
    """The records' comparisons by context shift, in rising order."""

    def recipe(record: Record) -> object:
        data = replace(record.experiment.data, context_shift=0.0)
        return stripped(record.experiment, any_length=True, data=data)

    for record in records:
        if record.experiment.data.name != "scenes":
            raise ComparisonError(f"{record.source}: data {record.experiment.data.name!r} have no context shift")
        if recipe(record) != recipe(records[0]):
            raise ComparisonError(
                f"{record.source} and {records[0].source} differ in more than context shift, seed and distillers"
            )
    return {comparison.data.context_shift: comparison for comparison in compare(records, SHIFT_NAMES)}


def sweep(
    comparisons: Mapping[float, Comparison], method: str = "apd", reference: str = "pixel_kd", confidence: float = 0.95
) -> ShiftSweep:
    """The gain of one method over another (keys of SHIFT_NAMES) in the comparisons of :func:`by_context_shift`."""
    for name, key in (("method", method), ("reference", reference)):
        if key not in SHIFT_NAMES:
            raise ValueError(f"{name}={key!r}: expected one of {', '.join(SHIFT_NAMES)}")
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
"""What timm's names are called in figures and tables; others keep theirs."""

ALL = "all backbones"
"""The key of the mean over student backbones."""


class Published(NamedTuple):
    """A published gain: mIoU in per cent on val, of a PSPNet with ResNet-18 and a teacher with ResNet-101."""

    data: str
    alone: float
    taught: float

    @property
    def gain(self) -> float:
        """Percentage points."""
        return self.taught - self.alone


PUBLISHED = (
    Published("ADE20K", 37.19, 39.25),
    Published("Cityscapes", 74.15, 75.68),
    Published("PASCAL-Context", 42.29, 43.96),
)
"""The three rows in the README of the released code, github.com/dvlab-research/APD: one run each, no spread."""


@dataclass(frozen=True)
class Pair:
    """A student and a teacher, with the runs of both together and of the baseline."""

    student: NetworkConfig
    teacher: NetworkConfig
    runs: Comparison
    """Of the methods in PAIR_METHODS that have records."""

    @property
    def is_crossed(self) -> bool:
        """Whether teacher and student have different heads."""
        return self.student.head != self.teacher.head

    @property
    def role(self) -> str:
        """The heads of both, the student's first."""
        return f"{HEAD_NAMES[self.student.head]} ← {HEAD_NAMES[self.teacher.head]}"

    @property
    def backbone(self) -> str:
        """The student's backbone by its name."""
        return BACKBONE_NAMES.get(self.student.backbone, self.student.backbone)

    @property
    def name(self) -> str:
        """Student and teacher in one line."""
        return f"{HEAD_NAMES[self.student.head]} {self.backbone} ← {HEAD_NAMES[self.teacher.head]}"

    def gain(self, method: str, reference: str = "student", confidence: float = 0.95) -> Difference:
        """Difference in mIoU, paired by seed, of a method over the baseline or over another method."""
        return self.runs.difference(method, reference, confidence)


def pairs_of(records: Sequence[Record]) -> list[Pair]:
    """Sort records into pairs: by data, same-architecture before crossed ones, students in the records' order.

    A baseline knows no teacher, so its runs stand beside each of its teachers. Records of other methods than
    PAIR_METHODS are passed over, and so are students without a teacher's records. Errors as of
    :func:`~apd.report.statistics.compare`.
    """
    alone: dict[tuple[DataConfig, NetworkConfig], list[Record]] = {}
    taught: dict[tuple[DataConfig, NetworkConfig, TeacherConfig], list[Record]] = {}
    for record in records:
        experiment = record.experiment
        if method_of(experiment) not in PAIR_METHODS:
            continue
        if experiment.distillers:
            taught.setdefault((experiment.data, experiment.network, experiment.teacher), []).append(record)
        else:
            alone.setdefault((experiment.data, experiment.network), []).append(record)
    pairs = []
    for (data, student, teacher), with_teacher in taught.items():
        (runs,) = compare(with_teacher)
        if without := alone.get((data, student)):
            (plain,) = compare(without)
            # on CamVid every method has its own learning rate
            check_alike(plain.any_record, runs.any_record, lambda e: stripped(e, any_rate=True, teacher=None))
            runs = replace(runs, arms={**runs.arms, **plain.arms})
        pairs.append(Pair(student, teacher.network, runs))
    return sorted(pairs, key=lambda p: (p.runs.data.name != "scenes", p.is_crossed, HEADS.index(p.student.head)))


def mean_gain(pairs: Sequence[Pair], method: str, confidence: float = 0.95) -> Difference:
    """Gain over the baseline, mean over pairs by seed, for the seeds that all of them have."""
    return mean_interval(_mean([pair.gain(method).pairs for pair in pairs]), confidence)


def crossed_minus_own(pairs: Sequence[Pair], method: str) -> dict[NetworkConfig, dict[int, float]]:
    """For each student that has both teachers, by seed: mIoU from the teacher of the other head minus from its own.

    The baseline cancels: the difference of the scores is that of the gains. It also holds whatever makes one teacher
    better than the other for any student; :func:`head_match` does not. ValueError for pairs of several data sets.
    """
    if len({pair.runs.data for pair in pairs}) > 1:
        raise ValueError("pairs are of several data sets: expected those of one, as differences are taken within it")
    scores: dict[NetworkConfig, dict[bool, Mapping[int, float]]] = {}
    for pair in pairs:
        scores.setdefault(pair.student, {})[pair.is_crossed] = pair.runs.miou(method)
    return {
        student: dict(paired_difference(both[True], both[False]).pairs)
        for student, both in scores.items()
        if len(both) == 2
    }


def head_match(pairs: Sequence[Pair], method: str, confidence: float = 0.95) -> dict[str, Difference]:
    """Crossed minus same architecture, mean over both heads of the student: by student backbone, and over all of them.

    In that mean either head teaches one crossed and one own student, so a teacher that is simply the better one does
    not count. What is left is the interaction of the teacher's head with the student's: below zero, a teacher of the
    student's own architecture teaches more.

    Keys are names of backbones, then ALL, the mean over backbones for the seeds that have all roles of all of them.
    """
    halves: dict[str, list[dict[int, float]]] = {pair.backbone: [] for pair in pairs}
    for student, values in crossed_minus_own(pairs, method).items():
        halves[BACKBONE_NAMES.get(student.backbone, student.backbone)].append(values)
    complete = {name: _mean(both) if len(both) == len(HEADS) else {} for name, both in halves.items()}
    complete[ALL] = _mean(list(complete.values()))
    return {name: mean_interval(values, confidence) for name, values in complete.items()}


def _mean(values: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean of several values by seed, for the seeds that all of them have."""
    seeds = sorted(set.intersection(*map(set, values))) if values else []
    return {seed: math.fsum(each[seed] for each in values) / len(values) for seed in seeds}
