"""The configurations of :class:`apd.APDLoss`: on a segmentation network, and on a detector's pyramid and boxes.

The paper reports gains for detection and neither says nor released how, so both forms for detectors are own readings.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apd.distill import APDLoss
from apd.distillers.base import NO_BOX, DetectorPair, DistillerConfig
from apd.distillers.on_detectors import OnPyramid
from apd.fields import require, shown
from apd.losses import observation_loss
from apd.perspective import CompactLabels
from apd.validation import check_count

BACKGROUND = 0
HEAD_TERMS = ("regularisation", "alignment", "observation")  # which need projection heads


class HeadsConfig(DistillerConfig):
    """What all forms of APD have: projection heads, the terms that need them, and the optimiser of the teacher's."""

    #: Width of both projection heads, on a pyramid those of each level (released code: 512); None leaves them out.
    width: int | None = 256
    scale: float = 10.0  #: Cosine scale of the observations (released code: 10).
    #: Weight of the teacher's cross-entropy through its adaptive perspective (trains its head only).
    regularisation: float = 1.0
    alignment: float = 10.0  #: Weight of the prototypes' cosine distance (released code: 10).
    observation: float = 1.0  #: Weight of the observations' KL; of boxes, the mean of objects' and background's.
    #: Adam learning rate of the teacher's head (released code: 1e-5 for schedules twenty to eighty times longer).
    teacher_head_rate: float = 1e-3
    #: Constant (released code), or falling as (1 - t/T)^power, whatever the student's does.
    teacher_head_schedule: Literal["constant", "poly"] = "constant"

    terms = HEAD_TERMS

    def __post_init__(self) -> None:
        super().__post_init__()
        has_use = self.width is not None or self.regularisation == 0
        require(has_use, self, "regularisation", "0 where width is None: it trains the teacher's head only")

    @property
    def for_loss(self) -> dict[str, Any]:
        """Weights in one dictionary, and nothing of the optimiser of the teacher's head."""
        others = (*self.terms, "teacher_head_rate", "teacher_head_schedule")
        return {n: v for n, v in self.settings.items() if n not in others} | {"weights": self.weights}


class APDConfig(HeadsConfig):
    """Adaptive perspective distillation: every choice of `apd.APDLoss`, and the learning rate of the teacher's head."""

    method: Literal["apd"] = "apd"
    width: int | None = 128  #: Width of both projection heads (released code: 512); None leaves them out.
    #: What a prototype is pooled over: an image (paper) or the batch (released code).
    scope: Literal["image", "batch"] = "image"
    reduction: Literal["pixel", "element"] = "pixel"
    absent: Literal["mask", "zero"] = "mask"
    pixel_kd: float = 1.0  #: Weight of the logits' KL; 0 leaves it out.
    temperature: float = 1.0  #: Temperature of the logits' KL.
    #: Labels of the perspectives: the data's, or the teacher's predictions, which images without labels have too.
    labels_from: Literal["truth", "teacher"] = "truth"
    #: Whether the observation term moves the student's pixels only and not its prototypes.
    detach_prototypes: bool = False
    #: Whether pixel_kd compares logits on the labels' grid (released code) instead of their own.
    upsample_logits: bool = False
    #: Whether features and labels meet on the finer grid, at aligned corners, or on the coarser one, by nearest labels.
    align_corners: bool = False
    terms = (*HEAD_TERMS, "pixel_kd")

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        sizes = (student.feature_channels, teacher.feature_channels, student.num_classes)
        return APDLoss(*sizes, ignore_index=ignore_index, **self.for_loss)


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
    """:class:`apd.APDLoss`, unchanged, on levels of the pyramid, with the objects' masks as labels of the pixels.

    The channels are those of the two pyramids; the background is one class more than ``num_classes``. Level "1" alone
    (default) has stride 8, as the paper's segmentation networks. ``weights`` have no ``pixel_kd``, since there are no
    logits here; :func:`roi_kd` compares the boxes'.
    """
    weights = {} if weights is None else weights
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights is a {type(weights).__name__}: expected a dict of terms and numbers")
    if weights.get("pixel_kd"):
        given = shown(weights["pixel_kd"])
        raise ValueError(f"weights['pixel_kd']={given}: a pyramid has no logits; add roi_kd() beside it")
    sizes = (student_channels, teacher_channels, check_count("num_classes", num_classes) + 1)
    options = {"width": width, "scale": scale, "ignore_index": NO_BOX, "weights": {**weights, "pixel_kd": 0.0}}
    return OnPyramid(lambda: APDLoss(*sizes, **options), levels=levels)


