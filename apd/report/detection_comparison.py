"""Runs of detection as comparisons: which arms there are, what they are called, and what a combination adds.

The arms are those that the records' labels name, `student-seed0` or `roi_apd_and_review_kd-seed2`: a distiller's name,
or several joined by `_and_`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from apd.report.multiple_comparisons import Judged, judged
from apd.report.score import BOX_AP, Score
from apd.report.statistics import Comparison, ComparisonError, compare
from apd.study.campaigns import CAMPAIGNS
from apd.training.record import Record

ARM_NAMES = {
    "student": "student alone",
    "roi_kd": "KD of boxes",
    "roi_dkd": "DKD of boxes",
    "pyramid_matching": "pyramid matching",
    "review_kd": "ReviewKD",
    "roi_apd": "APD of boxes",
    "dense_apd": "APD of masks",
}
"""What stands in figures and tables for the distillers between detectors."""

REFERENCES = ("student", "roi_kd")
"""What every arm is held against: no teacher, and the plainest use of one."""

_AND = "_and_"


def detection_campaigns() -> list[str]:
    """The campaigns whose experiments are of detection, in their order."""
    firsts = {name: next(iter(experiments()), None) for name, experiments in CAMPAIGNS.items()}
    return [name for name, first in firsts.items() if getattr(first, "task", "") == "detection"]


def parts_of_arm(arm: str) -> list[str]:
    """The distillers that an arm's key names.

    >>> parts_of_arm("roi_apd_and_review_kd")
    ['roi_apd', 'review_kd']
    """
    return arm.split(_AND)


def detection_names(records: Iterable[Record]) -> dict[str, str]:
    """The arms that the records' labels name, in the order of figures, with what they are called.

    Combinations come last. A distiller that is not in :data:`ARM_NAMES` keeps its key, in words.
    """
    order = list(ARM_NAMES)
    arms = {record.experiment.name.split("-")[0] for record in records}

    def place(arm: str) -> tuple[int, list[int], str]:
        parts = parts_of_arm(arm)
        return len(parts), [order.index(part) if part in order else len(order) for part in parts], arm

    return {
        arm: " + ".join(ARM_NAMES.get(part, part.replace("_", " ")) for part in parts_of_arm(arm))
        for arm in sorted(arms, key=place)
    }


def detection_comparisons(records: Sequence[Record]) -> list[Comparison]:
    """Sort records of detection into comparisons by box AP, one for each data configuration.

    A student alone may have been run with the teacher of the others or without one, which changes nothing in it.

    Raises:
        ComparisonError: records of one data configuration that are not of one recipe; see
            :func:`apd.report.statistics.compare`.
    """
    names = detection_names(records)
    alone = [record for record in records if record.experiment.teacher is None]
    comparisons = compare([record for record in records if record.experiment.teacher is not None], names)
    for without in compare(alone, names):
        place = next((i for i, found in enumerate(comparisons) if found.data == without.data), None)
        if place is None:
            comparisons.append(without)
        else:
            comparisons[place] = _joined(comparisons[place], without)
    return [comparison.by(BOX_AP) for comparison in comparisons]


def _joined(taught: Comparison, without: Comparison) -> Comparison:
    """Runs with a teacher and runs without one, checked to be of one recipe."""
    first, other = taught.any_record, without.any_record
    for what, of in {
        "recipe": lambda r: replace(r.experiment, name="experiment", seed=0, distillers=(), teacher=None),
        "images of the evaluation split": lambda r: r.content["data"]["fingerprint"],
        "training images": lambda r: r.content["data"].get("training_fingerprint"),
    }.items():
        if of(first) != of(other):
            raise ComparisonError(f"{first.source} and {other.source} differ in the {what}")
    if twice := taught.arms.keys() & without.arms.keys():
        raise ComparisonError(f"{first.source} and {other.source}: runs of {sorted(twice)} with and without a teacher")
    both = {**taught.arms, **without.arms}
    return replace(taught, arms={arm: both[arm] for arm in taught.names if arm in both})


def counted(comparison: Comparison, scores: Iterable[Score]) -> list[Score]:
    """Those of some scores that the runs have: not of masks where there are none, nor of sizes that do not occur."""
    runs = [record for arm in comparison.arms.values() for record in arm.values()]
    return [score for score in scores if any(not math.isnan(score.of(record)) for record in runs)]


def added_to(comparison: Comparison, confidence: float = 0.95) -> dict[tuple[str, str], Judged]:
    """Each combination minus each of its parts alone, judged together: by the combination and that part."""
    found = {
        (arm, part): comparison.difference(arm, part, confidence)
        for arm in comparison.arms
        if len(parts_of_arm(arm)) > 1
        for part in parts_of_arm(arm)
    }
    return judged({key: difference for key, difference in found.items() if difference.pairs}, confidence)
