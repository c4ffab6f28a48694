"""The campaigns of detection on scenes: one recipe for every arm, and choices that are those of the records."""

from dataclasses import replace

import pytest

from apd.evaluate.coco_ap import ap_scores
from apd.study.ap_entry import tables_of
from apd.study.campaign import experiments_of
from apd.study.detection_recipes import (
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
    detection_arms,
)
from apd.study.fingerprint import fingerprint
from apd.study.folders import records_folder
from apd.study.record import read_records


def box_ap_on_val(name):
    """Box AP on val after the last step, by label, of every run of a campaign; the test is left where one lacks."""
    records = read_records(records_folder(name)) if records_folder(name).is_dir() else []
    if {r.content["fingerprint"] for r in records} < {fingerprint(e) for e in experiments_of(name)}:
        pytest.skip(f"{name} has not been run to its end")
    found = {}
    for record in records:
        last = record.content["evaluations"][-1]
        assert (last["split"], last["step"]) == ("val", record.experiment.training.iterations)
        found[record.experiment.name] = ap_scores(tables_of(last["ap"])["boxes"]).ap
    return found


def test_arms_of_detection_differ_in_nothing_but_their_distillers():
    planned = experiments_of("scenes-detection")
    assert len({replace(e, name="-", seed=0, distillers=()) for e in planned}) == 1
    for seed in range(3):
        assert [e.name.removesuffix(f"-seed{seed}") for e in planned if e.seed == seed] == list(detection_arms())


def test_apd_beside_a_method_that_compares_logits_does_not_compare_them_again():
    *_, added = detection_arms()[f"roi_apd_and_{BEST_DETECTION_RIVAL}"]
    assert BEST_DETECTION_RIVAL in DETECTION_RIVALS
    assert (added.pixel_kd == 0) == (BEST_DETECTION_RIVAL == "roi_dkd")


def test_runs_that_choose_rates_of_detection_are_scored_on_val_after_the_last_step():
    for experiment in experiments_of("scenes-detection-tuning"):
        assert experiment.training.evaluations == 1


def test_the_rates_of_detection_are_the_best_of_the_records():
    found = box_ap_on_val("scenes-detection-tuning")
    teachers = {rate: found[f"teacher-rate{rate:g}"] for rate in TRIED_TEACHER_RATES}
    assert max(teachers, key=teachers.get) == TEACHER_RATE
    students = {rate: sum(found[f"{arm}-rate{rate:g}-seed0"] for arm in RATE_METHODS) for rate in TRIED_STUDENT_RATES}
    assert max(students, key=students.get) == STUDENT_RATE


def test_the_weights_of_detection_are_the_best_of_the_records_and_all_have_the_same_trials():
    found = box_ap_on_val("scenes-detection-tuning")
    for method in UNTUNED.keys() - {"student"}:
        trials = {factor: found.get(f"{method}_x{factor:g}-seed0") for factor in DETECTION_FACTORS}
        if method in RATE_METHODS:
            trials[1.0] = found[f"{method}-rate{STUDENT_RATE:g}-seed0"]
        assert max(trials, key=trials.get) == BEST_FACTORS.get(method, 1.0)


def test_the_best_rival_of_detection_is_that_of_the_records():
    found = box_ap_on_val("scenes-detection")
    rivals = {key: found[f"{key}-seed0"] for key in DETECTION_RIVALS}
    assert max(rivals, key=rivals.get) == BEST_DETECTION_RIVAL
