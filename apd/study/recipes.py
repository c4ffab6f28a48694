"""Recipes: one function returns the full configuration of an experiment, its size an argument.

Within one size every method gets the same data, student, teacher, schedule and initial weights; the list of distillers
differs, and on CamVid the rate, which is each method's best of three. How the values were chosen stands beside them.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

from apd.config.experiment import (
    DataConfig,
    Experiment,
    ExperimentError,
    NetworkConfig,
    TeacherConfig,
    TrainingConfig,
)
from apd.distillers.apd import APDConfig
from apd.distillers.base import DistillerConfig
from apd.distillers.logits import PixelKDConfig
from apd.study.coco_recipes import (
    COCO_SOURCES,
    CocoSize,
    DetectionMethod,
    DetectionSize,
    detection_methods_of,
    detection_recipe,
)
from apd.study.published_recipes import (
    CORRECTED,
    CORRECTED_SOURCES,
    PAPER_METHODS,
    SOURCES,
    PaperSize,
    lines_with_sources,
    paper_recipe,
)

RealSize = Literal["facade-small", "facade-full", "camvid-small", "camvid-full"]
REAL_SIZES: tuple[RealSize, ...] = get_args(RealSize)
Size = Literal["tiny", "small", "full", RealSize, PaperSize, DetectionSize]
Method = Literal["student", "student_equal_seconds", "pixel_kd", "apd", "apd_without_kd"]
AnyMethod = Literal[Method, DetectionMethod]
METHODS: tuple[Method, ...] = get_args(Method)
METHOD_NAMES: dict[str, str] = {
    "student": "student alone",
    "student_equal_seconds": "student alone, APD's seconds",
    "pixel_kd": "+ pixel KD",
    "apd_without_kd": "+ APD without pixel KD",
    "apd": "+ APD",
}
SECONDS_OF_APD: dict[str, float] = {
    "tiny": 1.6,
    "small": 1.45,
    "full": 1.45,
    "facade-small": 2.09,
    "facade-full": 1.5,
    "camvid-small": 1.96,
    "camvid-full": 1.5,
}
"""A step of APD as a multiple of the plain student's, the teacher's forward included. The first three were set
beforehand, from short runs on one CPU core, and belong to the experiments that were run with them: what they should
have been is in the records. Small sizes with networks from ImageNet: the ratio of core seconds, medians of alternating
steps, which a test holds to the records of `facade-learning-rates` within 3 %. Full sizes: not measured on a GPU."""
SMALL_RATES: dict[str, float] = {
    "student": 0.04,
    "student_equal_seconds": 0.04,
    "pixel_kd": 0.02,
    "apd": 0.02,
    "apd_without_kd": 0.04,
}
"""Rate of each method on CamVid: the best of three on val (campaign `camvid-small-rates`; a test holds it).

The length of the gradient grows with every loss that is added, so one rate would not be fair to all.
"""


STUDENT = NetworkConfig(backbone="mobilenetv2_100", weights="torchvision", head_width=128, output_stride=16)
TEACHER = NetworkConfig(backbone="efficientnet_lite2", weights="imagenet", head_width=256, output_stride=8)
SECOND_STUDENT = NetworkConfig(backbone="mobilenetv2_050", head_width=128, output_stride=16)
"""Half as wide, and from random weights."""
SECOND_TEACHER = NetworkConfig(
    backbone="efficientnet_lite0", weights="imagenet", head="aspp", head_width=256, output_stride=8, aspp_reach=80
)
"""A DeepLabV3 whose largest dilation reaches half a crop of the small recipes."""

# An update of AdamW does not depend on the length of the gradient, which every added loss changes, so the learning
# rates at which the methods are at their best lie closer together than with SGD.
ADAMW = TrainingConfig(optimiser="adamw", learning_rate=2e-4, weight_decay=0.01)

LEARNING_RATES: dict[str, float] = dict.fromkeys(METHODS, 2e-4)
"""Of each method: the best on val of those tried in the campaign `facade-learning-rates` (a test holds it)."""

_SMALL = {"crop_height": 160, "crop_width": 224, "jitter": 0.2, "evaluation_split": "test"}
_FULL = {**_SMALL, "crop_height": 320, "crop_width": 320}
# Images keep their shape and are loaded with their short side of 320 pixels.
_FACADE = {"name": "labelmefacade", "height": 0, "width": 0}
_DATA: dict[RealSize, DataConfig] = {
    # tested at six tenths of that for most shapes, and so trained from 0.75 to 1.75 of what is seen then
    "facade-small": DataConfig(**_FACADE, **_SMALL, long_side=256, scale_min=0.45, scale_max=1.05),
    "facade-full": DataConfig(**_FACADE, **_FULL, scale_min=0.75, scale_max=1.75),
    "camvid-small": DataConfig(name="camvid", **_SMALL, height=180, width=240),
    "camvid-full": DataConfig(name="camvid", **_FULL, height=360, width=480),
}
_STEPS: dict[RealSize, tuple[int, int]] = {
    "facade-small": (1200, 1200),
    "facade-full": (3000, 6000),
    "camvid-small": (2400, 1200),
    "camvid-full": (3000, 6000),
}
"""Of the student and of the teacher."""


def methods_of(size: Size) -> tuple[AnyMethod, ...]:
    """The methods that a size has: all of its task, but at the paper's size none that needs a step's measured seconds.

    >>> "roi_apd" in methods_of("tiny_coco"), "apd" in methods_of("tiny_coco")
    (True, False)
    """
    if size in get_args(DetectionSize):
        return detection_methods_of(size)
    return PAPER_METHODS if size in get_args(PaperSize) else METHODS


def default_method(size: Size) -> AnyMethod:
    """APD, in the form that is for the size's task: "apd", or "roi_apd" of boxes."""
    return "roi_apd" if size in get_args(DetectionSize) else "apd"


