"""Many comparisons together: Holm's correction, on/off designs, average precision. Pure functions of records.

Of twenty intervals at 95 %, one leaves out zero by chance though there is no effect.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal, NamedTuple, TypeVar

from scipy import stats

from apd.evaluation.average_precision import APScores
from apd.report.statistics import (
    Comparison,
    ComparisonError,
    Difference,
    Score,
    check_alike,
    compare,
    mean_interval,
    spread,
    stripped,
)
from apd.study.ablations import BY_CONSTRUCTION, COMPLETE, TERMS, combination
from apd.study.campaigns import CAMPAIGNS
from apd.training.record import Record

Key = TypeVar("Key")
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


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values corrected for their number by Holm's rule; NaN stays NaN and is not counted.

    Calling those below 0.05 significant is wrong about even one of them with a chance of at most 5 %, however the
    comparisons depend on one another.

    >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
    {'a': 0.03, 'b': 0.5, 'c': 0.04}
    """
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


def holm_corrected(differences: Mapping[Key, Difference], confidence: float = 0.95) -> dict[Key, Corrected]:
    """Each difference that has a pair, with its p-value corrected for the number of all of them."""
    kept = {key: found for key, found in differences.items() if found.pairs}
    p_values = holm({key: p_value(found) for key, found in kept.items()})
    return {key: Corrected(found, p_values[key], p_values[key] < 1 - confidence) for key, found in kept.items()}


def corrected_gains(
    comparison: Comparison, variants: Iterable[str], reference: str, confidence: float = 0.95
) -> dict[str, Corrected]:
    """Variants minus one reference, corrected together; those without a seed in common with it are left out."""
    found = {key: comparison.difference(key, reference, confidence) for key in variants if key != reference}
    return holm_corrected(found, confidence)


# On/off designs: that of APD's four terms.


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
        return math.fsum(scores[cell][seed] * (-1) ** len(of - cell) for cell in cells) / (len(cells) / 2)

    return {of: {seed: effect(of, seed) for seed in seeds} for of in cells if of}


def letters_of(on: Factors) -> str:
    """The letters of the terms that are on, joined by +, in the order of the terms."""
    return combination(tuple(letter in on for letter in TERMS.values()))


def is_by_construction(on: Factors) -> bool:
    """Whether a combination only differs from another one by a regularisation that never reaches the student."""
    return "R" in on and letters_of(on) in BY_CONSTRUCTION


TERM_DESIGN: dict[Factors, str] = {
    on: (BY_CONSTRUCTION | COMPLETE).get(letters_of(on), "terms_" + letters_of(on).replace("+", "_").lower())
    for on in subsets(tuple(TERMS.values()))
}
"""All sixteen combinations of terms, with the key of the variant or method whose runs are theirs; none on first."""


def terms_left_out() -> dict[str, int]:
    """How many terms each combination lacks that has runs and is not the complete method, by key, few first."""
    rows = [(key, len(TERMS) - len(on)) for on, key in TERM_DESIGN.items() if not is_by_construction(on)]
    return {key: lacking for key, lacking in reversed(rows) if lacking}


def term_effects(comparison: Comparison, confidence: float = 0.95) -> dict[Factors, Corrected]:
    """Main effects and interactions of the terms on mIoU, corrected together; empty until a seed has all runs."""
    scores = {on: comparison.miou(key) for on, key in TERM_DESIGN.items()}
    effects = factorial_effects(scores, tuple(TERMS.values()))
    return holm_corrected({of: mean_interval(values, confidence) for of, values in effects.items()}, confidence)


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
    fields = ("AP50", "AP75", "small", "medium", "large")
    parts = [ap_score(kind, name, lambda ap, name=name: getattr(ap, name.lower())) for name in fields]
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


def parts_of_variant(variant: str) -> list[str]:
    """The distillers that a variant's key names: `roi_apd_and_review_kd` names two."""
    return variant.split("_and_")


def detection_names(records: Iterable[Record]) -> dict[str, str]:
    """The variants that the records' labels name, in the order of figures, combinations last, with their names.

    A distiller that is not in :data:`DETECTION_NAMES` keeps its key, with spaces.
    """
    order = list(DETECTION_NAMES)

    def place(variant: str) -> tuple[int, list[int], str]:
        parts = parts_of_variant(variant)
        return len(parts), [order.index(part) if part in order else len(order) for part in parts], variant

    variants = sorted({record.experiment.name.split("-")[0] for record in records}, key=place)
    return {
        variant: " + ".join(DETECTION_NAMES.get(part, part.replace("_", " ")) for part in parts_of_variant(variant))
        for variant in variants
    }


def detection_comparisons(records: Sequence[Record]) -> list[Comparison]:
    """Sort records of detection into comparisons by box AP, one for each data configuration.

    A baseline may have been run with the teacher of the others or without one, which changes nothing in it. Errors as
    of :func:`apd.report.statistics.compare`.
    """
    names = detection_names(records)
    comparisons = {one.data: one for one in compare([r for r in records if r.experiment.teacher is not None], names)}
    for without in compare([r for r in records if r.experiment.teacher is None], names):
        if beside := comparisons.get(without.data):
            first, other = beside.any_record, without.any_record
            check_alike(first, other, lambda e: stripped(e, teacher=None))
            if twice := sorted(beside.variants.keys() & without.variants.keys()):
                raise ComparisonError(f"{first.source} and {other.source}: runs of {twice} with and without a teacher")
            without = replace(beside, variants={**beside.variants, **without.variants}).only(names)
        comparisons[without.data] = without
    return [comparison.by(BOX_AP) for comparison in comparisons.values()]


def counted(comparison: Comparison, scores: Iterable[Score]) -> list[Score]:
    """Those of some scores that the runs have: not of masks where there are none, nor of sizes that do not occur."""
    runs = [record for records in comparison.variants.values() for record in records.values()]
    return [score for score in scores if any(not math.isnan(score.of(record)) for record in runs)]


def added_to(comparison: Comparison, confidence: float = 0.95) -> dict[tuple[str, str], Corrected]:
    """Each combination minus each of its parts alone, corrected together: by the combination and that part."""
    pairs = [(variant, part) for variant in comparison.variants for part in parts_of_variant(variant)]
    found = {pair: comparison.difference(*pair, confidence) for pair in pairs if pair[0] != pair[1]}
    return holm_corrected(found, confidence)
