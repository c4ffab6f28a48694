"""Comparisons by design: a sweep of context shift, and pairs of networks. Pure functions of records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scipy import stats

from apd.config.experiment import DataConfig, NetworkConfig, TeacherConfig
from apd.report.comparisons import Corrected, holm_corrected
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
from apd.study.ablations import option_variants
from apd.study.pair_recipes import HEADS, PAIR_METHODS
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record

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

    def recipe(record: Record) -> object:
        data = replace(record.experiment.data, context_shift=0.0)
        return stripped(record.experiment, any_length=True, data=data)

    for record in records:
        if record.experiment.data.name != "scenes":
            raise ComparisonError(f"{record.source}: data {record.experiment.data.name!r} have no context shift")
        if recipe(record) != recipe(records[0]):
            both = f"{record.source} and {records[0].source}"
            raise ComparisonError(f"{both} differ in more than context shift, seed and distillers")
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


@dataclass(frozen=True)
class Pair:
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

    @property
    def backbone(self) -> str:
        """The student's backbone by its name."""
        return BACKBONE_NAMES.get(self.student.backbone, self.student.backbone)


def pairs_of(records: Sequence[Record]) -> list[list[Pair]]:
    """Sort records into pairs, those of one data set together, same-architecture ones first, in the records' order.

    A baseline knows no teacher, so its runs stand beside each of its teachers. Records of other methods than
    PAIR_METHODS are passed over, and so are students without a teacher's records. Errors as of
    :func:`~apd.report.statistics.compare`.
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
    found = {(p.heads, p.backbone, method): p.runs.difference(method, "student", confidence) for p, method in keys}
    return holm_corrected(found, confidence)


def mean_gain(pairs: Sequence[Pair], method: str, confidence: float = 0.95) -> Difference:
    """Gain over the baseline, mean over pairs by seed, for the seeds that all of them have."""
    return mean_interval(_mean([pair.runs.difference(method, "student").pairs for pair in pairs]), confidence)


def cross_minus_same(pairs: Sequence[Pair], method: str) -> dict[NetworkConfig, dict[int, float]]:
    """For each student that has both teachers, by seed: mIoU from the teacher of the other head minus from its own.

    The baseline cancels: the difference of the scores is that of the gains. It also holds whatever makes one teacher
    better than the other for any student; :func:`head_match` does not. ValueError for pairs of several data sets.
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
    count. What is left is the interaction of the teacher's head with the student's: below zero, a teacher of the
    student's own architecture teaches more.

    Keys are names of backbones, then ALL, the mean over backbones for the seeds that have all roles of all of them.
    """
    halves: dict[str, list[dict[int, float]]] = {pair.backbone: [] for pair in pairs}
    for student, values in cross_minus_same(pairs, method).items():
        halves[BACKBONE_NAMES.get(student.backbone, student.backbone)].append(values)
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
