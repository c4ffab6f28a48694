"""Distillers for pixels, put to work on detectors: on boxes, and on the levels of the pyramid.

Of a :class:`~apd.distillers.base.DetectorPair`, the boxes' vectors, logits and matched labels are features,
logits and labels of a map with one row a picture; a level of the pyramid is a feature map, with the things' masks as
its labels. Anything that is called as :class:`apd.APDLoss` works on either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from apd.distillers.base import LEVELS, NO_BOX, DetectorPair, DistillerConfig, require_levels
from apd.distillers.features import FitNet
from apd.distillers.logits import DKD, DKDConfig, PixelKD


def _check_ignored(distiller: nn.Module) -> None:
    ignored = getattr(distiller, "ignore_index", NO_BOX)
    if ignored != NO_BOX:
        raise ValueError(
            f"{type(distiller).__name__} has ignore_index={ignored}: construct it with ignore_index={NO_BOX}, the "
            "label of places without a box and of ignored pixels"
        )


class OnRoIs(nn.Module):
    """A distiller for pixels on the boxes that the student is trained on.

    Args:
        distiller: called as :class:`apd.APDLoss`, with ``ignore_index=-1`` and, where it asks for them, classes K + 1
            (the background is one) and the length of the box heads' vectors as channels.

    Raises:
        ValueError: another ``ignore_index``.

    Example:
        >>> from apd.distillers import DIST
        >>> distiller = OnRoIs(DIST(ignore_index=-1))
    """

    def __init__(self, distiller: nn.Module) -> None:
        super().__init__()
        _check_ignored(distiller)
        self.distiller = distiller

    def forward(self, pair: DetectorPair) -> dict[str, Tensor]:
        """The distiller's terms and ``"loss"``."""
        return self.distiller(
            student_features=pair.student.vectors_BC1N,
            teacher_features=pair.teacher.vectors_BC1N,
            student_logits=pair.student.logits_BK1N,
            teacher_logits=pair.teacher.logits_BK1N,
            labels=pair.labels_B1N,
        )

    def student_parameters(self) -> list[nn.Parameter]:
        """Those of the distiller."""
        return self.distiller.student_parameters()

    def teacher_parameters(self) -> list[nn.Parameter]:
        """Those of the distiller."""
        return self.distiller.teacher_parameters()


class OnPyramid(nn.Module):
    """A distiller for feature maps on levels of the two pyramids, one of its own for each; terms are means over levels.

    Args:
        build: makes the distiller of one level. It is called as :class:`apd.APDLoss`, without logits, and needs
            ``ignore_index=-1``.
        levels: "0" (stride 4) to "3" (stride 32), and "pool".
        labels: "classes": the things' masks, as :func:`apd.data.instances.class_map` paints them, K + 1 classes.
            "inside": one class, everything that is not padding, for distillers that need no labels.

    Raises:
        ValueError: no level, one twice or unknown; at call, targets without a class map, or networks that resize the
            pictures to different sizes, so that their maps do not lie on one another.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        levels: Sequence[str],
        labels: Literal["classes", "inside"] = "classes",
    ) -> None:
        super().__init__()
        if not levels or len(set(levels)) != len(levels) or not set(levels) <= set(LEVELS):
            raise ValueError(f"levels={tuple(levels)!r}: expected one or several of {', '.join(LEVELS)}, each once")
        if labels not in ("classes", "inside"):
            raise ValueError(f"labels={labels!r}: expected 'classes' or 'inside'")
        self.levels, self.labels = tuple(levels), labels
        self.distillers = nn.ModuleDict({level: build() for level in self.levels})
        for distiller in self.distillers.values():
            _check_ignored(distiller)

    def forward(self, pair: DetectorPair) -> dict[str, Tensor]:
        """The mean over levels of each of the distiller's terms, and of ``"loss"``."""
        check_aligned(pair, self.levels)
        labels_BHW = pair.class_map_BHW if self.labels == "classes" else pair.inside_BHW
        if labels_BHW is None:
            raise ValueError(
                "the targets have no class_map, which this distiller takes its labels from: make them with "
                "apd.data.instances.as_target, or paint one with apd.data.instances.class_map"
            )
        outputs = [
            distiller(
                student_features=pair.student.pyramid[level],
                teacher_features=pair.teacher.pyramid[level],
                labels=labels_BHW,
            )
            for level, distiller in self.distillers.items()
        ]
        return {name: sum(output[name] for output in outputs) / len(outputs) for name in outputs[0]}

    def student_parameters(self) -> list[nn.Parameter]:
        """Those of all levels."""
        return [parameter for distiller in self.distillers.values() for parameter in distiller.student_parameters()]

    def teacher_parameters(self) -> list[nn.Parameter]:
        """Those of all levels."""
        return [parameter for distiller in self.distillers.values() for parameter in distiller.teacher_parameters()]


