"""Distillers of pixels on the boxes and pyramids of detectors, and ReviewKD.

Of a :class:`~apd.distillers.base.DetectorPair`, the boxes are a map with one row an image, and a level of the pyramid
is a feature map with the objects' masks as its labels. Anything that is called as :class:`apd.APDLoss` works on either.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apd.distillers.base import LEVELS, NO_BOX, DetectorPair, Distiller, DistillerConfig
from apd.distillers.features import FitNet
from apd.distillers.logits import DKD, DKDConfig, PixelKD
from apd.fields import shown
from apd.perspective import full_precision
from apd.validation import check_choice, check_count, check_maps, check_trained, check_values


def _check_ignored(distiller: nn.Module) -> None:
    if (ignored := getattr(distiller, "ignore_index", NO_BOX)) != NO_BOX:
        expected = f"construct it with ignore_index={NO_BOX}, the label of places without a box and of ignored pixels"
        raise ValueError(f"{type(distiller).__name__} has ignore_index={ignored}: {expected}")


class _OnDetectors(nn.Module):
    """Hands out the parameters of the distillers inside it, by side."""

    def student_parameters(self) -> list[nn.Parameter]:
        return [parameter for distiller in self._inside for parameter in distiller.student_parameters()]

    def teacher_parameters(self) -> list[nn.Parameter]:
        return [parameter for distiller in self._inside for parameter in distiller.teacher_parameters()]

    @property
    def _inside(self) -> list[nn.Module]:
        return list(self.distillers.values()) if hasattr(self, "distillers") else [self.distiller]


class OnRoIs(_OnDetectors):
    """A distiller of pixels on the boxes that the student is trained on.

    It is called as :class:`apd.APDLoss` and has ``ignore_index=-1`` and, where it asks for them, classes K + 1 (the
    background is one) and the length of the box heads' vectors as channels: ``OnRoIs(DIST(ignore_index=-1))``.
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


class OnPyramid(_OnDetectors):
    """A distiller of feature maps on levels of the two pyramids, one of its own for each; terms are means over levels.

    ``build`` makes that of one level, called as :class:`apd.APDLoss` without logits, with ``ignore_index=-1``. Labels
    are "classes", the objects' masks, as :func:`apd.data.instances.class_map` paints them, K + 1 classes; or "inside",
    one class, everything that is not padding.
    """

    def __init__(
        self, build: Callable[[], nn.Module], *, levels: Sequence[str], labels: Literal["classes", "inside"] = "classes"
    ) -> None:
        super().__init__()
        known = [level for level in LEVELS if isinstance(levels, list | tuple) and level in levels]
        if not known or len(known) != len(levels):
            raise ValueError(f"levels={shown(levels)}: expected one or several of {', '.join(LEVELS)}, each once")
        check_choice("labels", labels, ("classes", "inside"))
        self.levels, self.labels = tuple(levels), labels
        self.distillers = nn.ModuleDict({level: build() for level in self.levels})
        for distiller in self.distillers.values():
            _check_ignored(distiller)

    def forward(self, pair: DetectorPair) -> dict[str, Tensor]:
        """The mean over levels of each of the distiller's terms, and of ``"loss"``."""
        check_aligned(pair, self.levels)
        labels_BHW = pair.class_map_BHW if self.labels == "classes" else pair.inside_BHW
        if labels_BHW is None:
            fix = "make them with apd.data.instances.as_target, or paint one with apd.data.instances.class_map"
            raise ValueError(f"the targets have no class_map, which this distiller takes its labels from: {fix}")
        outputs = []
        for level, distiller in self.distillers.items():
            maps = {"student_features": pair.student.pyramid[level], "teacher_features": pair.teacher.pyramid[level]}
            outputs.append(distiller(**maps, labels=labels_BHW))
        return {name: sum(output[name] for output in outputs) / len(outputs) for name in outputs[0]}


def check_aligned(pair: DetectorPair, levels: Sequence[str]) -> None:
    """Raise ``ValueError`` unless both networks see the images at one size and have these levels."""
    for side, view in (("student", pair.student), ("teacher", pair.teacher)):
        if lacking := [level for level in levels if level not in view.pyramid]:
            levels = f"{', '.join(lacking)}: it has {', '.join(view.pyramid)}; choose levels that both have"
            raise ValueError(f"the {side}'s pyramid has no level {levels}")
    ours, theirs = pair.student.image_sizes, pair.teacher.image_sizes
    if list(map(tuple, ours)) != list(map(tuple, theirs)):
        sizes = f"the student resizes the images to {ours[:3]} and the teacher to {theirs[:3]}"
        raise ValueError(f"{sizes}: build both with the same min_size and max_size, so that their maps have one grid")


def roi_kd(**settings: Any) -> OnRoIs:
    """Ordinary distillation of the class layer's logits, a mean over boxes; settings of :class:`apd.PixelKD`."""
    return OnRoIs(PixelKD(ignore_index=NO_BOX, **settings))


