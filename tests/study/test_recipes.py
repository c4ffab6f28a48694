"""Recipes: published values and their sources, losses, choices by records, and two steps on miniatures of real data."""

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from miniatures import write_coco, write_converted

from apd import APDLoss
from apd.cli.app import main
from apd.config.datasets import spec_of
from apd.config.experiment import NetworkConfig, TeacherConfig, TrainingConfig
from apd.config.inference_options import InferenceOptions
from apd.distillers.base import build_distiller
from apd.fields import ExperimentError
from apd.report.figures.answers import read_campaigns, validation_score
from apd.study import published_recipes as published
from apd.study import recipes as study
from apd.study.published_recipes import CLASSES_SEEN, PAPER_METHODS, PUBLISHED, PaperSize, leaves, paper_recipe
from apd.study.recipes import METHODS, REAL_SIZES, Size, all_recipes, methods_of, recipe, value_sources
from apd.training.checkpoint import save_tensors
from apd.training.run import run_folder, train
from apd.training.segmentation import build_network

CLASSES = {size: published.spec.num_classes for size, published in PUBLISHED.items()}
CROP = 33
SIZES = get_args(published.CocoSize)
REVIEW_WEIGHTS = {"coco": 1.5, "coco_boxes": 1.2, "coco_mobilenet": 1.0, "coco_boxes_mobilenet": 2.0}
ALL = [(size, method) for size in get_args(PaperSize) for method in PAPER_METHODS]
ALL += [(size, method) for size in SIZES for method in published.detection_methods_of(size)]


@pytest.mark.parametrize(
    ("size", "classes", "crop", "schedule", "long_side", "dilation"),
    [
        ("cityscapes", 19, 713, (8, 0.005, 74_400), 2048, "one_conv"),
        ("ade20k", 150, 473, (8, 0.005, 252_600), 512, "one_conv"),
        ("pascal_context", 60, 473, (12, 0.00075, 41_600), 512, "all_convs"),
    ],
)
def test_the_values_are_those_of_the_released_configurations(size, classes, crop, schedule, long_side, dilation):
    experiment = recipe(size, "apd")
    training, data = experiment.training, experiment.data
    assert spec_of(data).num_classes == classes
    assert (data.crop_height, data.crop_width, data.long_side) == (crop, crop, long_side)
    assert (data.height, data.width, data.rotation, data.scale_min, data.scale_max) == (0, 0, 10.0, 0.5, 2.0)
    assert (training.batch_size, training.learning_rate, training.iterations) == schedule
    assert (training.momentum, training.weight_decay, training.power) == (0.9, 1e-4, 0.9)
    assert (training.head_multiplier, training.auxiliary_weight) == (10.0, 0.4)
    assert experiment.inference == InferenceOptions(window=(crop, crop), stride=2 / 3, flip=True, scales=(1.0,))
    for network, backbone in ((experiment.network, "resnet18_deep"), (experiment.teacher.network, "resnet101_deep")):
        assert (network.backbone, network.head, network.head_width) == (backbone, "psp", 512)
        assert (network.output_stride, network.dropout, network.dilation) == (8, 0.1, dilation)
    (apd,) = experiment.distillers
    assert (apd.width, apd.scale, apd.temperature) == (512, 10.0, 1.0)
    assert (apd.teacher_head_rate, apd.teacher_head_schedule) == (1e-5, "constant")


@pytest.mark.parametrize("size", PUBLISHED)
def test_as_released_the_loss_is_the_released_one(size):
    network = NetworkConfig(backbone="test_efficientnet", head_width=512)
    student = build_network(network, CLASSES[size], torch.device("cpu"), 0)
    setting = {"student": student, "teacher": student, "ignore_index": 255, "seed": 0}
    ours, alone = (build_distiller(*paper_recipe(size, one).distillers, **setting) for one in ("apd", "pixel_kd"))
    released = vars(APDLoss.as_released(512, 512, CLASSES[size]))
    plain = {k: v for k, v in released.items() if not k.startswith("_") and k != "training"}
    assert len(plain) > 8
    assert {name: vars(ours)[name] for name in plain} == plain
    assert (alone.reduction, alone.upsample_logits, alone.weights) == ("element", True, {"pixel_kd": 10.0})


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_corrected_form_differs_in_the_loss_and_in_nothing_else(size):
    for method in PAPER_METHODS:
        released, corrected = paper_recipe(size, method), paper_recipe(f"{size}_corrected", method)
        assert replace(corrected, name=released.name, distillers=released.distillers) == released
        assert (corrected == replace(released, name=corrected.name)) == (method == "student")
    (apd,) = paper_recipe(f"{size}_corrected", "apd").distillers
    assert (apd.scope, apd.reduction, apd.absent) == ("image", "pixel", "mask")
    assert (apd.alignment, apd.regularisation, apd.observation) == (10.0, 1.0, 1.0)
    assert apd.pixel_kd == pytest.approx(10 / CLASSES[size])


