"""What many comparisons say together, in sentences worded by rule: which differences remain after the correction."""

from collections.abc import Iterable, Mapping, Sequence

from apd.report.comparisons import Corrected, Factors, corrected_gains, holm_corrected
from apd.report.designs import letters_of
from apd.report.figures.page import Words
from apd.report.figures.tables import interval
from apd.report.statistics import Comparison
from apd.study.ablations import OTHER_METHODS, at_best

MOST_LISTED = 10
"""Of settings that cannot be told from the reference; a longer list is a wall of numbers that a table has better."""


def tally(rows: Mapping[str, Corrected], names: Mapping[str, str], against: str, confidence: float = 0.95) -> str:
    """Rows sorted by what can be said of them, as a Markdown list under a sentence that counts them.

    Args:
        rows: differences that were judged together, by key.
        names: what to call a row, by key.
        against: what all of them are compared with.
        confidence: of the intervals, and of the correction.
    """
    settings = "1 setting" if len(rows) == 1 else f"{len(rows)} settings"
    said = f"{settings} against {against}, judged together at {100 * confidence:g} %."
    headings = {
        "above": "**above**",
        "below": "**below**",
        "before": "above or below only before the correction for their number",
        "not distinguishable from": "not distinguishable",
        "not yet comparable with": "fewer than two seeds so far",
    }
    kinds: dict[str, list[str]] = {kind: [] for kind in headings}
    for key, row in rows.items():
        verdict = row.found.verdict
        kind = "before" if verdict in ("above", "below") and not row.significant else verdict
        kinds[kind].append(f"“{names[key]}” {interval(row.found)}")
    told = {kind: ", ".join(found) or "none" for kind, found in kinds.items()}
    if len(kinds["not distinguishable from"]) > MOST_LISTED:
        told["not distinguishable from"] = "all others; their intervals stand in the table"
    lines = [
        f"- {heading} ({len(kinds[kind])}): {told[kind]}"
        for kind, heading in headings.items()
        if kinds[kind] or kind in ("above", "below")
    ]
    return "\n".join([said, "", *lines])


def tallies(
    comparisons: Sequence[tuple[Comparison, Mapping[str, Corrected]]], reference: str, confidence: float = 0.95
) -> Words:
    """The tally of each comparison's rows against one reference, under the comparison's title."""
    parts = [
        f"**{comparison.title}**: " + tally(rows, comparison.names, f"“{comparison.names[reference]}”", confidence)
        for comparison, rows in comparisons
    ]
    return Words("\n\n".join(parts) or "There is nothing to compare: 0 records yet.")


def effect_name(of: Factors) -> str:
    """A main effect by its letter, an interaction by its letters with crosses between them.

    >>> effect_name(frozenset({"KD", "A"}))
    'A × KD'
    """
    return letters_of(of).replace("+", " × ")


def effects_in_words(comparison: Comparison, effects: Mapping[Factors, Corrected], confidence: float = 0.95) -> Words:
    """What switching each term on does, and which interactions can be told from nothing."""
    if not effects:
        return Words(
            f"**{comparison.title}**: 0 seeds have records of all combinations, so no effect can be computed yet."
        )
    main = {of: row for of, row in effects.items() if len(of) == 1}
    higher = {of: row for of, row in effects.items() if len(of) > 1}
    seeds = len(next(iter(effects.values())).found.pairs)
    lines = [
        f"**{comparison.title}**, {seeds} {'seed' if seeds == 1 else 'seeds'} with every combination, {len(effects)} "
        f"effects judged together at {100 * confidence:g} %:",
        "",
    ]
    lines += [
        f"- switching {effect_name(of)} on {_does(row)}, mean over the others on and off;" for of, row in main.items()
    ]
    told = [f"{effect_name(of)} {interval(row.found)}" for of, row in higher.items() if row.significant]
    lines.append(
        f"- of the {len(higher)} interactions {len(told)} can be told from zero after the correction"
        + (f": {', '.join(told)}." if told else ".")
    )
    return Words("\n".join(lines))


