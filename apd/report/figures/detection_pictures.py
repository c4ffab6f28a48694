"""The chosen pictures of detection: scenes as the student alone, a distilled one and the teacher see them."""

from collections.abc import Sequence
from html import escape

from apd.report.comparisons import DETECTION_NAMES, parts_of_variant
from apd.report.detections import ImageCount, count_in_image, least_middle_most
from apd.report.figures.detections import rule_in_words, side_by_side
from apd.report.figures.style import Drawing, Markdown, nothing, stack
from apd.report.findings import ALONE, TEACHER, Findings


def network_names(findings: Findings) -> dict[str, str]:
    """What the networks of a file are called: the student alone first, the teacher last."""
    arms = [name for name in findings.content["runs"] if name not in (ALONE, TEACHER)]
    names = {
        arm: " + ".join(DETECTION_NAMES.get(part, part) for part in parts_of_variant(arm)) for arm in (ALONE, *arms)
    }
    return {**names, TEACHER: "teacher"}


def counts_by_picture(findings: Findings) -> dict[str, list[ImageCount]]:
    """What each network gets right in each picture."""
    dataset = findings.dataset()
    samples = [dataset[place] for place in range(findings.pictures)]
    return {
        network: [count_in_image(*both) for both in zip(samples, findings.found(network), strict=True)]
        for network in network_names(findings)
    }


def chosen_pictures(findings: Findings) -> dict[str, int]:
    """The pictures in which the distilled student is most ahead of the student alone, in the middle, and least."""
    counts = counts_by_picture(findings)
    distilled = next(name for name in counts if name not in (ALONE, TEACHER))
    both = zip(counts[distilled], counts[ALONE], strict=True)
    return least_middle_most([one.score - other.score for one, other in both])


def pictures_side_by_side(findings: Findings) -> Drawing:
    """The chosen pictures as each network sees them, and the truth."""
    names, dataset = network_names(findings), findings.dataset()
    found = {name: findings.found(network) for network, name in names.items()}
    drawn = []
    chosen = chosen_pictures(findings)
    for kind, place in chosen.items():
        here = {name: each[place] for name, each in found.items()}
        title = f"{kind} difference, picture {place}"
        drawn.append(Drawing(f'<p class="apd-above"><strong>{escape(title)}</strong></p>', title))
        drawn.append(side_by_side(dataset[place], here, dataset.spec, key_below=place == list(chosen.values())[-1]))
    return stack(*drawn) if drawn else nothing("0 pictures have findings.")


def choice_in_words(findings: Sequence[Findings]) -> Markdown:
    """The rule of the choice, and what the networks get right in all pictures of each file."""
    if not findings:
        return Markdown(
            "0 files of findings are there, so that no pictures can be shown: "
            "`python -m apd.report.findings` makes one when the campaign’s runs have finished."
        )
    parts = []
    for each in findings:
        names, counts = network_names(each), counts_by_picture(each)
        distilled = next(name for network, name in names.items() if network not in (ALONE, TEACHER))
        lines = [f"Seed {each.content['seed']}. {rule_in_words(distilled, names[ALONE])}", ""]
        for network, name in names.items():
            right, false, missed = (sum(column) for column in zip(*counts[network], strict=True))
            lines.append(f"- {name}: {right} right, {false} false, {missed} missed in {each.pictures} pictures")
        parts.append("\n".join(lines))
    return Markdown("\n\n".join(parts))