_DISTILLERS: dict[Method, tuple[DistillerConfig, ...]] = {
    "student": (),
    "student_equal_seconds": (),
    "pixel_kd": (PixelKDConfig(),),
    "apd": (APDConfig(),),
    "apd_without_kd": (APDConfig(pixel_kd=0.0),),
}


def distillers_of(method: Method) -> tuple[DistillerConfig, ...]:
    """The distillers a method adds to the task loss, with the weights that all sizes but the paper's share."""
    if method not in _DISTILLERS:
        raise ExperimentError(f"method = {method!r}: expected one of {', '.join(METHODS)}")
    return _DISTILLERS[method]


def recipe(
    size: Size = "tiny",
    method: AnyMethod | None = None,
    *,
    seed: int = 0,
    context_shift: float = 0.5,
) -> Experiment:
    """The experiment of one method at one size.

    Args:
        size: tiny (built-in scenes, under a minute a run on a CPU), small (CamVid at half resolution, minutes a run on
            a CPU), full (CamVid at 360×480, one GPU), one of REAL_SIZES (networks from ImageNet on CamVid and
            LabelMeFacade: small for a CPU core, full for a GPU), one of
            :func:`apd.study.published_recipes.paper_recipe` (four GPUs), or one of detection, see
            :func:`apd.study.coco_recipes.detection_recipe`.
        method: what is added to the student's task loss; None is :func:`default_method`.
        seed: of the student; data and teacher stay the same.
        context_shift: of the tiny recipe's scenes; no part of the other sizes.

    Raises:
        ExperimentError: an unknown size, or a method that is unknown or not among :func:`methods_of` the size.

    Example:
        >>> recipe("tiny", "pixel_kd", seed=3).name
        'tiny-pixel_kd-seed3'
    """
    if method is None:
        method = default_method(size)
    if size in get_args(DetectionSize):
        return detection_recipe(size, method, seed=seed)
    if size in get_args(PaperSize):
        return paper_recipe(size, method, seed=seed)
    distillers = distillers_of(method)
    match size:
        case _ if size in REAL_SIZES:
            base = real_experiment(size, method)
        case "tiny":
            base = _tiny(context_shift)
        case "small":
            base = _small(SMALL_RATES[method])
        case "full":
            base = _full(SMALL_RATES[method])
        case _:
            raise ExperimentError(f"size = {size!r}: expected one of {', '.join(get_args(Size))}")
    if method == "student_equal_seconds":
        longer = round(base.training.iterations * SECONDS_OF_APD[size])
        base = replace(base, training=replace(base.training, iterations=longer))
    return replace(base, name=f"{size}-{method}-seed{seed}", seed=seed, distillers=distillers)


def real_experiment(size: RealSize, method: str = "student") -> Experiment:
    """The student with its teacher and no distillers; methods of a size share it but for the learning rate.

    Example:
        >>> real_experiment("facade-small").teacher.network.backbone
        'efficientnet_lite2'
    """
    student, teacher = _STEPS[size]
    batch = 16 if size.endswith("full") else 8
    return Experiment(
        data=_DATA[size],
        network=STUDENT,
        training=replace(ADAMW, learning_rate=LEARNING_RATES[method], iterations=student, batch_size=batch),
        teacher=TeacherConfig(network=TEACHER, training=replace(ADAMW, iterations=teacher, batch_size=batch)),
    )