def check_aligned(pair: DetectorPair, levels: Sequence[str]) -> None:
    """Raise ``ValueError`` unless both networks see the pictures at one size and have these levels."""
    for side, view in (("student", pair.student), ("teacher", pair.teacher)):
        if lacking := [level for level in levels if level not in view.pyramid]:
            raise ValueError(
                f"the {side}'s pyramid has no level {', '.join(lacking)}: it has {', '.join(view.pyramid)}; choose "
                "levels that both have"
            )
    ours, theirs = pair.student.image_sizes, pair.teacher.image_sizes
    if list(map(tuple, ours)) != list(map(tuple, theirs)):
        raise ValueError(
            f"the student resizes the pictures to {ours[:3]} and the teacher to {theirs[:3]}: their maps do not lie on "
            "one another; build both with the same min_size and max_size"
        )


def roi_kd(*, temperature: float = 1.0, weight: float = 1.0) -> OnRoIs:
    """Ordinary distillation of the class layer's logits, a mean over boxes (:class:`apd.PixelKD`)."""
    return OnRoIs(PixelKD(temperature=temperature, weight=weight, ignore_index=NO_BOX))


@dataclass(frozen=True, kw_only=True)
class RoIKDConfig(DistillerConfig, task="detection"):
    """Ordinary distillation of the boxes' logits, as :func:`roi_kd`."""

    method: Literal["roi_kd"] = "roi_kd"
    weight: float = 1.0
    temperature: float = 1.0

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        """See :meth:`DistillerConfig.build`; here and below the ignored label is a detector's."""
        return roi_kd(temperature=self.temperature, weight=self.weight)


def roi_dkd(*, target: float = 1.0, non_target: float = 0.25, temperature: float = 1.0) -> OnRoIs:
    """Decoupled distillation of the class layer's logits (:class:`apd.DKD`), as its authors do on COCO.

    Weights 1 and 0.25 and temperature 1 are theirs, and so is the choice of boxes: those the student draws.
    """
    return OnRoIs(DKD(target=target, non_target=non_target, temperature=temperature, ignore_index=NO_BOX))


@dataclass(frozen=True, kw_only=True)
class RoIDKDConfig(DKDConfig, task="detection"):
    """Decoupled distillation of the boxes' logits, as :func:`roi_dkd`; defaults are its authors' on COCO."""

    method: Literal["roi_dkd"] = "roi_dkd"

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        """See :meth:`DistillerConfig.build`."""
        return roi_dkd(target=self.target, non_target=self.non_target, temperature=self.temperature)


def pyramid_matching(
    student_channels: int, teacher_channels: int, *, levels: Sequence[str] = LEVELS, weight: float = 1.0
) -> OnPyramid:
    """Feature matching of the pyramids (:class:`apd.FitNet`): mean squared distance inside the pictures.

    Args:
        student_channels, teacher_channels: channels of the two pyramids.
        levels: default all five.
        weight: of the mean over levels (default 1, own choice; no published one is known).
    """
    return OnPyramid(
        lambda: FitNet(student_channels, teacher_channels, num_classes=1, weight=weight, ignore_index=NO_BOX),
        levels=levels,
        labels="inside",
    )


@dataclass(frozen=True, kw_only=True)
class PyramidMatchingConfig(DistillerConfig, task="detection"):
    """Feature matching of the pyramids, as :func:`pyramid_matching`."""

    method: Literal["pyramid_matching"] = "pyramid_matching"
    levels: tuple[str, ...] = LEVELS
    weight: float = 1.0
    """Own choice; no published one is known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_levels(self)

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        """See :meth:`DistillerConfig.build`."""
        channels = student.backbone.out_channels, teacher.backbone.out_channels
        return pyramid_matching(*channels, levels=self.levels, weight=self.weight)
