"""Recipes and campaigns of detection on the built-in scenes.

Within one recipe every method gets the same pictures, student, teacher, schedule and initial weights; only the list of
distillers differs. How the values were chosen is told where they stand.
"""

from collections.abc import Iterator
from dataclasses import replace

from apd.config.detection import DetectorConfig, InstanceDataConfig
from apd.config.experiment import Experiment, TeacherConfig, TrainingConfig
from apd.distillers.detection_configs import (
    DenseAPDConfig,
    DetectionDistillerConfig,
    PyramidMatchingConfig,
    ReviewKDConfig,
    RoIAPDConfig,
    RoIDKDConfig,
    RoIKDConfig,
)
from apd.study.ablations import stronger

SCENES_DETECTOR = DetectorConfig(width=64, box_width=256, smallest_anchor=8, proposals=300, rois=64)
"""torchvision's Mask R-CNN at a quarter of its widths, with anchors and counts for pictures of 100 pixels."""

FROM_SCRATCH = TrainingConfig(
    optimiser="adamw", head_multiplier=1.0, weight_decay=0.01, warmup=20, clip_norm=10.0, evaluations=1
)
"""How a small detector learns from random weights in some hundred steps (own choice)."""

HEAD_WIDTH = 64
"""Of APD's projection heads and of what ReviewKD hands down: a quarter of the boxes' vectors, and all of a level."""

UNTUNED: dict[str, tuple[DetectionDistillerConfig, ...]] = {
    "student": (),
    "roi_kd": (RoIKDConfig(),),
    "roi_dkd": (RoIDKDConfig(),),
    "pyramid_matching": (PyramidMatchingConfig(),),
    "review_kd": (ReviewKDConfig(width=HEAD_WIDTH),),
    "roi_apd": (RoIAPDConfig(width=HEAD_WIDTH),),
    "dense_apd": (RoIKDConfig(), DenseAPDConfig(width=HEAD_WIDTH)),
}
"""Methods by key, at their published or default weights. The dense variant has no logits, so it stands beside RoI-KD,
as APD stands beside pixel KD in segmentation."""

DETECTION_FACTORS = (0.01, 0.1, 1.0, 10.0)
"""What every method's weights are multiplied with in its trials. One more than in segmentation: the published weights
of losses on a pyramid's features ruin these students, and a tenth of them still harms them."""

BEST_FACTORS = {"pyramid_matching": 0.01, "review_kd": 0.01, "roi_apd": 0.1, "dense_apd": 0.1}
"""What a method's weights are multiplied with where that is not 1: the best of the trials by box AP on val with one
seed (campaign `scenes-detection-tuning`; a test holds it to the records)."""

DETECTION_RIVALS = ("roi_dkd", "pyramid_matching", "review_kd")
"""Methods that APD can be added to. RoI-KD is none: it is a term of APD's own."""
BEST_DETECTION_RIVAL = "roi_dkd"
"""The rival that scores best on val with the first seed; APD is added to it (a test holds it to the records)."""

TEACHER_RATE = 1e-3
TRIED_TEACHER_RATES = (1e-3, 2e-3)
"""Of the teacher; the better one by its own box AP on val is taken."""

STUDENT_RATE = 2e-3
TRIED_STUDENT_RATES = (1e-3, 2e-3, 4e-3)
RATE_METHODS = ("student", "roi_kd", "roi_apd")
"""Rates of the student: one serves all methods, the best by the mean of three of them."""


def distillers_on_scenes(method: str, factor: float | None = None) -> tuple[DetectionDistillerConfig, ...]:
    """A method's distillers with its weights times a factor, by default the best one; RoI-KD beside it keeps its own.

    >>> distillers_on_scenes("roi_apd", 0.1)[0].alignment
    1.0
    """
    *beside, main = UNTUNED[method] or (None,)
    if main is None:
        return ()
    factor = BEST_FACTORS.get(method, 1.0) if factor is None else factor
    return (*beside, stronger(main, factor))


def detection_arms() -> dict[str, tuple[DetectionDistillerConfig, ...]]:
    """Every arm of the study of detection, by key: the methods at their best weights, and APD (RoI) on top of a rival.

    Two methods that both compare logits would count them twice, so with APD on top the logits' KL is the rival's.
    """
    arms = {method: distillers_on_scenes(method) for method in UNTUNED}
    (apd,) = arms["roi_apd"]
    added = replace(apd, pixel_kd=0.0) if BEST_DETECTION_RIVAL == "roi_dkd" else apd
    return arms | {f"roi_apd_and_{BEST_DETECTION_RIVAL}": (*arms[BEST_DETECTION_RIVAL], added)}


def scenes_detection_experiment(arm: str, seed: int) -> Experiment:
    """Mask R-CNN on built-in scenes: a ResNet-18 learns signs, cars and pedestrians, from a ResNet-50 or alone.

    Both start at random, so nothing is downloaded; the teacher has three times the student's steps. The optimiser is
    AdamW (own choice). Both rates were chosen on val (campaign `scenes-detection-tuning`). A run takes minutes on one
    core of a CPU. The context shift lies halfway between its ends.

    Args:
        arm: a key of :func:`detection_arms`.
        seed: of the student; data and teacher stay the same.

    Raises:
        KeyError: there is no such arm.

    Example:
        >>> experiment = scenes_detection_experiment("roi_apd", seed=1)
        >>> experiment.name, experiment.network.backbone, experiment.teacher.network.backbone
        ('roi_apd-seed1', 'resnet18', 'resnet50')
    """
    training = replace(FROM_SCRATCH, iterations=400, batch_size=4, learning_rate=STUDENT_RATE)
    return Experiment(
        name=f"{arm}-seed{seed}",
        seed=seed,
        data=InstanceDataConfig(
            height=96, width=128, evaluation_split="test", context_shift=0.5, train_images=800, evaluation_images=200
        ),
        network=SCENES_DETECTOR,
        training=training,
        precision="fp32",
        teacher=TeacherConfig(
            network=replace(SCENES_DETECTOR, backbone="resnet50"),
            training=replace(training, iterations=1200, learning_rate=TEACHER_RATE),
        ),
        distillers=detection_arms()[arm],
    )


def scenes_detection() -> Iterator[Experiment]:
    """Every arm of detection on scenes, three seeds, scored on test."""
    for seed in range(3):
        for arm in detection_arms():
            yield scenes_detection_experiment(arm, seed)


def scenes_detection_tuning() -> Iterator[Experiment]:
    """How rates and weights were chosen: box AP on val after the last step, one seed.

    Teachers first, as students need one; then the rate of the students, by three methods at their untuned weights; then
    every method's weights at that rate. Runs at what was chosen are those of `scenes-detection`.
    """
    for rate in TRIED_TEACHER_RATES:
        teacher = scenes_detection_experiment("student", seed=0).teacher_experiment()
        training = replace(teacher.training, learning_rate=rate)
        yield replace(teacher, training=training, name=f"teacher-rate{rate:g}")
    student = scenes_detection_experiment("student", seed=0)
    for rate in TRIED_STUDENT_RATES:
        training = replace(student.training, learning_rate=rate)
        for method in RATE_METHODS:
            name, distillers = f"{method}-rate{rate:g}-seed0", distillers_on_scenes(method, 1.0)
            yield replace(student, training=training, name=name, distillers=distillers)
    for factor in DETECTION_FACTORS:
        for method in UNTUNED:
            if method != "student" and not (factor == 1 and method in RATE_METHODS):  # those were run above
                name, distillers = f"{method}_x{factor:g}-seed0", distillers_on_scenes(method, factor)
                yield replace(student, name=name, distillers=distillers)