def _tiny(context_shift: float) -> Experiment:
    """Scenes; both networks start at random, so nothing is downloaded.

    timm's smallest EfficientNet, at output stride 4 because a pole is two pixels wide here: the student with a narrow
    head, the teacher with a wide one and three times the steps. Both learning rates are the best of three on val at
    context_shift 1, the student's over all methods (campaign `scenes-tiny-tuning`). Campaigns train longer, see
    `lengthened`.
    """
    return Experiment(
        data=DataConfig(
            name="scenes",
            height=96,
            width=96,
            evaluation_split="test",
            crop_height=96,
            crop_width=96,
            scale_min=0.75,
            scale_max=1.5,
            train_images=400,
            evaluation_images=200,
            context_shift=context_shift,
        ),
        network=NetworkConfig(backbone="test_efficientnet", head_width=32, output_stride=4),
        training=TrainingConfig(iterations=200, learning_rate=0.03, evaluations=2),
        precision="fp32",
        teacher=TeacherConfig(
            network=NetworkConfig(backbone="test_efficientnet", head_width=128, output_stride=4),
            training=TrainingConfig(iterations=600, learning_rate=0.1, evaluations=2),
        ),
    )


def lengthened(experiment: Experiment, *, student: float, teacher: float) -> Experiment:
    """The same experiment with that many times the steps, for the student and for its teacher's training.

    Milestones of a schedule move along; a warm-up stays as long as it is.
    """

    def longer(training: TrainingConfig, factor: float) -> TrainingConfig:
        milestones = tuple(round(milestone * factor) for milestone in training.milestones)
        return replace(training, iterations=round(training.iterations * factor), milestones=milestones)

    trained = experiment.teacher and replace(experiment.teacher, training=longer(experiment.teacher.training, teacher))
    return replace(experiment, training=longer(experiment.training, student), teacher=trained)


def _small(rate: float) -> Experiment:
    """CamVid at 180×240, output stride 16; sized for minutes a run on one CPU core.

    The teacher's rate is the best of three on val in short runs (campaign `camvid-small-tuning`), the student's is
    SMALL_RATES'; the distillers' weights are their defaults and were not tuned.
    """
    return Experiment(
        data=DataConfig(
            name="camvid",
            height=180,
            width=240,
            evaluation_split="test",
            crop_height=160,
            crop_width=160,
            jitter=0.2,
        ),
        network=NetworkConfig(backbone="mobilenetv2_050", head_width=128, output_stride=16),
        training=TrainingConfig(iterations=1500, learning_rate=rate),
        teacher=TeacherConfig(
            network=NetworkConfig(backbone="efficientnet_lite0", head_width=256, output_stride=16, weights="imagenet"),
            training=TrainingConfig(iterations=1500, learning_rate=0.01),
        ),
    )


def _full(rate: float) -> Experiment:
    """CamVid at its own size on one GPU: the small recipe with larger crops and batches and a longer schedule."""
    small = _small(rate)
    longer = {"iterations": 12000, "batch_size": 16}
    return replace(
        small,
        data=replace(small.data, height=360, width=480, crop_height=320, crop_width=320),
        training=replace(small.training, **longer),
        teacher=replace(small.teacher, training=replace(small.teacher.training, **longer)),
    )


def all_recipes() -> Iterator[tuple[str, Experiment]]:
    """Every size with every method, by name."""
    for size in get_args(Size):
        for method in methods_of(size):
            experiment = recipe(size, method)
            yield experiment.name.rsplit("-", 1)[0], experiment


def sourced_lines(name: str) -> Iterator[str]:
    """The recipe of a name such as "cityscapes-apd" as lines with the source of every value; none where all are ours.

    >>> [line for line in sourced_lines("coco-roi_apd") if line.startswith("training.m")][1]
    "training.milestones                  (120000, 160000) ReviewKD's code"
    """
    size, method = name.rsplit("-", 1)
    if size in get_args(CocoSize):
        yield from lines_with_sources(recipe(size, method), COCO_SOURCES)
    elif size in get_args(PaperSize):
        sources = {**SOURCES, **CORRECTED_SOURCES} if size.endswith(CORRECTED) else SOURCES
        yield from lines_with_sources(recipe(size, method), sources)
