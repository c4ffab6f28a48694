"""Many comparisons together: p-values corrected for their number; average precision; variants of detection.

Of twenty intervals at 95 %, one leaves out zero by chance though there is no effect. Pure functions of records.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal, NamedTuple

from scipy import stats

from apd.evaluation.average_precision import APScores
from apd.report.statistics import Comparison, ComparisonError, Difference, Score, check_alike, compare, spread, stripped
from apd.study.campaigns import CAMPAIGNS
from apd.training.record import Record

Factors = frozenset[str]
"""The factors of a design that are on; the others are off."""


def p_value(found: Difference) -> float:
    """Two-sided p-value of Student's paired test; NaN below two pairs, 1 where all pairs are zero.

    It is below 1 - confidence just when the interval of the mean leaves out zero.
    """
    values = spread(found.pairs.values())
    if values.error == 0:
        return 0.0 if values.mean else 1.0
    return float(2 * stats.t.sf(abs(values.mean) / values.error, values.count - 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number by Holm's rule; NaN stays NaN and is not counted.

    Calling those below 0.05 significant is wrong about even one of them with a chance of at most 5 %, however the
    comparisons depend on one another.

    >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
    {'a': 0.03, 'b': 0.5, 'c': 0.04}
    """
    ordered = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected, least = dict(p_values), 0.0
    for place, (p, name) in enumerate(ordered):
        least = max(least, min(1.0, p * (len(ordered) - place)))
        corrected[name] = least
    return corrected


class Corrected(NamedTuple):
    """A paired difference, Holm-corrected together with others."""

    found: Difference
    corrected: float
    """Its corrected p-value; NaN below two pairs."""
    significant: bool
    """Whether it is significant after that correction."""


def holm_corrected(differences: Mapping[str, Difference], confidence: float = 0.95) -> dict[str, Corrected]:
    """Each difference with its p-value corrected for the number of all of them."""
    corrected = holm({name: p_value(found) for name, found in differences.items()})
    return {
        name: Corrected(found, corrected[name], corrected[name] < 1 - confidence) for name, found in differences.items()
    }


def corrected_gains(
    comparison: Comparison, arms: Iterable[str], reference: str, confidence: float = 0.95
) -> dict[str, Corrected]:
    """Variants minus one reference, corrected together; those without a seed in common with it are left out."""
    found = {arm: comparison.difference(arm, reference, confidence) for arm in arms if arm != reference}
    return holm_corrected({arm: difference for arm, difference in found.items() if difference.pairs}, confidence)


def subsets(factors: Sequence[str]) -> Iterator[Factors]:
    """Every combination of factors, none first, then those of one factor, and so on to all."""
    for size in range(len(factors) + 1):
        yield from map(frozenset, combinations(factors, size))


def factorial_effects(
    scores: Mapping[Factors, Mapping[int, float]], factors: Sequence[str]
) -> dict[Factors, dict[int, float]]:
    """Main effects and interactions of a full on/off design, one value for each seed that all combinations have.

    An effect is the mean of the half of the combinations that has an even number of the effect's factors off, minus
    the mean of the other half: of one factor, of those with it minus those without it. `scores` has one by seed for
    each combination of factors that are on; ValueError names one that is missing.

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
        signed = (scores[cell][seed] * (-1) ** len(of - cell) for cell in cells)
        return math.fsum(signed) / (len(cells) / 2)

    return {of: {seed: effect(of, seed) for seed in seeds} for of in cells if of}


# Detection: the variants are those that the records' labels name, as in `roi_apd_and_review_kd-seed2`.

Kind = Literal["boxes", "masks"]


def ap_score(kind: Kind, name: str, of: Callable[[APScores], float]) -> Score:
    """A score that is read off the average precision of boxes or of masks (`kind`) by `of`."""

    def read(ap: dict[str, APScores] | None) -> float:
        return of(ap[kind]) if ap and kind in ap else math.nan

    return Score(name, lambda record: read(record.ap), lambda record: read(record.teacher_ap))


BOX_AP = ap_score("boxes", "box AP", lambda ap: ap.ap)
MASK_AP = ap_score("masks", "mask AP", lambda ap: ap.ap)
MAIN_AP: dict[Kind, Score] = {"boxes": BOX_AP, "masks": MASK_AP}
"""The mean over ten overlaps and all classes, COCO's main score."""


