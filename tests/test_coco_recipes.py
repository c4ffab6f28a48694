"""Recipes of detection: their values, their sources, and two real steps of COCO's on a miniature of it."""

import json
from dataclasses import replace
from typing import get_args

import pytest
from miniatures import write_coco

from apd.cli.app import main
from apd.config.experiment import ExperimentError
from apd.config.identity import fingerprint
from apd.cost.dry_run import dry_run
from apd.study.coco_recipes import (
    COCO_METHODS,
    COCO_SOURCES,
    CocoSize,
    DetectionSize,
    detection_methods_of,
    detection_recipe,
    detection_variants,
    scenes_detection_experiment,
    with_masks,
)
from apd.study.published_recipes import leaves
from apd.study.recipes import all_recipes, default_method, recipe
from apd.training.run import run_folder, train

SIZES = get_args(CocoSize)
ALL = [(size, method) for size in SIZES for method in detection_methods_of(size)]
REVIEW_WEIGHTS = {"coco": 1.5, "coco_boxes": 1.2, "coco_mobilenet": 1.0, "coco_boxes_mobilenet": 2.0}


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(("size", "method"), ALL)
def test_the_schedule_is_that_of_reviewkds_configurations(size, method):
    experiment = recipe(size, method)
    trainings = [experiment.training] + ([experiment.teacher.training] if experiment.teacher else [])
    for training in trainings:
        assert (training.batch_size, training.learning_rate, training.iterations) == (8, 0.01, 180_000)
        assert (training.schedule, training.milestones, training.warmup) == ("steps", (120_000, 160_000), 1000)
        assert (training.optimiser, training.momentum, training.weight_decay) == ("sgd", 0.9, 1e-4)
        assert (training.head_multiplier, training.clip_norm) == (1.0, None)
    data = experiment.data
    assert (data.folder, data.train_part, data.val_part) == ("coco", "train2017", "val2017")
    assert (data.height, data.width, data.flip, data.masks) == (800, 1333, 0.5, with_masks(size))


@pytest.mark.parametrize("size", SIZES)
def test_student_and_teacher_are_the_pairs_and_start_from_imagenet(size):
    experiment = recipe(size, "roi_apd")
    student, teacher = experiment.network, experiment.teacher.network
    pair = ("mobilenet_v3_large", "resnet50") if "mobilenet" in size else ("resnet18", "resnet101")
    assert (student.backbone, teacher.backbone) == pair
    assert replace(student, backbone=teacher.backbone) == teacher
    assert student.weights == "imagenet"
    assert student.kind == ("faster_rcnn" if "boxes" in size else "mask_rcnn")
    (review,) = recipe(size, "review_kd").distillers
    assert review.weight == REVIEW_WEIGHTS[size]
    assert recipe(size, "student").teacher is None
    methods = [tuple(d.method for d in recipe(size, method).distillers) for method in detection_methods_of(size)]
    assert methods[:4] == [(), ("roi_kd",), ("review_kd",), ("roi_apd",)]
    assert methods[4:] == ([("roi_kd", "dense_apd")] if with_masks(size) else [])


def test_the_recipe_on_scenes_is_the_run_of_the_campaign():
    for method in detection_methods_of("scenes_detection"):
        assert method in detection_variants()
        same = scenes_detection_experiment(method, 2)
        assert fingerprint(recipe("scenes_detection", method, seed=2)) == fingerprint(same)


def test_tiny_coco_is_scored_on_the_pictures_that_it_is_trained_on():
    data = recipe("tiny_coco", "student").data
    assert data.train_part == data.val_part == "train2017"
    assert (data.flip, data.scale_min, data.scale_max, data.jitter) == (0.0, 1.0, 1.0, 0.0)


def test_an_unknown_size_or_method_is_refused_with_what_there_is():
    with pytest.raises(ExperimentError, match="size = 'cocoa': expected one of scenes_detection, tiny_coco, coco"):
        detection_recipe("cocoa")
    with pytest.raises(ExperimentError, match=r"'apd': expected one of student, roi_kd, .* at size tiny_coco"):
        recipe("tiny_coco", "apd")
    with pytest.raises(ExperimentError, match="'dense_apd': expected one of student, roi_kd, review_kd, roi_apd at"):
        recipe("coco_boxes", "dense_apd")
    with pytest.raises(ExperimentError, match="method = 'roi_apd'"):
        recipe("tiny", "roi_apd")


def test_every_recipe_is_listed_and_a_size_without_a_method_is_with_apd():
    listed = dict(all_recipes())
    for size in get_args(DetectionSize):
        for method in detection_methods_of(size):
            assert listed[f"{size}-{method}"] == recipe(size, method)
        assert default_method(size) == "roi_apd"
        assert recipe(size) == recipe(size, "roi_apd")
    assert recipe("tiny") == recipe("tiny", "apd")


