"""The four terms of Adaptive Perspective Distillation and the task's cross-entropy, as pure functions.

``reduction="pixel"`` (own choice) sums over classes and averages over valid pixels; ``"element"`` (released code)
averages over every element of the map, ignored pixels included. With nothing to average over, a term is zero and still
attached to the autograd graph. Wrong arguments raise ``ValueError`` or ``TypeError``, labels out of range
``RuntimeError``.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from apd import validation
from apd.fields import did_you_mean, shown
from apd.normalizers import global_count
from apd.perspective import ABSENT_LOGIT, full_precision, match_grids, resize_labels, valid_pixels

Reduction = Literal["pixel", "element"]

#: Own choice, for ``reduction="pixel"``: the released 10 in front of element means is 10 / K, 0.1 to 2, per pixel.
DEFAULT_WEIGHTS = {"regularisation": 1.0, "alignment": 10.0, "observation": 1.0, "pixel_kd": 1.0}
#: The released code's, for ``reduction="element"``.
RELEASED_WEIGHTS = {"regularisation": 1.0, "alignment": 10.0, "observation": 10.0, "pixel_kd": 10.0}


def upsample(maps_BKhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize with aligned corners, the released code's way from the feature grid to the label grid."""
    if maps_BKhw.shape[2:] == size:
        return maps_BKhw
    return F.interpolate(maps_BKhw, size=size, mode="bilinear", align_corners=True)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` is true; a connected zero when it is true nowhere."""
    return torch.where(mask, values, 0.0).sum() / global_count(mask.sum())


def _check_same_shape(kind: str, student: Tensor, teacher: Tensor) -> None:
    for name, value in ((f"student_{kind}", student), (f"teacher_{kind}", teacher)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}: expected a tensor")
    if student.shape != teacher.shape:
        shapes = f"student_{kind} has shape {tuple(student.shape)} but teacher_{kind} {tuple(teacher.shape)}"
        raise ValueError(f"{shapes}: they must be equal")


@full_precision
def regularisation_loss(
    teacher_observations_BKhw: Tensor, labels_BHW: Tensor, present_BK: Tensor | None = None, *, ignore_index: int = 255
) -> Tensor:
    """Cross-entropy of the teacher's observations, upsampled to the label grid, against the labels.

    It makes the teacher's perspective a good classifier, and is the only term that trains the teacher's head. A mean
    over the pixels that are not ``ignore_index`` and whose class is in ``present_BK``, that is, has a prototype (own
    choice, with ``absent="mask"``); with ``None`` the latter count too (released code, with ``absent="zero"``).
    """
    validation.check_map("teacher_observations", teacher_observations_BKhw)
    batch, num_classes = teacher_observations_BKhw.shape[:2]
    validation.check_labels(labels_BHW, batch)
    counted_BHW = valid_pixels(labels_BHW, num_classes, ignore_index=ignore_index)
    labels_BHW = torch.where(counted_BHW, labels_BHW.long(), 0)
    if present_BK is not None:
        validation.check_present(present_BK, (batch, num_classes))
        counted_BHW = counted_BHW & present_BK.gather(1, labels_BHW.flatten(1)).view_as(labels_BHW)
    return upsampled_entropy(teacher_observations_BKhw, labels_BHW, counted_BHW) / global_count(counted_BHW.sum())


@full_precision
def alignment_loss(student_prototypes_BKD: Tensor, teacher_prototypes_BKD: Tensor, present_BK: Tensor) -> Tensor:
    """Half the mean, over present (image, class) pairs, of 1 - cosine(student prototype, teacher prototype), in [0, 1].

    The prototypes are unit rows from :func:`apd.class_prototypes`; the teacher's are constants here.
    """
    _check_same_shape("prototypes", student_prototypes_BKD, teacher_prototypes_BKD)
    validation.check_present(present_BK, student_prototypes_BKD.shape[:2])
    cosines_BK = (student_prototypes_BKD * teacher_prototypes_BKD.detach()).sum(2)
    return 0.5 * masked_mean(1.0 - cosines_BK, present_BK)


@full_precision
def observation_loss(
    student_observations_BKhw: Tensor,
    teacher_observations_BKhw: Tensor,
    present_BK: Tensor,
    labels_Bhw: Tensor,
    *,
    ignore_index: int = 255,
    reduction: Reduction = "pixel",
) -> Tensor:
    """KL(teacher observations ‖ student observations) over present classes, each net through its own perspective.

    Observations are from :func:`apd.observe`; the teacher's are constants here, the student's carry gradient to its
    pixels and to its prototypes. ``labels_Bhw``, on the same grid, only mask ignored pixels. ``reduction="element"``
    averages over all pairs of a present class and a pixel, valid or not. Memory: about seven (B, K, h, w) maps.
    """
    validation.check_map("student_observations", student_observations_BKhw)
    validation.check_choice("reduction", reduction, ("pixel", "element"))
    _check_same_shape("observations", student_observations_BKhw, teacher_observations_BKhw)
    batch, num_classes = student_observations_BKhw.shape[:2]
    validation.check_present(present_BK, (batch, num_classes))
    validation.check_same_grid("observations", student_observations_BKhw, labels_Bhw)
    valid_Bhw = valid_pixels(labels_Bhw, num_classes, ignore_index=ignore_index)
    absent_BK11 = ~present_BK[:, :, None, None]
    divergence_BKhw = divergence(
        student_observations_BKhw.masked_fill(absent_BK11, ABSENT_LOGIT),
        teacher_observations_BKhw.masked_fill(absent_BK11, ABSENT_LOGIT),
    )
    return _reduced(divergence_BKhw, valid_Bhw, present_BK.sum() * labels_Bhw[0].numel(), reduction)


@full_precision
def pixel_kd_loss(
    student_logits_BKhw: Tensor,
    teacher_logits_BKhw: Tensor,
    labels_BHW: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = 255,
    reduction: Reduction = "pixel",
    upsample_logits: bool = False,
) -> Tensor:
    """Ordinary pixel distillation: T² KL(softmax(teacher / T) ‖ softmax(student / T)) of the classifiers' logits.

    Args:
        student_logits_BKhw, teacher_logits_BKhw: raw logits; grids may differ, the coarser wins. The teacher's,
            constants here, may be -inf for classes that it rules out.
        labels_BHW: integer labels on any grid, only to mask pixels: with ``reduction="pixel"`` those of
            ``ignore_index`` do not count.
        temperature: T (default 1, the released code's).
        reduction: ``"pixel"`` (default) or ``"element"``, a mean over classes and all pixels.
        upsample_logits: compare on the label grid (released code). Off by default (own choice): the logits' own grid
            takes 1/64 of the memory at a stride of 8. But a finer teacher's are averaged there, and thin objects lost.

    >>> from apd import pixel_kd_loss
    >>> student, teacher = torch.tensor([[[[0.0]], [[0.0]]]]), torch.tensor([[[[2.0]], [[0.0]]]])
    >>> pixel_kd_loss(student, teacher, torch.tensor([[[0]]]))
    tensor(0.3278)
    """
    validation.check_choice("reduction", reduction, ("pixel", "element"))
    validation.check_choice("upsample_logits", upsample_logits, (False, True))
    validation.check_positive("temperature", temperature, least=validation.COLDEST)
    logits = {"student_logits": student_logits_BKhw, "teacher_logits": teacher_logits_BKhw}
    student_logits_BKhw, teacher_logits_BKhw = validation.check_call(None, logits, labels_BHW, ignore_index).values()
    num_classes = student_logits_BKhw.shape[1]
    teacher_logits_BKhw = validation.without_infinities(teacher_logits_BKhw)
    if upsample_logits:
        size = labels_BHW.shape[1:]
        student_logits_BKhw = upsample(student_logits_BKhw, size)
        teacher_logits_BKhw = upsample(teacher_logits_BKhw, size)
    else:
        student_logits_BKhw, teacher_logits_BKhw = match_grids(student_logits_BKhw, teacher_logits_BKhw)
    valid_BHW = valid_pixels(labels_BHW, num_classes, ignore_index=ignore_index)
    valid_Bhw = resize_labels(valid_BHW.to(torch.uint8), student_logits_BKhw.shape[2:]).bool()
    divergence_BKhw = temperature**2 * divergence(student_logits_BKhw / temperature, teacher_logits_BKhw / temperature)
    elements = torch.full((), divergence_BKhw.numel(), device=divergence_BKhw.device)
    return _reduced(divergence_BKhw, valid_Bhw, elements, reduction)


def valid_weight(labels_BHW: Tensor, ignore_index: int, weights_K: Tensor | None = None) -> Tensor:
    """The number of valid pixels, or the sum of their classes' weights: what the sum of a loss is divided by."""
    valid = labels_BHW != ignore_index
    return valid.sum() if weights_K is None else (weights_K[labels_BHW.where(valid, 0)] * valid).sum()


def task_loss(
    logits_BKhw: Tensor, labels_BHW: Tensor, ignore_index: int, weights_K: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy over valid pixels after upsampling, in float32; zero, attached to the graph, without any.

    ``labels_BHW`` are int64. Weights are those of ``torch.nn.functional.cross_entropy``, but each 0 or at least 1: only
    their ratios matter, and a sum of weights below 1 counts as 1.
    """
    options = {"ignore_index": ignore_index, "reduction": "sum", "label_smoothing": smoothing}
    logits_BKHW = upsample(logits_BKhw.float(), labels_BHW.shape[1:])
    total = F.cross_entropy(logits_BKHW, labels_BHW, weights_K, **options)
    return total / global_count(valid_weight(labels_BHW, ignore_index, weights_K))


def two_channel_logits(logits_B1hw: Tensor) -> Tensor:
    """Two-class logits from the single (pre-sigmoid) logit of a binary network: 0 for class 0, the logit for class 1.

    Their softmax is the sigmoid. Labels are then 0 and 1; of masks with 0 and 255 they are ``(masks > 0).long()``.
    """
    validation.check_map("logits", logits_B1hw)
    if logits_B1hw.shape[1] != 1:
        raise ValueError(f"logits has shape {tuple(logits_B1hw.shape)}: expected one channel (batch, 1, height, width)")
    return torch.cat([torch.zeros_like(logits_B1hw), logits_B1hw], dim=1)


def divergence(student: Tensor, teacher: Tensor, dim: int = 1) -> Tensor:
    """The summands of KL(softmax(teacher) ‖ softmax(student)) along a dimension; the teacher is a constant."""
    student_log, teacher_log = F.log_softmax(student, dim=dim), F.log_softmax(teacher.detach(), dim=dim)
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True)


def _reduced(divergence_BKhw: Tensor, valid_Bhw: Tensor, elements: Tensor, reduction: Reduction) -> Tensor:
    """Summed over classes, and averaged over valid pixels or over the number of ``elements``."""
    if reduction == "element":
        return divergence_BKhw.sum() / global_count(elements)
    return masked_mean(divergence_BKhw.sum(1), valid_Bhw)


def checked_weights(given: Mapping[str, float], *, has_heads: bool) -> dict[str, float]:
    """Defaults overlaid with ``given``; refuses unknown names, values that are no weight, and all zeros."""
    if not isinstance(given, Mapping):
        raise TypeError(f"weights is a {type(given).__name__}: expected a dict of terms and numbers")
    for name, value in given.items():
        if name not in DEFAULT_WEIGHTS:
            hint = did_you_mean(name, DEFAULT_WEIGHTS)
            raise ValueError(f"weights has no term {shown(name)}: expected {', '.join(DEFAULT_WEIGHTS)}{hint}")
        validation.check_positive(f"weights[{name!r}]", value, or_zero=True)
    if not has_heads and given.get("regularisation"):
        why = "this term trains the teacher's head and there is none; give a width, or weight 0"
        raise ValueError(f"weights['regularisation']={given['regularisation']} with width=None: {why}")
    defaults = DEFAULT_WEIGHTS if has_heads else DEFAULT_WEIGHTS | {"regularisation": 0.0}
    weights = {name: float(given.get(name, default)) for name, default in defaults.items()}
    if not any(weights.values()):
        raise ValueError("weights are all 0: nothing would be distilled; give at least one term a positive weight")
    return weights


# Cross-entropy after bilinear upsampling, without ever holding the upsampled map.

BAND_ELEMENTS = 2**20
"""Logits in a band, K · B · W for each row (own choice: 4 MiB in float32, near a cache's size)."""


def linear_weights(fine: int, coarse: int, like: Tensor) -> Tensor:
    """(fine, coarse) matrix of linear interpolation with aligned ends: two entries a row, which sum to 1."""
    cells = torch.arange(coarse, device=like.device, dtype=like.dtype)
    places = torch.arange(fine, device=like.device, dtype=like.dtype) * ((coarse - 1) / max(fine - 1, 1))
    return (1 - (places[:, None] - cells).abs()).clamp(min=0)


class _UpsampledEntropy(torch.autograd.Function):
    """(logits_BKhw, labels_BHW, counted_BHW) to the sum of the cross-entropies of counted pixels."""

    @staticmethod
    def forward(ctx: Any, logits_BKhw: Tensor, labels_BHW: Tensor, counted_BHW: Tensor) -> Tensor:
        batch, classes, coarse_rows, coarse_columns = logits_BKhw.shape
        _, rows, columns = labels_BHW.shape
        down_Hh = linear_weights(rows, coarse_rows, logits_BKhw)
        across_Ww = linear_weights(columns, coarse_columns, logits_BKhw)
        wide_BKhW = logits_BKhw @ across_Ww.mT
        gradient_BKhW = torch.zeros_like(wide_BKhW) if ctx.needs_input_grad[0] else None
        total = logits_BKhw.new_zeros(())
        elements = BAND_ELEMENTS if logits_BKhw.is_cpu else 16 * BAND_ELEMENTS  # a GPU takes few large steps
        step = max(1, elements // (batch * classes * columns))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            # coarse rows that this band reaches: those next to its first and last place
            low = first * (coarse_rows - 1) // max(rows - 1, 1)
            high = min(coarse_rows, -(-(last - 1) * (coarse_rows - 1) // max(rows - 1, 1)) + 1)
            weight_Rr = down_Hh[first:last, low:high]
            band_BKRW = weight_Rr @ wide_BKhW[:, :, low:high]
            labels_B1RW = labels_BHW[:, None, first:last]
            counted_B1RW = counted_BHW[:, None, first:last].to(band_BKRW.dtype)
            largest_B1RW = band_BKRW.amax(1, keepdim=True)
            right_B1RW = band_BKRW.gather(1, labels_B1RW) - largest_B1RW
            band_BKRW = band_BKRW.sub_(largest_B1RW).exp_()
            sum_B1RW = band_BKRW.sum(1, keepdim=True)
            total = total + ((sum_B1RW.log() - right_B1RW) * counted_B1RW).sum()
            if gradient_BKhW is not None:
                band_BKRW.mul_(counted_B1RW / sum_B1RW)
                band_BKRW.scatter_add_(1, labels_B1RW, -counted_B1RW)
                gradient_BKhW[:, :, low:high] += weight_Rr.mT @ band_BKRW
        if gradient_BKhW is not None:
            ctx.save_for_backward(gradient_BKhW @ across_Ww)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_BKhw,) = ctx.saved_tensors
        return to_total * gradient_BKhw, None, None


def upsampled_entropy(logits_BKhw: Tensor, labels_BHW: Tensor, counted_BHW: Tensor) -> Tensor:
    """Cross-entropy, summed over counted pixels, of logits upsampled (bilinear, aligned corners) to the labels' grid.

    Labels are int64 in 0 .. K - 1, also where not counted. It can be differentiated once only. Memory beside the input:
    two maps of (B, K, h, W), and two bands of the upsampled one, each of at most 4 MiB (on a GPU 64 MiB).
    """
    return _UpsampledEntropy.apply(logits_BKhw, labels_BHW, counted_BHW)
