"""What distillation does for detectors: set-up, average precision over seeds, its parts, and combinations."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields

import pandas as pd
import torch

from apd.config.experiment import Experiment
from apd.evaluation.average_precision import AREAS
from apd.report.comparisons import (
    DETECTION_NAMES,
    MAIN_AP,
    Corrected,
    Kind,
    added_to,
    corrected_gains,
    counted,
    parts_of_ap,
)
from apd.report.figures.forest import POINTS, gain_columns
from apd.report.figures.sentences import tally
from apd.report.figures.style import Drawing, Markdown, nothing, table
from apd.report.figures.tables import per_cent
from apd.report.statistics import Comparison, Score, spread
from apd.training.detection import DetectionTask

NETWORK_WORDS = {
    "kind": "network",
    "backbone": "backbone",
    "weights": "initial weights",
    "width": "channels of the pyramid",
    "box_width": "length of a box’s vector",
    "smallest_anchor": "smallest anchors, pixels",
    "proposals": "proposals of a picture",
    "rois": "boxes that the box head is trained on",
    "detections": "most findings in a picture",
}
"""Fields of a network's configuration as the set-up names them; others keep their names."""
TRAINING_WORDS = {"iterations": "steps", "batch_size": "pictures in a step", "learning_rate": "learning rate"}
DRAWN = ("roi_kd", "roi_apd", "dense_apd")
"""Arms of the figure of parts: as many columns as a page has room for."""
SIZES = AREAS[1:]
AREA_BORDERS = (32.0**2, 96.0**2)
"""In pixels, between COCO's small, medium and large things."""


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def setup_table(comparison: Comparison) -> Drawing:
    """Teacher and student side by side, as the records' experiments have them."""
    experiment = _with_teacher(comparison)
    teacher = experiment.teacher
    nets = {"teacher": teacher and teacher.network, "student": experiment.network}
    trainings = {"teacher": teacher and teacher.training, "student": experiment.training}
    rows: dict[str, dict[str, str]] = {}
    for words, parts in ((NETWORK_WORDS, nets), (TRAINING_WORDS, trainings)):
        for who, part in parts.items():
            told = {} if part is None else {field.name: getattr(part, field.name) for field in fields(part)}
            for name in words if words is TRAINING_WORDS else {**words, **told}:
                if name in told:
                    rows.setdefault(words.get(name, name), {})[who] = _text(told[name])
    data, content = experiment.data, comparison.any_record.content["data"]
    caption = (
        f"{comparison.title}: pictures of {data.height} × {data.width} pixels, scored on {content['images']} of "
        f"{content['split']}; classes {', '.join(comparison.any_record.class_names)}"
    )
    return table(pd.DataFrame.from_dict(rows, orient="index").fillna("–"), caption)


def _with_teacher(comparison: Comparison) -> Experiment:
    """One of the experiments, with a teacher where any has one."""
    experiments = [record.experiment for arm in comparison.variants.values() for record in arm.values()]
    return next((e for e in experiments if e.teacher is not None), experiments[0])


def distillers_in_words(comparison: Comparison) -> Markdown:
    """The distillers of each arm with all their settings, as the records' experiments have them."""
    lines = []
    for arm, runs in comparison.variants.items():
        told = []
        for config in next(iter(runs.values())).experiment.distillers:
            settings = (f"`{f.name}` {_text(getattr(config, f.name))}" for f in fields(config) if f.name != "method")
            told.append(f"{DETECTION_NAMES.get(config.method, config.method)} ({', '.join(settings)})")
        lines.append(f"- **{comparison.names[arm]}**, {len(runs)} seeds: {'; '.join(told) or 'no distiller'}")
    return Markdown("\n".join([f"**{comparison.title}**", "", *lines]))


