"""Recipes of detection by size and method: built-in scenes, the hundred pictures of tiny_coco, and COCO at paper scale.

Within one size every method gets the same pictures, student, teacher, schedule and initial weights; only the list of
distillers differs. The student alone knows no teacher, so none is trained for it. How the paper applies APD to
detection was never released: the methods are this project's. Where the values at paper scale come from is in
:data:`COCO_SOURCES`.
"""

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, get_args

from apd.config.detection import DetectorConfig, InstanceDataConfig
from apd.config.experiment import Experiment, TeacherConfig, TrainingConfig
from apd.distillers.detection_configs import (
    DenseAPDConfig,
    DetectionDistillerConfig,
    ReviewKDConfig,
    RoIAPDConfig,
    RoIKDConfig,
)
from apd.fields import ExperimentError, did_you_mean
from apd.study.detection_recipes import FROM_SCRATCH, SCENES_DETECTOR, distillers_on_scenes, scenes_detection_experiment

CocoSize = Literal["coco", "coco_mobilenet", "coco_boxes", "coco_boxes_mobilenet"]
DetectionSize = Literal["scenes_detection", "tiny_coco", CocoSize]
DetectionMethod = Literal["student", "roi_kd", "roi_dkd", "pyramid_matching", "review_kd", "roi_apd", "dense_apd"]
DETECTION_METHODS: tuple[DetectionMethod, ...] = get_args(DetectionMethod)
COCO_METHODS: tuple[DetectionMethod, ...] = ("student", "roi_kd", "review_kd", "roi_apd", "dense_apd")
"""Methods at paper scale: what the published study is likely to have been compared with, and both forms of APD."""

REVIEW_WEIGHTS: dict[CocoSize, float] = {
    "coco": 1.5,
    "coco_mobilenet": 1.0,
    "coco_boxes": 1.2,
    "coco_boxes_mobilenet": 2.0,
}
"""ReviewKD's weight in its own configurations: of ResNet-18 and MobileNetV2, with masks and without."""


def detection_methods_of(size: DetectionSize) -> tuple[DetectionMethod, ...]:
    """The methods that a size has; what compares the pixels of masks is left out where no masks are learned."""
    if size not in get_args(CocoSize):
        return DETECTION_METHODS
    return COCO_METHODS if with_masks(size) else COCO_METHODS[:-1]


def with_masks(size: CocoSize) -> bool:
    """Whether a size's detectors are Mask R-CNN."""
    return "boxes" not in size


def detection_recipe(size: DetectionSize, method: DetectionMethod = "roi_apd", *, seed: int = 0) -> Experiment:
    """One experiment of detection; :func:`apd.study.recipes.recipe` gives it under the same name.

    Args:
        size: scenes_detection (built-in pictures, minutes on a CPU), tiny_coco (50 real pictures, minutes on a CPU), or
            COCO at paper scale (GPUs, days): Mask R-CNN with a ResNet-18 taught by one with a ResNet-101 (coco), with a
            MobileNetV3 by one with a ResNet-50 (coco_mobilenet), and Faster R-CNN of the same pairs (coco_boxes,
            coco_boxes_mobilenet).
        method: what is added to the student's task losses.
        seed: of the student; data and teacher stay the same.

    Raises:
        ExperimentError: an unknown size, or a method that is not among :func:`detection_methods_of` it.

    Example:
        >>> experiment = detection_recipe("coco", "dense_apd")
        >>> experiment.training.milestones, experiment.teacher.network.backbone
        ((120000, 160000), 'resnet101')
    """
    if size not in get_args(DetectionSize):
        raise ExperimentError(f"size = {size!r}: expected one of {', '.join(get_args(DetectionSize))}")
    methods = detection_methods_of(size)
    if method not in methods:
        raise ExperimentError(
            f"method = {method!r}: expected one of {', '.join(methods)} at size {size}{did_you_mean(method, methods)}"
        )
    match size:
        case "scenes_detection":
            experiment = scenes_detection_experiment(method, seed)
        case "tiny_coco":
            experiment = replace(_tiny_coco(), distillers=distillers_on_scenes(method))
        case _:
            experiment = replace(_coco(size), distillers=_coco_distillers(method, size))
    if method == "student" and size != "scenes_detection":  # whose campaign has the teacher's score beside all methods
        experiment = replace(experiment, teacher=None)
    return replace(experiment, name=f"{size}-{method}-seed{seed}", seed=seed)


def tiny_coco() -> Iterator[Experiment]:
    """Training and evaluation on real pictures: the student alone, then with APD from a ResNet-50, one seed."""
    for method in ("student", "roi_apd"):
        yield replace(detection_recipe("tiny_coco", method), name=f"{method}-seed0")


