"""An experiment in detection that cannot be run fails when it is made, and no part of one task gets into the other."""

import dataclasses
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from small_detection import DATA, METHODS, NETWORK, TEACHER, TRAINING, small
from small_experiments import tiny

from apd.config.datasets import spec_of
from apd.config.detection import DetectorConfig, InstanceDataConfig
from apd.config.experiment import ExperimentError, NetworkConfig, TeacherConfig
from apd.config.inference import InferenceOptions
from apd.distillers.apd import APDConfig, DenseAPDConfig, RoIAPD, RoIAPDConfig
from apd.distillers.base import DISTILLERS, build_distiller
from apd.distillers.on_detectors import PyramidMatchingConfig, ReviewKD, ReviewKDConfig, RoIDKDConfig, RoIKDConfig
from apd.models.detector import BODIES
from apd.training.run import task_of
from apd.training.segmentation import build_network

CONFIGS = (InstanceDataConfig, DetectorConfig, *(kind for kind in DISTILLERS.values() if kind.task == "detection"))


def test_the_task_is_that_of_the_data():
    assert (small().task, tiny().task) == ("detection", "segmentation")
    assert small("roi_apd").teacher_experiment().task == "detection"
    assert tiny("apd").teacher_experiment().task == "segmentation"


def test_methods_levels_and_backbones_are_those_of_the_modules():
    assert set(get_args(get_type_hints(DetectorConfig)["backbone"])) == set(BODIES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"network": NetworkConfig()},
            "Experiment.network is a NetworkConfig beside data = InstanceDataConfig: expected",
        ),
        (
            {"teacher": TeacherConfig()},
            "Experiment.teacher.network is a NetworkConfig beside data = InstanceDataConfig: expected a "
            "DetectorConfig; segmentation wants a DataConfig as data",
        ),
        ({"distillers": (APDConfig(),)}, "apd is none for detection, the task of data = InstanceDataConfig: expected "),
        ({"precision": "bf16"}, "Experiment.precision = 'bf16': expected fp32, or auto, which is fp32 here"),
        (
            {"inference": InferenceOptions(flip=True)},
            "expected the default: a detector looks once at the whole picture",
        ),
        (
            {"training": replace(TRAINING, accumulation=2, batch_size=4)},
            "TrainingConfig.accumulation = 2: expected 1 in detection: torchvision's losses are means",
        ),
        ({"training": replace(TRAINING, compile=True)}, "TrainingConfig.compile = True: expected False in detection"),
        ({"training": replace(TRAINING, auxiliary_weight=0.0)}, "TrainingConfig.auxiliary_weight = 0.0: expected 0.4"),
        (
            {"teacher": replace(TEACHER, training=replace(TRAINING, compile=True))},
            "TrainingConfig.compile = True: expected False in detection",
        ),
        (
            {"distillers": (RoIAPDConfig(width=None, regularisation=0.0),)},
            "RoIAPDConfig.width = None: expected features of equal width then, got network.box_width = 32 and "
            "teacher.network.box_width = 40",
        ),
        (
            {"distillers": (DenseAPDConfig(width=None, regularisation=0.0),)},
            "DenseAPDConfig.width = None: expected features of equal width then, got network.width = 16 and",
        ),
        (
            {"data": InstanceDataConfig(name="coco", folder="coco", masks=False)},
            "InstanceDataConfig.masks = False: expected True: mask_rcnn learns from masks",
        ),
        ({"teacher": None}, "Experiment.teacher = None: distillers need a teacher"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_field_and_the_fix(change, told):
    with pytest.raises(ExperimentError) as caught:
        replace(small("roi_apd"), **change)
    assert told in str(caught.value)


def test_parts_of_detection_are_refused_in_segmentation():
    with pytest.raises(ExperimentError, match=r"network is a DetectorConfig .* detection wants an InstanceDataConfig"):
        replace(tiny("apd"), network=NETWORK)
    with pytest.raises(ExperimentError, match=r"roi_kd is none for segmentation, the task of .*DataConfig: .*pixel_kd"):
        replace(tiny("apd"), distillers=(RoIKDConfig(),))


def test_each_task_has_its_own_score_to_expect_of_a_teacher():
    assert replace(TEACHER, expected_ap=0.3).expected_ap == 0.3
    with pytest.raises(ExperimentError, match=r"expected_miou = 0.3: expected 0, .*a DetectorConfig set expected_ap"):
        replace(TEACHER, expected_miou=0.3)
    with pytest.raises(ExperimentError, match=r"expected_ap = 0.3: .*for a NetworkConfig set expected_miou"):
        TeacherConfig(expected_ap=0.3)
    with pytest.raises(ExperimentError, match=r"TeacherConfig.expected_ap = 30.0: expected a fraction between 0 and 1"):
        replace(TEACHER, expected_ap=30.0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_field_takes_a_value_of_a_foreign_type(kind):
    for field in dataclasses.fields(kind):
        with pytest.raises(ExperimentError, match=rf"{kind.__name__}\.{field.name} = "):
            kind(**{field.name: object()})


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        (InstanceDataConfig, {"name": "coco"}, "folder = '': expected the name of a folder below APD_DATA"),
        (InstanceDataConfig, {"height": 48}, "height = 48: expected an integer >= 64"),
        (InstanceDataConfig, {"scale_min": 2.0}, "scale_min = 2.0: expected 0 < scale_min <= scale_max 1.0"),
        (InstanceDataConfig, {"flip": 2.0}, "flip = 2.0: expected a probability between 0 and 1"),
        (InstanceDataConfig, {"jitter": 1.0}, "jitter = 1.0: expected 0 <= jitter < 1"),
        (InstanceDataConfig, {"context_shift": 2.0}, "context_shift = 2.0: expected a number between 0 and 1"),
        (InstanceDataConfig, {"least_pixels": 0}, "least_pixels = 0: expected at least 1"),
        (InstanceDataConfig, {"world": -1}, "world = -1: expected an integer >= 0"),
        (
            InstanceDataConfig,
            {"name": "coco", "folder": "coco", "evaluation_split": "test"},
            "evaluation_split = 'test': expected val: test's annotations are not public",
        ),
        (InstanceDataConfig, {"name": "coco", "folder": "coco", "val_part": ""}, "val_part = '': expected a text that"),
        (DetectorConfig, {"backbone": "resnet34"}, "backbone = 'resnet34': expected one of resnet18"),
        (DetectorConfig, {"rois": 0}, "rois = 0: expected an integer >= 1"),
        (DetectorConfig, {"weights": "coco"}, "weights = 'coco': expected none or imagenet here: torchvision has COCO"),
        (RoIAPDConfig, {"width": None}, "regularisation = 1.0: expected 0 where width is None"),
        (RoIAPDConfig, {"temperature": 0}, "temperature = 0.0: expected a number > 0"),
        (DenseAPDConfig, {"levels": ()}, "levels = (): expected some of 0, 1, 2, 3, pool, each once"),
        (DenseAPDConfig, {"levels": ("1", "1")}, "levels = ('1', '1'): expected some of 0, 1, 2, 3, pool, each once"),
        (PyramidMatchingConfig, {"levels": ("4",)}, "levels = ('4',): expected some of 0, 1, 2, 3, pool, each once"),
        (
            ReviewKDConfig,
            {"levels": ("1", "0")},
            "levels = ('1', '0'): expected some of 0, 1, 2, 3, pool, each once, in",
        ),
        (DenseAPDConfig, {"scale": 0}, "scale = 0.0: expected a number > 0"),
        (RoIKDConfig, {"weight": 0}, "weight = 0.0: expected a number > 0; to leave the term out"),
        (RoIDKDConfig, {"target": -1}, "target = -1.0: expected a number >= 0"),
        (ReviewKDConfig, {"width": 0}, "width = 0: expected an integer >= 1"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field_the_value_and_what_was_expected(kind, fields, told):
    with pytest.raises(ExperimentError) as caught:
        kind(**fields)
    assert str(caught.value).startswith(f"{kind.__name__}.{told}")


def test_all_weights_at_zero_leave_nothing_to_distil():
    with pytest.raises(ExperimentError, match="RoIDKDConfig: target, non_target are all 0"):
        RoIDKDConfig(target=0, non_target=0)
    with pytest.raises(ExperimentError, match="DenseAPDConfig: regularisation, alignment, observation are all 0"):
        DenseAPDConfig(regularisation=0, alignment=0, observation=0)


@pytest.fixture(scope="module")
def networks():
    task, cpu = task_of(small("several")), torch.device("cpu")
    return {
        "student": task.network(NETWORK, 3, cpu, 0),
        "teacher": task.network(TEACHER.network, 3, cpu, 1),
    }


def test_a_module_has_every_setting_of_its_configuration(networks):
    def built(config):
        return build_distiller(config, **networks, seed=3)

    roi = built(RoIAPDConfig(width=8, scale=5.0, alignment=3.0, observation=0.5, pixel_kd=0.0, temperature=2.0))
    assert isinstance(roi, RoIAPD)
    assert roi.weights == {"regularisation": 1.0, "alignment": 3.0, "observation": 0.5, "pixel_kd": 0.0}
    sizes = (roi.student_channels, roi.teacher_channels, roi.num_classes, roi.scale, roi.temperature)
    assert sizes == (32, 40, 4, 5.0, 2.0)  # the background is a class
    assert next(roi.teacher_head.parameters()).shape[:2] == (8, 40)
    dense = built(DenseAPDConfig(levels=("0", "2"), width=8, scale=5.0, observation=0.0))
    assert dense.levels == ("0", "2")
    for level in dense.distillers.values():
        assert level.weights == {"regularisation": 1.0, "alignment": 10.0, "observation": 0.0, "pixel_kd": 0.0}
        assert (level.scale, level.num_classes) == (5.0, 4)
        assert next(level.teacher_head.parameters()).shape[:2] == (8, 24)
    kd = built(RoIKDConfig(weight=3.0, temperature=2.0)).distiller
    assert (kd.weights, kd.temperature) == ({"pixel_kd": 3.0}, 2.0)
    dkd = built(RoIDKDConfig(target=2.0, non_target=3.0, temperature=4.0)).distiller
    assert (list(dkd.weights.values()), dkd.temperature) == ([2.0, 3.0], 4.0)
    matching = built(PyramidMatchingConfig(levels=("1",), weight=3.0))
    assert (matching.levels, matching.distillers["1"].weights) == (("1",), {"fitnet": 3.0})
    review = built(ReviewKDConfig(levels=("0", "1"), width=8, weight=3.0))
    assert isinstance(review, ReviewKD)
    assert (review.levels, review.weights) == (("0", "1"), {"review_kd": 3.0})
    assert review.reviews["0"].reduced[0].weight.shape[:2] == (8, 16)


def test_heads_and_networks_depend_on_the_seed_alone_and_leave_the_random_state(networks):
    before = torch.get_rng_state()
    heads = [
        build_distiller(METHODS["roi_apd"][0], **networks, seed=seed).student_head.state_dict() for seed in (3, 3, 4)
    ]
    torch.rand(3)
    again = task_of(small()).network(NETWORK, 3, torch.device("cpu"), 0)
    torch.set_rng_state(before)
    assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())
    assert not all(torch.equal(value, heads[2][name]) for name, value in heads[0].items())
    ours = networks["student"].state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in again.state_dict().items())


def test_what_is_there_for_segmentation_only_says_so():
    with pytest.raises(ExperimentError, match="InstanceDataConfig belongs to detection, and what was asked for is"):
        spec_of(small().data)
    with pytest.raises(ExperimentError, match="DetectorConfig belongs to detection, and what was asked for is"):
        build_network(NETWORK, 3, torch.device("cpu"), 0)


def test_a_detector_brings_pictures_to_the_size_of_the_data():
    data = replace(DATA, height=80, width=96)
    detector = task_of(small(data=data)).network(NETWORK, 3, torch.device("cpu"), 0)
    assert (detector.transform.min_size, detector.transform.max_size) == ((80,), 96)


def test_a_network_that_cannot_be_built_is_an_error_of_the_experiment():
    network = DetectorConfig(backbone="resnet50", weights="coco")
    with pytest.raises(ExperimentError, match=r"this detector cannot be built: .*COCO has no class 'pedestrian'"):
        task_of(small()).network(network, 1, torch.device("cpu"), 0, class_names=("pedestrian",))
