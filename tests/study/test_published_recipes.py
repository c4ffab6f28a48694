"""The published experiments: their values, their losses, and two real steps of each on miniatures of the real data."""

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from miniatures import write_converted

from apd import APDLoss
from apd.config.datasets import spec_of
from apd.config.experiment import NetworkConfig, TeacherConfig, TrainingConfig
from apd.config.inference_options import InferenceOptions
from apd.distillers.base import build_distiller
from apd.study.published_recipes import CLASSES_SEEN, PAPER_METHODS, PUBLISHED, PaperSize, paper_recipe
from apd.study.recipes import recipe
from apd.training.checkpoint import save_weights
from apd.training.run import run_folder, train
from apd.training.segmentation import build_network


def num_classes(size):
    return PUBLISHED[size].spec.num_classes


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
    student = build_network(network, num_classes(size), torch.device("cpu"), 0)
    networks = {"student": student, "teacher": student}
    ours, alone = (
        build_distiller(*paper_recipe(size, method).distillers, **networks, ignore_index=255, seed=0)
        for method in ("apd", "pixel_kd")
    )
    released = vars(APDLoss.as_released(512, 512, num_classes(size)))
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
    assert apd.pixel_kd == pytest.approx(10 / num_classes(size))


@pytest.mark.parametrize("size", PUBLISHED)
def test_converted_weights_pull_as_the_released_ones_where_the_stated_number_of_classes_is_in_sight(size):
    """Every label valid, the logits' grid that of the labels, one image: all other differences are gone."""
    classes, side = num_classes(size), 10
    labels = torch.arange(CLASSES_SEEN).repeat_interleave(side)[torch.randperm(CLASSES_SEEN * side)]
    labels = labels.view(1, CLASSES_SEEN, side)
    features = [torch.randn(1, 6, CLASSES_SEEN, side) for _ in range(2)]
    logits = [torch.randn(1, classes, CLASSES_SEEN, side) for _ in range(2)]
    inputs = dict(
        zip(
            ("student_features", "teacher_features", "student_logits", "teacher_logits"), features + logits, strict=True
        )
    )
    pulls = []
    for name in (size, f"{size}_corrected"):
        (config,) = paper_recipe(name, "apd").distillers
        form = {name: getattr(config, name) for name in ("scope", "reduction", "absent")}
        weights = {name: getattr(config, name) for name in ("observation", "pixel_kd", "alignment")}
        loss = APDLoss(6, 6, classes, width=None, weights={**weights, "regularisation": 0.0}, **form).eval()
        terms = loss(**inputs, labels=labels)
        pulls.append(torch.stack([weight * terms[term] for term, weight in weights.items()]))
    torch.testing.assert_close(*pulls)


CROP = 33


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the miniatures of all three data sets."""
    folder = tmp_path_factory.mktemp("paper")
    for name in PUBLISHED:
        write_converted(folder, name)
    return folder


@pytest.mark.parametrize("size", get_args(PaperSize))
def test_two_steps_of_the_recipe_are_made_on_the_converted_data(size, place, tmp_path, monkeypatch):
    """Only what takes time or a file is smaller: crop, test images, steps, weights, and a ResNet-18 as the teacher."""
    monkeypatch.setenv("APD_DATA", str(place))
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    start = recipe(size, "apd")
    small = replace(start.teacher.network, backbone="resnet18_deep", weights="none")
    classes, file = spec_of(start.data).num_classes, tmp_path / "teacher.safetensors"
    save_weights(file, build_network(small, classes, torch.device("cpu"), seed=0).state_dict())
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
    (apd,) = start.distillers
    for value in steps:
        terms = {name.removeprefix("apd."): each for name, each in value.items() if name.startswith("apd.")}
        assert all(each > 0 for each in terms.values())
        distilled = sum(getattr(apd, name) * each for name, each in terms.items())
        assert value["loss"] == pytest.approx(value["task"] + 0.4 * value["auxiliary"] + distilled, rel=1e-4)
    assert record.content["data"]["images"] == 3
    assert record.content["parameters"] > 16e6