def _tiny_coco() -> Experiment:
    """Fifty real pictures learned by heart: scored on what was trained on, since so few can show no more.

    The shorter side is brought to 128 pixels, the widths are those of the scenes' recipe and both networks start at
    random, so that a run takes minutes on one core of a CPU and nothing is downloaded. No picture is mirrored: what is
    asked for are these pictures. AdamW, rate and steps are own choices from short trials; the methods'
    weights are those chosen on scenes.
    """
    detector = replace(SCENES_DETECTOR, smallest_anchor=12)
    training = replace(FROM_SCRATCH, iterations=800, batch_size=2, learning_rate=1e-3)
    return Experiment(
        data=InstanceDataConfig(
            name="coco",
            folder="tiny_coco",
            train_part="train2017",
            val_part="train2017",
            height=128,
            width=171,
            flip=0.0,
        ),
        network=detector,
        training=training,
        precision="fp32",
        teacher=TeacherConfig(network=replace(detector, backbone="resnet50"), training=training),
    )


def _coco(size: CocoSize) -> Experiment:
    """COCO 2017 as ReviewKD's code trains on it, as far as torchvision's detectors go; teacher and student alike."""
    student, teacher = ("mobilenet_v3_large", "resnet50") if "mobilenet" in size else ("resnet18", "resnet101")
    detector = DetectorConfig(
        kind="mask_rcnn" if with_masks(size) else "faster_rcnn", backbone=student, weights="imagenet"
    )
    training = TrainingConfig(
        iterations=180_000,
        batch_size=8,
        learning_rate=0.01,
        head_multiplier=1.0,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="steps",
        milestones=(120_000, 160_000),
        warmup=1000,
    )
    return Experiment(
        data=InstanceDataConfig(
            name="coco",
            folder="coco",
            train_part="train2017",
            val_part="val2017",
            masks=with_masks(size),
            height=800,
            width=1333,
        ),
        network=detector,
        training=training,
        precision="fp32",
        teacher=TeacherConfig(network=replace(detector, backbone=teacher), training=training),
    )


def _coco_distillers(method: DetectionMethod, size: CocoSize) -> tuple[DetectionDistillerConfig, ...]:
    match method:
        case "roi_kd":
            return (RoIKDConfig(),)
        case "review_kd":
            return (ReviewKDConfig(weight=REVIEW_WEIGHTS[size]),)
        case "roi_apd":
            return (RoIAPDConfig(),)
        case "dense_apd":  # it has no logits, so it stands beside RoI-KD, as APD stands beside pixel KD
            return (RoIKDConfig(), DenseAPDConfig())
    return ()


COCO_SOURCES = MappingProxyType(
    {
        "data": "ReviewKD's code",
        "data.kind": "own choice: distinguishes this data from that of segmentation",
        "data.folder": "own choice: COCO 2017's own tree, below APD_DATA",
        "data.height": "torchvision; ReviewKD's code: 640 to 800 at random in training, 800 in the test",
        "data.width": "torchvision, as Detectron2",
        "network": "ReviewKD's code; torchvision's MobileNetV3 is the nearest to its MobileNetV2",
        "network.weights": "torchvision: ImageNet weights, other ones than ReviewKD's",
        "training": "ReviewKD's code",
        "training.head_multiplier": "Detectron2: one learning rate for all parameters",
        "training.momentum": "Detectron2, whose default ReviewKD keeps",
        "training.weight_decay": "Detectron2, there not of norms; here they are frozen, and the pyramid has none",
        "training.schedule": "Detectron2, whose default ReviewKD keeps",
        "training.warmup": "Detectron2, there from a thousandth of the learning rate",
        "training.evaluations": "own choice: nothing is chosen by them",
        "precision": "ReviewKD's code: no mixed precision",
        "teacher.network": "ReviewKD's code",
        "teacher.network.weights": "torchvision: ImageNet weights, other ones than ReviewKD's",
        "teacher.training": "own choice: as the student; ReviewKD's code takes trained ones of Detectron2",
        "teacher.weights_file": "own choice: yours to give; empty: the teacher is trained first",
        "teacher.expected_ap": "own choice: yours to give, the paper's is not known",
        "distillers.roi_kd": "own choice: no published one",
        "distillers.review_kd": "ReviewKD's code; MobileNetV2's weight where ours is MobileNetV3",
        "distillers.roi_apd": "own choice: how the paper applies APD to detection was never released",
        "distillers.dense_apd": "own choice: how the paper applies APD to detection was never released",
    }
)
"""Where the values at paper scale were read, by field or by what fields begin with. The released configurations of
ReviewKD share a first author with APD and are the likely base of the paper's runs; they build on Detectron2's defaults.
"""
