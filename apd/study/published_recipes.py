"""The published experiments: PSPNet-R18 taught by PSPNet-R101, as released and *corrected* (another loss alone).

And those of detection, at the paper's scale and small; how the paper applies APD to it was never released, so the
methods are this project's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args

from apd.config.detection_config import DetectorConfig, InstanceDataConfig
from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig
from apd.config.inference_options import InferenceOptions
from apd.data.specs import ADE20K, CITYSCAPES, PASCAL_CONTEXT_60, DatasetSpec
from apd.distillers.apd import APDConfig, DenseAPDConfig, RoIAPDConfig
from apd.distillers.base import DistillerConfig
from apd.distillers.logits import PixelKDConfig
from apd.distillers.on_detectors import PyramidMatchingConfig, ReviewKDConfig, RoIDKDConfig, RoIKDConfig
from apd.study.ablations import stronger

PaperSize = Literal[
    *("cityscapes", "cityscapes_corrected", "ade20k", "ade20k_corrected", "pascal_context", "pascal_context_corrected")
]
PaperMethod = Literal["student", "pixel_kd", "apd", "apd_without_kd"]
PAPER_METHODS: tuple[PaperMethod, ...] = get_args(PaperMethod)

CORRECTED = "_corrected"
PROCESSES = 4  # GPUs of the released configurations, one process each.
RELEASED_WEIGHT = 10.0
"""Of pixel distillation, of the observations and of the alignment, in the released code's element means."""
CLASSES_SEEN = 10
"""N, the classes that the images of a process show together, for which the observations' weight is converted (own
choice; ``apd train --dry-run`` counts it on the data)."""


