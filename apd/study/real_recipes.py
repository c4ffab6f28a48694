"""Recipes on real images with networks that start from ImageNet: small for one CPU core, full for one GPU.

On LabelMeFacade and CamVid alike a PSPNet on EfficientNet-Lite2 teaches one on MobileNetV2. How the schedules and
learning rates were chosen is in the records of the campaign `facade-tuning`, by the score on val.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

from apd.study.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig

RealSize = Literal["facade-small", "facade-full", "camvid-small", "camvid-full"]
REAL_SIZES: tuple[RealSize, ...] = get_args(RealSize)

STUDENT = NetworkConfig(backbone="mobilenetv2_100", weights="torchvision", head_width=128, output_stride=16)
TEACHER = NetworkConfig(backbone="efficientnet_lite2", weights="imagenet", head_width=256, output_stride=8)
SECOND_STUDENT = NetworkConfig(backbone="mobilenetv2_050", head_width=128, output_stride=16)
"""Half as wide, from random weights."""
SECOND_TEACHER = NetworkConfig(
    backbone="efficientnet_lite0", weights="imagenet", head="aspp", head_width=256, output_stride=16, aspp_reach=80
)
"""DeepLabV3 that looks around as far as half a crop of the small recipes."""

# AdamW's update does not depend on the length of the gradient, which every added loss changes: the learning rates at
# which the methods are at their best lie closer together than with SGD.
ADAMW = TrainingConfig(optimiser="adamw", learning_rate=2e-4, weight_decay=0.01)

_DATA: dict[RealSize, DataConfig] = {
    # Images keep their shape: loaded with a short side of 320 pixels and tested with a long side of 256.
    "facade-small": DataConfig(
        name="labelmefacade",
        height=0,
        width=0,
        long_side=256,
        evaluation_split="test",
        crop_height=160,
        crop_width=224,
        scale_min=0.45,
        scale_max=1.05,
        jitter=0.2,
    ),
    "facade-full": DataConfig(
        name="labelmefacade",
        height=0,
        width=0,
        evaluation_split="test",
        crop_height=320,
        crop_width=320,
        scale_min=0.75,
        scale_max=1.75,
        jitter=0.2,
    ),
    "camvid-small": DataConfig(
        name="camvid",
        height=180,
        width=240,
        evaluation_split="test",
        crop_height=160,
        crop_width=224,
        jitter=0.2,
    ),
    "camvid-full": DataConfig(
        name="camvid",
        height=360,
        width=480,
        evaluation_split="test",
        crop_height=320,
        crop_width=320,
        jitter=0.2,
    ),
}
_STEPS: dict[RealSize, tuple[int, int]] = {
    "facade-small": (1500, 1200),
    "facade-full": (3000, 6000),
    "camvid-small": (2400, 1200),
    "camvid-full": (3000, 6000),
}
"""Of the student and of the teacher."""


def real_experiment(size: RealSize) -> Experiment:
    """The student with its teacher and no distillers, as all methods of a size share it.

    Example:
        >>> real_experiment("facade-small").teacher.network.backbone
        'efficientnet_lite2'
    """
    student, teacher = _STEPS[size]
    batch = 16 if size.endswith("full") else 8
    return Experiment(
        data=_DATA[size],
        network=STUDENT,
        training=replace(ADAMW, iterations=student, batch_size=batch),
        teacher=TeacherConfig(network=TEACHER, training=replace(ADAMW, iterations=teacher, batch_size=batch)),
    )


def facade_tuning() -> Iterator[Experiment]:
    """Trials on LabelMeFacade, all read by the score on val after the last step: the teacher's network and schedule.

    The stride of the teacher's features, in short runs first.
    """
    base = real_experiment("facade-small")
    teacher = base.teacher_experiment()
    for stride in (16, 8):
        yield replace(
            teacher,
            name=f"teacher-stride{stride}-steps400",
            network=replace(teacher.network, output_stride=stride),
            training=replace(teacher.training, iterations=400),
        )
    for steps in (1200, 2400):
        student = replace(base, teacher=None, training=replace(base.training, iterations=steps))
        yield replace(student, name=f"student-steps{steps}")
