"""Recipes of detection: their values, choices that are those of the records, and two real steps of COCO's recipe."""

import json
import re
from dataclasses import replace
from itertools import chain
from typing import get_args

import pytest
from miniatures import write_coco

from apd.config.identity import fingerprint
from apd.cost import dry_run as module
from apd.cost.dry_run import dry_run
from apd.report.figures.boxes import validation_box_ap
from apd.study import coco_recipes as coco
from apd.study.campaigns import experiments_of
from apd.study.recipes import recipe
from apd.training.record import read_records
from apd.training.run import records_folder, run_folder, train

SIZES = get_args(coco.CocoSize)
REVIEW_WEIGHTS = {"coco": 1.5, "coco_boxes": 1.2, "coco_mobilenet": 1.0, "coco_boxes_mobilenet": 2.0}


@pytest.mark.parametrize("size", SIZES)
def test_data_networks_schedule_and_methods_are_those_of_reviewkds_configurations(size):
    experiments = {method: recipe(size, method) for method in coco.detection_methods_of(size)}
    experiment = experiments["roi_apd"]
    data, training, student = experiment.data, experiment.training, experiment.network
    assert training == experiment.teacher.training
    assert (training.batch_size, training.learning_rate, training.iterations) == (8, 0.01, 180_000)
    assert (training.schedule, training.milestones, training.warmup) == ("steps", (120_000, 160_000), 1000)
    assert (training.optimiser, training.momentum, training.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (training.head_multiplier, training.clip_norm) == (1.0, None)
    assert (data.folder, data.train_part, data.val_part) == ("coco", "train2017", "val2017")
    assert (data.height, data.width, data.flip, data.masks) == (800, 1333, 0.5, coco.with_masks(size))
    backbones = ("mobilenet_v3_large", "resnet50") if "mobilenet" in size else ("resnet18", "resnet101")
    assert (student.backbone, experiment.teacher.network) == (backbones[0], replace(student, backbone=backbones[1]))
    assert (student.weights, student.kind) == ("imagenet", "faster_rcnn" if "boxes" in size else "mask_rcnn")
    assert experiments["review_kd"].distillers[0].weight == REVIEW_WEIGHTS[size]
    assert experiments["student"].teacher is None
    methods = [tuple(d.method for d in each.distillers) for each in experiments.values()]
    assert methods[:4] == [(), ("roi_kd",), ("review_kd",), ("roi_apd",)]
    assert methods[4:] == ([("roi_kd", "dense_apd")] if coco.with_masks(size) else [])


@pytest.mark.parametrize("method", coco.detection_methods_of("scenes_detection"))
def test_the_recipe_on_scenes_is_the_run_of_the_campaign(method):
    same = coco.scenes_detection_experiment(method, 2)
    assert fingerprint(recipe("scenes_detection", method, seed=2)) == fingerprint(same)


def box_ap_on_val(name, labels):
    """Box AP on val after the last step, by label; every one of the runs must have a record."""
    planned = {fingerprint(experiment) for experiment in experiments_of(name)}
    records = [r for r in read_records(records_folder(name)) if r.content["fingerprint"] in planned]
    found = {record.experiment.name: validation_box_ap(record) for record in records}
    assert set(labels) <= set(found)
    return found


def test_variants_of_detection_differ_in_nothing_but_their_distillers():
    planned = experiments_of("scenes-detection")
    assert len({replace(e, name="-", seed=0, distillers=()) for e in planned}) == 1
    assert [e.name for e in planned] == [f"{key}-seed{seed}" for seed in range(3) for key in coco.detection_variants()]


def test_the_learning_rates_of_detectors_are_the_best_of_the_records():
    teachers = {f"teacher-rate{rate:g}": rate for rate in coco.TRIED_TEACHER_LEARNING_RATES}
    students = {
        rate: [f"{method}-rate{rate:g}-seed0" for method in coco.LEARNING_RATE_METHODS]
        for rate in coco.TRIED_STUDENT_LEARNING_RATES
    }
    found = box_ap_on_val("scenes-detection-tuning", {*teachers, *chain(*students.values())})
    assert teachers[max(teachers, key=found.get)] == coco.TEACHER_LEARNING_RATE
    assert max(students, key=lambda rate: sum(map(found.get, students[rate]))) == coco.STUDENT_LEARNING_RATE


@pytest.mark.parametrize("method", [method for method in coco.UNTUNED if method != "student"])
def test_the_weights_of_detection_are_the_best_of_the_records(method):
    labels = {f"{method}_x{factor:g}-seed0": factor for factor in coco.DETECTION_FACTORS}
    if method in coco.LEARNING_RATE_METHODS:  # its run at factor 1 is one of the rates'
        del labels[f"{method}_x1-seed0"]
        labels[f"{method}-rate{coco.STUDENT_LEARNING_RATE:g}-seed0"] = 1.0
    assert set(labels) <= {experiment.name for experiment in experiments_of("scenes-detection-tuning")}
    found = box_ap_on_val("scenes-detection-tuning", labels)
    assert labels[max(labels, key=found.get)] == coco.BEST_FACTORS.get(method, 1.0)


def test_the_best_other_method_of_detection_is_that_of_the_records_and_logits_are_not_compared_twice():
    labels = {f"{key}-seed0": key for key in coco.OTHER_DETECTION_METHODS}
    found = box_ap_on_val("scenes-detection", labels)
    assert labels[max(labels, key=found.get)] == coco.BEST_OTHER_DETECTION_METHOD
    *_, added = coco.detection_variants()[f"roi_apd_and_{coco.BEST_OTHER_DETECTION_METHOD}"]
    assert (added.pixel_kd == 0) == (coco.BEST_OTHER_DETECTION_METHOD == "roi_dkd")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a miniature of COCO."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder / "coco")
    return folder


def miniature(size, method):
    """Only what takes time or a network is smaller: images, widths, steps, backbones, and no ImageNet weights."""
    start = recipe(size, method)
    small = dict(weights="none", width=16, box_width=32, smallest_anchor=8, proposals=50, rois=16)
    network = replace(start.network, backbone="mobilenet_v3_small", **small)
    training = replace(start.training, iterations=2, milestones=(1,), warmup=1, batch_size=2, evaluations=0)
    return replace(
        start,
        data=replace(start.data, height=64, width=96),
        network=network,
        training=training,
        teacher=start.teacher and replace(start.teacher, network=replace(network, width=24), training=training),
    )


@pytest.mark.parametrize(("size", "method"), [("coco", "dense_apd"), ("coco_boxes_mobilenet", "review_kd")])
def test_two_steps_of_the_recipe_are_made_on_coco_itself(size, method, place, tmp_path, monkeypatch):
    monkeypatch.setenv("APD_DATA", str(place))
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    experiment = miniature(size, method)
    record = train(experiment, device="cpu", progress=False)
    first, second = map(json.loads, (run_folder(experiment) / "log.jsonl").read_text().splitlines())
    assert (first["learning_rate"], second["learning_rate"]) == pytest.approx((0.01, 0.001))
    distillers = {config.method: config for config in experiment.distillers}
    for step in (first, second):
        expected = sum(value for name, value in step.items() if name.startswith("loss_"))
        for name, value in step.items():
            method_of, _, term = name.partition(".")
            if term:
                config = distillers[method_of]
                expected += value * getattr(config, term, getattr(config, "weight", 1.0))
        assert ("loss_mask" in step) == coco.with_masks(size)
        assert step["loss"] == pytest.approx(expected, rel=1e-4)
    assert record.content["data"]["images"] == 3
    assert set(record.teacher_ap) == ({"boxes", "masks"} if coco.with_masks(size) else {"boxes"})


def test_a_dry_run_at_paper_scale_counts_the_published_sizes_without_data_or_weights(tmp_path, monkeypatch):
    """Real steps are left out here: they take half a minute."""
    measured = module.Measured(steps=1, images=2, load_seconds=0.1, step_seconds=0.9, classes_seen=(1.0, 2.0))
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    monkeypatch.setattr("apd.models.detector.fill_from_imagenet", lambda *_: None)
    monkeypatch.setattr(module, "measure_steps", lambda *_: measured)
    lines = []
    (missing,) = dry_run(recipe("coco", "student"), device="cpu", tell=lines.append)
    text = "\n".join(lines)
    assert "coco" in missing
    assert re.search("student: .*31.3 M parameters, .* GMAC at 800x1333", text)
    assert "iterations: 180000 of 8 images\n" in text
    assert "time, in one process on this machine: 400.0 hours" in text
