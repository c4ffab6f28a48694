"""The teacher of a run: where its weights come from, and whether they are good enough."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from apd.evaluate.confusion import scores
from apd.evaluate.inference import confusion_of
from apd.models.segmenter import Segmenter
from apd.study.build import Splits, build_network
from apd.study.experiment import Experiment


class TeacherError(RuntimeError):
    """Teacher weights that do not fit, or that score below what the experiment states."""


def load_teacher(experiment: Experiment, path: Path, num_classes: int, device: torch.device) -> Segmenter:
    """The teacher with strictly loaded weights, in eval mode, without gradients.

    Raises:
        TeacherError: there is no such file, or its names or shapes are not those of `experiment.teacher.network`.
    """
    if not path.is_file():
        raise TeacherError(f"teacher weights {path}: there is no such file (field teacher.weights_file)")
    teacher = build_network(experiment.teacher.network, num_classes, device, seed=0, weights_follow=True)
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors raises types of its own
        raise TeacherError(f"teacher weights {path} cannot be read as safetensors: {error}") from error
    if problems := _misfits(weights, teacher.state_dict()):
        raise TeacherError(
            f"teacher weights {path} do not fit {experiment.teacher.network} with {num_classes} classes: "
            f"{len(problems)} tensors differ, first {'; '.join(problems[:3])}"
        )
    teacher.load_state_dict(weights, strict=True)
    return teacher.eval().requires_grad_(False)


def _misfits(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What is missing in a file of weights, does not belong there, or has another shape."""
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in expected]
    return problems + [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]


def measure_teacher(experiment: Experiment, teacher: Segmenter, splits: Splits, precision: str) -> torch.Tensor:
    """The teacher's confusion matrix on the evaluation split.

    Raises:
        TeacherError: its mIoU is below `teacher.expected_miou`.
    """
    matrix_KK = confusion_of(teacher, splits.evaluation, precision=precision)
    miou, split = scores(matrix_KK).miou, experiment.data.evaluation_split
    print(f"{experiment.name}: teacher mIoU {miou:.4f} on {split}", flush=True)
    if not miou >= experiment.teacher.expected_miou:
        raise TeacherError(
            f"the teacher's mIoU is {miou:.4f} on {split}, below teacher.expected_miou = "
            f"{experiment.teacher.expected_miou}: wrong weights, wrong data or wrong image size"
        )
    return matrix_KK
