"""The teacher of a run: where its weights come from, and whether they are good enough."""

from pathlib import Path

import torch

from apd.evaluate.confusion import scores
from apd.evaluate.inference import confusion_of
from apd.models.released import load_weights
from apd.models.segmenter import Segmenter
from apd.study.build import Splits, build_network
from apd.study.experiment import Experiment
from apd.study.ranks import ALONE, Ranks, of_every_rank


class TeacherError(RuntimeError):
    """Teacher weights that do not fit, or that score below what the experiment states."""


def load_teacher(experiment: Experiment, path: Path, num_classes: int, device: torch.device) -> Segmenter:
    """The teacher with strictly loaded weights, in eval mode, without gradients.

    The file may be one of this project's runs or a released checkpoint (see :func:`~apd.models.load_weights`).

    Raises:
        TeacherError: there is no such file, or its names or shapes are not those of `experiment.teacher.network`.
    """
    if not path.is_file():
        raise TeacherError(f"teacher weights {path}: there is no such file (field teacher.weights_file)")
    network = experiment.teacher.network
    teacher = build_network(network, num_classes, device, seed=0, weights_follow=True)
    try:
        load_weights(teacher, path)
    except (RuntimeError, OSError) as error:
        raise TeacherError(f"teacher weights {error}; the network is {network} with {num_classes} classes") from error
    return teacher.eval().requires_grad_(False)


def measure_teacher(
    experiment: Experiment, teacher: Segmenter, splits: Splits, precision: str, ranks: Ranks = ALONE
) -> torch.Tensor:
    """The teacher's confusion matrix on the evaluation split, each rank taking its part of the images.

    Raises:
        TeacherError: its mIoU is below `teacher.expected_miou`.
    """
    part, inference = ranks.part(splits.evaluation), experiment.inference
    matrix_KK = ranks.total(confusion_of(teacher, part, precision=precision, inference=inference))
    miou, split = scores(matrix_KK).miou, experiment.data.evaluation_split
    ranks.tell(f"{experiment.name}: teacher mIoU {miou:.4f} on {split}")
    if not miou >= experiment.teacher.expected_miou:
        raise of_every_rank(
            TeacherError(
                f"the teacher's mIoU is {miou:.4f} on {split}, below teacher.expected_miou = "
                f"{experiment.teacher.expected_miou}: wrong weights, wrong data or wrong image size"
            )
        )
    return matrix_KK
