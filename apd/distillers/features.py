"""Methods that compare feature maps pixel by pixel or channel by channel: FitNet, attention transfer, MGD and CWD.

Pixels of ``ignore_index`` are left out of all (the published codes, none of which reads labels, count them).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from apd.distillers.base import IGNORED, DistillerConfig, FeatureDistiller, convolved
from apd.fields import require
from apd.losses import divergence, masked_mean
from apd.normalizers import global_count
from apd.perspective import full_precision, inverse_length
from apd.validation import RULED_OUT


@full_precision
def feature_loss(adapted_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Squared distance of two feature maps of one shape: mean over channels and valid pixels."""
    return masked_mean((adapted_BChw - teacher_BChw).square().mean(1), valid_Bhw)


@full_precision
def attention_loss(student_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Squared distance of two maps of mean squared features, each of unit length over an image's valid pixels."""

    def attention(features_BChw: Tensor) -> Tensor:
        strength_BN = torch.where(valid_Bhw, features_BChw.square().mean(1), 0.0).flatten(1)
        return strength_BN * inverse_length(strength_BN, dim=1)

    return masked_mean((attention(student_BChw) - attention(teacher_BChw)).square(), valid_Bhw.flatten(1))


@full_precision
def generation_loss(generated_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Squared distance of two feature maps of one shape: sum over channels and valid pixels, mean over images."""
    squared_Bhw = (generated_BChw - teacher_BChw).square().sum(1)
    images = torch.full((), len(squared_Bhw), device=squared_Bhw.device)
    return torch.where(valid_Bhw, squared_Bhw, 0.0).sum() / global_count(images)


@full_precision
def channel_loss(student_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor, *, temperature: float) -> Tensor:
    """T² KL between the two nets' softmax of a channel / T over an image's valid pixels: mean over channels and images.

    A channel that the teacher rules out at every pixel has no distribution, and costs nothing.
    """
    valid_B1N = valid_Bhw.flatten(1)[:, None]

    def valid(values_BChw: Tensor) -> Tensor:
        values_BCN = values_BChw.flatten(2) / temperature
        return values_BCN.masked_fill(~valid_B1N, torch.finfo(values_BCN.dtype).min)

    divergence_BCN = divergence(valid(student_BChw), valid(teacher_BChw), dim=2)
    has_some_BC = teacher_BChw.flatten(2).masked_fill(~valid_B1N, RULED_OUT).amax(2) > RULED_OUT / 2
    divergence_BC = torch.where(has_some_BC, divergence_BCN.sum(2), 0.0)
    return temperature**2 * masked_mean(divergence_BC.mean(1), valid_B1N.any(2)[:, 0])


class FitNetConfig(DistillerConfig):
    """Settings of :class:`apd.FitNet`."""

    method: Literal["fitnet"] = "fitnet"
    weight: float = 10.0


class FitNet(FeatureDistiller, config=FitNetConfig):
    """Feature matching: mean squared distance between the student's adapted features and the teacher's.

    Romero et al. 2015 in the form, and with the weight of 10, of the CIRKD code: ‖W F_s - F_t‖², W a convolution
    without bias.
    """

    adapted = True

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        return {"fitnet": feature_loss(convolved(self.adapter, student), teacher, labels_Bhw != IGNORED)}


class AttentionTransferConfig(DistillerConfig):
    """Settings of :class:`apd.AttentionTransfer`."""

    method: Literal["attention_transfer"] = "attention_transfer"
    weight: float = 10_000.0


class AttentionTransfer(FeatureDistiller, config=AttentionTransferConfig):
    """Attention transfer: where in the image the features are strong (Zagoruyko and Komodakis 2017).

    The weight of 10 000 is the CIRKD code's: the term is divided by the number of pixels.
    """

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        return {"attention_transfer": attention_loss(student, teacher, labels_Bhw != IGNORED)}


class MGDConfig(DistillerConfig):
    """Settings of :class:`apd.MGD`."""

    method: Literal["mgd"] = "mgd"
    weight: float = 2e-5  #: Of a sum over pixels and channels, so what it means depends on the grid.
    masked: float = 0.75  #: Share of the student's pixels that are set to zero.
    own_bounds = ("masked",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.masked < 1, self, "masked", "0 <= masked < 1")


class MGD(FeatureDistiller, config=MGDConfig):
    """Masked generative distillation (Yang et al. 2022): the student's features regenerate the teacher's.

    They go through a 1×1 convolution where the channels differ; a share of their pixels, drawn from the global
    generator in eval mode too, and the ignored ones become zero, and two 3×3 convolutions with a ReLU between them
    regenerate the teacher's map. Defaults are the released segmentation configuration's.
    """

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, **settings: Any) -> None:
        super().__init__(student_channels, teacher_channels, num_classes, **settings)
        same = student_channels == teacher_channels
        self.adapter = None if same else nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.hidden = nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1)
        self.out = nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1)

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        valid_Bhw = labels_Bhw != IGNORED
        kept_Bhw = valid_Bhw & (torch.rand(valid_Bhw.shape, device=student.device) < 1 - self.masked)
        adapted = student if self.adapter is None else convolved(self.adapter, student)
        adapted = torch.where(kept_Bhw[:, None], adapted, 0.0)
        return {"mgd": generation_loss(self.out(convolved(self.hidden, adapted).relu()), teacher, valid_Bhw)}


class CWDConfig(DistillerConfig):
    """Settings of :class:`apd.CWD`."""

    method: Literal["cwd"] = "cwd"
    logits: float = 3.0  #: Weight of the term on the classifiers' logits; 0 leaves it out.
    features: float = 0.0  #: Weight of the term on the features; 0 leaves it out.
    temperature: float = 4.0
    terms = ("logits", "features")


class CWD(FeatureDistiller, config=CWDConfig):
    """Channel-wise distillation (Shu et al. 2021): where in the image each channel is active.

    The softmax of a channel runs over an image's valid pixels (published codes: over all, padded ones included).
    Defaults are those of the authors' TorchDistiller, which compares the logits only; the CIRKD code adds the features,
    here through a 1×1 convolution without bias, with weight 50. Maps of a term of weight 0 may be left out.
    """

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, **settings: Any) -> None:
        super().__init__(student_channels, teacher_channels, num_classes, **settings)
        adapted = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False) if self.features else None
        self.adapter = adapted  # under DDP a parameter that gets no gradient stalls the reducer

    def _terms_of(self, maps: dict[str, tuple[Tensor | None, Tensor | None]], labels_BHW: Tensor) -> dict[str, Tensor]:
        terms = {}
        for kind in self.Config.terms:
            if self.weights[kind]:
                student, teacher, labels_Bhw = self._on_one_grid(kind, *maps[kind], labels_BHW)
                student = convolved(self.adapter, student) if kind == "features" else student
                terms[kind] = channel_loss(student, teacher, labels_Bhw != IGNORED, temperature=self.temperature)
        return terms
