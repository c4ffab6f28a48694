"""What records say of pairs of networks: what each student gains from each teacher, and whether kinship matters.

Pure functions of records, as :mod:`apd.report.statistics`. A student alone knows no teacher, so its runs stand beside
each of its teachers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig
from apd.report.statistics import Comparison, ComparisonError, Difference, compare, method_of, paired_difference
from apd.study.pair_recipes import HEADS, PAIR_METHODS
from apd.training.record import Record

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
    """A published gain: mIoU in per cent on val, of a PSPNet with ResNet-18 taught by one with ResNet-101."""

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
    """A student and a teacher, with the runs of both together and of the student alone."""

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
        """Difference in mIoU, paired by seed, of a method over the student alone or over another method."""
        return self.runs.difference(method, reference, confidence)


def pairs_of(records: Sequence[Record]) -> list[Pair]:
    """Sort records into pairs: by data, those of one kind before the crossed ones, students in the records' order.

    Records of other methods than PAIR_METHODS are passed over, and so are students without a teacher's records.

    Raises:
        ComparisonError: a label names no method, or records of one pair differ in more than seed and distillers, were
            scored on different images or by different teachers.
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
            _check_same_recipe(plain.any_record, runs.any_record)
            runs = replace(runs, arms={**runs.arms, **plain.arms})
        pairs.append(Pair(student, teacher.network, runs))
    return sorted(pairs, key=_order)


def _order(pair: Pair) -> tuple[bool, bool, int]:
    return pair.runs.data.name != "scenes", pair.is_crossed, HEADS.index(pair.student.head)


def _check_same_recipe(plain: Record, taught: Record) -> None:
    """What a student alone must share with the same student beside a teacher: all but teacher, losses and rate."""

    def shared(record: Record) -> Experiment:
        experiment = record.experiment
        training = replace(experiment.training, learning_rate=1.0)  # on CamVid every method has its own
        return replace(experiment, name="experiment", seed=0, distillers=(), teacher=None, training=training)

    for what, of in {
        "recipe": shared,
        "images of the evaluation split": lambda r: r.content["data"]["fingerprint"],
        "training images": lambda r: r.content["data"].get("training_fingerprint"),
    }.items():
        if of(plain) != of(taught):
            raise ComparisonError(f"{plain.source} and {taught.source} differ in the {what}")


def mean_gain(pairs: Sequence[Pair], method: str, confidence: float = 0.95) -> Difference:
    """Gain over the student alone, mean over pairs by seed, for the seeds that all of them have."""
    values = _mean([pair.gain(method).pairs for pair in pairs])
    return paired_difference(values, dict.fromkeys(values, 0.0), confidence)


def crossed_minus_own(pairs: Sequence[Pair], method: str) -> dict[NetworkConfig, dict[int, float]]:
    """For each student that has both teachers, by seed: mIoU from the teacher of the other kind minus from its own.

    The student alone cancels: the difference of the scores is that of the gains. It also holds whatever makes one
    teacher better than the other for any student; :func:`kinship` does not.

    Raises:
        ValueError: the pairs are of several data sets.
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


def kinship(pairs: Sequence[Pair], method: str, confidence: float = 0.95) -> dict[str, Difference]:
    """Crossed minus of one kind, mean over both heads of the student: by student backbone, and over all of them.

    In the mean over both heads either head teaches one crossed and one own student, so a teacher that is simply the
    better one does not count. What is left is the interaction of the teacher's head with the student's: below zero, a
    teacher of the student's own kind teaches more.

    Args:
        pairs: of one data set.
        method: one of PAIR_METHODS that has a teacher.
        confidence: of the intervals (Student's, over seeds).

    Returns:
        Differences by name of the backbone, without a pair where no seed has all four roles; then, by ALL, the mean
        over backbones for the seeds that have all roles of all of them.

    Raises:
        ValueError: the pairs are of several data sets.
    """
    by_student = crossed_minus_own(pairs, method)
    halves: dict[str, list[dict[int, float]]] = {pair.backbone: [] for pair in pairs}
    for student, values in by_student.items():
        halves[BACKBONE_NAMES.get(student.backbone, student.backbone)].append(values)
    complete = {name: _mean(both) if len(both) == len(HEADS) else {} for name, both in halves.items()}
    complete[ALL] = _mean(list(complete.values()))
    return {
        name: paired_difference(values, dict.fromkeys(values, 0.0), confidence) for name, values in complete.items()
    }


def _mean(values: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean of several values by seed, for the seeds that all of them have."""
    seeds = sorted(set.intersection(*map(set, values))) if values else []
    return {seed: math.fsum(each[seed] for each in values) / len(values) for seed in seeds}
