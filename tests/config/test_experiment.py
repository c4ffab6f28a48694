"""An experiment that cannot be run fails when it is made; what is built from one that can has all its settings."""

import dataclasses
import math
import re
from dataclasses import replace
from typing import get_args, get_type_hints
from unittest import mock

import pytest
import small_detection as boxes
import torch
from small_experiments import NETWORK, TEACHER, equal, tiny

from apd.config.datasets import spec_of
from apd.config.detection_config import DetectorConfig, InstanceDataConfig
from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig
from apd.config.inference_options import InferenceOptions
from apd.distillers.apd import APDConfig
from apd.distillers.base import DISTILLERS, build_distiller
from apd.distillers.logits import PixelKDConfig
from apd.fields import ExperimentError
from apd.models.detector import BODIES
from apd.training.run import task_of
from apd.training.segmentation import build_network

CPU = torch.device("cpu")
RoIAPDConfig, DenseAPDConfig, RoIKDConfig = (DISTILLERS[name] for name in ("roi_apd", "dense_apd", "roi_kd"))
RoIDKDConfig, ReviewKDConfig = DISTILLERS["roi_dkd"], DISTILLERS["review_kd"]
PARTS = (DataConfig, NetworkConfig, TrainingConfig, TeacherConfig, Experiment, InstanceDataConfig, DetectorConfig)
LEVELS = "some of 0, 1, 2, 3, pool, each once"
SIDES = "scales and a window with sides of at least 32 pixels"
COCO = {"name": "coco", "folder": "coco"}
IN_ORDER = "at least one iteration, increasing, above 0 and below iterations 1000"

