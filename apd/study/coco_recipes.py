"""Recipes of detection; how the paper applies APD to it was never released, so the methods are this project's."""

from dataclasses import replace
from typing import Literal, get_args

from apd.config.detection_config import DetectorConfig, InstanceDataConfig
from apd.config.experiment import Experiment, TeacherConfig, TrainingConfig
from apd.distillers.apd import DenseAPDConfig, RoIAPDConfig
from apd.distillers.base import DistillerConfig
from apd.distillers.on_detectors import PyramidMatchingConfig, ReviewKDConfig, RoIDKDConfig, RoIKDConfig
from apd.fields import ExperimentError, did_you_mean
from apd.study.ablations import stronger

CocoSize = Literal["coco", "coco_mobilenet", "coco_boxes", "coco_boxes_mobilenet"]
DetectionSize = Literal["scenes_detection", "tiny_coco", CocoSize]
DetectionMethod = Literal["student", "roi_kd", "roi_dkd", "pyramid_matching", "review_kd", "roi_apd", "dense_apd"]

REVIEW_WEIGHTS = {"coco": 1.5, "coco_mobilenet": 1.0, "coco_boxes": 1.2, "coco_boxes_mobilenet": 2.0}
"""ReviewKD's weight in its own configurations: of ResNet-18 and MobileNetV2, with masks and without."""
SCENES_DETECTOR = DetectorConfig(width=64, box_width=256, smallest_anchor=8, proposals=300, rois=64)
"""torchvision's Mask R-CNN at a quarter of its widths, with anchors and counts for images of 100 pixels."""
TINY_DETECTOR = replace(SCENES_DETECTOR, smallest_anchor=12)
FROM_SCRATCH = TrainingConfig(
    optimiser="adamw", head_multiplier=1.0, weight_decay=0.01, warmup=20, clip_norm=10.0, evaluations=1
)
"""Own choice for a small detector that starts at random."""
TINY_TRAINING = replace(FROM_SCRATCH, iterations=800, batch_size=2, learning_rate=1e-3)
TINY_COCO = Experiment(
    data=InstanceDataConfig(name="coco", folder="tiny_coco", val_part="train2017", height=128, width=171, flip=0.0),
    network=TINY_DETECTOR,
    training=TINY_TRAINING,
    precision="fp32",
    teacher=TeacherConfig(network=replace(TINY_DETECTOR, backbone="resnet50"), training=TINY_TRAINING),
)
"""Overfits fifty real images: scored on what was trained on, since so few can show no more. Learning rate and steps are
own choices from short trials, the methods' weights those chosen on scenes."""
HEAD_WIDTH = 64  # Of APD's projection heads and of what ReviewKD hands down.
UNTUNED: dict[str, tuple[DistillerConfig, ...]] = {
    "student": (),
    "roi_kd": (RoIKDConfig(),),
    "roi_dkd": (RoIDKDConfig(),),
    "pyramid_matching": (PyramidMatchingConfig(),),
    "review_kd": (ReviewKDConfig(width=HEAD_WIDTH),),
    "roi_apd": (RoIAPDConfig(width=HEAD_WIDTH),),
    "dense_apd": (RoIKDConfig(), DenseAPDConfig(width=HEAD_WIDTH)),
}
"""Methods by key, at their published or default weights. The dense variant has no logits: it stands beside RoI-KD."""

# what was chosen on val by box AP with one seed (campaign `scenes-detection-tuning`; tests hold it to the records)
DETECTION_FACTORS = (0.01, 0.1, 1.0, 10.0)
"""What every method's weights are multiplied with in its trials; one more than in segmentation, since the published
weights of losses on a pyramid's features ruin these students."""
BEST_FACTORS = {"pyramid_matching": 0.01, "review_kd": 0.01, "roi_apd": 0.1, "dense_apd": 0.1}
OTHER_DETECTION_METHODS = ("roi_dkd", "pyramid_matching", "review_kd")
"""Methods that APD can be added to. RoI-KD is none: it is a term of APD's own."""
BEST_OTHER_DETECTION_METHOD = "roi_dkd"  # The one that scores best on val with the first seed; APD is added to it.
TEACHER_LEARNING_RATE = 1e-3
TRIED_TEACHER_LEARNING_RATES = (1e-3, 2e-3)
STUDENT_LEARNING_RATE = 2e-3  # One for all methods: the best of those tried by the mean of three of them.
TRIED_STUDENT_LEARNING_RATES = (1e-3, 2e-3, 4e-3)
LEARNING_RATE_METHODS = ("student", "roi_kd", "roi_apd")