def by_kind(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Each comparison by box AP, and by mask AP where its runs have masks."""
    found = []
    for comparison in comparisons:
        found += [comparison.by(score) for score in counted(comparison, MAIN_AP.values())]
    return found


def judged_by_kind(
    comparisons: Iterable[Comparison], reference: str, confidence: float = 0.95
) -> list[tuple[Comparison, dict[str, Corrected]]]:
    """Every arm against one reference, judged together within each comparison and score."""
    return [
        (comparison, corrected_gains(comparison, comparison.variants, reference, confidence))
        for comparison in by_kind(comparisons)
    ]


def ap_tallies(comparisons: Sequence[Comparison], reference: str, confidence: float = 0.95) -> Markdown:
    """What is above the reference, below it or not distinguishable, for boxes and for masks."""
    parts = []
    for comparison, rows in judged_by_kind(comparisons, reference, confidence):
        against = f"“{comparison.names.get(reference, DETECTION_NAMES.get(reference, reference))}”"
        parts.append(
            f"**{comparison.title}, {comparison.score.name}**: {tally(rows, comparison.names, against, confidence)}"
        )
    return Markdown("\n\n".join(parts) or "There is nothing to compare: 0 records of detection yet.")


def additions_in_words(comparisons: Sequence[Comparison], confidence: float = 0.95) -> Markdown:
    """What each combination is above, of the methods that it is made of."""
    parts = []
    for comparison in by_kind(comparisons):
        rows = added_to(comparison, confidence)
        names = {
            (arm, part): f"{comparison.names[arm]}, minus {DETECTION_NAMES.get(part, part)} alone" for arm, part in rows
        }
        if rows:
            against = "one of their parts alone"
            told = tally(rows, names, against, confidence)
            parts.append(f"**{comparison.title}, {comparison.score.name}**: {told}")
    return Markdown(
        "\n\n".join(parts) or "0 combinations have records beside those of their parts, so nothing can be said."
    )


def _all_scores(comparison: Comparison, kind: Kind) -> list[Score]:
    scores = [MAIN_AP[kind], *parts_of_ap(kind, comparison.any_record.class_names)]
    return counted(comparison, scores)


def parts_table(comparison: Comparison, kind: Kind) -> Drawing:
    """AP and its parts of every arm and of the teacher: mean ± standard deviation over seeds, in per cent."""
    scores = _all_scores(comparison, kind)
    if not scores:
        return nothing(f"{comparison.title}: 0 records have an AP of {kind}.")
    rows = {}
    for arm, runs in comparison.variants.items():
        told = {score.name: per_cent(spread(comparison.by(score).values(arm).values())) for score in scores}
        rows[comparison.names[arm]] = {"seeds": str(len(runs)), **told}
    teacher = {score.name: comparison.by(score).teacher_score for score in scores}
    if not all(map(math.isnan, teacher.values())):
        told = {name: "–" if math.isnan(value) else f"{POINTS * value:.1f}" for name, value in teacher.items()}
        rows["teacher"] = {"seeds": "–", **told}
    missing = {"small", "medium", "large"} - {score.name for score in scores}
    said = f"; nothing to be found is {' or '.join(sorted(missing))}" if missing else ""
    caption = f"{comparison.title}: AP of {kind} in per cent, mean ± standard deviation over seeds{said}"
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def parts_of_gains(
    comparison: Comparison, kind: Kind, reference: str = "student", arms: Sequence[str] = DRAWN
) -> Drawing:
    """Points of AP gained over the reference, part by part, one column for each arm; a point is a seed.

    Beside a part stands the reference's own AP in per cent.
    """
    scores = _all_scores(comparison, kind)
    shown = [arm for arm in arms if arm != reference and comparison.difference(arm, reference).pairs]
    if not scores or not shown:
        return nothing(f"{comparison.title}, {kind}: 0 arms have a seed in common with the reference.")
    columns = {
        arm: {
            f"{score.name} {POINTS * _level(by, reference):.0f}": [
                POINTS * value for value in by.difference(arm, reference).pairs.values()
            ]
            for score in scores
            for by in [comparison.by(score)]
        }
        for arm in shown
    }
    axis = f"AP minus that of “{comparison.names[reference]}”, points"
    return gain_columns(columns, comparison.names, axis, f"{comparison.title}, {kind}")


def _level(comparison: Comparison, arm: str) -> float:
    return spread(comparison.values(arm).values()).mean


def things_in_words(comparisons: Sequence[Comparison]) -> Markdown:
    """How many things of each size there were to be found in scenes: AP over few of them is left to chance.

    Scenes that today's generator would not draw again are not counted.
    """
    lines = []
    for comparison in comparisons:
        record = comparison.any_record
        scenes = DetectionTask(record.experiment).split(record.experiment.data.evaluation_split)
        if scenes.fingerprint() == record.content["data"]["fingerprint"]:
            areas_N = torch.cat([sample.areas_N[~sample.crowd_N] for sample in scenes])
            counts = torch.bucketize(areas_N, torch.tensor(AREA_BORDERS)).bincount(minlength=len(SIZES)).tolist()
            told = ", ".join(f"{count} {size}" for count, size in zip(counts, SIZES, strict=True))
            lines.append(
                f"**{comparison.title}**: {len(areas_N)} things to be found in {len(scenes)} pictures; {told}."
            )
    return Markdown("\n\n".join(lines) or "Of 0 sets of scenes the things can be counted.")


def seen_by_heart(comparisons: Sequence[Comparison]) -> Markdown:
    """What runs on real pictures show, where the pictures scored are those trained on: that training works."""
    lines = []
    for comparison in (one for one in by_kind(comparisons) if one.data.name != "scenes"):
        by_heart = getattr(comparison.data, "train_part", "") == getattr(comparison.data, "val_part", None)
        for arm, runs in comparison.variants.items():
            record = next(iter(runs.values()))
            loss = record.content["curves"]["loss"]
            falls = "falls" if loss[-1] < loss[0] else "does not fall"
            lines.append(
                f"- {comparison.title}, {comparison.names[arm]}: {comparison.score.name} "
                f"{per_cent(spread(comparison.values(arm).values()))} on {record.content['data']['images']} pictures, "
                f"{'those that it was trained on' if by_heart else 'not seen in training'}; in the first run the loss "
                f"{falls}, from {loss[0]:.2f} to {loss[-1]:.2f} in {record.experiment.training.iterations} steps"
            )
        teacher, alone = (
            comparison.teacher_score,
            _level(comparison, "student") if "student" in comparison.variants else 0,
        )
        if not math.isnan(teacher):
            lacks = ", less than the student alone, so that there is little to learn from it" if teacher < alone else ""
            lines.append(f"- {comparison.title}, the teacher: {comparison.score.name} {POINTS * teacher:.1f}{lacks}")
    return Markdown("\n".join(lines) or "0 runs on real pictures are recorded here.")
