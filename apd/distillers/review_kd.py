"""ReviewKD (Chen et al. 2021): the teacher's pyramid from the student's, each level with all above it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apd.distillers.base import LEVELS, DetectorPair, DistillerConfig, require_levels
from apd.distillers.through_pixels import check_aligned
from apd.fields import require
from apd.perspective import full_precision
from apd.validation import WIDEST, check_count, check_positive, check_trained, check_values

_POOLED_SIDES = (4, 2, 1)


@full_precision
def hierarchical_context_loss(student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    """Squared distance of two maps, and of the maps averaged to 4 × 4, 2 × 2 and one cell, as a weighted mean.

    Each weighs half as much as the one before it, and the sum is divided by the weights' sum. A pooled side that the
    map's height does not exceed is left out, and halves nothing. The teacher's map is a constant here. Padding counts.
    All as published.

    >>> hierarchical_context_loss(torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))
    tensor(1.)
    """
    if student_BChw.shape != teacher_BChw.shape:
        raise ValueError(
            f"student has shape {tuple(student_BChw.shape)} but teacher {tuple(teacher_BChw.shape)}: they must be equal"
        )
    difference_BChw = student_BChw - teacher_BChw.detach()  # averaging is linear: one map to pool, not two
    sides = [side for side in _POOLED_SIDES if side < difference_BChw.shape[2]]
    weights = [0.5**place for place in range(1 + len(sides))]
    distances = [difference_BChw.square().mean()]
    distances += [F.adaptive_avg_pool2d(difference_BChw, side).square().mean() for side in sides]
    return sum(weight * distance for weight, distance in zip(weights, distances, strict=True)) / sum(weights)


class _Review(nn.Module):
    """One level: reduced, mixed with what comes from above by shares that depend on the place, and brought to the
    teacher's channels. The topmost has nothing above it."""

    def __init__(self, student_channels: int, teacher_channels: int, width: int, *, topmost: bool) -> None:
        super().__init__()
        self.reduced = _convolution(student_channels, width, 1)
        self.shares = None if topmost else nn.Conv2d(2 * width, 2, kernel_size=1)
        self.out = _convolution(width, teacher_channels, 3)

    def forward(self, own_BChw: Tensor, above_BDhw: Tensor | None) -> tuple[Tensor, Tensor]:
        mixed = self.reduced(own_BChw.to(self.out[0].weight.dtype))  # in the precision of its own parameters
        if self.shares is not None:
            above = F.interpolate(above_BDhw, size=mixed.shape[2:], mode="nearest")
            shares = self.shares(torch.cat([mixed, above], dim=1)).sigmoid()
            mixed = mixed * shares[:, :1] + above * shares[:, 1:]
        return self.out(mixed), mixed


def _convolution(channels: int, width: int, side: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel_size=side, padding=side // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


class ReviewKD(nn.Module):
    """Knowledge review of the pyramids, as published for detection.

    From the topmost level down, each of the student's maps is reduced, mixed with what the level above has gathered and
    compared with the teacher's map of that level by :func:`hierarchical_context_loss`; the term is the sum over levels.

    Args:
        student_channels, teacher_channels: channels of the two pyramids.
        levels: of the pyramid, from fine to coarse (default all five, as published).
        width: channels of what is handed down (default 256, published).
        weight: of the term in ``"loss"``. Published: 1 for ResNet-50 (the default), 1.2 for ResNet-18 and 1.5 with
            masks, 2 for MobileNetV2 and 1 with masks.

    Raises:
        ValueError: an argument out of its range; at call, views of other channels, or networks that resize the
            pictures to different sizes.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        levels: Sequence[str] = LEVELS,
        width: int = 256,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.student_channels = check_count("student_channels", student_channels)
        self.teacher_channels = check_count("teacher_channels", teacher_channels)
        width = check_count("width", width, WIDEST)
        check_positive("weight", weight)
        if not levels or tuple(levels) != tuple(level for level in LEVELS if level in levels):
            raise ValueError(f"levels={tuple(levels)!r}: expected some of {', '.join(LEVELS)}, in this order")
        self.levels, self.weights = tuple(levels), {"review_kd": float(weight)}
        self.reviews = nn.ModuleDict(
            {
                level: _Review(student_channels, teacher_channels, width, topmost=level == levels[-1])
                for level in reversed(self.levels)
            }
        )

    def forward(self, pair: DetectorPair) -> dict[str, Tensor]:
        """``{"review_kd": the term, "loss": weight × term}``."""
        check_aligned(pair, self.levels)
        above, total = None, 0.0
        for level, review in self.reviews.items():
            own, theirs = pair.student.pyramid[level], pair.teacher.pyramid[level]
            for side, features, channels in (
                ("student", own, self.student_channels),
                ("teacher", theirs, self.teacher_channels),
            ):
                if features.shape[1] != channels:
                    raise ValueError(
                        f"the {side}'s pyramid has {features.shape[1]} channels: expected {channels}, the "
                        f"{side}_channels given at construction"
                    )
            check_trained(self, "student_features", own)
            check_values(self, {"student_features": own, "teacher_features": theirs})
            reviewed, above = review(own, above)
            total = total + hierarchical_context_loss(reviewed, theirs)
        return {"review_kd": total, "loss": self.weights["review_kd"] * total}

    def student_parameters(self) -> list[nn.Parameter]:
        """All parameters: they belong to the student's side."""
        return list(self.parameters())

    def teacher_parameters(self) -> list[nn.Parameter]:
        """Empty: nothing is trained on the teacher's side."""
        return []

    def extra_repr(self) -> str:
        """What ``print(module)`` says of the settings."""
        return f"review_kd={self.weights['review_kd']:g}, levels={', '.join(self.levels)}"


@dataclass(frozen=True, kw_only=True)
class ReviewKDConfig(DistillerConfig, task="detection"):
    """Knowledge review of the pyramids, as :class:`ReviewKD`."""

    method: Literal["review_kd"] = "review_kd"
    levels: tuple[str, ...] = LEVELS
    """From fine to coarse."""
    width: int = 256
    """Channels of what is handed down from level to level (published: 256)."""
    weight: float = 1.0
    """Published for ResNet-50; see there for other students."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_levels(self, ordered=True)
        require(self.width >= 1, self, "width", "an integer >= 1")

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        """See :meth:`DistillerConfig.build`."""
        channels = student.backbone.out_channels, teacher.backbone.out_channels
        return ReviewKD(*channels, levels=self.levels, width=self.width, weight=self.weight)
