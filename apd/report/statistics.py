"""What records say together: means, spreads, and differences paired by seed. Pure functions of records.

Runs of one seed share their initial weights, order of images and augmentation, so two methods are compared seed by
seed: the interval is that of the mean difference, which the luck of a seed does not widen.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from apd.config.experiment import DataConfig, Experiment, TrainingConfig
from apd.config.identity import fingerprint
from apd.report.score import MIOU, Score
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record

LONGER = "student_equal_seconds"
"""The one method whose runs may have another number of iterations."""


class ComparisonError(ValueError):
    """Records that cannot be compared; the message names them and what differs."""


class Spread(NamedTuple):
    """Mean and sample standard deviation (NaN below two values) of `count` values."""

    mean: float
    deviation: float
    count: int

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN below two values.

        >>> spread([1.0, 3.0]).error
        1.0
        """
        return self.deviation / math.sqrt(self.count) if self.count > 1 else math.nan


class Difference(NamedTuple):
    """Mean of paired differences with its confidence interval, which is NaN below two pairs."""

    mean: float
    low: float
    high: float
    pairs: Mapping[int, float]
    """The difference of each seed that both have."""

    @property
    def verdict(self) -> str:
        """One of "above", "below", "not distinguishable from" and "not yet comparable with" (below two pairs)."""
        if math.isnan(self.low):
            return "not yet comparable with"
        return "above" if self.low > 0 else "below" if self.high < 0 else "not distinguishable from"


def spread(values: Iterable[float]) -> Spread:
    """Mean, sample standard deviation and number of some values.

    >>> spread([1.0, 3.0])
    Spread(mean=2.0, deviation=1.4142135623730951, count=2)
    """
    values = list(values)
    if not values:
        return Spread(math.nan, math.nan, 0)
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(mean, math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan, len(values))


def t_central(t: float, degrees: int) -> float:
    """P(-t < T < t) of Student's distribution, by its closed form for whole degrees of freedom (t >= 0)."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_factor(confidence: float, degrees: int) -> float:
    """Half-width, in standard errors, of the two-sided interval of a mean with `degrees` degrees of freedom.

    >>> round(t_factor(0.95, 4), 3)
    2.776

    Raises:
        ValueError: confidence outside 0..1, or no degree of freedom.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95")
    if degrees < 1:
        raise ValueError(f"degrees={degrees}: expected at least 1, which takes two values")
    low, high = 0.0, 1.0
    while t_central(high, degrees) < confidence:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_central(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Difference:
    """Mean of `values - reference` over the seeds that both have, with its Student interval.

    The interval speaks of seeds: data, teacher and recipe are the same in every pair.

    Args:
        values, reference: one value per seed.
        confidence: of the two-sided interval.

    >>> difference = paired_difference({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5, 2: 0.9})
    >>> round(difference.mean, 3), difference.verdict
    (0.15, 'not distinguishable from')
    """
    pairs = {seed: values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())}
    mean, deviation, count = spread(pairs.values())
    half = t_factor(confidence, count - 1) * deviation / math.sqrt(count) if count > 1 else math.nan
    return Difference(mean, mean - half, mean + half, pairs)


def method_of(experiment: Experiment, names: Mapping[str, str] = METHOD_NAMES) -> str:
    """Which method or arm an experiment is: the longest of the keys that stand in its label between hyphens.

    A key may hold hyphens itself, as `head_1e-5` does.

    Args:
        experiment: labelled as those of the campaigns, such as `head_1e-5-context1-seed0`.
        names: the keys to look for, with what they are called.

    Raises:
        ComparisonError: the label holds none of the keys.
    """
    found = [key for key in names if f"-{key}-" in f"-{experiment.name}-"]
    if not found:
        raise ComparisonError(f"experiment {experiment.name!r}: its label names none of {', '.join(names)}")
    return max(found, key=len)


