"""Detection's comparisons and tables: what is shown is what the committed records have, whichever are there."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from chapter_cells import run_cells
from made_up_findings import made_up_findings, maker

from apd.config.identity import fingerprint, to_dict
from apd.report.detections import (
    BOX_AP,
    MASK_AP,
    added_to,
    counted,
    detection_campaigns,
    detection_comparisons,
    detection_names,
    parts_of_ap,
)
from apd.report.figures import trials as reading
from apd.report.figures.boxes import by_kind, detection_trials_table, parts_table, validation_box_ap
from apd.report.statistics import ComparisonError, paired_difference, spread
from apd.training.record import Record, read_records
from apd.training.run import records_folder


@pytest.fixture(scope="module")
def records():
    return read_records(records_folder("scenes-detection"))


@pytest.fixture(scope="module")
def trials():
    return read_records(records_folder("scenes-detection-tuning"))


@pytest.fixture(scope="module")
def comparison(records):
    (found,) = detection_comparisons(records)
    return found


def with_experiment(record, entries=None, **fields):
    experiment = replace(record.experiment, **fields)
    new = {"experiment": to_dict(experiment), "fingerprint": fingerprint(experiment)}
    return Record(record.content | new | (entries or {}))


def of(records, method):
    return {r.experiment.seed: r for r in records if r.experiment.name.split("-")[0] == method}


def test_a_comparison_is_by_the_average_precision_that_each_record_holds(records, comparison):
    assert [each.score for each in by_kind([comparison])] == [BOX_AP, MASK_AP]
    for kind, by in zip(("boxes", "masks"), by_kind([comparison]), strict=True):
        assert by.values("roi_apd") == {seed: r.ap[kind].ap for seed, r in of(records, "roi_apd").items()}
        assert by.teacher_score == of(records, "roi_apd")[0].teacher_ap[kind].ap
        found = by.difference("roi_apd", "student")
        expected = paired_difference(by.values("roi_apd"), by.values("student"))
        assert (found.mean, found.low, found.high) == (expected.mean, expected.low, expected.high)


def test_parts_of_ap_are_those_of_the_table_and_sizes_that_do_not_occur_are_left_out(records, comparison):
    names = comparison.any_record.class_names
    parts = {score.name: comparison.by(score) for score in parts_of_ap("boxes", names)}
    ap = of(records, "student")[0].ap["boxes"]
    assert parts["AP50"].values("student")[0] == ap.ap50
    assert parts["small"].values("student")[0] == ap.small
    assert math.isnan(parts["large"].values("student")[0])
    assert [parts[name].values("student")[0] for name in names] == ap.ap_K.tolist()
    kept = [score.name for score in counted(comparison, parts_of_ap("boxes", names))]
    assert kept == ["AP50", "AP75", "small", "medium", *names]


def test_single_methods_come_before_combinations_and_unknown_ones_keep_their_key():
    variants = ("roi_apd_and_review_kd", "foam_kd", "roi_apd", "student", "review_kd")
    records = [SimpleNamespace(experiment=SimpleNamespace(name=f"{variant}-seed0")) for variant in variants]
    names = detection_names(records)
    assert list(names) == ["student", "review_kd", "roi_apd", "foam_kd", "roi_apd_and_review_kd"]
    assert names["foam_kd"] == "foam kd"
    assert names["roi_apd_and_review_kd"] == "APD of boxes + ReviewKD"


def test_records_of_another_teacher_are_refused(records):
    first, *others = records
    other = with_experiment(first, {"teacher": first.content["teacher"] | {"ap": first.content["ap"]}})
    with pytest.raises(ComparisonError, match="teacher's ap"):
        detection_comparisons([other, *others])


def test_the_table_of_parts_has_every_variant_and_the_teacher(comparison):
    _, masks = by_kind([comparison])
    table = parts_table(masks).description
    for variant, name in masks.names.items():
        mean = 100 * spread(masks.values(variant).values()).mean
        assert re.search(rf"^{re.escape(name)} +{mean:.1f}\s", table, re.MULTILINE)
    assert re.search(rf"^teacher +{100 * masks.teacher_score:.1f}\s", table, re.MULTILINE)
    assert set(added_to(comparison)) == {("roi_apd_and_roi_dkd", part) for part in ("roi_apd", "roi_dkd")}


KEPT = {
    "none": lambda place, record: False,
    "half of the first seed": lambda place, record: record.experiment.seed == 0 and place % 2 == 0,
    "without the references": lambda place, record: len(record.experiment.distillers) == 2,
}


@pytest.mark.parametrize("kept", KEPT)
def test_the_chapter_works_with_the_records_that_are_there(tmp_path, monkeypatch, records, kept):
    found = {"scenes-detection": [record for place, record in enumerate(records) if KEPT[kept](place, record)]}
    assert {"scenes-detection", "tiny-coco"} <= set(detection_campaigns())
    assert "scenes-tiny" not in detection_campaigns()
    found["scenes-detection-tuning"] = []
    monkeypatch.setattr(reading, "read_campaigns", lambda names, folder: (found, "so many"))
    if kept != "none":
        maker.save(made_up_findings(), tmp_path / "detection-findings" / "roi_apd-seed0.json")
    said = "\n".join(f"{item!r}" for item in run_cells("09_detection", tmp_path))
    assert not re.search(r"\bnan\b", said)
    assert "0 trials have a score on val yet" in said
    assert ("greatest difference, image" in said) == (kept != "none")
    assert ("box AP minus that of “" in said) == (kept == "half of the first seed")


def test_tables_of_trials_hold_every_scored_trial_and_mark_the_best_of_each_row(trials):
    rates, weights = (detection_trials_table(trials, weights=weights).description for weights in (False, True))
    scores = {r.experiment.name: f"{100 * validation_box_ap(r):.1f}" for r in trials}
    for table, name, trial in (
        (rates, "teacher", "teacher-rate0.001"),
        (rates, "KD of boxes", "roi_kd-rate0.004-seed0"),
        (weights, "DKD of boxes", "roi_dkd_x0.1-seed0"),
        (weights, "KD of boxes", "roi_kd-rate0.002-seed0"),  # the factor of one
    ):
        row = next(line for line in table.splitlines()[1:] if line.startswith(name + " "))
        cells = row[len(name) :].split()
        assert scores[trial] in cells
        assert cells[cells.index("◂") - 1] == max((cell for cell in cells if cell not in "◂–"), key=float)