WRONG = [  # the configuration, the field, its value, what was expected, and fields beside it
    (DataConfig, "name", "camvd", "folder; did you mean 'camvid'?"),
    (DataConfig, "folder", "", "the path of a folder with a dataset.yaml", {"name": "folder"}),
    (DataConfig, "height", 31, "an integer >= 32, or 0"),
    (DataConfig, "height", 0, "an integer >= 32: scenes have no own size", {"width": 0}),
    (DataConfig, "width", 128, "0 only together with height 0", {"name": "ade20k", "height": 0}),
    (DataConfig, "scale_min", 3.0, "0 < scale_min <= scale_max 2.0"),
    (DataConfig, "scale_max", math.inf, "a finite number"),
    (DataConfig, "flip", 1.5, "a probability between 0 and 1"),
    (DataConfig, "jitter", 1.0, "0 <= jitter < 1"),
    (DataConfig, "rotation", 181.0, "degrees between 0 and 180"),
    (DataConfig, "train_images", 0, "an integer >= 1"),
    *((DataConfig, "labelled_share", wrong, "a share above 0, at most 1") for wrong in (0.0, -0.5, 1.5)),
    (NetworkConfig, "head", "pspp", "one of psp, aspp; did you mean 'psp'?"),
    (NetworkConfig, "aspp_reach", 96, "288, the default: the head psp has none"),
    (NetworkConfig, "weights_file", "r18.pth", "weights = 'imagenet' beside it, not 'none'"),
    (NetworkConfig, "output_stride", 32, "one of 4, 8, 16"),
    (NetworkConfig, "dropout", 1.0, "0 <= dropout < 1"),
    (TrainingConfig, "iterations", 0, "an integer >= 1"),
    (TrainingConfig, "accumulation", 3, "equal parts, of at least 2 images, of batch_size 8", {"batch_size": 8}),
    (TrainingConfig, "cuda_graph", True, "False beside compile", {"compile": True}),
    (TrainingConfig, "batch_size", 1, "at least 2: batch norm cannot train on one pooled vector"),
    (TrainingConfig, "learning_rate", 0.0, "a number >= 1e-12"),
    (TrainingConfig, "momentum", 1.0, "0 <= momentum < 1"),
    (TrainingConfig, "momentum", 0.8, "0.9, the default: the optimiser adamw has none", {"optimiser": "adamw"}),
    (TrainingConfig, "power", 1.0, "0.9, the default: the schedule steps", {"schedule": "steps", "milestones": (9,)}),
    (TrainingConfig, "warmup", 1000, "an integer from 0 to below iterations 1000"),
    (TrainingConfig, "weight_decay", -1e-4, "a number >= 0"),
    (TrainingConfig, "clip_norm", 0.0, "None or a number > 0"),
    (TrainingConfig, "ema_decay", 1.0, "None or a number in (0, 1)"),
    (TrainingConfig, "schedule", "step", "one of poly, steps; did you mean 'steps'?"),
    *((TrainingConfig, "milestones", wrong, IN_ORDER, {"schedule": "steps"}) for wrong in ((), (0,), (1000,), (8, 6))),
    (TrainingConfig, "milestones", (600,), "(), the default: the schedule poly has none"),
    (TrainingConfig, "class_weights", "balance", "one of none, balanced or a tuple of finite numbers; did you mean"),
    (TrainingConfig, "class_weights", (0.0, 0.0), "none, balanced, or a number >= 0 for each class, one of them above"),
    (TrainingConfig, "class_weights", (1.0, -1.0), "none, balanced, or a number >= 0 for each class"),
    (TrainingConfig, "label_smoothing", 1.0, "0 <= label_smoothing < 1"),
    (TrainingConfig, "added_loss", "dise", "one of none, focal, dice, lovasz; did you mean 'dice'?"),
    (TrainingConfig, "cuda_graph", True, "False beside compile", {"added_loss": "lovasz"}),
    (TrainingConfig, "gradient_checkpointing", True, "False beside compile and cuda_graph", {"compile": True}),
    (TrainingConfig, "evaluations", 0, "at least 1 beside keep best", {"keep": "best"}),
    (TrainingConfig, "patience", 1, "0, the default: it needs keep best"),
    (TrainingConfig, "iterations", 300, "1000, the default, beside epochs 2: give one of the two", {"epochs": 2}),
    (NetworkConfig, "auxiliary", ("aux",), "(), the default, without a builder"),
    (TeacherConfig, "expected_miou", 45.7, "a fraction between 0 and 1"),
    (TeacherConfig, "expected_miou", 0.3, "0, the default: for a DetectorConfig", {"network": DetectorConfig()}),
    (TeacherConfig, "expected_ap", 0.3, "0, the default: for a NetworkConfig set expected_miou"),
    (Experiment, "name", "a/b", "letters, digits, '-', '_' and '.' only: it names a folder"),
    (Experiment, "seed", 2**63, "an integer from 0 to 2^63 - 1"),
    (Experiment, "inference", InferenceOptions(window=(96, 31)), SIDES),
    (Experiment, "distillers", PixelKDConfig(), "a tuple of DistillerConfig"),
    (PixelKDConfig, "weight", 0.0, "a number > 0; to leave the term out, leave the distiller out"),
    (APDConfig, "width", 0, "None or an integer >= 1"),
    (APDConfig, "regularisation", 1.0, "0 where width is None", {"width": None}),
    (APDConfig, "scope", "images", "one of image, batch; did you mean 'image'?"),
    (APDConfig, "observation", -1.0, "a number >= 0"),
    (InstanceDataConfig, "folder", "", "the name of a folder below APD_DATA", {"name": "coco"}),
    (InstanceDataConfig, "height", 48, "an integer >= 64"),
    (InstanceDataConfig, "evaluation_split", "test", "val: test's annotations are not public", COCO),
    (InstanceDataConfig, "val_part", "", "a text that is not empty", COCO),
    (DetectorConfig, "backbone", "resnet34", "one of resnet18"),
    (DenseAPDConfig, "levels", (), LEVELS),
    (ReviewKDConfig, "levels", ("1", "0"), f"{LEVELS}, in"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0].__name__}-{case[1]}-{case[2]!r}"[:50])
def test_a_wrong_value_is_refused_with_its_field_the_value_and_what_was_expected(case):
    kind, name, value, expected, *beside = case
    message = re.escape(f"{kind.__name__}.{name} = {value!r}: expected ") + ".*" + re.escape(expected)
    with pytest.raises(ExperimentError, match=f"^{message}"):
        kind(**{name: value}, **dict(*beside))


@pytest.mark.parametrize("kind", [*PARTS, *DISTILLERS.values()])
def test_no_field_takes_a_value_of_a_foreign_type(kind):
    for field in dataclasses.fields(kind):
        with pytest.raises(ExperimentError, match=rf"{kind.__name__}\.{field.name} = "):
            kind(**{field.name: object()})


@pytest.mark.parametrize("kind", [APDConfig, RoIDKDConfig, DenseAPDConfig])
def test_a_distiller_of_which_nothing_is_left_is_refused(kind):
    weights = ("regularisation", "alignment", "observation", "pixel_kd", "target", "non_target")
    names = [field.name for field in dataclasses.fields(kind) if field.name in weights]
    with pytest.raises(ExperimentError, match=f"{kind.__name__}: {', '.join(names)} are all 0: expected one above 0"):
        kind(**dict.fromkeys(names, 0))


