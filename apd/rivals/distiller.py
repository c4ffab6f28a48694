"""What the rivals share: their weights, their parameters, the checks of a call, and one grid for maps and labels."""

import math

import torch
from torch import Tensor, nn

from apd.perspective import check_count, check_labels, check_map, match_grids, resize_labels, valid_pixels

IGNORED = -1
"""What labels hold, inside this part of the package, at pixels that belong to no class."""


def check_positive(name: str, value: float) -> None:
    """Raise ``ValueError`` naming the argument unless ``value`` is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value}: expected a positive number")


class Rival(nn.Module):
    """A distillation method behind the call of :class:`apd.APDLoss`: named terms, their weights and their sum.

    Args:
        weights: of the terms by name. A method of one term wants it positive; one of several wants none negative and
            not all 0, and does not compute a term of weight 0.
        ignore_index: label of pixels that belong to no class.

    Raises:
        ValueError: a weight is none.
    """

    def __init__(self, weights: dict[str, float], *, ignore_index: int) -> None:
        super().__init__()
        if len(weights) == 1:
            for value in weights.values():
                check_positive("weight", value)
        for name, value in weights.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value}: expected a finite number, 0 or greater")
        if not any(weights.values()):
            raise ValueError(f"{', '.join(weights)} are all 0: give at least one term a positive weight")
        self.weights, self.ignore_index = {name: float(value) for name, value in weights.items()}, ignore_index

    def student_parameters(self) -> list[nn.Parameter]:
        """Parameters of the student's adapter, for the student's optimiser (empty when there is none)."""
        return list(self.parameters())

    def teacher_parameters(self) -> list[nn.Parameter]:
        """Empty: nothing is trained on the teacher's side."""
        return []

    def extra_repr(self) -> str:
        """What ``print(module)`` says of the settings."""
        return ", ".join(f"{name}={value:g}" for name, value in self.weights.items())

    def _with_loss(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return terms | {"loss": sum(self.weights[name] * term for name, term in terms.items())}

    def _on_one_grid(
        self, kind: str, student: Tensor, teacher: Tensor, labels_BHW: Tensor, num_classes: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Checked maps of one ``kind`` (logits or features) on the coarser grid, and labels on it.

        The teacher's map is detached. The labels come as int64 with :data:`IGNORED` at pixels of ``ignore_index``;
        the number of classes is that of the logits unless it is given.
        """
        check_map(f"student_{kind}", student)
        check_map(f"teacher_{kind}", teacher)
        if student.shape[0] != teacher.shape[0]:
            raise ValueError(
                f"teacher_{kind} holds {teacher.shape[0]} images but student_{kind} {student.shape[0]}: "
                "the batches must agree"
            )
        if kind == "logits" and student.shape[1] != teacher.shape[1]:
            raise ValueError(
                f"student_logits has shape {tuple(student.shape)} but teacher_logits {tuple(teacher.shape)}: "
                "the classes (second axis) must be equal"
            )
        check_labels(labels_BHW, student.shape[0])
        student, teacher = match_grids(student, teacher.detach())
        num_classes = student.shape[1] if num_classes is None else num_classes
        valid_BHW = valid_pixels(labels_BHW, num_classes, ignore_index=self.ignore_index)
        labels_BHW = torch.where(valid_BHW, labels_BHW.long(), IGNORED)
        return student, teacher, resize_labels(labels_BHW, student.shape[2:])


class FeatureRival(Rival):
    """A :class:`Rival` that compares features of stated widths.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K, by which labels are checked.
        weights, ignore_index: see :class:`Rival`.

    Raises:
        ValueError: a width, a number of classes or a weight is none.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        weights: dict[str, float],
        ignore_index: int,
    ) -> None:
        super().__init__(weights, ignore_index=ignore_index)
        for name, value in (
            ("student_channels", student_channels),
            ("teacher_channels", teacher_channels),
            ("num_classes", num_classes),
        ):
            check_count(name, value)
        self.student_channels, self.teacher_channels, self.num_classes = student_channels, teacher_channels, num_classes

    def _features_on_one_grid(
        self, student: Tensor, teacher: Tensor, labels_BHW: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        student_BChw, teacher_BChw, labels_Bhw = self._on_one_grid(
            "features", student, teacher, labels_BHW, self.num_classes
        )
        for side, value in (("student", student_BChw), ("teacher", teacher_BChw)):
            channels = getattr(self, f"{side}_channels")
            if value.shape[1] != channels:
                raise ValueError(
                    f"{side}_features has {value.shape[1]} channels: expected {channels}, "
                    f"the {side}_channels given at construction"
                )
        return student_BChw, teacher_BChw, labels_Bhw


def convolved(convolution: nn.Conv2d, features_BChw: Tensor) -> Tensor:
    """The convolution in the precision of its own parameters."""
    return convolution(features_BChw.to(convolution.weight.dtype))