class DenseAPDConfig(HeadsConfig, task="detection"):
    """Settings of :func:`dense_apd`."""

    method: Literal["dense_apd"] = "dense_apd"
    levels: tuple[str, ...] = ("1",)  #: Levels of the pyramid: "0" (stride 4) to "3" (stride 32), and "pool".

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        sizes = (student.backbone.out_channels, teacher.backbone.out_channels)
        classes = student.roi_heads.box_predictor.cls_score.out_features - 1  # without the background
        return dense_apd(*sizes, classes, **self.for_loss)


class RoIAPD(APDLoss):
    """:class:`apd.APDLoss` on boxes: the same terms, of the boxes that the student draws in a training step.

    Both nets see the same boxes and their matched labels; an image's perspective is the mean direction of its boxes'
    vectors (those before the class layer), label by label. The background is one class more than ``num_classes``. At
    most a quarter of the boxes are objects, so the observation term is the mean of two means, over objects and over
    background. ``settings`` are ``scale``, ``temperature`` and ``weights`` of :class:`apd.APDLoss`.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        width: int | None = 256,
        **settings: Any,
    ) -> None:
        classes = check_count("num_classes", num_classes) + 1
        super().__init__(student_channels, teacher_channels, classes, width=width, ignore_index=NO_BOX, **settings)

    def forward(self, pair: DetectorPair) -> dict[str, Tensor]:
        """The terms of positive weight, unweighted and by name, and ``"loss"``, their weighted sum."""
        return super().forward(
            student_features=pair.student.vectors_BC1N,
            teacher_features=pair.teacher.vectors_BC1N,
            student_logits=pair.student.logits_BK1N,
            teacher_logits=pair.teacher.logits_BK1N,
            labels=pair.labels_B1N,
        )

    def _classes_at_hand(self, labels_BHW: Tensor, labels_Bhw: Tensor) -> CompactLabels:
        """All of them: the background keeps its number."""
        return CompactLabels(labels_BHW, labels_Bhw, self.num_classes, self.ignore_index)

    def _observation(
        self, student_BK1N: Tensor, teacher_BK1N: Tensor, present_BK: Tensor, seen: CompactLabels
    ) -> Tensor:
        objects_B1N = torch.where(seen.labels_Bhw > BACKGROUND, seen.labels_Bhw, NO_BOX)
        background_B1N = torch.where(seen.labels_Bhw == BACKGROUND, seen.labels_Bhw, NO_BOX)
        return 0.5 * sum(
            observation_loss(student_BK1N, teacher_BK1N, present_BK, counted_B1N, ignore_index=NO_BOX)
            for counted_B1N in (objects_B1N, background_B1N)
        )


class RoIAPDConfig(HeadsConfig, task="detection"):
    """Settings of :class:`RoIAPD`."""

    method: Literal["roi_apd"] = "roi_apd"
    pixel_kd: float = 1.0  #: Weight of the KL between the class layers' logits of the boxes; 0 leaves it out.
    temperature: float = 1.0  #: Temperature of that KL.
    terms = (*HEAD_TERMS, "pixel_kd")

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        ours, theirs = (network.roi_heads.box_predictor.cls_score for network in (student, teacher))
        classes = ours.out_features - 1  # without the background
        return RoIAPD(ours.in_features, theirs.in_features, classes, **self.for_loss)
