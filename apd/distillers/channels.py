"""Methods that compare what a channel or class does over the image: channel-wise distillation (CWD) and DIST.

Both compare distributions over pixels, so leaving out the pixels of ``ignore_index`` changes the distribution itself;
it is said at each what is done. Shape letters as in :mod:`apd.perspective`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apd.distillers.base import IGNORED, Distiller, DistillerConfig, FeatureDistiller, convolved
from apd.fields import require_weights
from apd.losses import masked_mean
from apd.perspective import full_precision, inverse_length
from apd.validation import RULED_OUT, check_positive


@full_precision
def channel_loss(student_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor, *, temperature: float) -> Tensor:
    """T² KL between the two nets' distributions of a channel over an image's valid pixels.

    A channel's distribution is the softmax over pixels of its values / T. Mean over channels and over the images that
    have a valid pixel. A channel that the teacher rules out at every pixel has none, and costs nothing.
    """
    valid_B1N = valid_Bhw.flatten(1)[:, None]

    def log_distributions(values_BChw: Tensor) -> Tensor:
        values_BCN = values_BChw.flatten(2) / temperature
        return F.log_softmax(values_BCN.masked_fill(~valid_B1N, torch.finfo(values_BCN.dtype).min), dim=2)

    divergence_BCN = F.kl_div(
        log_distributions(student_BChw), log_distributions(teacher_BChw), reduction="none", log_target=True
    )
    has_some_BC = teacher_BChw.flatten(2).masked_fill(~valid_B1N, RULED_OUT).amax(2) > RULED_OUT / 2
    divergence_BC = torch.where(has_some_BC, divergence_BCN.sum(2), 0.0)
    return temperature**2 * masked_mean(divergence_BC.mean(1), valid_B1N.any(2)[:, 0])


def correlation_loss(student: Tensor, teacher: Tensor, counted: Tensor, dim: int) -> Tensor:
    """1 - Pearson correlation along ``dim`` over counted entries: mean over the rows in which the teacher varies.

    The correlation with a student's row that does not vary is 0, with zero gradient.
    """
    size = counted.sum(dim, keepdim=True).clamp(min=1)

    def deviations(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.where(counted, values, 0.0).sum(dim, keepdim=True) / size
        centred = torch.where(counted, values - mean, 0.0)
        return centred, inverse_length(centred, dim=dim)

    (student, student_scale), (teacher, teacher_scale) = deviations(student), deviations(teacher)
    correlation = (student * teacher).sum(dim, keepdim=True) * student_scale * teacher_scale
    return masked_mean(1.0 - correlation, teacher_scale > 0)


@full_precision
def dist_losses(
    student_BKhw: Tensor, teacher_BKhw: Tensor, valid_Bhw: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """T² times the inter-class term (a pixel's classes correlated) and the intra-class one (a class's pixels)."""
    student_KM, teacher_KM = (
        (logits_BKhw / temperature).softmax(1).transpose(0, 1).flatten(1)
        for logits_BKhw in (student_BKhw, teacher_BKhw)
    )
    counted_KM = valid_Bhw.flatten()[None].expand_as(student_KM)
    inter, intra = (correlation_loss(student_KM, teacher_KM, counted_KM, dim) for dim in (0, 1))
    return temperature**2 * inter, temperature**2 * intra


class CWD(FeatureDistiller):
    """Channel-wise distillation (Shu et al. 2021): where in the image each channel is active.

    Each channel's values / T become a distribution over the image's pixels by a softmax; a term is T² times the KL
    between the two nets' distributions, mean over channels and images. ``logits`` compares the classifiers' outputs;
    ``features`` the features, the student's through a 1×1 convolution without bias. The adversarial term and the
    pixel KD of the published runs are not part of this: the latter is a distiller of its own, :class:`apd.PixelKD`.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K.
        logits, features: weights of the two terms in ``"loss"`` (default 3 and 0: the authors' TorchDistiller
            compares the logits only, with weight 3; the CIRKD code adds the features with weight 50). A term of weight
            0 is not computed.
        temperature: T (default 4, both codes).
        ignore_index: label of pixels not to count (default 255). The softmax runs over an image's valid pixels, so
            that ignored ones hold no share of it, and images without any are not counted. The published codes take
            all pixels, padded ones included.

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`apd.APDLoss` raises them.

    >>> import torch
    >>> from apd import CWD
    >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[2.0, 0.0]]]])
    >>> distiller = CWD(8, 8, num_classes=1, temperature=1.0).eval()  # only to measure
    >>> distiller(student_logits=student, teacher_logits=teacher, labels=torch.tensor([[[0, 0]]]))["logits"]
    tensor(0.3278)
    """

    shown = ("temperature",)

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        logits: float = 3.0,
        features: float = 0.0,
        temperature: float = 4.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            student_channels,
            teacher_channels,
            num_classes,
            weights={"logits": logits, "features": features},
            ignore_index=ignore_index,
        )
        check_positive("temperature", temperature)
        self.temperature = temperature
        # Under DDP a parameter that gets no gradient stalls the reducer.
        self.adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False) if features else None

    @full_precision
    def forward(
        self,
        *,
        labels: Tensor,
        student_features: Tensor | None = None,
        teacher_features: Tensor | None = None,
        student_logits: Tensor | None = None,
        teacher_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of positive weight and ``"loss"``; maps of a term of weight 0 may be left out."""
        terms = {}
        if self.weights["logits"]:
            student, teacher, labels_Bhw = self._on_one_grid(
                "logits", student_logits, teacher_logits, labels, self.num_classes
            )
            terms["logits"] = channel_loss(student, teacher, labels_Bhw != IGNORED, temperature=self.temperature)
        if self.adapter is not None:
            student, teacher, labels_Bhw = self._features_on_one_grid(student_features, teacher_features, labels)
            student = convolved(self.adapter, student)
            terms["features"] = channel_loss(student, teacher, labels_Bhw != IGNORED, temperature=self.temperature)
        return self._with_loss(terms)