class RoIKDConfig(DistillerConfig, task="detection"):
    """Settings of :func:`roi_kd`."""

    method: Literal["roi_kd"] = "roi_kd"
    weight: float = 1.0
    temperature: float = 1.0

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        return roi_kd(**self.settings)


def roi_dkd(**settings: Any) -> OnRoIs:
    """Decoupled distillation of the class layer's logits, as its authors do on COCO; settings of :class:`apd.DKD`."""
    return OnRoIs(DKD(ignore_index=NO_BOX, **settings))


class RoIDKDConfig(DKDConfig, task="detection"):
    """Settings of :func:`roi_dkd`."""

    method: Literal["roi_dkd"] = "roi_dkd"

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        return roi_dkd(**self.settings)


def pyramid_matching(
    student_channels: int, teacher_channels: int, *, levels: Sequence[str] = LEVELS, weight: float = 1.0
) -> OnPyramid:
    """Feature matching of the pyramids (:class:`apd.FitNet`) inside the images; the default weight is own choice."""
    sizes = (student_channels, teacher_channels, 1)
    return OnPyramid(lambda: FitNet(*sizes, weight=weight, ignore_index=NO_BOX), levels=levels, labels="inside")


class PyramidMatchingConfig(DistillerConfig, task="detection"):
    """Settings of :func:`pyramid_matching`."""

    method: Literal["pyramid_matching"] = "pyramid_matching"
    levels: tuple[str, ...] = LEVELS
    weight: float = 1.0  #: Own choice; no published one is known.

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        return pyramid_matching(student.backbone.out_channels, teacher.backbone.out_channels, **self.settings)


@full_precision
def hierarchical_context_loss(student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    """Squared distance of two maps, and of the maps averaged to 4 × 4, 2 × 2 and one cell, as a weighted mean.

    Each weighs half as much as the one before it; a pooled side that the map's height does not exceed is left out. The
    teacher's map is a constant here, and padding counts, as published.
    """
    if (ours := tuple(student_BChw.shape)) != (theirs := tuple(teacher_BChw.shape)):
        raise ValueError(f"student has shape {ours} but teacher {theirs}: they must be equal")
    difference_BChw = student_BChw - teacher_BChw.detach()  # averaging is linear: one map to pool, not two
    sides = [side for side in (4, 2, 1) if side < difference_BChw.shape[2]]
    maps = [difference_BChw, *(F.adaptive_avg_pool2d(difference_BChw, side) for side in sides)]
    weights = [0.5**place for place in range(len(maps))]
    return sum(weight * each.square().mean() for weight, each in zip(weights, maps, strict=True)) / sum(weights)


class _Review(nn.Module):
    """One level: reduced, mixed with what comes from above if anything, and brought to the teacher's channels."""

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


class ReviewKDConfig(DistillerConfig, task="detection"):
    """Settings of :class:`ReviewKD`."""

    method: Literal["review_kd"] = "review_kd"
    levels: tuple[str, ...] = LEVELS  #: From fine to coarse.
    width: int = 256  #: Channels of what is handed down from level to level (published: 256).
    weight: float = 1.0  #: Published for ResNet-50; see there for other students.
    in_order = True

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        return ReviewKD(student.backbone.out_channels, teacher.backbone.out_channels, **self.settings)


class ReviewKD(Distiller, config=ReviewKDConfig):
    """Knowledge review of the pyramids (Chen et al. 2021), as published for detection: a sum over levels.

    From the topmost level down, each of the student's maps is reduced to ``width``, mixed with what the level above has
    gathered and compared with the teacher's map of that level by :func:`hierarchical_context_loss`. Published weights:
    1 for ResNet-50 (default), 1.2 for ResNet-18 (1.5 with masks), 2 for MobileNetV2 (1 with masks).
    """

    def __init__(self, student_channels: int, teacher_channels: int, **settings: Any) -> None:
        super().__init__(ignore_index=NO_BOX, **settings)
        self.student_channels = check_count("student_channels", student_channels)
        self.teacher_channels = check_count("teacher_channels", teacher_channels)
        self.reviews = nn.ModuleDict()
        for level in reversed(self.levels):
            topmost = level == self.levels[-1]
            self.reviews[level] = _Review(student_channels, teacher_channels, self.width, topmost=topmost)

    def forward(self, pair: DetectorPair) -> dict[str, Tensor]:
        """``{"review_kd": the term, "loss": weight × term}``."""
        check_aligned(pair, self.levels)
        above, total = None, 0.0
        for level, review in self.reviews.items():
            own, theirs = pair.student.pyramid[level], pair.teacher.pyramid[level]
            maps = {"student_features": own, "teacher_features": theirs}
            check_maps(self, maps)
            check_trained(self, "student_features", own)
            check_values(review, maps)
            reviewed, above = review(own, above)
            total = total + hierarchical_context_loss(reviewed, theirs)
        return self._with_loss({"review_kd": total})
