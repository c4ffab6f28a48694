"""Adaptive perspective distillation of the boxes that a detector is trained on.

The paper reports gains for detection and neither says nor released how; this reading is the project's own. The class
layer of a box head is the perspective that all pictures share, and the vector before it the feature. A picture's own
perspective is then the mean direction of its boxes' vectors, label by label, the background among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from apd.distill import APDLoss
from apd.distillers.apd import HEAD_TERMS, PerspectivesConfig
from apd.distillers.base import NO_BOX, DetectorPair
from apd.fused import observe_itself
from apd.losses import alignment_loss, observation_loss, pixel_kd_loss, regularisation_loss
from apd.perspective import full_precision
from apd.validation import check_count, check_trained, check_values

BACKGROUND = 0


class RoIAPD(APDLoss):
    """:class:`apd.APDLoss` on boxes: the same terms, of the boxes that the student draws in a training step.

    Both nets see the same boxes, ground truth among them, and their matched labels; the teacher's vectors come from its
    own pyramid. Prototypes, observations and terms are those of pixels, with one difference: at most a quarter of the
    boxes are things, so the observation term is the mean of two means, over the boxes of things and over those of the
    background, each a connected zero where there is none. ``pixel_kd`` is the KL between the class layers' logits, a
    mean over boxes.

    Args:
        student_channels, teacher_channels: length of the two box heads' vectors.
        num_classes: classes K of things; the background is one more.
        width: output channels of the projection heads (default 256, own choice: a quarter of torchvision's vector).
            ``None`` means no heads: the channels must be equal then.
        scale: inverse temperature of the observations (default 10, released segmentation code).
        temperature: of ``pixel_kd`` (default 1).
        weights: of the terms by name; names left out keep those of segmentation
            (:data:`apd.losses.DEFAULT_WEIGHTS`, own choice). A term of weight 0 is not computed.

    Raises:
        ValueError: an argument out of its range; at call, views that do not have the channels or classes stated.

    Example:
        >>> from apd.distillers.base import DetectorView
        >>> def view():
        ...     return DetectorView({}, torch.rand(2, 32, 1, 16), torch.rand(2, 4, 1, 16), [(64, 64)] * 2)
        >>> pair = DetectorPair(view(), view(), torch.randint(0, 4, (2, 1, 16)), None, torch.zeros(2, 64, 64).long())
        >>> list(RoIAPD(32, 32, 3, width=8).eval()(pair))
        ['regularisation', 'alignment', 'observation', 'pixel_kd', 'loss']
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        width: int | None = 256,
        scale: float = 10.0,
        temperature: float = 1.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        check_count("num_classes", num_classes)
        super().__init__(
            student_channels,
            teacher_channels,
            num_classes + 1,
            width=width,
            scale=scale,
            temperature=temperature,
            ignore_index=NO_BOX,
            weights=weights,
        )
        self.num_classes = num_classes  # without the background

    def forward(self, pair: DetectorPair) -> dict[str, Tensor]:
        """The terms of positive weight, unweighted and by name, and ``"loss"``, their weighted sum."""
        for name, vectors, channels in (
            ("student", pair.student.vectors_BC1N, self.student_channels),
            ("teacher", pair.teacher.vectors_BC1N, self.teacher_channels),
        ):
            if vectors.shape[1] != channels:
                raise ValueError(
                    f"the {name}'s vectors have {vectors.shape[1]} channels: expected {channels}, the "
                    f"{name}_channels given at construction"
                )
        if pair.student.logits_BK1N.shape[1] != self.num_classes + 1:
            raise ValueError(
                f"the student has {pair.student.logits_BK1N.shape[1]} logits: expected {self.num_classes + 1}, "
                "num_classes and the background"
            )
        maps = {
            "student_features": pair.student.vectors_BC1N,
            "teacher_features": pair.teacher.vectors_BC1N,
            "student_logits": pair.student.logits_BK1N,
            "teacher_logits": pair.teacher.logits_BK1N,
        }
        for name, terms in (("student_features", ("alignment", "observation")), ("student_logits", ("pixel_kd",))):
            if any(self.weights[term] for term in terms):
                check_trained(self, name, maps[name])
        check_values(self, maps)
        terms = self._terms(
            pair.student.vectors_BC1N,
            pair.teacher.vectors_BC1N.detach(),
            pair.student.logits_BK1N,
            pair.teacher.logits_BK1N,
            pair.labels_B1N,
        )
        return terms | {"loss": sum(self.weights[name] * term for name, term in terms.items())}

    @full_precision
    def _terms(
        self,
        student_BC1N: Tensor,
        teacher_BC1N: Tensor,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels_B1N: Tensor,
    ) -> dict[str, Tensor]:
        weights, terms, ignore = self.weights, {}, {"ignore_index": NO_BOX}
        if weights["regularisation"] or weights["alignment"] or weights["observation"]:
            teacher_BKD, present_BK, teacher_BK1N = self._observe(self.teacher_head(teacher_BC1N), labels_B1N)
        if weights["regularisation"]:
            terms["regularisation"] = regularisation_loss(teacher_BK1N, labels_B1N, present_BK, **ignore)
        if weights["alignment"] or weights["observation"]:
            student_BKD, _, student_BK1N = self._observe(self.student_head(student_BC1N), labels_B1N)
        if weights["alignment"]:
            terms["alignment"] = alignment_loss(student_BKD, teacher_BKD, present_BK)
        if weights["observation"]:
            things_B1N = torch.where(labels_B1N > BACKGROUND, labels_B1N, NO_BOX)
            background_B1N = torch.where(labels_B1N == BACKGROUND, labels_B1N, NO_BOX)
            terms["observation"] = 0.5 * sum(
                observation_loss(student_BK1N, teacher_BK1N, present_BK, counted_B1N, **ignore)
                for counted_B1N in (things_B1N, background_B1N)
            )
        if weights["pixel_kd"]:
            terms["pixel_kd"] = pixel_kd_loss(
                student_logits, teacher_logits, labels_B1N, temperature=self.temperature, **ignore
            )
        return terms

    def _observe(self, features_BD1N: Tensor, labels_B1N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return observe_itself(features_BD1N, labels_B1N, self.num_classes + 1, ignore_index=NO_BOX, scale=self.scale)

    def extra_repr(self) -> str:
        """What ``print(module)`` says of the settings."""
        return "weights: " + ", ".join(f"{name}={value:g}" for name, value in self.weights.items())


@dataclass(frozen=True, kw_only=True)
class RoIAPDConfig(PerspectivesConfig, task="detection"):
    """Adaptive perspective distillation of the student's boxes, as :class:`RoIAPD`."""

    method: Literal["roi_apd"] = "roi_apd"
    pixel_kd: float = 1.0
    """Weight of the KL between the class layers' logits of the boxes; 0 leaves it out."""
    temperature: float = 1.0
    """Temperature of that KL."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_terms("pixel_kd")

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        """See :meth:`DistillerConfig.build`; the ignored label is a detector's."""
        ours, theirs = (network.roi_heads.box_predictor.cls_score for network in (student, teacher))
        return RoIAPD(
            ours.in_features,
            theirs.in_features,
            ours.out_features - 1,  # without the background
            width=self.width,
            scale=self.scale,
            temperature=self.temperature,
            weights={name: getattr(self, name) for name in (*HEAD_TERMS, "pixel_kd")},
        )