# ---------------------------------------------------------------- sources


def shown(size, method, capsys):
    """What `apd recipes` says of every field, by field: the value and its source."""
    assert main(["recipes", f"{size}-{method}"]) == 0
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize(("size", "method"), ALL)
def test_every_field_that_differs_from_its_default_has_a_source(size, method, capsys):
    lines = shown(size, method, capsys)
    fields = list(leaves(recipe(size, method)))
    assert list(lines) == [field for field, _, _ in fields]
    differing = [field for field, value, default in fields if value != default]
    assert len(differing) > 8
    assert [field for field in differing if lines[field].endswith(" default")] == []


def test_every_source_is_of_fields_that_a_recipe_has():
    known = [f"{field}." for size, method in ALL for field, _, _ in leaves(recipe(size, method))]
    for source in COCO_SOURCES:
        assert any(field.startswith(f"{source}.") for field in known), source


def test_nothing_of_apd_is_said_to_be_published():
    fields = [field for field in COCO_SOURCES if field.startswith("distillers.") and field.endswith("apd")]
    assert fields == ["distillers.roi_apd", "distillers.dense_apd"]
    ours = "own choice: how the paper applies APD to detection was never released"
    assert [COCO_SOURCES[field] for field in fields] == [ours, ours]


def test_a_recipe_of_coco_is_shown_with_value_and_source_of_every_field(capsys):
    lines = shown("coco_mobilenet", "roi_apd", capsys)
    assert lines["training.iterations"].endswith("180000           ReviewKD's code")
    assert lines["network.backbone"].endswith("torchvision's MobileNetV3 is the nearest to its MobileNetV2")
    assert lines["training.ema_decay"].endswith(" default")


# ---------------------------------------------------------------- two real steps


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a miniature of COCO."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder / "coco")
    return folder


def miniature(size, method):
    """Only what takes time or a network is smaller: pictures, widths, steps, backbones, and no ImageNet weights."""
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
        parts = {name: value for name, value in step.items() if name.startswith("loss_")}
        assert ("loss_mask" in parts) == with_masks(size)
        distilled = 0.0
        for name, value in step.items():
            method_of, _, term = name.partition(".")
            if term:
                config = distillers[method_of]
                distilled += value * getattr(config, term, getattr(config, "weight", 1.0))
        assert distilled > 0
        assert step["loss"] == pytest.approx(sum(parts.values()) + distilled, rel=1e-4)
    assert record.content["data"]["images"] == 3
    assert set(record.teacher_ap) == ({"boxes", "masks"} if with_masks(size) else {"boxes"})


def test_a_dry_run_at_paper_scale_counts_the_published_sizes_without_data_or_weights(tmp_path, monkeypatch):
    """Real steps are left out here: they take half a minute."""
    measured = dict(steps=1, images=2, load_seconds=0.1, step_seconds=0.9, classes_seen=(1.0, 2.0))

    def offline(weights, what):
        raise RuntimeError(f"{what}: no network")

    monkeypatch.setenv("APD_DATA", str(tmp_path))
    monkeypatch.setattr("apd.models.detector.fill_from_imagenet", lambda *_: offline("", "ImageNet"))
    from apd.cost import dry_run as module

    monkeypatch.setattr(module, "measure_steps", lambda *_: module.Measured(**measured))
    lines = []
    missing = dry_run(recipe("coco", "student"), device="cpu", tell=lines.append)
    text = "\n".join(lines)
    assert ["coco" in missing[0], "ImageNet: no network" in missing[1], len(missing)] == [True, True, 2]
    assert "student: 31.3 M parameters, " in text
    assert "GMAC at 800x1333" in text
    assert "iterations: 180000 of 8 images\n" in text
    assert "a tenth from steps 120000, 160000 on" in text or "120000" in text
    assert "time, in one process on this machine: 400.0 hours" in text


def test_a_dry_run_of_the_miniature_reads_the_data_and_makes_steps(place, tmp_path, monkeypatch):
    monkeypatch.setenv("APD_DATA", str(place))
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    lines = []
    assert dry_run(miniature("coco", "roi_apd"), device="cpu", steps=1, tell=lines.append) == []
    text = "\n".join(lines)
    assert "data: coco, 4 images to train, 3 of val; at most 20 of each were read and are in order" in text
    assert "measured on the data: 1 steps of 2 images" in text


def test_the_methods_at_paper_scale_hold_both_forms_of_apd():
    assert {"student", "roi_apd", "dense_apd"} < set(COCO_METHODS)
    assert [len(detection_methods_of(size)) for size in SIZES] == [5, 5, 4, 4]