def _does(row: Corrected) -> str:
    found = row.found
    if found.verdict == "not yet comparable with":
        return f"gives {interval(found)} points, one seed"
    if found.verdict == "not distinguishable from":
        return f"does **nothing that can be told from zero**, {interval(found)} points"
    what = "raises" if found.verdict == "above" else "lowers"
    sure = "" if row.significant else ", though not after the correction for the number of effects"
    return f"**{what}** mIoU by {interval(found)} points{sure}"


def added_to_rivals(
    comparison: Comparison, confidence: float = 0.95
) -> tuple[dict[str, Corrected], dict[str, Corrected]]:
    """APD with each of the other methods, by that method's key: minus the method alone, and minus APD alone.

    The method is at the best of its weights in both."""
    found = {key: comparison.difference(f"apd_and_{key}", at_best(key), confidence) for key in OTHER_METHODS}
    against_rival = holm_corrected(
        {key: difference for key, difference in found.items() if difference.pairs}, confidence
    )
    against_apd = corrected_gains(comparison, (f"apd_and_{key}" for key in OTHER_METHODS), "apd", confidence)
    return against_rival, {key.removeprefix("apd_and_"): row for key, row in against_apd.items()}


def complements(
    comparison: Comparison,
    against_rival: Mapping[str, Corrected],
    against_apd: Mapping[str, Corrected],
    confidence: float = 0.95,
) -> Words:
    """Whether APD and another method do more together than either alone, counted after the correction, and all rows."""
    both = [key for key in against_rival if key in against_apd]
    if not both:
        return Words(f"**{comparison.title}**: 0 methods have records alone and together with APD.")
    over_rival = [key for key in both if against_rival[key].significant and against_rival[key].found.mean > 0]
    over_apd = [key for key in both if against_apd[key].significant and against_apd[key].found.mean > 0]
    over_both = [OTHER_METHODS[key][0] for key in over_rival if key in over_apd]
    names = {key: f"{name} and APD" for key, (name, _) in OTHER_METHODS.items()}
    return Words(
        f"**{comparison.title}**: of {len(both)} {'method' if len(both) == 1 else 'methods'}, adding APD is above the "
        f"method alone for **{len(over_rival)}**, and adding the method is above APD alone for **{len(over_apd)}**, "
        f"after the corrections. Above both alone, so that the two complement each other: "
        f"**{', '.join(over_both) or 'none'}**.\n\n"
        f"{tally(against_rival, names, 'the method alone', confidence)}\n\n"
        f"{tally(against_apd, names, 'APD alone', confidence)}"
    )


def seconds_in_words(comparison: Comparison, arms: Iterable[str], yardstick: str = "student_equal_seconds") -> Words:
    """How an arm's seconds compare with those of the yardstick, and for which arms that flatters or handicaps them."""
    here = [arm for arm in arms if arm in comparison.arms]
    if not here or yardstick not in comparison.arms:
        return Words(f"**{comparison.title}**: 0 methods have records beside “{comparison.names[yardstick]}”.")

    def seconds(arm: str) -> float:
        return comparison.step_seconds(arm) * comparison.iterations(arm)

    shares = {arm: seconds(arm) / seconds(yardstick) for arm in here}
    kinds = {
        "as long, within a tenth": [arm for arm in here if abs(shares[arm] - 1) <= 0.1],
        "longer, so that the comparison flatters them": [arm for arm in here if shares[arm] > 1.1],
        "not as long, so that the yardstick had more time than they": [arm for arm in here if shares[arm] < 0.9],
    }
    told = (f"{comparison.names[arm]} {shares[arm]:.2f}" for arm in here)
    lines = [f"**{comparison.title}**: seconds of a run as shares of the yardstick’s: {', '.join(told)}.", ""]
    for kind, those in kinds.items():
        lines.append(f"- {kind} ({len(those)}): {', '.join(comparison.names[arm] for arm in those) or 'none'}")
    return Words("\n".join(lines))