def parts_of_ap(kind: Kind, class_names: Sequence[str]) -> list[Score]:
    """AP at two overlaps, by size of the objects, and class by class.

    >>> [score.name for score in parts_of_ap("boxes", ["car"])]
    ['AP50', 'AP75', 'small', 'medium', 'large', 'car']
    """
    parts = [
        ap_score(kind, name, lambda ap, name=name: getattr(ap, name.lower()))
        for name in ("AP50", "AP75", "small", "medium", "large")
    ]
    return parts + [ap_score(kind, name, lambda ap, k=k: float(ap.ap_K[k])) for k, name in enumerate(class_names)]


DETECTION_NAMES = {
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
"""What every variant is compared with: no teacher, and the plainest use of one."""


def detection_campaigns() -> list[str]:
    """The campaigns whose experiments are of detection, in their order."""
    firsts = {name: next(iter(experiments()), None) for name, experiments in CAMPAIGNS.items()}
    return [name for name, first in firsts.items() if getattr(first, "task", "") == "detection"]


def parts_of_variant(arm: str) -> list[str]:
    """The distillers that a variant's key names.

    >>> parts_of_variant("roi_apd_and_review_kd")
    ['roi_apd', 'review_kd']
    """
    return arm.split("_and_")


def detection_names(records: Iterable[Record]) -> dict[str, str]:
    """The variants that the records' labels name, in the order of figures, with what they are called.

    Combinations come last. A distiller that is not in :data:`DETECTION_NAMES` keeps its key, in words.
    """
    order = list(DETECTION_NAMES)
    arms = {record.experiment.name.split("-")[0] for record in records}

    def place(arm: str) -> tuple[int, list[int], str]:
        parts = parts_of_variant(arm)
        return len(parts), [order.index(part) if part in order else len(order) for part in parts], arm

    return {
        arm: " + ".join(DETECTION_NAMES.get(part, part.replace("_", " ")) for part in parts_of_variant(arm))
        for arm in sorted(arms, key=place)
    }


def detection_comparisons(records: Sequence[Record]) -> list[Comparison]:
    """Sort records of detection into comparisons by box AP, one for each data configuration.

    A baseline may have been run with the teacher of the others or without one, which changes nothing in it. Errors as
    of :func:`apd.report.statistics.compare`.
    """
    names = detection_names(records)
    comparisons = {one.data: one for one in compare([r for r in records if r.experiment.teacher is not None], names)}
    for without in compare([r for r in records if r.experiment.teacher is None], names):
        if taught := comparisons.get(without.data):
            first, other = taught.any_record, without.any_record
            check_alike(first, other, lambda e: stripped(e, teacher=None))
            if twice := taught.arms.keys() & without.arms.keys():
                raise ComparisonError(
                    f"{first.source} and {other.source}: runs of {sorted(twice)} with and without a teacher"
                )
            both = {**taught.arms, **without.arms}
            without = replace(taught, arms={arm: both[arm] for arm in names if arm in both})
        comparisons[without.data] = without
    return [comparison.by(BOX_AP) for comparison in comparisons.values()]


def counted(comparison: Comparison, scores: Iterable[Score]) -> list[Score]:
    """Those of some scores that the runs have: not of masks where there are none, nor of sizes that do not occur."""
    runs = [record for arm in comparison.arms.values() for record in arm.values()]
    return [score for score in scores if any(not math.isnan(score.of(record)) for record in runs)]


def added_to(comparison: Comparison, confidence: float = 0.95) -> dict[tuple[str, str], Corrected]:
    """Each combination minus each of its parts alone, corrected together: by the combination and that part."""
    found = {
        (arm, part): comparison.difference(arm, part, confidence)
        for arm in comparison.arms
        if len(parts_of_variant(arm)) > 1
        for part in parts_of_variant(arm)
    }
    return holm_corrected({key: difference for key, difference in found.items() if difference.pairs}, confidence)
