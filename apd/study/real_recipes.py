"""Recipes on real images with networks that start from ImageNet: small for one CPU core, full for one GPU.

On LabelMeFacade and CamVid alike a PSPNet on EfficientNet-Lite2 teaches one on MobileNetV2. How the schedules and
learning rates were chosen is in the records of `facade-tuning` and `facade-learning-rates`, by the score on val.
"""

from dataclasses import replace
from typing import Literal, get_args

from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig

RealSize = Literal["facade-small", "facade-full", "camvid-small", "camvid-full"]
REAL_SIZES: tuple[RealSize, ...] = get_args(RealSize)

STUDENT = NetworkConfig(backbone="mobilenetv2_100", weights="torchvision", head_width=128, output_stride=16)
TEACHER = NetworkConfig(backbone="efficientnet_lite2", weights="imagenet", head_width=256, output_stride=8)
SECOND_STUDENT = NetworkConfig(backbone="mobilenetv2_050", head_width=128, output_stride=16)
"""Half as wide, and from random weights."""
SECOND_TEACHER = NetworkConfig(
    backbone="efficientnet_lite0", weights="imagenet", head="aspp", head_width=256, output_stride=8, aspp_reach=80
)
"""A DeepLabV3 that looks around as far as half a crop of the small recipes."""

# An update of AdamW does not depend on the length of the gradient, which every added loss changes, so the learning
# rates at which the methods are at their best lie closer together than with SGD.
ADAMW = TrainingConfig(optimiser="adamw", learning_rate=2e-4, weight_decay=0.01)

LEARNING_RATES: dict[str, float] = {
    "student": 2e-4,
    "student_equal_seconds": 2e-4,
    "pixel_kd": 2e-4,
    "apd": 2e-4,
    "apd_without_kd": 2e-4,
}
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
SECONDS_OF_REAL_APD: dict[RealSize, float] = {
    "facade-small": 2.09,
    "facade-full": 1.5,
    "camvid-small": 1.96,
    "camvid-full": 1.5,
}
"""A step of APD as a multiple of the plain student's. Small sizes: the ratio of core seconds, medians of alternating
steps, which a test holds to the records of `facade-learning-rates` within 3 %. Full sizes: a guess, as no GPU has
measured it."""


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
