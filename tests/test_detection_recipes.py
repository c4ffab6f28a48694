"""The campaigns of detection on scenes: one recipe for every arm, and choices that are those of the records."""

from dataclasses import replace

import pytest

from apd.config.identity import fingerprint
from apd.report.figures.detection import validation_box_ap
from apd.study.campaigns import experiments_of
from apd.study.coco_recipes import (
    BEST_DETECTION_RIVAL,
    BEST_FACTORS,
    DETECTION_FACTORS,
    DETECTION_RIVALS,
    RATE_METHODS,
    STUDENT_RATE,
    TEACHER_RATE,
    TRIED_STUDENT_RATES,
    TRIED_TEACHER_RATES,
    UNTUNED,
    detection_variants,
)
from apd.training.record import read_records
from apd.training.run import records_folder


def box_ap_on_val(name, labels):
    """Box AP on val after the last step, by label; every one of the runs must have a record."""
    records = read_records(records_folder(name))
    planned = {fingerprint(experiment) for experiment in experiments_of(name)}
    found = {}
    for record in records:
        if record.content["fingerprint"] in planned:
            found[record.experiment.name] = validation_box_ap(record)
    assert set(labels) <= set(found)
    return found


def test_arms_of_detection_differ_in_nothing_but_their_distillers():
    planned = experiments_of("scenes-detection")
    assert len({replace(e, name="-", seed=0, distillers=()) for e in planned}) == 1
    for seed in range(3):
        assert [e.name.removesuffix(f"-seed{seed}") for e in planned if e.seed == seed] == list(detection_variants())


def test_apd_beside_a_method_that_compares_logits_does_not_compare_them_again():
    *_, added = detection_variants()[f"roi_apd_and_{BEST_DETECTION_RIVAL}"]
    assert BEST_DETECTION_RIVAL in DETECTION_RIVALS
    assert (added.pixel_kd == 0) == (BEST_DETECTION_RIVAL == "roi_dkd")


def test_runs_that_choose_rates_of_detection_are_scored_on_val_after_the_last_step():
    for experiment in experiments_of("scenes-detection-tuning"):
        assert experiment.training.evaluations == 1


def test_the_rate_of_the_detectors_teacher_is_the_better_of_the_records():
    labels = {f"teacher-rate{rate:g}": rate for rate in TRIED_TEACHER_RATES}
    found = box_ap_on_val("scenes-detection-tuning", labels)
    assert labels[max(labels, key=found.get)] == TEACHER_RATE


def test_the_rate_of_the_detectors_students_is_the_best_of_the_records():
    labels = [f"{method}-rate{rate:g}-seed0" for rate in TRIED_STUDENT_RATES for method in RATE_METHODS]
    found = box_ap_on_val("scenes-detection-tuning", labels)
    students = {rate: sum(found[f"{m}-rate{rate:g}-seed0"] for m in RATE_METHODS) for rate in TRIED_STUDENT_RATES}
    assert max(students, key=students.get) == STUDENT_RATE


@pytest.mark.parametrize("method", [method for method in UNTUNED if method != "student"])
def test_the_weights_of_detection_are_the_best_of_the_records(method):
    labels = {f"{method}_x{factor:g}-seed0": factor for factor in DETECTION_FACTORS}
    if method in RATE_METHODS:  # its run at factor 1 is one of the rates'
        del labels[f"{method}_x1-seed0"]
        labels[f"{method}-rate{STUDENT_RATE:g}-seed0"] = 1.0
    assert set(labels) <= {experiment.name for experiment in experiments_of("scenes-detection-tuning")}
    found = box_ap_on_val("scenes-detection-tuning", labels)
    assert labels[max(labels, key=found.get)] == BEST_FACTORS.get(method, 1.0)


def test_the_best_rival_of_detection_is_that_of_the_records():
    labels = {f"{key}-seed0": key for key in DETECTION_RIVALS}
    found = box_ap_on_val("scenes-detection", labels)
    assert labels[max(labels, key=found.get)] == BEST_DETECTION_RIVAL
