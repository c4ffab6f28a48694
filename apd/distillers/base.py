"""What the rivals share: their weights, their parameters, the checks of a call, and one grid for maps and labels."""

import torch
from torch import Tensor, nn

from apd.perspective import match_grids, resize_labels, valid_pixels
from apd.validation import (
    check_call,
    check_count,
    check_ignore_index,
    check_positive,
    without_infinities,
)

IGNORED = -1
"""What labels hold, inside this part of the package, at pixels that belong to no class."""


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
            check_positive(name, value, or_zero=True)
        if not any(weights.values()):
            raise ValueError(f"{', '.join(weights)} are all 0: give at least one term a positive weight")
        self.weights = {name: float(value) for name, value in weights.items()}
        self.ignore_index = check_ignore_index(ignore_index)

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

        The teacher's map is detached, and what it rules out finite. The labels come as int64 with :data:`IGNORED` at
        pixels of ``ignore_index``; the number of classes is that of the logits unless it is given.
        """
        maps = {f"student_{kind}": student, f"teacher_{kind}": teacher}
        check_call(self, maps, labels_BHW, trained=[f"student_{kind}"])
        if kind == "logits":
            teacher = without_infinities(teacher)
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
        self.student_channels = check_count("student_channels", student_channels)
        self.teacher_channels = check_count("teacher_channels", teacher_channels)
        self.num_classes = check_count("num_classes", num_classes)
        check_ignore_index(ignore_index, num_classes)

    def _features_on_one_grid(
        self, student: Tensor, teacher: Tensor, labels_BHW: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._on_one_grid("features", student, teacher, labels_BHW, self.num_classes)


def convolved(convolution: nn.Conv2d, features_BChw: Tensor) -> Tensor:
    """The convolution in the precision of its own parameters."""
    return convolution(features_BChw.to(convolution.weight.dtype))
