"""The teacher of a run: where its weights come from, and whether they are good enough."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from apd.config.datasets import Splits
from apd.models.checkpoints import load_weights
from apd.training.detection import DetectionTask
from apd.training.distributed import ALONE, Ranks, of_every_rank
from apd.training.segmentation import SegmentationTask


class TeacherError(RuntimeError):
    """Teacher weights that do not fit, or that score below what the experiment states."""


def load_teacher(
    task: SegmentationTask | DetectionTask, path: Path, num_classes: int, device: torch.device
) -> nn.Module:
    """The teacher with strictly loaded weights, in eval mode, without gradients.

    The file may be one of this project's runs or a released checkpoint (see :func:`~apd.models.load_weights`).

    Raises:
        TeacherError: there is no such file, or its names or shapes are not those of the experiment's teacher.
    """
    if not path.is_file():
        raise TeacherError(f"teacher weights {path}: there is no such file (--teacher.weights-file)")
    network = task.experiment.teacher.network
    teacher = task.network(network, num_classes, device, seed=0, weights_follow=True)
    try:
        load_weights(teacher, path)
    except (RuntimeError, OSError) as error:
        raise TeacherError(f"teacher weights {error}; the network is {network} with {num_classes} classes") from error
    return teacher.eval().requires_grad_(False)


def measure_teacher(
    task: SegmentationTask | DetectionTask, teacher: nn.Module, splits: Splits, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """What the task measures of the teacher on the evaluation split, each rank taking its part of the images.

    Raises:
        TeacherError: its mIoU, or mean box AP, is below `teacher.expected_miou`, or `teacher.expected_ap`.
    """
    experiment, split = task.experiment, task.experiment.data.evaluation_split
    fact = task.evaluate(teacher, splits.evaluation, experiment.inference, ranks)
    score, value = task.headline(fact)
    expected = getattr(experiment.teacher, task.expected)
    ranks.print(f"{experiment.name}: teacher {score} {value:.4f} on {split}")
    if not value >= expected:
        reason = f"below teacher.{task.expected} = {expected}: wrong weights, wrong data or wrong image size"
        raise of_every_rank(TeacherError(f"the teacher's {score} is {value:.4f} on {split}, {reason}"))
    return fact