@dataclass(frozen=True, kw_only=True)
class CWDConfig(DistillerConfig, module=CWD):
    """Channel-wise distillation, as `apd.CWD`."""

    method: Literal["cwd"] = "cwd"
    logits: float = 3.0
    """Weight of the term on the classifiers' logits; 0 leaves it out."""
    features: float = 0.0
    """Weight of the term on the features; 0 leaves it out."""
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weights(self, "logits", "features")


class DIST(Distiller):
    """DIST (Huang et al. 2022): correlate the two nets' class probabilities instead of matching them.

    ``inter`` is 1 - the Pearson correlation over the classes of a pixel, mean over pixels; ``intra`` is 1 - the
    correlation over all pixels of the batch of a class, mean over classes; both times T². Where a batch is divided over
    processes or steps, ``intra`` correlates the pixels of each part.

    Args:
        inter, intra: weights of the two terms in ``"loss"`` (default 1 and 1, official code, which applies the method
            to the auxiliary logits too, with weight 0.4; a distiller here sees the main ones).
        temperature: T (default 1, official segmentation runs).
        ignore_index: label of pixels not to count (default 255): they are in neither correlation (the official code
            counts all pixels). A pixel or class in which the teacher does not vary has no correlation and is not
            counted (in the official code it counts as 0).

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`apd.pixel_kd_loss`, and for weights that are none.

    >>> import torch
    >>> from apd import DIST
    >>> logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 2.0]]]])
    >>> out = DIST().eval()(student_logits=-logits, teacher_logits=logits, labels=torch.tensor([[[0, 1]]]))
    >>> [round(value.item(), 4) for value in out.values()]  # inter, intra, loss
    [2.0, 2.0, 4.0]
    """

    shown = ("temperature",)

    def __init__(
        self, *, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0, ignore_index: int = 255
    ) -> None:
        super().__init__({"inter": inter, "intra": intra}, ignore_index=ignore_index)
        check_positive("temperature", temperature)
        self.temperature = temperature

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.terms`."""
        losses = dist_losses(student, teacher, labels_Bhw != IGNORED, temperature=self.temperature)
        return dict(zip(("inter", "intra"), losses, strict=True))


@dataclass(frozen=True, kw_only=True)
class DISTConfig(DistillerConfig, module=DIST):
    """Correlations of class probabilities, as `apd.DIST`."""

    method: Literal["dist"] = "dist"
    inter: float = 1.0
    """Weight of the correlation over a pixel's classes; 0 leaves it out."""
    intra: float = 1.0
    """Weight of the correlation over a class's pixels; 0 leaves it out."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weights(self, "inter", "intra")