SEGMENT, DETECT = tiny("apd"), boxes.small("roi_apd")
HEADLESS, HEADLESS_ROI = (kind(width=None, regularisation=0) for kind in (APDConfig, RoIAPDConfig))
WIDTHS = "APDConfig.width = None: expected features of equal width then, got network"
FAST, THERE = replace(boxes.TRAINING, compile=True), TrainingConfig(device_augmentation=True)
TOGETHER = [
    (SEGMENT, {"teacher": None}, "Experiment.teacher = None: distillers need a teacher"),
    (SEGMENT, {"distillers": (APDConfig(), APDConfig(width=4))}, "expected each method at most once"),
    (SEGMENT, {"distillers": (HEADLESS,)}, f"{WIDTHS}.head_width = 8 and teacher.network.head_width = 12"),
    (SEGMENT, {"network": boxes.NETWORK}, "expected a NetworkConfig; detection wants an InstanceDataConfig as"),
    (SEGMENT, {"distillers": (RoIKDConfig(),)}, "roi_kd is none for segmentation, the task of data = DataConfig"),
    (DETECT, {"network": NetworkConfig()}, "Experiment.network is a NetworkConfig beside data = Inst"),
    (DETECT, {"teacher": TeacherConfig()}, "expected a DetectorConfig; segmentation wants a DataConfig"),
    (DETECT, {"distillers": (APDConfig(),)}, "apd is none for detection, the task of data = InstanceD"),
    (DETECT, {"precision": "bf16"}, "Experiment.precision = 'bf16': expected fp32, or auto, which is"),
    (DETECT, {"inference": InferenceOptions(flip=True)}, "a detector sees the whole image, once"),
    (DETECT, {"training": FAST}, "TrainingConfig.compile = True: expected False in detection"),
    (DETECT, {"teacher": replace(boxes.TEACHER, training=FAST)}, "TrainingConfig.compile = True: exp"),
    (DETECT, {"training": replace(boxes.TRAINING, accumulation=2, batch_size=4)}, "= 2: expected 1 in detection: torc"),
    (DETECT, {"training": replace(boxes.TRAINING, class_weights="balanced")}, "the default: its losses are torch"),
    (DETECT, {"training": replace(boxes.TRAINING, added_loss="dice")}, "the default: its losses are torchv"),
    (DETECT, {"training": replace(boxes.TRAINING, label_smoothing=0.1)}, "the default: its losses are torchv"),
    (DETECT, {"training": replace(boxes.TRAINING, gradient_checkpointing=True)}, "expected False in detection: it is"),
    (SEGMENT, {"data": DataConfig(rotation=0.5), "training": THERE}, "device_augmentation = True: expected False be"),
    (SEGMENT, {"data": DataConfig(blur=0.5), "teacher": TeacherConfig(training=THERE)}, "True: expected False beside"),
    (DETECT, {"training": replace(boxes.TRAINING, device_augmentation=True)}, "expected False in detection: the load"),
    (DETECT, {"distillers": (HEADLESS_ROI,)}, f"RoI{WIDTHS}.box_width = 32 and teacher.network.b"),
    (DETECT, {"data": InstanceDataConfig(**COCO, masks=False)}, "expected True: mask_rcnn learns from masks"),
]


@pytest.mark.parametrize(("start", "change", "message"), TOGETHER)
def test_what_does_not_go_together_is_refused_with_the_field_and_the_fix(start, change, message):
    with pytest.raises(ExperimentError, match=re.escape(message)):
        replace(start, **change)


def test_what_goes_together_is_taken():
    same = replace(tiny("apd"), distillers=(HEADLESS,), teacher=replace(TEACHER, network=NETWORK))
    assert same.distillers == (HEADLESS,)
    assert replace(boxes.TEACHER, expected_ap=0.3).expected_ap == 0.3
    assert DataConfig(name="ade20k", height=0, width=0, long_side=512).long_side == 512
    assert set(get_args(get_type_hints(DetectorConfig)["backbone"])) == set(BODIES)


