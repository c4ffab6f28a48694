"""What records say together: scores, means, spreads, and differences paired by seed. Pure functions of records.

Runs of one seed share their initial weights, order of images and augmentation, so two methods are compared seed by
seed: the interval is that of the mean difference, which variation between seeds does not widen.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from scipy import stats
from torch import Tensor

from apd.config.experiment import DataConfig, Experiment, TrainingConfig
from apd.config.identity import fingerprint
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record

LONGER = "student_equal_seconds"
"""The one method whose runs may have another number of iterations."""


class ComparisonError(ValueError):
    """Records that cannot be compared; the message names them and what differs."""


class Score(NamedTuple):
    """A number of a record, as a fraction: the last step's student's and the teacher's; NaN where there is none."""

    name: str
    of: Callable[[Record], float]
    of_teacher: Callable[[Record], float]


MIOU = Score("mIoU", lambda r: r.scores.miou, lambda r: r.teacher_scores.miou if r.teacher_scores else math.nan)
"""Mean intersection over union of the evaluation split."""


def miou_on(split: str) -> Score:
    """mIoU of a split that was scored beside the evaluation split; a record holds no teacher's there."""
    return Score(f"mIoU on {split}", lambda record: record.scores_on(split).miou, lambda _: math.nan)


class Spread(NamedTuple):
    """Mean and sample standard deviation (NaN below two values) of `count` values."""

    mean: float
    deviation: float
    count: int

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN below two values."""
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


def mean_interval(values: Mapping[int, float], confidence: float = 0.95) -> Difference:
    """Mean over seeds with Student's two-sided interval, of values that are differences already."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95")
    found = spread(values.values())
    half = float(stats.t.ppf((1 + confidence) / 2, found.count - 1)) * found.error if found.count > 1 else math.nan
    return Difference(found.mean, found.mean - half, found.mean + half, values)


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Difference:
    """Mean of `values - reference`, each one value per seed, over the seeds that both have, with its interval.

    The interval speaks of seeds: data, teacher and recipe are the same in every pair.

    >>> difference = paired_difference({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5, 2: 0.9})
    >>> round(difference.mean, 3), difference.verdict
    (0.15, 'not distinguishable from')
    """
    pairs = {seed: values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())}
    return mean_interval(pairs, confidence)


def method_of(experiment: Experiment, names: Mapping[str, str] = METHOD_NAMES) -> str:
    """Which method or variant an experiment is: the longest key of `names` that its label has between hyphens.

    A key may hold hyphens itself: `head_1e-5` in the label `head_1e-5-context1-seed0`.
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
    """What distinguishes it from another comparison on the same data; part of its title."""

    @cached_property
    def any_record(self) -> Record:
        """One of the records, for what they share."""
        return next(iter(next(iter(self.arms.values())).values()))

    @property
    def title(self) -> str:
        """The data in a few words, and the remark."""
        if self.data.name == "scenes":
            words = f"scenes, context shift {self.data.context_shift:g}"
        else:
            words = "CamVid" if self.data.name == "camvid" else self.any_record.content["data"]["name"]
            words += f" at {self.data.height} × {self.data.width}" if self.data.height else ""
        return f"{words}, {self.remark}" if self.remark else words

    @property
    def seeds(self) -> list[int]:
        """Every seed that any method has."""
        return sorted({seed for arm in self.arms.values() for seed in arm})

    @property
    def teacher_score(self) -> float:
        """The teacher's score on the evaluation split; NaN where no run has a teacher."""
        scores = (self.score.of_teacher(record) for arm in self.arms.values() for record in arm.values())
        return next((value for value in scores if not math.isnan(value)), math.nan)

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
        """Share of valid pixels that student and teacher label the same, by seed."""
        return {seed: record.agreement for seed, record in self.arms.get(method, {}).items()}

    def difference(self, method: str, reference: str, confidence: float = 0.95) -> Difference:
        """Paired difference in the score, method minus reference."""
        return paired_difference(self.values(method), self.values(reference), confidence)

    def step_seconds(self, method: str) -> float:
        """Least over seeds of the median seconds of a step, on a CPU those of its core where the record has them.

        The least, because other programs make a run's steps longer, never shorter.
        """
        clock = "seconds_per_iteration"
        return min(r.content.get(f"core_{clock}", r.content[clock]) for r in self.arms[method].values())

    def times_the_plain_step(self, method: str) -> float:
        """A step's seconds as a multiple of the baseline's; NaN where either has no record."""
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
    """Sort records of any campaigns into comparisons, one for each data configuration, methods as in `names`.

    Raises:
        ComparisonError: a label names none of `names`, or within a comparison two records have the same method and
            seed, were scored on different images or by different teachers, or their recipes differ in more than seed,
            distillers and the method's own learning rate (the baseline of equal seconds: iterations).
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


def stripped(experiment: Experiment, *, any_length: bool = False, any_rate: bool = False, **changes: Any) -> Experiment:
    """An experiment without label, seed and distillers, for comparing the rest; `changes` overwrite more of it."""
    training: TrainingConfig = experiment.training
    if any_length:  # warm-up and milestones fit into it
        training = replace(training, iterations=10**9)
    if any_rate:
        training = replace(training, learning_rate=1.0)
    return replace(experiment, **dict(name="experiment", seed=0, distillers=(), training=training) | changes)


def check_alike(record: Record, reference: Record, recipe: Callable[[Experiment], Experiment], *teacher: str) -> None:
    """Two records must agree in `recipe` of their experiments, in their images, and in entries of their `teacher`."""
    for what, of in {
        "recipe": lambda r: recipe(r.experiment),
        "images of the evaluation split": lambda r: r.content["data"]["fingerprint"],
        "training images": lambda r: r.content["data"].get("training_fingerprint"),
    }.items():
        if of(record) != of(reference):
            raise ComparisonError(f"{record.source} and {reference.source} differ in the {what}")
    for entry in teacher:
        if (record.content["teacher"] or {}).get(entry) != (reference.content["teacher"] or {}).get(entry):
            what = {"confusion": "confusion matrix", "ap": "AP"}[entry]
            raise ComparisonError(f"{record.source} and {reference.source} differ in the teacher's {what}")


def _check_comparable(arms: Mapping[str, Mapping[int, Record]]) -> None:
    firsts = {method: next(iter(arm.values())) for method, arm in arms.items()}
    first = next(iter(firsts.values()))
    equal = next((record for method, record in firsts.items() if method != LONGER), first)
    for method, arm in arms.items():
        own = firsts[method]
        for record in arm.values():
            check_alike(record, first, lambda e: stripped(e, any_length=True, any_rate=True), "confusion", "ap")
            for other, what, of in (
                (own, f"settings of {method}", lambda e: e.distillers),
                (own, f"rate of {method}", lambda e: e.training.learning_rate),
                (own if method == LONGER else equal, "number of iterations", lambda e: e.training.iterations),
            ):
                if of(record.experiment) != of(other.experiment):
                    raise ComparisonError(f"{record.source} and {other.source} differ in the {what}")


def planned_and_done(planned: Sequence[Experiment], records: Sequence[Record]) -> tuple[list[Record], int]:
    """The records of planned experiments, and how many of the plan have none yet.

    A record whose settings are no longer those of the plan is left out: it answers another question.
    """
    wanted = {fingerprint(experiment) for experiment in planned}
    kept = [record for record in records if record.content["fingerprint"] in wanted]
    return kept, len(wanted) - len({record.content["fingerprint"] for record in kept})
