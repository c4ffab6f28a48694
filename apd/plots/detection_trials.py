"""How the learning rates and weights of detection were chosen: box AP on the validation split for each trial."""

from collections.abc import Mapping, Sequence

import pandas as pd

from apd.evaluate.coco_ap import ap_scores
from apd.plots.page import Drawing, nothing, table
from apd.plots.rates import marked_row
from apd.study.ap_entry import tables_of
from apd.study.detection_comparison import ARM_NAMES
from apd.study.detection_recipes import DETECTION_FACTORS, STUDENT_RATE, UNTUNED, distillers_on_scenes
from apd.study.record import Record

_CAPTION = (
    "box AP in per cent on val after the last step, one seed; ◂ marks the best of a row; "
    "a dash: not run, or stopped by a loss that was not finite"
)


def validation_box_ap(record: Record) -> float | None:
    """Box AP on val after the last step; None where the run was not scored there."""
    last = record.experiment.training.iterations
    found = [e for e in record.content["evaluations"] if e["step"] == last and e["split"] == "val"]
    return ap_scores(tables_of(found[0]["ap"])["boxes"]).ap if found else None


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
    return _table(tried, {"teacher": "teacher"} | ARM_NAMES, "rate {:g}")


def detection_weights_table(records: Sequence[Record]) -> Drawing:
    """Box AP on val of each method with its weights multiplied by each of the factors, the best one marked.

    Args:
        records: of `scenes-detection-tuning`; trials of rates are left out.
    """
    tried_methods = [method for method in UNTUNED if UNTUNED[method]]
    trials = {
        distillers_on_scenes(method, factor): (method, factor)
        for method in tried_methods
        for factor in DETECTION_FACTORS
    }
    found: dict[str, dict[float, float]] = {}
    for record, score in _scored(records):
        trial = trials.get(record.experiment.distillers)
        if trial is not None and record.experiment.training.learning_rate == STUDENT_RATE:
            method, factor = trial
            found.setdefault(method, {})[factor] = score
    if not any(factor != 1 for scores in found.values() for factor in scores):
        return nothing("No trial of detection’s weights is recorded yet: 0 runs have a score on val.")
    return _table(found, ARM_NAMES, "weights × {:g}", DETECTION_FACTORS)


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
