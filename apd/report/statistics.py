"""What records say together: scores, means, spreads, and differences paired by seed, as a seed's runs start alike."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

from scipy import stats

from apd.config.experiment import DataConfig, Experiment
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record

LONGER = "student_equal_seconds"
"""The one method whose runs may have another number of iterations."""
DATA_NAMES = {"camvid": "CamVid", "labelmefacade": "LabelMeFacade"}


class ComparisonError(ValueError):
    """Records that cannot be compared; the message names them and what differs."""


class Score(NamedTuple):
    """A number of a record, as a fraction: the scored student's and the teacher's; NaN where there is none."""

    name: str
    of: Callable[[Record], float]
    of_teacher: Callable[[Record], float]


MIOU = Score("mIoU", lambda r: r.scores.miou, lambda r: r.teacher_scores.miou if r.teacher_scores else math.nan)
"""Mean intersection over union of the evaluation split."""


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
    """Mean of paired differences with its interval, NaN below two pairs, each seed's, and the interval's confidence."""

    mean: float
    low: float
    high: float
    pairs: Mapping[int, float]
    confidence: float = 0.95

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero: before any correction for the number of comparisons."""
        return self.low > 0 or self.high < 0


def spread(values: Iterable[float]) -> Spread:
    """Mean, sample standard deviation and number of some values."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values) if values else math.nan, deviation, len(values))


def mean_interval(values: Mapping[int, float], confidence: float = 0.95) -> Difference:
    """Mean over seeds with Student's two-sided interval, of values that are differences already."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95")
    found = spread(values.values())
    half = float(stats.t.ppf((1 + confidence) / 2, found.count - 1)) * found.error if found.count > 1 else math.nan
    return Difference(found.mean, found.mean - half, found.mean + half, values, confidence)


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Difference:
    """Mean of `values - reference`, each one value per seed, over the seeds that both have, with its interval."""
    pairs = {seed: values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())}
    return mean_interval(pairs, confidence)


def method_of(experiment: Experiment, names: Mapping[str, str] = METHOD_NAMES) -> str:
    """The longest key of `names` that an experiment's label has between hyphens; it may hold hyphens itself."""
    found = [key for key in names if f"-{key}-" in f"-{experiment.name}-"]
    if not found:
        raise ComparisonError(f"experiment {experiment.name!r}: its label names none of {', '.join(names)}")
    return max(found, key=len)


@dataclass(frozen=True)
class Comparison:
    """Records of one data set, teacher and recipe: `variants[method][seed]`, their names, and by which score."""

    data: DataConfig
    variants: Mapping[str, Mapping[int, Record]]
    names: Mapping[str, str] = field(default_factory=lambda: METHOD_NAMES)
    score: Score = MIOU
    remark: str = ""  # what distinguishes it from another comparison on the same data

    @cached_property
    def any_record(self) -> Record:
        """One of the records, for what they share."""
        return next(iter(next(iter(self.variants.values())).values()))

    @property
    def title(self) -> str:
        """The data in a few words, of scenes the steps as well (not of the equal-time runs), of photographs whether the
        student's weights were random, whether its images are resized to fit, and the remark."""
        network = self.any_record.experiment.network
        if self.data.name == "scenes":
            steps = min(next(iter(runs.values())).experiment.training.iterations for runs in self.variants.values())
            data = f"scenes, context shift {self.data.context_shift:g}, {steps} steps"
        else:
            data = DATA_NAMES.get(self.data.name) or self.any_record.content["data"]["name"]
            data += f" at {self.data.height} × {self.data.width}" if self.data.height else ""
            data += ", random weights" if network.weights == "none" and not getattr(network, "builder", "") else ""
        data += ", sides fitted" if getattr(network, "fit_sides", False) else ""
        return f"{data}, {self.remark}" if self.remark else data

    @property
    def teacher_score(self) -> float:
        """The teacher's score on the evaluation split; NaN where no run has a teacher."""
        scores = (self.score.of_teacher(record) for runs in self.variants.values() for record in runs.values())
        return next((value for value in scores if not math.isnan(value)), math.nan)

    def by(self, score: Score) -> Self:
        """The same runs, compared by another score."""
        return replace(self, score=score)

    def only(self, methods: Iterable[str]) -> Self:
        """The comparison of some of its methods; those that it lacks are passed over."""
        return replace(self, variants={key: self.variants[key] for key in methods if key in self.variants})

    def values(self, method: str) -> dict[int, float]:
        """The student's score, by seed; empty when the method has no record."""
        return {seed: self.score.of(record) for seed, record in self.variants.get(method, {}).items()}

    def difference(self, method: str, reference: str, confidence: float = 0.95) -> Difference:
        """Paired difference in the score, method minus reference."""
        return paired_difference(self.values(method), self.values(reference), confidence)

    def step_seconds(self, method: str) -> float:
        """Median seconds of a step, least over seeds, as others' load adds only.

        Of a core, where every method has a record with those; otherwise of the wall, for every method. The two
        baselines take the same step.
        """
        clock, same = "seconds_per_iteration", ("student", LONGER)
        found = {m: [r.content for r in runs.values()] for m, runs in self.variants.items()}
        if all(any(f"core_{clock}" in content for content in runs) for runs in found.values()):
            clock = f"core_{clock}"
        contents = (content for m in {method, *same * (method in same)} for content in found.get(m, ()))
        return min(content[clock] for content in contents if clock in content)

    def run_seconds(self, method: str) -> float:
        """Seconds of all training steps of one run."""
        return self.step_seconds(method) * next(iter(self.variants[method].values())).experiment.training.iterations


