"""Methods that compare the two nets' logits: ordinary, standardised and decoupled distillation, and DIST."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from apd.distillers.base import IGNORED, Distiller, DistillerConfig
from apd.losses import masked_mean, pixel_kd_loss
from apd.perspective import full_precision, inverse_length
from apd.validation import RULED_OUT, check_call, has_values


@full_precision
def decoupled_losses(
    student_BKhw: Tensor, teacher_BKhw: Tensor, labels_Bhw: Tensor, *, temperature: float
) -> dict[str, Tensor]:
    """The target and the non-target part of a pixel's KL, each T² times its mean over valid pixels.

    A pixel at which the teacher rules out all classes but the labelled one has no non-target part.
    """
    valid_Bhw = labels_Bhw != IGNORED
    target_BKhw = labels_Bhw[:, None] == torch.arange(student_BKhw.shape[1], device=labels_Bhw.device)[:, None, None]

    def parts(logits_BKhw: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of (target, all others), and of the others among themselves."""
        logits_BKhw = logits_BKhw / temperature
        others_BKhw = logits_BKhw.masked_fill(target_BKhw, torch.finfo(logits_BKhw.dtype).min)
        total_B1hw, others_B1hw = logits_BKhw.logsumexp(1, keepdim=True), others_BKhw.logsumexp(1, keepdim=True)
        own_B1hw = torch.where(target_BKhw, logits_BKhw, 0.0).sum(1, keepdim=True)
        return torch.cat([own_B1hw, others_B1hw], dim=1) - total_B1hw, others_BKhw - others_B1hw

    def mean_divergence(student_log: Tensor, teacher_log: Tensor, counted_Bhw: Tensor) -> Tensor:
        divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True)
        return temperature**2 * masked_mean(divergence.sum(1), counted_Bhw)

    student, teacher = parts(student_BKhw), parts(teacher_BKhw)
    has_others_Bhw = teacher_BKhw.masked_fill(target_BKhw, RULED_OUT).amax(1) > RULED_OUT / 2
    return {
        "target": mean_divergence(student[0], teacher[0], valid_Bhw),
        "non_target": mean_divergence(student[1], teacher[1], valid_Bhw & has_others_Bhw),
    }


def standardised(logits_BKhw: Tensor) -> Tensor:
    """Each pixel's logits minus their mean, over their standard deviation (K - 1); 0 where they do not vary."""
    centred_BKhw = logits_BKhw - logits_BKhw.mean(1, keepdim=True)
    return centred_BKhw * (inverse_length(centred_BKhw, dim=1) * (logits_BKhw.shape[1] - 1) ** 0.5)


def correlation_loss(student: Tensor, teacher: Tensor, counted: Tensor, dim: int) -> Tensor:
    """1 - Pearson correlation along ``dim`` over counted entries: mean over the rows in which the teacher varies."""
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
) -> dict[str, Tensor]:
    """T² times the inter-class term (a pixel's classes correlated) and the intra-class one (a class's pixels)."""
    student_KM, teacher_KM = (
        (logits_BKhw / temperature).softmax(1).transpose(0, 1).flatten(1)
        for logits_BKhw in (student_BKhw, teacher_BKhw)
    )
    counted_KM = valid_Bhw.flatten()[None].expand_as(student_KM)
    dims = {"inter": 0, "intra": 1}
    return {n: temperature**2 * correlation_loss(student_KM, teacher_KM, counted_KM, dim) for n, dim in dims.items()}


class PixelKDConfig(DistillerConfig):
    """Settings of :class:`apd.PixelKD`."""

    method: Literal["pixel_kd"] = "pixel_kd"
    weight: float = 1.0  #: Weight of the term.
    temperature: float = 1.0
    #: Mean over valid pixels, or over all pixels and classes (released code): there, 10 weighs 10 / K per pixel.
    reduction: Literal["pixel", "element"] = "pixel"
    #: Whether logits are compared on the labels' grid (released code) instead of their own.
    upsample_logits: bool = False


