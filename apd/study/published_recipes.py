"""The published experiments: PSPNet-R18 taught by PSPNet-R101, as released and *corrected* (another loss alone)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args

from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig
from apd.config.inference_options import InferenceOptions
from apd.data.specs import ADE20K, CITYSCAPES, PASCAL_CONTEXT_60, DatasetSpec
from apd.distillers.apd import APDConfig
from apd.distillers.base import DistillerConfig
from apd.distillers.logits import PixelKDConfig
from apd.fields import ExperimentError

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
    alone: float  #: mIoU of the student without teacher, in per cent (official README).
    with_apd: float  #: mIoU of the student with APD, in per cent (official README).
    near_teacher: float | None
    """mIoU of PSPNet-R101 in the README of semseg, the code that the release builds on, in per cent. The mIoU of the
    paper's own teachers is not known."""

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
"""The three published rows by name, see :class:`Published`."""


def pixel_weight(classes: int) -> float:
    """The weight that pulls on each pixel as the released 10 does in element means, over classes or those in sight."""
    return RELEASED_WEIGHT / classes


def paper_recipe(size: PaperSize, method: PaperMethod = "apd", *, seed: int = 0) -> Experiment:
    """One of the published experiments; the student needs `network.weights_file`, as none is public for this ResNet-18.

    The teacher is trained first from timm's weights, or is `teacher.weights_file`, which must reach `expected_miou`.
    """
    if size not in get_args(PaperSize):
        raise ExperimentError(f"size = {size!r}: expected one of {', '.join(get_args(PaperSize))}")
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
    if method not in PAPER_METHODS:
        expected = f"one of {', '.join(PAPER_METHODS)} at the size of the paper"
        raise ExperimentError(f"method = {method!r}: expected {expected}, where no step's seconds have been measured")
    logits, seen = (RELEASED_WEIGHT,) * 2 if released else (pixel_weight(num_classes), pixel_weight(CLASSES_SEEN))
    shared = {"reduction": "element" if released else "pixel", "upsample_logits": released}
    if method == "student":
        return ()
    if method == "pixel_kd":
        return (PixelKDConfig(weight=logits, **shared),)
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