@pytest.mark.parametrize("experiment", [tiny("apd", seed=5), boxes.small("roi_apd")], ids=["segmentation", "detection"])
def test_the_teachers_experiment_has_the_students_data_and_no_teacher_of_its_own(experiment):
    of_it = replace(experiment.teacher, seed=2)
    teacher = replace(experiment, teacher=of_it, inference=InferenceOptions()).teacher_experiment()
    assert (teacher.data, teacher.precision, teacher.task) == (experiment.data, experiment.precision, experiment.task)
    assert (teacher.network, teacher.training, teacher.seed) == (of_it.network, of_it.training, 2)
    assert (teacher.teacher, teacher.distillers, teacher.inference) == (None, (), InferenceOptions())
    with pytest.raises(ExperimentError, match="this experiment has no teacher"):
        teacher.teacher_experiment()


@pytest.fixture(scope="module")
def networks():
    """Of detection."""
    task, of_teacher = task_of(boxes.small("several")), boxes.TEACHER.network
    return {"student": task.network(boxes.NETWORK, 3, CPU, 0), "teacher": task.network(of_teacher, 3, CPU, 1)}


def test_a_module_has_every_setting_of_its_configuration(networks):
    def built(method, **settings):
        return build_distiller(DISTILLERS[method](**settings), **networks, seed=3)

    roi = built("roi_apd", width=8, scale=5.0, alignment=3.0, observation=0.5, pixel_kd=0.0, temperature=2.0)
    assert roi.weights == {"regularisation": 1.0, "alignment": 3.0, "observation": 0.5, "pixel_kd": 0.0}
    assert (roi.student_channels, roi.teacher_channels, roi.scale, roi.temperature) == (32, 40, 5.0, 2.0)
    assert next(roi.teacher_head.parameters()).shape[:2] == (8, 40)
    dense = built("dense_apd", levels=("0", "2"), width=8, scale=5.0, observation=0.0)
    assert dense.levels == ("0", "2")
    for level in dense.distillers.values():
        assert level.weights == {"regularisation": 1.0, "alignment": 10.0, "observation": 0.0, "pixel_kd": 0.0}
        assert (level.scale, level.num_classes) == (5.0, 4)
        assert next(level.teacher_head.parameters()).shape[:2] == (8, 24)
    kd = built("roi_kd", weight=3.0, temperature=2.0).distiller
    assert (kd.weights, kd.temperature) == ({"pixel_kd": 3.0}, 2.0)
    dkd = built("roi_dkd", target=2.0, non_target=3.0, temperature=4.0).distiller
    assert (list(dkd.weights.values()), dkd.temperature) == ([2.0, 3.0], 4.0)
    matching = built("pyramid_matching", levels=("1",), weight=3.0)
    assert (matching.levels, matching.distillers["1"].weights) == (("1",), {"fitnet": 3.0})
    review = built("review_kd", levels=("0", "1"), width=8, weight=3.0)
    assert (review.levels, review.weights) == (("0", "1"), {"review_kd": 3.0})
    assert review.reviews["0"].reduced[0].weight.shape[:2] == (8, 16)


def test_heads_and_networks_depend_on_the_seed_alone_and_leave_the_random_state(networks):
    state = torch.get_rng_state()
    built = [build_distiller(boxes.METHODS["roi_apd"][0], **networks, seed=seed) for seed in (3, 3, 4)]
    one, same, other = (distiller.student_head.state_dict() for distiller in built)
    assert equal(one, same)
    assert not equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = task_of(boxes.small()).network(boxes.NETWORK, 3, CPU, 0)
    assert equal(networks["student"].state_dict(), again.state_dict())


def test_what_is_there_for_segmentation_only_says_so():
    for call in (lambda: spec_of(boxes.small().data), lambda: build_network(boxes.NETWORK, 3, CPU, 0)):
        with pytest.raises(ExperimentError, match="belongs to detection, and what was asked for is"):
            call()


def test_a_detector_brings_images_to_the_size_of_the_data():
    data = replace(boxes.DATA, height=80, width=96)
    detector = task_of(boxes.small(data=data)).network(boxes.NETWORK, 3, CPU, 0)
    assert (detector.transform.min_size, detector.transform.max_size) == ((80,), 96)


def test_a_network_that_cannot_be_built_is_an_error_of_the_experiment(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", mock.Mock(side_effect=OSError("no route")))
    with pytest.raises(ExperimentError, match=r"this detector cannot be built: .*failed: OSError: no route"):
        task_of(boxes.small()).network(DetectorConfig(weights="imagenet"), 1, CPU, 0)
