"""The full on/off design of APD's four terms: which arm each combination is, and the terms' effects, seed by seed."""

from collections.abc import Iterator

from apd.report.multiple_comparisons import Factors, Judged, factorial_effects, judged, subsets
from apd.report.statistics import Comparison, paired_difference
from apd.study.ablations import BY_CONSTRUCTION, COMPLETE, TERMS, combination


def letters_of(on: Factors) -> str:
    """The letters of the terms that are on, joined by +, in the order of the terms.

    >>> letters_of(frozenset({"KD", "A"}))
    'A+KD'
    """
    return combination(tuple(letter in on for letter in TERMS.values()))


def arm_of_terms(on: Factors) -> str:
    """The arm or method whose runs are those of a combination of terms.

    >>> arm_of_terms(frozenset({"R", "KD"})), arm_of_terms(frozenset({"A", "O"}))
    ('pixel_kd', 'terms_a_o')
    """
    letters = letters_of(on)
    others = BY_CONSTRUCTION | COMPLETE
    return others[letters] if letters in others else "terms_" + letters.replace("+", "_").lower()


def is_by_construction(on: Factors) -> bool:
    """Whether a combination only differs from another one by a regularisation that nothing passes on to the student."""
    return "R" in on and letters_of(on) in BY_CONSTRUCTION


def combinations_of_terms() -> Iterator[Factors]:
    """All sixteen, none on first."""
    return subsets(tuple(TERMS.values()))


def terms_left_out() -> dict[str, int]:
    """Every combination that has runs and is not the complete method, by its arm: how many terms it lacks, few first.

    >>> list(terms_left_out().items())[:2]
    [('terms_a_o_kd', 1), ('terms_r_o_kd', 1)]
    """
    incomplete = [on for on in combinations_of_terms() if len(on) < len(TERMS) and not is_by_construction(on)]
    return {arm_of_terms(on): len(TERMS) - len(on) for on in reversed(incomplete)}


def term_effects(comparison: Comparison, confidence: float = 0.95) -> dict[Factors, Judged]:
    """Main effects and interactions of the terms on mIoU, judged together; empty until a seed has all combinations."""
    scores = {on: comparison.miou(arm_of_terms(on)) for on in combinations_of_terms()}
    effects = factorial_effects(scores, tuple(TERMS.values()))
    by_letters = {letters_of(of): of for of, values in effects.items() if values}
    found = {
        letters: paired_difference(effects[of], dict.fromkeys(effects[of], 0.0), confidence)
        for letters, of in by_letters.items()
    }
    return {by_letters[letters]: row for letters, row in judged(found, confidence).items()}
