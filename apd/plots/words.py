"""Sentences about an outcome, worded by rule from records: the prose of a chapter never knows how a study ends."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from apd.plots.page import Words
from apd.plots.tables import QUESTIONS, interval, points
from apd.study.campaign import experiments_of
from apd.study.folders import records_folder
from apd.study.recipes import METHOD_NAMES
from apd.study.record import Record, read_record
from apd.study.statistics import Comparison, Difference, compare, paired_difference, planned_and_done


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


def outcome(comparisons: Sequence[Comparison], confidence: float = 0.95) -> Words:
    """For each comparison, what each question's paired difference says: above, below, or not distinguishable."""
    lines = [] if comparisons else ["There is no record yet, so there is no result."]
    for comparison in comparisons:
        lines.append(f"**{comparison.title}**\n")
        for method, reference, equal in QUESTIONS:
            found = paired_difference(comparison.miou(method), comparison.miou(reference), confidence)
            lines.append(f"- {sentence(method, reference, found, confidence)} ({equal}).")
        lines.append("")
    return Words("\n".join(lines))


def sentence(method: str, reference: str, found: Difference, confidence: float) -> str:
    """One difference in words."""
    said = f"“{METHOD_NAMES[method]}” is **{found.verdict}** “{METHOD_NAMES[reference]}”"
    if not found.pairs:
        return f"{said}: no seed has both"
    if len(found.pairs) == 1:
        return f"{said}: {points(found.mean)} points, one seed"
    low, high = points(found.low), points(found.high)
    return (
        f"{said}: {points(found.mean)} points of mIoU, {100 * confidence:g} % interval {low} to {high}, "
        f"{len(found.pairs)} seeds"
    )


def gain_by_context(
    comparisons: Sequence[Comparison], method: str = "apd", reference: str = "student", confidence: float = 0.95
) -> Words:
    """Is a method's gain on scenes larger when every picture has a look of its own? Worded from the seeds."""
    scenes = sorted((c for c in comparisons if c.data.name == "scenes"), key=lambda c: c.data.context_shift)
    if len(scenes) < 2:
        return Words(f"Scenes have records at {len(scenes)} context shifts; the gains of 2 are needed to compare them.")
    gains = [paired_difference(c.miou(method), c.miou(reference), confidence) for c in (scenes[0], scenes[-1])]
    change = paired_difference(gains[1].pairs, gains[0].pairs, confidence)
    low, high = (f"{c.data.context_shift:g}" for c in (scenes[0], scenes[-1]))
    return Words(
        f"The gain of “{METHOD_NAMES[method]}” over “{METHOD_NAMES[reference]}” is {interval(gains[0])} points at a "
        f"context shift of {low} and {interval(gains[1])} at {high}. The second is **{change.verdict}** the first: "
        f"{interval(change)} points."
    )
