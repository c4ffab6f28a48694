"""The dial: what a method gains over another on built-in scenes, from one look for all pictures to a look for each.

Pure functions of records. At every context shift methods are compared seed by seed; whether the gain rises is asked of
each seed's own slope.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from apd.config.experiment import Experiment
from apd.report.statistics import Comparison, ComparisonError, Difference, compare, of_any_length, paired_difference
from apd.study.ablations import option_variants
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record

ARM_NAMES = METHOD_NAMES | {arm.key: f"+ APD, {arm.name}" for arm in option_variants() if arm.key == "scope_batch"}
"""The methods and arms on the dial, by key."""


class Dial(NamedTuple):
    """Gains at each context shift, and how they change along it.

    Attributes:
        method, reference: keys of ARM_NAMES.
        gains: context shift -> difference in mIoU, paired by seed; rising order.
        slopes: each seed's slope (mIoU for a full turn of the dial, by least squares), and their mean with its
            interval. Only seeds that have every context shift of `gains` take part.
    """

    method: str
    reference: str
    gains: dict[float, Difference]
    slopes: Difference

    @property
    def verdict(self) -> str:
        """One of "rises", "falls", "neither rises nor falls for certain" and "cannot be followed yet"."""
        if math.isnan(self.slopes.low):
            return "cannot be followed yet"
        if self.slopes.low > 0:
            return "rises"
        return "falls" if self.slopes.high < 0 else "neither rises nor falls for certain"


def slope(points: Mapping[float, float]) -> float:
    """Least-squares slope of a value over its place; NaN where all places are one.

    >>> slope({0.0: 1.0, 0.5: 2.0, 1.0: 3.0})
    2.0
    """
    if not points:
        return math.nan
    middle = math.fsum(points) / len(points)
    spread = math.fsum((x - middle) ** 2 for x in points)
    return math.fsum((x - middle) * y for x, y in points.items()) / spread if spread > 0 else math.nan


def on_the_dial(records: Sequence[Record]) -> dict[float, Comparison]:
    """The records' comparisons by context shift, in rising order.

    Raises:
        ComparisonError: a record is not of scenes or its label names no arm, its settings differ in more than context
            shift, seed and distillers from those of another, or one context shift does not allow a comparison (see
            :func:`~apd.report.statistics.compare`).
    """
    for record in records:
        if record.experiment.data.name != "scenes":
            raise ComparisonError(f"{record.source}: data {record.experiment.data.name!r} have no context shift")
        if _recipe(record.experiment) != _recipe(records[0].experiment):
            raise ComparisonError(
                f"{record.source} and {records[0].source} differ in more than context shift, seed and distillers"
            )
    return {comparison.data.context_shift: comparison for comparison in compare(records, ARM_NAMES)}


def _recipe(experiment: Experiment) -> Experiment:
    data, training = replace(experiment.data, context_shift=0.0), of_any_length(experiment.training)
    return replace(experiment, name="experiment", seed=0, distillers=(), data=data, training=training)


def turn(
    comparisons: Mapping[float, Comparison], method: str = "apd", reference: str = "pixel_kd", confidence: float = 0.95
) -> Dial:
    """The gain of one method over another along the dial.

    Args:
        comparisons: from :func:`on_the_dial`.
        method, reference: keys of ARM_NAMES.
        confidence: of the intervals (Student's, over seeds).

    Raises:
        ValueError: there is no such method.
    """
    for name, key in (("method", method), ("reference", reference)):
        if key not in ARM_NAMES:
            raise ValueError(f"{name}={key!r}: expected one of {', '.join(ARM_NAMES)}")
    found = {shift: one.difference(method, reference, confidence) for shift, one in comparisons.items()}
    gains = {shift: difference for shift, difference in found.items() if difference.pairs}
    complete = set.intersection(*(set(gain.pairs) for gain in gains.values())) if len(gains) > 1 else set()
    slopes = {seed: slope({shift: gain.pairs[seed] for shift, gain in gains.items()}) for seed in sorted(complete)}
    return Dial(method, reference, gains, paired_difference(slopes, dict.fromkeys(slopes, 0.0), confidence))
