"""What many comparisons say together: p-values corrected for their number, and the effects of a factorial design.

Of twenty intervals at 95 %, one leaves out zero by chance though nothing is there. Pure functions of paired differences
and of scores by seed, as :mod:`apd.report.statistics`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from apd.report.statistics import Comparison, Difference, spread, t_central

Factors = frozenset[str]
"""The factors of a design that are on; the others are off."""


def p_value(found: Difference) -> float:
    """Two-sided p-value of Student's paired test; NaN below two pairs.

    It is below 1 - confidence just when the interval of the mean leaves out zero. Pairs that are all zero have 1.

    >>> from apd.report.statistics import paired_difference
    >>> round(p_value(paired_difference({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5})), 3)
    0.205
    """
    values = spread(found.pairs.values())
    if values.count < 2:
        return math.nan
    if values.error == 0:
        return 0.0 if values.mean else 1.0
    return 1.0 - t_central(abs(values.mean) / values.error, values.count - 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number by Holm's rule; NaN stays NaN and is not counted.

    The smallest is multiplied by their number, the next by one less, and so on; none falls below the one before it. Who
    calls those below 0.05 different is wrong about even one of them with a chance of at most 5 %, however the
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


class Judged(NamedTuple):
    """A paired difference among others that are judged together."""

    found: Difference
    corrected: float
    """Its p-value after Holm's correction for all that are judged with it; NaN below two pairs."""
    sure: bool
    """Whether it still leaves out zero after that correction."""


def judged(differences: Mapping[str, Difference], confidence: float = 0.95) -> dict[str, Judged]:
    """Each difference with its p-value corrected for the number of all of them.

    >>> from apd.report.statistics import paired_difference
    >>> apart = paired_difference({0: 0.50, 1: 0.51, 2: 0.52}, {0: 0.40, 1: 0.41, 2: 0.43})
    >>> {name: (round(each.corrected, 4), each.sure) for name, each in judged({"a": apart, "b": apart}).items()}
    {'a': (0.0024, True), 'b': (0.0024, True)}
    """
    corrected = holm({name: p_value(found) for name, found in differences.items()})
    return {
        name: Judged(found, corrected[name], corrected[name] < 1 - confidence) for name, found in differences.items()
    }


def judged_arms(
    comparison: Comparison, arms: Iterable[str], reference: str, confidence: float = 0.95
) -> dict[str, Judged]:
    """Arms against one reference, judged together; those without a seed in common with it are left out."""
    found = {arm: comparison.difference(arm, reference, confidence) for arm in arms if arm != reference}
    return judged({arm: difference for arm, difference in found.items() if difference.pairs}, confidence)


def subsets(factors: Sequence[str]) -> Iterator[Factors]:
    """Every combination of factors, none first, then those of one factor, and so on to all.

    >>> [sorted(subset) for subset in subsets("AB")]
    [[], ['A'], ['B'], ['A', 'B']]
    """
    for size in range(len(factors) + 1):
        yield from map(frozenset, combinations(factors, size))


def factorial_effects(
    scores: Mapping[Factors, Mapping[int, float]], factors: Sequence[str]
) -> dict[Factors, dict[int, float]]:
    """Main effects and interactions of a full on/off design, one value for each seed that all combinations have.

    A factor's main effect is the mean of the combinations that have it minus the mean of those that do not. The
    interaction of two is half the difference between the effect of one with the other on and with it off, and so on
    upwards: each is the mean of the half of the combinations that has an even number of the effect's factors off,
    minus the mean of the other half. The score of a combination is the mean of all plus half of every effect, with
    its sign.

    Args:
        scores: for each combination of factors that are on, its score by seed.
        factors: all of them.

    Returns:
        Effects by the factors that they are of, main effects first.

    Raises:
        ValueError: a combination is missing; it is named.

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
