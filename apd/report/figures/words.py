"""Sentences about an outcome, worded by rule from records: the prose of a chapter never knows how a study ends."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from apd.report.figures.page import Words
from apd.report.figures.tables import QUESTIONS, digits_of, interval, points
from apd.report.statistics import Comparison, Difference, compare, paired_difference, planned_and_done
from apd.study.ablations import variant_names
from apd.study.campaigns import experiments_of
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record, read_record
from apd.training.run import records_folder


def read_campaign(name: str, folder: Path | None = None) -> tuple[list[Record], str]:
    """The records of a campaign's planned runs, and a sentence that says how far it has got.

    Args:
        name: of the campaign.
        folder: where the folders of all campaigns lie; None is the committed records'.

    Raises:
        RecordError: a file of the folder is no valid record.
    """
    planned = experiments_of(name)
    where = folder / name if folder else records_folder(name)
    found = [read_record(path) for path in sorted(where.glob("*.json"))]
    records, missing = planned_and_done(planned, found)
    sentence = f"{name}: {len(planned) - missing} of {len(planned)} planned runs have a record"
    if left_out := len(found) - len(records):
        sentence += f"; {left_out} of other settings left out"
    if missing:
        sentence += f"; `apd campaign {name}` runs the other {missing}"
    return records, sentence + "."


def read_campaigns(names: Sequence[str], folder: Path | None = None) -> tuple[dict[str, list[Record]], Words]:
    """Several campaigns' records by name, and how far each has got.

    Raises:
        FileNotFoundError: `folder` is given and does not exist.
        RecordError: a file is no valid record.
    """
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"records={str(folder)!r}: there is no such folder; it should hold {', '.join(names)}")
    records, sentences = {}, []
    for name in names:
        records[name], sentence = read_campaign(name, folder)
        sentences.append(f"- {sentence}")
    return records, Words("\n".join(sentences))


def comparisons_of(campaigns: Mapping[str, Sequence[Record]]) -> list[Comparison]:
    """The comparisons of all campaigns, in their order; none where there is no record.

    Raises:
        ComparisonError: records that cannot be compared.
    """
    return [comparison for records in campaigns.values() for comparison in compare(records)]


def beside_methods(campaigns: Mapping[str, Sequence[Record]], arms: Mapping[str, str]) -> list[Comparison]:
    """Comparisons in which arms stand beside the methods of the study, on the data of the arms.

    Args:
        campaigns: records by campaign.
        arms: for each campaign of arms the campaign of methods that goes with it; unknown ones are passed over, and
            campaigns that share their methods become one comparison.

    Raises:
        ComparisonError: records that cannot be compared.
    """
    names = METHOD_NAMES | variant_names()
    comparisons = []
    for methods in dict.fromkeys(arms.values()):
        joined = [arm for arm in arms if arms[arm] == methods and arm in campaigns]
        wanted = {experiment.data for arm in joined for experiment in experiments_of(arm)}
        records = [record for name in (methods, *joined) for record in campaigns[name]]
        comparisons += compare([record for record in records if record.experiment.data in wanted], names)
    return comparisons


def outcome(
    comparisons: Sequence[Comparison], confidence: float = 0.95, questions: Sequence[tuple[str, str, str]] = QUESTIONS
) -> Words:
    """For each comparison, what each question's paired difference says: above, below, or not distinguishable.

    Questions of which no seed has both records are counted.

    Args:
        comparisons: whose records answer.
        confidence: of the intervals.
        questions: method, what it is compared with, and a remark.
    """
    lines = [] if comparisons else ["There is no result, because there are 0 records yet."]
    for comparison in comparisons:
        lines.append(f"**{comparison.title}**\n")
        found = {question: comparison.difference(*question[:2], confidence) for question in questions}
        for (method, reference, remark), difference in found.items():
            if difference.pairs:
                lines.append(f"- {sentence(method, reference, difference, confidence, comparison.names)} ({remark}).")
        if open_questions := sum(not difference.pairs for difference in found.values()):
            lines.append(f"- {open_questions} of {len(found)} questions have no seed with both records.")
        lines.append("")
    return Words("\n".join(lines))


def sentence(
    method: str, reference: str, found: Difference, confidence: float, names: Mapping[str, str] = METHOD_NAMES
) -> str:
    """One difference in words."""
    said = f"“{names[method]}” is **{found.verdict}** “{names[reference]}”"
    if len(found.pairs) == 1:
        return f"{said}: {points(found.mean)} points, one seed"
    mean, low, high = (points(value, digits_of(found)) for value in found[:3])
    return f"{said}: {mean} points of mIoU, {100 * confidence:g} % interval {low} to {high}, {len(found.pairs)} seeds"


def gain_by_context(
    comparisons: Sequence[Comparison], method: str = "apd", reference: str = "student", confidence: float = 0.95
) -> Words:
    """Is a method's gain on scenes larger when every picture has a look of its own? Worded from the seeds."""
    scenes = sorted((c for c in comparisons if c.data.name == "scenes"), key=lambda c: c.data.context_shift)
    if len(scenes) < 2:
        return Words(f"Scenes have records at {len(scenes)} context shifts; the gains of 2 are needed to compare them.")
    low, high = (f"{c.data.context_shift:g}" for c in (scenes[0], scenes[-1]))
    places = (f"at a context shift of {low}", f"at {high}")
    return Words(_change_of_gain((scenes[0], scenes[-1]), places, method, reference, confidence))


def gain_by_length(
    short: Comparison, long: Comparison, questions: Sequence[tuple[str, str]], confidence: float = 0.95
) -> Words:
    """Is a method's gain larger after a longer training? A sentence for each method and its reference, from the seeds.

    Args:
        short, long: the same methods on the same data, with fewer and with more steps.
        questions: method, and what it is compared with.
        confidence: of the intervals.
    """
    lines = []
    for method, reference in questions:
        both = [c.arms[method] for c in (short, long) if {method, reference} <= c.arms.keys()]
        if len(both) == 2:
            steps = [next(iter(runs.values())).experiment.training.iterations for runs in both]
            places = (f"after {steps[0]} steps", f"after {steps[1]}")
            lines.append(f"- {_change_of_gain((short, long), places, method, reference, confidence)}")
    said = "\n".join(lines) or "There is no record of both lengths yet."
    return Words(f"**{short.title}**\n\n{said}")


def _change_of_gain(
    comparisons: tuple[Comparison, Comparison],
    places: tuple[str, str],
    method: str,
    reference: str,
    confidence: float,
) -> str:
    gains = [paired_difference(c.miou(method), c.miou(reference), confidence) for c in comparisons]
    change = paired_difference(gains[1].pairs, gains[0].pairs, confidence)
    return (
        f"The gain of “{METHOD_NAMES[method]}” over “{METHOD_NAMES[reference]}” is {interval(gains[0])} points "
        f"{places[0]} and {interval(gains[1])} {places[1]}. The second is **{change.verdict}** the first: "
        f"{interval(change)} points."
    )