def distillers_on_scenes(method: str, factor: float | None = None) -> tuple[DistillerConfig, ...]:
    """A method's distillers with its weights times a factor, by default the best; RoI-KD beside it keeps its own."""
    if not UNTUNED[method]:
        return ()
    *beside, main = UNTUNED[method]
    return (*beside, stronger(main, BEST_FACTORS.get(method, 1.0) if factor is None else factor))


def detection_variants() -> dict[str, tuple[DistillerConfig, ...]]:
    """Distillers by variant: the methods at their best weights, and APD (RoI), without its KL, beside another."""
    variants = {method: distillers_on_scenes(method) for method in UNTUNED}
    best, (apd,) = BEST_OTHER_DETECTION_METHOD, variants["roi_apd"]
    added = replace(apd, pixel_kd=0.0) if best == "roi_dkd" else apd
    return variants | {f"roi_apd_and_{best}": (*variants[best], added)}


def scenes_detection_experiment(variant: str, seed: int) -> Experiment:
    """Mask R-CNN on scenes, all from random weights; `variant` is a key of :func:`detection_variants`."""
    training = replace(FROM_SCRATCH, iterations=400, batch_size=4, learning_rate=STUDENT_LEARNING_RATE)
    return Experiment(
        name=f"{variant}-seed{seed}",
        seed=seed,
        data=InstanceDataConfig(evaluation_split="test", train_images=800, evaluation_images=200),
        network=SCENES_DETECTOR,
        training=training,
        precision="fp32",
        teacher=TeacherConfig(
            network=replace(SCENES_DETECTOR, backbone="resnet50"),
            training=replace(training, iterations=1200, learning_rate=TEACHER_LEARNING_RATE),
        ),
        distillers=detection_variants()[variant],
    )


def detection_methods_of(size: DetectionSize) -> tuple[DetectionMethod, ...]:
    """The methods of a size; at paper scale the likely ones of the paper and APD, dense only where it has masks."""
    if size not in get_args(CocoSize):
        return get_args(DetectionMethod)
    return ("student", "roi_kd", "review_kd", "roi_apd", *(["dense_apd"] if with_masks(size) else []))


def with_masks(size: CocoSize) -> bool:
    """Whether a size's detectors are Mask R-CNN."""
    return "boxes" not in size


def detection_recipe(size: DetectionSize, method: DetectionMethod = "roi_apd", *, seed: int = 0) -> Experiment:
    """One experiment of detection; :func:`apd.study.recipes.recipe` gives it under the same name.

    `size` is scenes_detection (built-in scenes), tiny_coco (50 real images; both minutes on a CPU) or COCO at paper
    scale: Mask R-CNN with a ResNet-18 taught by a ResNet-101 (coco), with a MobileNetV3 by a ResNet-50
    (coco_mobilenet), and Faster R-CNN of the same pairs (coco_boxes, coco_boxes_mobilenet). `seed` is the student's;
    data and teacher stay.
    """
    if size not in get_args(DetectionSize):
        raise ExperimentError(f"size = {size!r}: expected one of {', '.join(get_args(DetectionSize))}")
    methods = detection_methods_of(size)
    if method not in methods:
        known = f"{', '.join(methods)} at size {size}{did_you_mean(method, methods)}"
        raise ExperimentError(f"method = {method!r}: expected one of {known}")
    named = {"name": f"{size}-{method}-seed{seed}", "seed": seed}
    if size == "scenes_detection":  # whose campaign has the teacher's score beside all methods
        return replace(scenes_detection_experiment(method, seed), **named)
    tiny = size == "tiny_coco"
    experiment = replace(TINY_COCO, distillers=distillers_on_scenes(method)) if tiny else _coco(size, method)
    return replace(experiment, **named, **({"teacher": None} if method == "student" else {}))


def _coco(size: CocoSize, method: DetectionMethod) -> Experiment:
    """COCO 2017 as ReviewKD's code trains on it, as far as torchvision's detectors go; teacher and student alike."""
    student, teacher = ("mobilenet_v3_large", "resnet50") if "mobilenet" in size else ("resnet18", "resnet101")
    kind = "mask_rcnn" if with_masks(size) else "faster_rcnn"
    detector = DetectorConfig(kind=kind, backbone=student, weights="imagenet")
    training = TrainingConfig(
        iterations=180_000, head_multiplier=1.0, schedule="steps", milestones=(120_000, 160_000), warmup=1000
    )
    distillers = tuple(type(config)() for config in UNTUNED[method])  # heads of the default widths
    if method == "review_kd":
        distillers = (ReviewKDConfig(weight=REVIEW_WEIGHTS[size]),)
    return Experiment(
        data=InstanceDataConfig(name="coco", folder="coco", masks=with_masks(size), height=800, width=1333),
        network=detector,
        training=training,
        precision="fp32",
        teacher=TeacherConfig(network=replace(detector, backbone=teacher), training=training),
        distillers=distillers,
    )