@dataclass(frozen=True)
class Comparison:
    """Records of one data set, one teacher and one recipe: `arms[method][seed]`, and what the methods are called."""

    data: DataConfig
    arms: Mapping[str, Mapping[int, Record]]
    names: Mapping[str, str] = field(default_factory=lambda: METHOD_NAMES)
    score: Score = MIOU
    """By which they are compared."""
    remark: str = ""
    """What tells it from another comparison on the same data; part of its title."""

    @cached_property
    def any_record(self) -> Record:
        """One of the records, for what they share."""
        return next(iter(next(iter(self.arms.values())).values()))

    @property
    def title(self) -> str:
        """The data in a few words, and the remark."""
        return f"{self._data_in_words}, {self.remark}" if self.remark else self._data_in_words

    @property
    def _data_in_words(self) -> str:
        if self.data.name == "scenes":
            return f"scenes, context shift {self.data.context_shift:g}"
        name = "CamVid" if self.data.name == "camvid" else self.any_record.content["data"]["name"]
        return f"{name} at {self.data.height} × {self.data.width}" if self.data.height else name

    @property
    def seeds(self) -> list[int]:
        """Every seed that any method has."""
        return sorted({seed for arm in self.arms.values() for seed in arm})

    @property
    def teacher_score(self) -> float:
        """The teacher's score on the evaluation split; NaN where no run has a teacher."""
        told = (self.score.of_teacher(record) for arm in self.arms.values() for record in arm.values())
        return next((value for value in told if not math.isnan(value)), math.nan)

    @property
    def teacher_miou(self) -> float:
        """The teacher's mIoU on the evaluation split."""
        return self.by(MIOU).teacher_score

    def by(self, score: Score) -> Self:
        """The same runs, compared by another score."""
        return replace(self, score=score)

    def values(self, method: str) -> dict[int, float]:
        """The score of the last step's student, by seed; empty when the method has no record."""
        return {seed: self.score.of(record) for seed, record in self.arms.get(method, {}).items()}

    def miou(self, method: str) -> dict[int, float]:
        """mIoU of the last step's student, by seed; empty when the method has no record."""
        return self.by(MIOU).values(method)

    def agreement(self, method: str) -> dict[int, float]:
        """Share of valid pixels that student and teacher call the same, by seed."""
        return {seed: record.agreement for seed, record in self.arms.get(method, {}).items()}

    def seconds(self, method: str) -> dict[int, float]:
        """Median seconds of a training step, by seed; on a CPU, where the record has them, those of its core."""
        clock, records = "seconds_per_iteration", self.arms.get(method, {}).items()
        return {seed: r.content.get(f"core_{clock}", r.content[clock]) for seed, r in records}

    def difference(self, method: str, reference: str, confidence: float = 0.95) -> Difference:
        """Paired difference in the score, method minus reference."""
        return paired_difference(self.values(method), self.values(reference), confidence)

    def step_seconds(self, method: str) -> float:
        """A step's seconds, the least over seeds: other programs make a run's steps longer, never shorter."""
        return min(self.seconds(method).values())

    def times_the_plain_step(self, method: str) -> float:
        """A step's seconds as a multiple of the plain student's; NaN where either has no record."""
        if method not in self.arms or "student" not in self.arms:
            return math.nan
        return self.step_seconds(method) / self.step_seconds("student")

    def only(self, methods: Iterable[str]) -> Self:
        """The comparison of some of its methods; those that it lacks are passed over."""
        return replace(self, arms={method: self.arms[method] for method in methods if method in self.arms})

    def iterations(self, method: str) -> int:
        """Steps of each of the method's runs."""
        return next(iter(self.arms[method].values())).experiment.training.iterations

    def class_gain(self, method: str, reference: str = "student") -> Tensor:
        """(K,) mean over common seeds of IoU(method) - IoU(reference); NaN where a seed's class has no IoU."""
        seeds = sorted(self.arms.get(method, {}).keys() & self.arms.get(reference, {}).keys())
        if not seeds:
            return torch.full((len(self.any_record.class_names),), math.nan, dtype=torch.float64)
        gains = [self.arms[method][seed].scores.iou - self.arms[reference][seed].scores.iou for seed in seeds]
        return torch.stack(gains).mean(0)