class PixelKD(Distiller, config=PixelKDConfig):
    """Ordinary pixel-wise knowledge distillation of the logits (Hinton et al. 2015), by :func:`apd.pixel_kd_loss`."""

    def _terms_of(self, maps: dict[str, tuple[Tensor | None, Tensor | None]], labels_BHW: Tensor) -> dict[str, Tensor]:
        logits = dict(zip(("student_logits", "teacher_logits"), maps["logits"], strict=True))
        logits = check_call(self, logits, labels_BHW, self.ignore_index, trained=["student_logits"])
        options = {"temperature": self.temperature, "upsample_logits": self.upsample_logits}
        options |= {"ignore_index": self.ignore_index, "reduction": self.reduction}
        return {"pixel_kd": pixel_kd_loss(*logits.values(), labels_BHW, **options)}


class LSKDConfig(DistillerConfig):
    """Settings of :class:`apd.LSKD`."""

    method: Literal["lskd"] = "lskd"
    weight: float = 9.0
    temperature: float = 2.0


class LSKD(Distiller, config=LSKDConfig):
    """Logit standardisation before distillation (Sun et al., CVPR 2024), pixel by pixel (own reading).

    A pixel's logits lose their mean over classes and are divided by their standard deviation over K - 1 (released code
    and the paper's figure 2, which the example repeats; its algorithm 1 divides by K); the term is that of
    :class:`PixelKD`. Defaults are the released code's on CIFAR-100, beside a cross-entropy of weight 1.

    >>> teacher = torch.tensor([-3.0, 3.0, 1.0, -1.0]).view(1, 4, 1, 1)
    >>> student, labels = torch.tensor([-6.0, 3.0, 4.0, -1.0]).view(1, 4, 1, 1), torch.tensor([[[1]]])
    >>> LSKD(temperature=1.0).eval()(student_logits=student, teacher_logits=teacher, labels=labels)["lskd"]
    tensor(0.0995)
    """

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        if teacher.is_cpu and has_values(teacher) and (teacher.amin(1)[labels_Bhw != IGNORED] <= RULED_OUT / 2).any():
            fix = "use PixelKD, or give the class that is ruled out a finite logit"
            raise ValueError(f"teacher_logits holds -inf, so a pixel's logits have no standard deviation: {fix}")
        logits = standardised(student), standardised(teacher)
        return {"lskd": pixel_kd_loss(*logits, labels_Bhw, temperature=self.temperature, ignore_index=IGNORED)}


class DKDConfig(DistillerConfig):
    """Settings of :class:`apd.DKD`."""

    method: Literal["dkd"] = "dkd"
    target: float = 1.0  #: Weight of the KL between the probabilities of the labelled class; 0 leaves it out.
    non_target: float = 0.25  #: Weight of the KL among the other classes; 0 leaves it out.
    temperature: float = 1.0
    terms = ("target", "non_target")


class DKD(Distiller, config=DKDConfig):
    """Decoupled knowledge distillation of the logits (Zhao et al. 2022), pixel by pixel (own reading).

    ``target`` is the KL between the two nets' probabilities of the labelled class against all others together, and
    ``non_target`` between their distributions over the others. Defaults are the official detection code's.
    """

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        return decoupled_losses(student, teacher, labels_Bhw, temperature=self.temperature)


class DISTConfig(DistillerConfig):
    """Settings of :class:`apd.DIST`."""

    method: Literal["dist"] = "dist"
    inter: float = 1.0  #: Weight of the correlation over a pixel's classes; 0 leaves it out.
    intra: float = 1.0  #: Weight of the correlation over a class's pixels; 0 leaves it out.
    temperature: float = 1.0
    terms = ("inter", "intra")


class DIST(Distiller, config=DISTConfig):
    """DIST (Huang et al. 2022): correlate the two nets' class probabilities instead of matching them.

    ``inter`` is 1 - the Pearson correlation over the classes of a pixel, mean over pixels; ``intra`` over all pixels of
    the batch of a class, mean over classes; both times T². Ignored pixels, and pixels or classes in which the teacher
    does not vary, are not counted (official code: all pixels, the latter as 0). Defaults are those of the official
    segmentation runs, which add the auxiliary logits with weight 0.4.
    """

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        return dist_losses(student, teacher, labels_Bhw != IGNORED, temperature=self.temperature)
