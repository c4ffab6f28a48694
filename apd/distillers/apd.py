"""The configurations of :class:`apd.APDLoss`: on a segmentation network, and on the pyramid of a detector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from apd.distill import APDLoss
from apd.distillers.base import NO_BOX, DistillerConfig, require_levels
from apd.distillers.through_pixels import OnPyramid
from apd.fields import ExperimentError, require, require_weights

HEAD_TERMS = ("regularisation", "alignment", "observation")
"""The terms that need projection heads."""


@dataclass(frozen=True, kw_only=True)
class APDConfig(DistillerConfig):
    """Adaptive perspective distillation: every choice of `apd.APDLoss`, and the learning rate of the teacher's head."""

    method: Literal["apd"] = "apd"
    width: int | None = 128
    """Width of both projection heads (released code: 512); None leaves them out."""
    scale: float = 10.0
    """Cosine scale of the observations (released code: 10)."""
    scope: Literal["image", "batch"] = "image"
    """What a prototype is pooled over: an image (paper) or the batch (released code)."""
    reduction: Literal["pixel", "element"] = "pixel"
    absent: Literal["mask", "zero"] = "mask"
    regularisation: float = 1.0
    """Weight of the teacher's cross-entropy through its adaptive perspective (trains its head only)."""
    alignment: float = 10.0
    """Weight of the prototypes' cosine distance (released code: 10)."""
    observation: float = 1.0
    """Weight of the observations' KL."""
    pixel_kd: float = 1.0
    """Weight of the logits' KL; 0 leaves it out."""
    temperature: float = 1.0
    """Temperature of the logits' KL."""
    teacher_head_rate: float = 1e-3
    """Adam learning rate of the teacher's head (released code: 1e-5 for schedules twenty to eighty times longer)."""
    teacher_head_schedule: Literal["constant", "poly"] = "constant"
    """Constant (released code), or falling as (1 - t/T)^power, whatever the student's does."""
    labels_from: Literal["truth", "teacher"] = "truth"
    """Labels of the perspectives: the data's, or the teacher's predictions, which images without labels have too."""
    detach_prototypes: bool = False
    """Whether the observation term moves the student's pixels only and not its prototypes."""
    upsample_logits: bool = False
    """Whether pixel_kd compares logits on the labels' grid (released code) instead of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width is None or self.width >= 1, self, "width", "None or an integer >= 1")
        for name in ("scale", "teacher_head_rate"):
            require(getattr(self, name) > 0, self, name, "a number > 0")
        terms = ("regularisation", "alignment", "observation", "pixel_kd")
        for name in terms:
            require(getattr(self, name) >= 0, self, name, "a number >= 0")
        trains_a_head = self.width is not None or self.regularisation == 0
        require(trains_a_head, self, "regularisation", "0 where width is None: it trains the teacher's head only")
        if not any(getattr(self, name) for name in terms):
            raise ExperimentError(f"APDConfig: {', '.join(terms)} are all 0: expected one above 0")

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        """See :meth:`DistillerConfig.build`."""
        return APDLoss(
            student.feature_channels,
            teacher.feature_channels,
            student.num_classes,
            width=self.width,
            scale=self.scale,
            scope=self.scope,
            reduction=self.reduction,
            absent=self.absent,
            ignore_index=ignore_index,
            temperature=self.temperature,
            upsample_logits=self.upsample_logits,
            labels_from=self.labels_from,
            detach_prototypes=self.detach_prototypes,
            weights={name: getattr(self, name) for name in (*HEAD_TERMS, "pixel_kd")},
        )


@dataclass(frozen=True, kw_only=True)
class PerspectivesConfig(DistillerConfig):
    """What both forms of APD for detectors have: the terms that need projection heads, and the teacher's head."""

    width: int | None = 256
    """Width of both projection heads, on a pyramid those of each level (own choice); None leaves them out."""
    scale: float = 10.0
    """Cosine scale of the observations (released segmentation code: 10)."""
    regularisation: float = 1.0
    """Weight of the teacher's cross-entropy through its adaptive perspective (trains its head only)."""
    alignment: float = 10.0
    """Weight of the prototypes' cosine distance (released segmentation code: 10)."""
    observation: float = 1.0
    """Weight of the observations' KL; of boxes, the mean of objects' and background's."""
    teacher_head_rate: float = 1e-3
    """Adam learning rate of the teacher's head (as in segmentation)."""
    teacher_head_schedule: Literal["constant", "poly"] = "constant"
    """Constant (released segmentation code), or falling as the student's."""

    def check_terms(self, *terms: str) -> None:
        """The fields above, and that one of the terms has a weight."""
        require(self.width is None or self.width >= 1, self, "width", "None or an integer >= 1")
        for name in ("scale", "teacher_head_rate"):
            require(getattr(self, name) > 0, self, name, "a number > 0")
        require_weights(self, *HEAD_TERMS, *terms)
        trains_a_head = self.width is not None or self.regularisation == 0
        require(trains_a_head, self, "regularisation", "0 where width is None: it trains the teacher's head only")


def dense_apd(
    student_channels: int,
    teacher_channels: int,
    num_classes: int,
    *,
    levels: Sequence[str] = ("1",),
    width: int | None = 256,
    scale: float = 10.0,
    weights: Mapping[str, float] | None = None,
) -> OnPyramid:
    """:class:`apd.APDLoss`, unchanged, on levels of the pyramid, with the things' masks as labels of the pixels.

    The paper's application to instance segmentation is not known; this reading, the closest to segmentation, is the
    project's own. It wants masks: boxes filled with their class would call much background a thing.

    Args:
        student_channels, teacher_channels: channels of the two pyramids.
        num_classes: classes K of things; the background is one more.
        levels: default "1" alone, of stride 8 as the paper's segmentation networks.
        width: of the projection heads of each level (default 256, own choice).
        scale: inverse temperature of the observations (default 10, released segmentation code).
        weights: of the terms (default as in segmentation). ``pixel_kd`` has no logits here and is left out;
            :func:`roi_kd` beside it compares those of the boxes.

    Raises:
        ValueError: as :class:`apd.APDLoss`, or a weight for ``pixel_kd``.
    """
    if (weights or {}).get("pixel_kd"):
        raise ValueError(f"weights['pixel_kd']={weights['pixel_kd']}: a pyramid has no logits; add roi_kd() beside it")
    return OnPyramid(
        lambda: APDLoss(
            student_channels,
            teacher_channels,
            num_classes + 1,
            width=width,
            scale=scale,
            ignore_index=NO_BOX,
            weights={**(weights or {}), "pixel_kd": 0.0},
        ),
        levels=levels,
    )


@dataclass(frozen=True, kw_only=True)
class DenseAPDConfig(PerspectivesConfig, task="detection"):
    """Adaptive perspective distillation of the pyramid's pixels, as `apd.distillers.apd.dense_apd`."""

    method: Literal["dense_apd"] = "dense_apd"
    levels: tuple[str, ...] = ("1",)
    """Levels of the pyramid: "0" (stride 4) to "3" (stride 32), and "pool"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_levels(self)
        self.check_terms()

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        """See :meth:`DistillerConfig.build`; the ignored label is a detector's."""
        return dense_apd(
            student.backbone.out_channels,
            teacher.backbone.out_channels,
            student.roi_heads.box_predictor.cls_score.out_features - 1,  # without the background
            levels=self.levels,
            width=self.width,
            scale=self.scale,
            weights={name: getattr(self, name) for name in HEAD_TERMS},
        )