@pytest.mark.parametrize("size", PUBLISHED)
def test_converted_weights_pull_as_the_released_ones_where_the_stated_number_of_classes_is_in_sight(size):
    """Every label valid, the logits' grid that of the labels, one image: all other differences are gone."""
    classes, side = CLASSES[size], 10
    labels = torch.arange(CLASSES_SEEN).repeat_interleave(side)[torch.randperm(CLASSES_SEEN * side)]
    labels = labels.view(1, CLASSES_SEEN, side)
    features = [torch.randn(1, 6, CLASSES_SEEN, side) for _ in range(2)]
    logits = [torch.randn(1, classes, CLASSES_SEEN, side) for _ in range(2)]
    names = ("student_features", "teacher_features", "student_logits", "teacher_logits")
    inputs = dict(zip(names, features + logits, strict=True))
    pulls = []
    for name in (size, f"{size}_corrected"):
        (config,) = paper_recipe(name, "apd").distillers
        form = {name: getattr(config, name) for name in ("scope", "reduction", "absent")}
        weights = {name: getattr(config, name) for name in ("observation", "pixel_kd", "alignment")}
        loss = APDLoss(6, 6, classes, width=None, weights={**weights, "regularisation": 0.0}, **form).eval()
        terms = loss(**inputs, labels=labels)
        pulls.append(torch.stack([weight * terms[term] for term, weight in weights.items()]))
    torch.testing.assert_close(*pulls)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the miniatures of all four data sets."""
    folder = tmp_path_factory.mktemp("paper")
    for name in PUBLISHED:
        write_converted(folder, name)
    write_coco(folder / "coco")
    return folder


@pytest.mark.parametrize("size", get_args(PaperSize))
def test_two_steps_of_the_recipe_are_made_on_the_converted_data(size, place, runs, tmp_path, monkeypatch):
    """Only what takes time or a file is smaller: crop, test images, steps, weights, and a ResNet-18 as the teacher."""
    monkeypatch.setenv("APD_DATA", str(place))
    start = recipe(size, "apd")
    small = replace(start.teacher.network, backbone="resnet18_deep", weights="none")
    classes, file = spec_of(start.data).num_classes, tmp_path / "teacher.safetensors"
    save_tensors(build_network(small, classes, torch.device("cpu"), seed=0).state_dict(), file)
    experiment = replace(
        start,
        data=replace(start.data, crop_height=CROP, crop_width=CROP, long_side=48),
        network=replace(start.network, weights="none"),
        training=replace(start.training, iterations=2, evaluations=0),
        teacher=TeacherConfig(network=small, training=TrainingConfig(), weights_file=str(file)),
        inference=replace(start.inference, window=(CROP, CROP)),
    )
    record = train(experiment, device="cpu", progress=False)
    steps = [json.loads(line) for line in (run_folder(experiment) / "log.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    assert all(each > 0 for value in steps for name, each in value.items() if name.startswith("apd."))
    assert record.content["data"]["images"] == 3
    assert record.content["parameters"] > 16e6


@pytest.mark.parametrize("size", SIZES)
def test_data_networks_schedule_and_methods_are_those_of_reviewkds_configurations(size):
    experiments = {method: recipe(size, method) for method in published.detection_methods_of(size)}
    experiment = experiments["roi_apd"]
    data, training, student = experiment.data, experiment.training, experiment.network
    assert training == experiment.teacher.training
    assert (training.batch_size, training.learning_rate, training.iterations) == (8, 0.01, 180_000)
    assert (training.schedule, training.milestones, training.warmup) == ("steps", (120_000, 160_000), 1000)
    assert (training.optimiser, training.momentum, training.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (training.head_multiplier, training.clip_norm) == (1.0, None)
    assert (data.folder, data.train_part, data.val_part) == ("coco", "train2017", "val2017")
    assert (data.height, data.width, data.flip, data.masks) == (800, 1333, 0.5, "boxes" not in size)
    backbones = ("mobilenet_v3_large", "resnet50") if "mobilenet" in size else ("resnet18", "resnet101")
    assert (student.backbone, experiment.teacher.network) == (backbones[0], replace(student, backbone=backbones[1]))
    assert (student.weights, student.kind) == ("imagenet", "faster_rcnn" if "boxes" in size else "mask_rcnn")
    assert experiments["review_kd"].distillers[0].weight == REVIEW_WEIGHTS[size]
    assert experiments["student"].teacher is None
    methods = [tuple(d.method for d in each.distillers) for each in experiments.values()]
    assert methods[:4] == [(), ("roi_kd",), ("review_kd",), ("roi_apd",)]
    assert methods[4:] == ([("roi_kd", "dense_apd")] if "boxes" not in size else [])


def choices():
    """(campaign, the labels of the runs with each value that was tried, the value that was chosen)."""
    tuning, methods = "scenes-detection-tuning", published.LEARNING_RATE_METHODS
    teachers = {rate: [f"teacher-rate{rate:g}"] for rate in published.TRIED_TEACHER_LEARNING_RATES}
    yield tuning, teachers, published.TEACHER_LEARNING_RATE
    rates = published.TRIED_STUDENT_LEARNING_RATES  # by the mean of three methods
    students = {rate: [f"{method}-rate{rate:g}-seed0" for method in methods] for rate in rates}
    yield tuning, students, published.STUDENT_LEARNING_RATE
    others = {method: [f"{method}-seed0"] for method in ("roi_dkd", "pyramid_matching", "review_kd")}
    yield "scenes-detection", others, published.BEST_OTHER_DETECTION_METHOD
    for method in published.UNTUNED.keys() - {"student"}:
        factors = {factor: [f"{method}_x{factor:g}-seed0"] for factor in published.DETECTION_FACTORS}
        if method in methods:  # its run at factor 1 is one of the rates'
            factors[1.0] = [f"{method}-rate{published.STUDENT_LEARNING_RATE:g}-seed0"]
        yield tuning, factors, published.BEST_FACTORS.get(method, 1.0)


def test_what_was_chosen_for_detection_is_the_best_of_the_records():
    records, _ = read_campaigns(["scenes-detection", "scenes-detection-tuning"])
    for campaign, tried, chosen in choices():
        found = {record.experiment.name: validation_score(record) for record in records[campaign]}
        assert max(tried, key=lambda value: sum(found[label] for label in tried[value])) == chosen, tried


@pytest.mark.parametrize(("size", "method"), [("coco", "dense_apd"), ("coco_boxes_mobilenet", "review_kd")])
def test_two_steps_of_the_recipe_are_made_on_coco_itself(size, method, place, runs, monkeypatch):
    """Only what takes time or a network is smaller: images, widths, steps, backbones, and no ImageNet weights."""
    monkeypatch.setenv("APD_DATA", str(place))
    start = recipe(size, method)
    small = dict(weights="none", width=16, box_width=32, smallest_anchor=8, proposals=50, rois=16)
    network = replace(start.network, backbone="mobilenet_v3_small", **small)
    training = replace(start.training, iterations=2, milestones=(1,), warmup=1, batch_size=2, evaluations=0)
    teacher = replace(start.teacher, network=replace(network, width=24), training=training)
    data = replace(start.data, height=64, width=96)
    experiment = replace(start, data=data, network=network, training=training, teacher=teacher)
    record = train(experiment, device="cpu", progress=False)
    first, second = map(json.loads, (run_folder(experiment) / "log.jsonl").read_text().splitlines())
    assert (first["learning_rate"], second["learning_rate"]) == pytest.approx((0.01, 0.001))
    assert ("loss_mask" in first) == ("boxes" not in size)
    assert {name.partition(".")[0] for name in first if "." in name} == {d.method for d in experiment.distillers}
    assert record.content["data"]["images"] == 3
    assert set(record.teacher_ap) == ({"boxes", "masks"} if "boxes" not in size else {"boxes"})


@pytest.mark.parametrize("size", ["tiny", "small", "full", *REAL_SIZES])
def test_networks_and_apd_fit_the_sides_of_photographs_but_for_recipes_whose_records_are_older(size):
    experiment, alone = recipe(size, "apd"), recipe(size, "pixel_kd")
    (apd,), (kd,), networks = experiment.distillers, alone.distillers, (experiment.network, experiment.teacher.network)
    fits = size in ("facade-full", "camvid-small", "camvid-full")
    assert [network.fit_sides for network in networks] == [fits, fits]
    assert [apd.align_corners, apd.upsample_logits, kd.upsample_logits] == [fits] * 3


@pytest.mark.parametrize("size", get_args(Size))
def test_the_methods_of_a_recipe_differ_in_what_the_method_is_and_in_nothing_else(size):
    student = recipe(size, "student", seed=3)
    for method in methods_of(size):
        other = recipe(size, method, seed=3)
        assert (other.name, other.seed) == (f"{size}-{method}-seed3", 3)
        if method == "student_equal_seconds":
            assert other.training.iterations > student.training.iterations
            other = replace(other, training=replace(other.training, iterations=student.training.iterations))
        if size in ("small", "full", *REAL_SIZES):  # each method's best on val; held to the records in test_tables
            rates = study.LEARNING_RATES[other.data.name] if size in REAL_SIZES else study.SMALL_LEARNING_RATES
            assert other.training.learning_rate == rates[method]
            rate = student.training.learning_rate
            other = replace(other, training=replace(other.training, learning_rate=rate))
        taught = replace(student, teacher=other.teacher) if student.teacher is None else student
        assert replace(other, name=student.name, distillers=()) == taught
        assert bool(other.distillers) == (not method.startswith("student"))
        if other.teacher is not None:  # the baseline may have none
            assert other.teacher_experiment() == recipe(size, methods_of(size)[-1]).teacher_experiment()


def test_every_recipe_is_listed_under_its_name_and_a_size_alone_is_with_apd():
    listed = dict(all_recipes())
    assert set(METHODS) == set(study.METHOD_NAMES)
    assert list(listed) == [f"{size}-{method}" for size in get_args(Size) for method in methods_of(size)]
    for size in get_args(Size):
        assert recipe(size) == listed[f"{size}-{'roi_apd' if size in get_args(published.DetectionSize) else 'apd'}"]


@pytest.mark.parametrize(
    ("size", "method", "message"),
    [
        ("tny", "apd", "size = 'tny': expected one of tiny, small, full"),
        ("tiny", "roi_apd", "method = 'roi_apd': expected one of student"),
        ("ade20k", "student_equal_seconds", "'student_equal_seconds': expected one of student, pixel_kd, apd"),
        ("coco_boxes", "dense_apd", "'dense_apd': expected one of student, roi_kd, review_kd, roi_apd at"),
    ],
)
def test_an_unknown_size_or_method_is_refused_with_what_there_is(size, method, message):
    with pytest.raises(ExperimentError, match=message):
        recipe(size, method)


def shown(name, capsys):
    """What `apd recipes` says of every field, by field: the value and its source."""
    assert main(["recipes", name]) == 0
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize(("size", "method"), ALL)
def test_every_field_that_differs_from_its_default_has_a_source(size, method, capsys):
    lines = shown(f"{size}-{method}", capsys)
    fields = list(leaves(recipe(size, method)))
    assert list(lines) == [field for field, _, _ in fields]
    differing = [field for field, value, default in fields if value != default]
    assert len(differing) > 8
    assert [field for field in differing if lines[field].endswith(" default")] == []


def test_every_source_is_of_fields_that_a_recipe_has():
    known = [f"{field}." for size, method in ALL for field, _, _ in leaves(recipe(size, method))]
    for source in {**value_sources("released"), **value_sources("corrected"), **value_sources("coco")}:
        assert any(field.startswith(f"{source}.") for field in known), source


def test_a_value_that_was_corrected_is_not_said_to_be_released(capsys):
    recipes = (recipe(size, "apd") for size in ("cityscapes", "cityscapes_corrected"))
    released, corrected = ({field: value for field, value, _ in leaves(one)} for one in recipes)
    changed = {field for field in released if released[field] != corrected[field]}
    assert changed == {field for field in value_sources("corrected") if ".apd." in field}
    lines = shown("cityscapes_corrected-apd", capsys)
    assert all("own choice: " in lines[field] or "paper, " in lines[field] for field in changed)


def test_nothing_of_apd_in_detection_is_said_to_be_published():
    ours = {f: s for f, s in value_sources("coco").items() if f.startswith("distillers.") and f.endswith("apd")}
    said = "own choice: how the paper applies APD to detection was never released"
    assert ours == {"distillers.roi_apd": said, "distillers.dense_apd": said}


@pytest.mark.parametrize(
    ("name", "field", "end"),
    [
        ("ade20k-apd", "distillers.apd.scope", "released code: the images of a process; the paper: an image"),
        ("coco_mobilenet-roi_apd", "training.iterations", "180000           ReviewKD's code"),
        ("coco_mobilenet-roi_apd", "network.backbone", "torchvision's MobileNetV3 is the nearest to its MobileNetV2"),
        ("coco_mobilenet-roi_apd", "training.ema_decay", " default"),
    ],
)
def test_a_recipe_at_paper_scale_is_shown_with_value_and_source_of_every_field(name, field, end, capsys):
    assert shown(name, capsys)[field].endswith(end)