def compare(records: Sequence[Record], names: Mapping[str, str] = METHOD_NAMES) -> list[Comparison]:
    """Sort records of any campaigns into comparisons, one for each data configuration, methods as in `names`.

    ComparisonError: a label names none of `names`, or two records have the same method and seed, other images or
    teachers, or recipes that differ in more than seed, distillers and the method's own learning rate (the equal-time
    baseline: iterations).
    """
    groups: dict[DataConfig, list[Record]] = {}
    for record in records:
        groups.setdefault(record.experiment.data, []).append(record)
    comparisons = []
    for data in sorted(groups, key=lambda d: (d.name != "scenes", d.context_shift, d.height)):
        variants: dict[str, dict[int, Record]] = {method: {} for method in names}
        for record in groups[data]:
            runs, seed = variants[method_of(record.experiment, names)], record.experiment.seed
            if seed in runs:
                raise ComparisonError(f"{record.source} and {runs[seed].source} are the same method and seed")
            runs[seed] = record
        variants = {method: dict(sorted(runs.items())) for method, runs in variants.items() if runs}
        _check_comparable(variants)
        comparisons.append(Comparison(data, variants, names))
    return comparisons


def stripped(experiment: Experiment, *, any_length: bool = False, any_rate: bool = False, **changes: Any) -> Experiment:
    """An experiment without label, seed and distillers, for comparing the rest; `changes` overwrite more of it."""
    training = experiment.training
    if any_length:  # warm-up and milestones fit into it
        training = replace(training, iterations=10**8)
    if any_rate:
        training = replace(training, learning_rate=1.0)
    return replace(experiment, **dict(name="experiment", seed=0, distillers=(), training=training) | changes)


def check_alike(record: Record, reference: Record, recipe: Callable[[Experiment], Experiment], *teacher: str) -> None:
    """Two records must agree in `recipe` of their experiments, in their images, and in entries of their `teacher`."""
    checked = {
        "recipe": lambda r: recipe(r.experiment),
        "images of the evaluation split": lambda r: r.content["data"]["fingerprint"],
        "training images": lambda r: r.content["data"].get("training_fingerprint"),
    } | {f"teacher's {part}": lambda r, part=part: (r.content["teacher"] or {}).get(part) for part in teacher}
    for what, of in checked.items():
        if of(record) != of(reference):
            raise ComparisonError(f"{record.source} and {reference.source} differ in the {what}")


def _check_comparable(variants: Mapping[str, Mapping[int, Record]]) -> None:
    firsts = {method: next(iter(runs.values())) for method, runs in variants.items()}
    first = next(iter(firsts.values()))
    equal = next((record for method, record in firsts.items() if method != LONGER), first)
    for method, runs in variants.items():
        own = firsts[method]
        for record in runs.values():
            check_alike(record, first, lambda e: stripped(e, any_length=True, any_rate=True), "confusion", "ap")
            for other, what, of in (
                (own, f"settings of {method}", lambda e: e.distillers),
                (own, f"learning rate of {method}", lambda e: e.training.learning_rate),
                (own if method == LONGER else equal, "number of iterations", lambda e: e.training.iterations),
            ):
                if of(record.experiment) != of(other.experiment):
                    raise ComparisonError(f"{record.source} and {other.source} differ in the {what}")
