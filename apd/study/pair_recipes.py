"""Pairs of networks: PSPNet and DeepLabV3 as teacher and as student, with three student backbones.

A pair is same-architecture where teacher and student have the same head, else cross-architecture. A baseline has no
teacher: it is run once for each student and seed, and is compared with all of the student's teachers.
"""

from dataclasses import replace
from typing import Literal, get_args

from apd.config.experiment import Experiment, NetworkConfig, TeacherConfig
from apd.study.recipes import Method, distillers_of, lengthened, recipe

Head = Literal["psp", "aspp"]
HEADS: tuple[Head, ...] = get_args(Head)
PAIR_METHODS: tuple[Method, ...] = ("student", "pixel_kd", "apd")
"""The baseline, and what is compared with it in every pair."""

STUDENT_RATES = {"resnet18": 0.01, "mobilenetv2_050": 0.03, "test_efficientnet": 0.03}
"""Rate of each student backbone on scenes: one for both heads, all teachers and all methods.

The three of the published study, at sizes for a CPU: MobileNetV2 at half its width, and timm's smallest EfficientNet.
The rates are the best of TRIED_PAIR_RATES in the campaign `scenes-pairs-tuning`, and a test holds them to its records.
"""

TEACHER_RATES: dict[Head, float] = {"psp": 0.03, "aspp": 0.03}
"""Rate of each teacher on scenes, by its head: the best of TRIED_PAIR_RATES by its own score on val."""

TRIED_PAIR_RATES = (0.01, 0.03, 0.1)


def pair_network(head: Head, backbone: str, width: int) -> NetworkConfig:
    """A network of either role at the published output stride of 8.

    DeepLabV3 looks around as far as half a crop: the released code's 288 pixels are 0.4 of a crop on Cityscapes and 0.6
    on the other data.
    """
    reach = {"aspp_reach": 32} if head == "aspp" else {}
    return NetworkConfig(backbone=backbone, head=head, head_width=width, output_stride=8, **reach)


def scenes_pair(teacher_head: Head, student_head: Head, backbone: str, method: Method, seed: int = 0) -> Experiment:
    """One run on built-in scenes; both networks start at random, so nothing is downloaded.

    The data are the tiny recipe's. Its default context shift of 0.5 lies halfway between the ends at which APD's gain
    is known, and so favours neither. Crops of 64 pixels halve the time of a step; all networks are scored on whole
    images. Both teachers are the one of `scenes-tiny` at stride 8: timm's smallest EfficientNet with a wide head and
    twelve times a student's steps. They differ in the head and in nothing else. Students take the tiny recipe's 200
    steps, which keeps a ResNet-18 at little more than a minute on one core of a CPU.

    Args:
        teacher_head: of the teacher; the baseline has none, whatever is given.
        student_head, backbone: of the student.
        method: one of PAIR_METHODS.
        seed: of the student; data and teacher stay the same.

    Example:
        >>> scenes_pair("aspp", "psp", "resnet18", "apd", seed=2).name
        'apd-psp_resnet18_from_aspp-seed2'
        >>> scenes_pair("aspp", "psp", "resnet18", "student").teacher is None
        True
    """
    base = recipe("tiny", "student")
    longer = lengthened(base, student=1, teacher=4).teacher.training
    teacher = TeacherConfig(
        network=pair_network(teacher_head, base.teacher.network.backbone, base.teacher.network.head_width),
        training=replace(longer, learning_rate=TEACHER_RATES[teacher_head], evaluations=1),
    )
    baseline = method == "student"
    student = f"{student_head}_{backbone}"
    return Experiment(
        name=f"{method}-{student if baseline else f'{student}_from_{teacher_head}'}-seed{seed}",
        seed=seed,
        data=replace(base.data, crop_height=64, crop_width=64),
        network=pair_network(student_head, backbone, base.network.head_width),
        training=replace(base.training, learning_rate=STUDENT_RATES[backbone], evaluations=1),
        precision=base.precision,
        teacher=None if baseline else teacher,
        distillers=distillers_of(method),
    )
