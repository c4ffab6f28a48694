"""Methods that compare feature maps pixel by pixel: FitNet, attention transfer and masked generation.

Pixels of ``ignore_index`` are left out of all three (the published codes, none of which looks at labels, count them).
Shape letters as in :mod:`apd.perspective`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from apd.distillers.base import IGNORED, DistillerConfig, FeatureDistiller, convolved
from apd.fields import require
from apd.losses import masked_mean
from apd.normalizers import global_count
from apd.perspective import full_precision, inverse_length


@full_precision
def feature_loss(adapted_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Squared distance of two feature maps of one shape: mean over channels and valid pixels."""
    return masked_mean((adapted_BChw - teacher_BChw).square().mean(1), valid_Bhw)


@full_precision
def attention_loss(student_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Squared distance of two attention maps: mean over valid pixels.

    The attention of a pixel is the mean over channels of its squared features; an image's map has unit length over
    its valid pixels.
    """
    student_BN, teacher_BN = (
        torch.where(valid_Bhw, features_BChw.square().mean(1), 0.0).flatten(1)
        for features_BChw in (student_BChw, teacher_BChw)
    )
    student_BN = student_BN * inverse_length(student_BN, dim=1)
    teacher_BN = teacher_BN * inverse_length(teacher_BN, dim=1)
    return masked_mean((student_BN - teacher_BN).square(), valid_Bhw.flatten(1))


@full_precision
def generation_loss(generated_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Squared distance of two feature maps of one shape: sum over channels and valid pixels, mean over images."""
    squared_Bhw = (generated_BChw - teacher_BChw).square().sum(1)
    images = torch.full((), len(squared_Bhw), device=squared_Bhw.device)
    return torch.where(valid_Bhw, squared_Bhw, 0.0).sum() / global_count(images)


class FitNet(FeatureDistiller):
    """Feature matching: mean squared distance between the student's adapted features and the teacher's.

    Romero et al. 2015 in the form of the CIRKD code: ‖W F_s - F_t‖², mean over pixels and channels, with W a 1×1
    convolution without bias. That code adds pixel KD of weight 1; here it is a distiller of its own,
    :class:`apd.PixelKD`.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K, by which labels are checked.
        weight: of the term in ``"loss"`` (default 10, CIRKD code).
        ignore_index: label of pixels not to count (default 255).

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`apd.APDLoss` raises them.

    >>> import torch
    >>> from apd import FitNet
    >>> features, labels = torch.ones(1, 2, 1, 1), torch.tensor([[[0]]])
    >>> distiller = FitNet(2, 2, num_classes=3).eval()  # only to measure
    >>> _ = torch.nn.init.zeros_(distiller.adapter.weight)
    >>> distiller(student_features=features, teacher_features=features, labels=labels)["fitnet"].item()
    1.0
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        weight: float = 10.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            student_channels, teacher_channels, num_classes, weights={"fitnet": weight}, ignore_index=ignore_index
        )
        self.adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.terms`."""
        return {"fitnet": feature_loss(convolved(self.adapter, student), teacher, labels_Bhw != IGNORED)}


@dataclass(frozen=True, kw_only=True)
class FitNetConfig(DistillerConfig, module=FitNet):
    """Feature matching, as `apd.FitNet`."""

    method: Literal["fitnet"] = "fitnet"
    weight: float = 10.0


class AttentionTransfer(FeatureDistiller):
    """Attention transfer: where in the image the features are strong (Zagoruyko and Komodakis 2017, CIRKD code).

    An image's attention map is the mean over channels of its squared features, scaled to unit length; the term is the
    mean squared distance between the two nets' maps, whose channels may differ without an adapter. The CIRKD code
    adds pixel KD of weight 1; here it is a distiller of its own, :class:`apd.PixelKD`.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K, by which labels are checked.
        weight: of the term in ``"loss"`` (default 10 000, CIRKD code: the term, at most 2 an image, is divided by the
            number of pixels).
        ignore_index: label of pixels not to count (default 255).

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`apd.APDLoss` raises them.

    >>> import torch
    >>> from apd import AttentionTransfer
    >>> student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> distiller = AttentionTransfer(1, 1, num_classes=3).eval()  # only to measure
    >>> labels = torch.tensor([[[0, 1]]])
    >>> distiller(student_features=student, teacher_features=teacher, labels=labels)["attention_transfer"]
    tensor(1.)
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        weight: float = 10_000.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            student_channels,
            teacher_channels,
            num_classes,
            weights={"attention_transfer": weight},
            ignore_index=ignore_index,
        )

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.terms`."""
        return {"attention_transfer": attention_loss(student, teacher, labels_Bhw != IGNORED)}


@dataclass(frozen=True, kw_only=True)
class AttentionTransferConfig(DistillerConfig, module=AttentionTransfer):
    """Attention transfer, as `apd.AttentionTransfer`."""

    method: Literal["attention_transfer"] = "attention_transfer"
    weight: float = 10_000.0


class MGD(FeatureDistiller):
    """Masked generative distillation (Yang et al. 2022): the student's features regenerate the teacher's.

    The student's features go through a 1×1 convolution where the channels differ, most of their pixels are set to
    zero, and two 3×3 convolutions with a ReLU between them regenerate the teacher's whole map. Which pixels are kept
    is drawn anew at each call from the global generator of the features' device. Ignored pixels are always set to
    zero, so that their content plays no part, and need not be regenerated.

    The term is a sum over pixels and channels, as released, so what a weight means depends on the grid. The released
    segmentation runs also add CWD on the logits (temperature 4, weight 3); that is :class:`apd.CWD`, not part of this.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K, by which labels are checked.
        weight: of the term in ``"loss"`` (default 2e-5, released segmentation configuration).
        masked: share of pixels set to zero (default 0.75, released segmentation configuration).
        ignore_index: label of pixels not to count (default 255).

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`apd.APDLoss` raises them.

    >>> import torch
    >>> from apd import MGD
    >>> features, labels = torch.ones(1, 4, 8, 8, requires_grad=True), torch.zeros(1, 64, 64, dtype=torch.long)
    >>> out = MGD(4, 4, num_classes=3)(student_features=features, teacher_features=features, labels=labels)
    >>> bool(out["mgd"] > 0)
    True
    """

    shown = ("masked",)

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        weight: float = 2e-5,
        masked: float = 0.75,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            student_channels, teacher_channels, num_classes, weights={"mgd": weight}, ignore_index=ignore_index
        )
        if not 0 <= masked < 1:
            raise ValueError(f"masked={masked}: expected a share of the pixels, 0 <= masked < 1")
        self.masked = masked
        same = student_channels == teacher_channels
        self.adapter = None if same else nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.hidden = nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1)
        self.out = nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1)

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.terms`."""
        valid_Bhw = labels_Bhw != IGNORED
        kept_Bhw = valid_Bhw & (torch.rand(valid_Bhw.shape, device=student.device) < 1 - self.masked)
        adapted = student if self.adapter is None else convolved(self.adapter, student)
        adapted = torch.where(kept_Bhw[:, None], adapted, 0.0)
        generated = self.out(convolved(self.hidden, adapted).relu())
        return {"mgd": generation_loss(generated, teacher, valid_Bhw)}


@dataclass(frozen=True, kw_only=True)
class MGDConfig(DistillerConfig, module=MGD):
    """Masked generative distillation, as `apd.MGD`."""

    method: Literal["mgd"] = "mgd"
    weight: float = 2e-5
    """Of a sum over pixels and channels, so what it means depends on the grid."""
    masked: float = 0.75
    """Share of the student's pixels that are set to zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.masked < 1, self, "masked", "0 <= masked < 1")