@dataclass(frozen=True)
class Published:
    """What the released code sets for one data set, and what was published for it."""

    spec: DatasetSpec
    crop: int  #: Rows and columns of a training crop and of a test window.
    long_side: int  #: Pixels of an image's longer side in the test.
    images_per_process: int  #: In one step, on each of the four GPUs.
    epochs: int
    learning_rate: float  #: Of the backbone; ten times that for the heads.
    dilation: Literal["one_conv", "all_convs"]  #: Of the ResNets; another one where there are 60 classes.
    alone: float  #: mIoU of the student without teacher, in per cent (official README), as what follows.
    with_apd: float  #: mIoU of the student with APD.
    near_teacher: float | None  #: Of PSPNet-R101 in semseg's README; that of the paper's teachers is not known.

    @property
    def batch_size(self) -> int:
        """Images of a step on all processes together."""
        return PROCESSES * self.images_per_process

    @property
    def iterations(self) -> int:
        """Steps of all epochs. Each process has a quarter of the images, rounded up, and drops an incomplete batch."""
        share = -(-dict(self.spec.splits)["train"] // PROCESSES)
        return self.epochs * (share // self.images_per_process)


PUBLISHED = {
    "cityscapes": Published(CITYSCAPES, 713, 2048, 2, 200, 0.005, "one_conv", 74.15, 75.68, 78.63),
    "ade20k": Published(ADE20K, 473, 512, 2, 100, 0.005, "one_conv", 37.19, 39.25, 43.10),
    "pascal_context": Published(PASCAL_CONTEXT_60, 473, 512, 3, 100, 0.00075, "all_convs", 42.29, 43.96, None),
}
"""What was published, by data set."""


def pixel_weight(classes: int) -> float:
    """The weight that pulls on each pixel as the released 10 does in element means, over classes or those in sight."""
    return RELEASED_WEIGHT / classes


def paper_recipe(size: PaperSize, method: PaperMethod = "apd", *, seed: int = 0) -> Experiment:
    """One of the published experiments; the student needs `network.weights_file`, as none is public for this ResNet-18.

    The teacher is trained first from timm's weights, or is `teacher.weights_file`, which must reach `expected_miou`.
    """
    published = PUBLISHED[size.removesuffix(CORRECTED)]
    student = NetworkConfig(
        backbone="resnet18_deep", head_width=512, output_stride=8, weights="imagenet", dilation=published.dilation
    )
    training = TrainingConfig(
        iterations=published.iterations, batch_size=published.batch_size, learning_rate=published.learning_rate
    )
    crop = {"crop_height": published.crop, "crop_width": published.crop}
    own_size = {"height": 0, "width": 0, "long_side": published.long_side}
    return Experiment(
        name=f"{size}-{method}-seed{seed}",
        seed=seed,
        data=DataConfig(name=published.spec.name, **own_size, **crop, rotation=10.0, blur=0.5),
        network=student,
        training=training,
        precision="fp32",
        teacher=TeacherConfig(network=replace(student, backbone="resnet101_deep"), training=training),
        distillers=_distillers(method, published.spec.num_classes, released=not size.endswith(CORRECTED)),
        inference=InferenceOptions(window=(published.crop, published.crop), flip=True),
    )


def _distillers(method: PaperMethod, num_classes: int, *, released: bool) -> tuple[DistillerConfig, ...]:
    logits, seen = (RELEASED_WEIGHT,) * 2 if released else (pixel_weight(num_classes), pixel_weight(CLASSES_SEEN))
    shared = {"reduction": "element" if released else "pixel", "upsample_logits": released}
    if not method.startswith("apd"):
        return (PixelKDConfig(weight=logits, **shared),) if method == "pixel_kd" else ()
    weights = {"alignment": RELEASED_WEIGHT, "observation": seen, "pixel_kd": logits if method == "apd" else 0.0}
    kind = {"scope": "batch", "absent": "zero"} if released else {"scope": "image", "absent": "mask"}
    return (APDConfig(**shared, **kind, **weights, width=512, teacher_head_rate=1e-5),)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, value, default) of every field of an experiment, nested ones as dotted names."""
    for field in fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from leaves(value, f"{name}.")
        elif field.name == "distillers":
            for distiller in value:
                yield from leaves(distiller, f"{name}.{distiller.method}.")
        elif field.name not in ("name", "method") or prefix == "data.":
            yield name, value, field.default


# detection

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
BEST_OTHER_DETECTION_METHOD = "roi_dkd"  # Best on val with the first seed but for APD and its KD; APD is added to it.
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
    return variants | {f"roi_apd_and_{best}": (*variants[best], replace(apd, pixel_kd=0.0))}


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
    return ("student", "roi_kd", "review_kd", "roi_apd", *([] if "boxes" in size else ["dense_apd"]))


def detection_recipe(size: DetectionSize, method: DetectionMethod = "roi_apd", *, seed: int = 0) -> Experiment:
    """One experiment of detection; :func:`apd.study.recipes.recipe` gives it under the same name.

    `size` is scenes_detection (built-in scenes), tiny_coco (50 real images; both minutes on a CPU) or COCO at paper
    scale: Mask R-CNN with a ResNet-18 taught by a ResNet-101 (coco), with a MobileNetV3 by a ResNet-50
    (coco_mobilenet), and Faster R-CNN of the same pairs (coco_boxes, coco_boxes_mobilenet). `seed` is the student's.
    """
    named = {"name": f"{size}-{method}-seed{seed}", "seed": seed}
    if size == "scenes_detection":  # whose campaign has the teacher's score beside all methods
        return replace(scenes_detection_experiment(method, seed), **named)
    tiny = size == "tiny_coco"
    experiment = replace(TINY_COCO, distillers=distillers_on_scenes(method)) if tiny else _coco(size, method)
    return replace(experiment, **named, **({"teacher": None} if method == "student" else {}))


def _coco(size: CocoSize, method: DetectionMethod) -> Experiment:
    """COCO 2017 as ReviewKD's code trains on it, as far as torchvision's detectors go; teacher and student alike."""
    student, teacher = ("mobilenet_v3_large", "resnet50") if "mobilenet" in size else ("resnet18", "resnet101")
    masks = "boxes" not in size
    kind = "mask_rcnn" if masks else "faster_rcnn"
    detector = DetectorConfig(kind=kind, backbone=student, weights="imagenet")
    training = TrainingConfig(
        iterations=180_000, head_multiplier=1.0, schedule="steps", milestones=(120_000, 160_000), warmup=1000
    )
    distillers = tuple(type(config)() for config in UNTUNED[method])  # heads of the default widths
    if method == "review_kd":
        distillers = (ReviewKDConfig(weight=REVIEW_WEIGHTS[size]),)
    return Experiment(
        data=InstanceDataConfig(name="coco", folder="coco", masks=masks, height=800, width=1333),
        network=detector,
        training=training,
        precision="fp32",
        teacher=TeacherConfig(network=replace(detector, backbone=teacher), training=training),
        distillers=distillers,
    )