def compare(records: Sequence[Record], names: Mapping[str, str] = METHOD_NAMES) -> list[Comparison]:
    """Sort records into comparisons, one for each data configuration, methods in the order of `names`.

    Args:
        records: of any campaigns; those of a data configuration have to fit one another.
        names: the methods and arms that labels may name, with what they are called.

    Raises:
        ComparisonError: a label names none of `names`, or within a comparison two records have the same method and
            seed, were scored on different images or by different teachers, or their recipes differ in more than seed,
            distillers and the method's own rate (the plain student of equal seconds: iterations).
    """
    groups: dict[DataConfig, list[Record]] = {}
    for record in records:
        groups.setdefault(record.experiment.data, []).append(record)
    comparisons = []
    for data in sorted(groups, key=lambda d: (d.name != "scenes", d.context_shift, d.height)):
        arms: dict[str, dict[int, Record]] = {method: {} for method in names}
        for record in groups[data]:
            arm, seed = arms[method_of(record.experiment, names)], record.experiment.seed
            if seed in arm:
                raise ComparisonError(f"{record.source} and {arm[seed].source} are the same method and seed")
            arm[seed] = record
        arms = {method: dict(sorted(arm.items())) for method, arm in arms.items() if arm}
        _check_comparable(arms)
        comparisons.append(Comparison(data, arms, names))
    return comparisons


def of_any_length(training: TrainingConfig) -> TrainingConfig:
    """A training as any other that differs in the number of steps alone; warm-up and milestones fit into it."""
    return replace(training, iterations=10**9)


def _common(record: Record) -> dict[str, object]:
    """What the records of a comparison must share, by what to call it."""
    experiment = record.experiment
    training = replace(of_any_length(experiment.training), learning_rate=1.0)
    return {
        "recipe": replace(experiment, name="experiment", seed=0, distillers=(), training=training),
        "images of the evaluation split": record.content["data"]["fingerprint"],
        "training images": record.content["data"].get("training_fingerprint"),
        "teacher's confusion matrix": (record.content["teacher"] or {}).get("confusion"),
        "teacher's AP": (record.content["teacher"] or {}).get("ap"),
    }


def _check_comparable(arms: Mapping[str, Mapping[int, Record]]) -> None:
    first = next(iter(next(iter(arms.values())).values()))
    equal = next((next(iter(arm.values())) for method, arm in arms.items() if method != LONGER), first)
    for method, arm in arms.items():
        arm_first = next(iter(arm.values()))
        reference = arm_first if method == LONGER else equal
        for record in arm.values():
            for (what, value), expected in zip(_common(record).items(), _common(first).values(), strict=True):
                if value != expected:
                    raise ComparisonError(f"{record.source} and {first.source} differ in the {what}")
            if record.experiment.distillers != arm_first.experiment.distillers:
                raise ComparisonError(f"{record.source} and {arm_first.source} differ in the settings of {method}")
            if record.experiment.training.learning_rate != arm_first.experiment.training.learning_rate:
                raise ComparisonError(f"{record.source} and {arm_first.source} differ in the rate of {method}")
            if record.experiment.training.iterations != reference.experiment.training.iterations:
                raise ComparisonError(f"{record.source} and {reference.source} differ in the number of iterations")


def planned_and_done(planned: Sequence[Experiment], records: Sequence[Record]) -> tuple[list[Record], int]:
    """The records of planned experiments, and how many of the plan have none yet.

    A record whose settings are no longer those of the plan is left out: it answers another question.
    """
    wanted = {fingerprint(experiment) for experiment in planned}
    kept = [record for record in records if record.content["fingerprint"] in wanted]
    return kept, len(wanted) - len({record.content["fingerprint"] for record in kept})
