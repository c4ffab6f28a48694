"""How the learning rates and weights of detection were chosen: box AP on the validation split for each trial."""

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from apd.evaluation.average_precision import ap_scores, tables_of
from apd.report.comparisons import DETECTION_NAMES
from apd.report.figures.style import Drawing, nothing, table
from apd.report.figures.tables import last_validation, marked_row
from apd.study.coco_recipes import DETECTION_FACTORS, STUDENT_RATE, UNTUNED, distillers_on_scenes
from apd.training.record import Record

_WEIGHTS = "weights × {:g}"
_CAPTION = (
    "box AP in per cent on val after the last step, one seed; ◂ marks the best of a row; "
    "a dash: not run, or stopped by a loss that was not finite"
)


def validation_box_ap(record: Record) -> float | None:
    """Box AP on val after the last step; None where the run was not scored there."""
    found = last_validation(record)
    return ap_scores(tables_of(found["ap"])["boxes"]).ap if found else None


def detection_rates_table(records: Sequence[Record]) -> Drawing:
    """Box AP on val of the teacher and of each method at its untuned weights, by learning rate, the best one marked.

    Args:
        records: of `scenes-detection-tuning`; trials of weights are left out.
    """
    methods = {distillers_on_scenes(method, 1.0): method for method in UNTUNED}
    found: dict[str, dict[float, float]] = {}
    for record, score in _scored(records):
        experiment = record.experiment
        teaches = experiment.name.startswith("teacher-")
        whose = "teacher" if teaches else methods.get(experiment.distillers)
        if whose is not None:
            found.setdefault(whose, {})[experiment.training.learning_rate] = score
    tried = {whose: scores for whose, scores in found.items() if len(scores) > 1}
    if not tried:
        return nothing("No trial of detection’s rates is recorded yet: 0 runs have a score on val.")
    return _table(tried, {"teacher": "teacher"} | DETECTION_NAMES, "rate {:g}")


def detection_weights_table(records: Sequence[Record]) -> Drawing:
    """Box AP on val of each method with its weights multiplied by each of the factors, the best one marked.

    Args:
        records: of `scenes-detection-tuning`; trials of rates are left out.
    """
    found: dict[str, dict[float, float]] = {}
    for method, factor, record in _weight_trials(records):
        found.setdefault(method, {})[factor] = validation_box_ap(record)
    if not any(factor != 1 for scores in found.values() for factor in scores):
        return nothing("No trial of detection’s weights is recorded yet: 0 runs have a score on val.")
    return _table(found, DETECTION_NAMES, _WEIGHTS, DETECTION_FACTORS)


def shares_table(records: Sequence[Record]) -> Drawing:
    """How much of the student's loss is the distillers' over the last tenth of the curves, by method and factor.

    Args:
        records: as of :func:`detection_weights_table`.
    """
    found: dict[str, dict[str, str]] = {}
    for method, factor, record in _weight_trials(records):
        row = found.setdefault(method, dict.fromkeys(map(_WEIGHTS.format, DETECTION_FACTORS), "–"))
        row[_WEIGHTS.format(factor)] = f"{100 * share_of_distillers(record):.0f}"
    if not found:
        return nothing("No trial of detection’s weights is recorded yet: 0 runs have curves.")
    rows = {name: found[method] for method, name in DETECTION_NAMES.items() if method in found}
    caption = "per cent of the student’s loss that are the distillers’, over the last tenth of a run; a dash: as above"
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def share_of_distillers(record: Record) -> float:
    """What the detector's own losses leave of the loss that trains the student, over the last tenth of the curves.

    The regularisation of APD is left out of both: it trains the teacher's head alone.

    Returns:
        a fraction.
    """
    curves = record.content["curves"]
    last = math.ceil(len(curves["loss"]) / 10)

    def total(name: str) -> float:
        return math.fsum(curves[name][-last:])

    own = math.fsum(total(name) for name in curves if name.startswith("loss_"))
    of_the_teacher = math.fsum(
        distiller.regularisation * total(f"{distiller.method}.regularisation")
        for distiller in record.experiment.distillers
        if getattr(distiller, "regularisation", 0)
    )
    return 1 - own / (total("loss") - of_the_teacher)


def _weight_trials(records: Sequence[Record]) -> Iterator[tuple[str, float, Record]]:
    """The runs that are a trial of a method's weights: method, factor, record."""
    trials = {
        distillers_on_scenes(method, factor): (method, factor)
        for method in UNTUNED
        for factor in DETECTION_FACTORS
        if UNTUNED[method]
    }
    for record, _ in _scored(records):
        trial = trials.get(record.experiment.distillers)
        if trial is not None and record.experiment.training.learning_rate == STUDENT_RATE:
            yield *trial, record


def _scored(records: Sequence[Record]) -> list[tuple[Record, float]]:
    """The records of the first seed that were scored on val after the last step."""
    scored = [(record, validation_box_ap(record)) for record in records if record.experiment.seed == 0]
    return [(record, score) for record, score in scored if score is not None]


def _table(
    found: Mapping[str, Mapping[float, float]], names: Mapping[str, str], column: str, trials: Sequence[float] = ()
) -> Drawing:
    trials = trials or sorted({trial for scores in found.values() for trial in scores})
    rows = {name: marked_row(found[whose], trials, column) for whose, name in names.items() if whose in found}
    return table(pd.DataFrame.from_dict(rows, orient="index"), _CAPTION)
