"""The four terms of Adaptive Perspective Distillation, as pure functions.

Two things decide what a weight in front of a term means, so they are arguments. ``reduction="pixel"`` sums over
classes and averages over valid pixels: the value does not depend on the number of classes, of ignored pixels or of
images. ``reduction="element"``, the released code's, averages over every element of the map, ignored pixels
included: a weight of 10 in front of it weighs 10 / K per pixel. Every term is a connected zero (value 0, gradient 0)
when it has nothing to average over. Of a batch that is divided over processes or steps, :mod:`apd.normalizers` makes
them means over the whole. Shape letters as in :mod:`apd.perspective`.
"""

import difflib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from apd.fused import upsampled_entropy
from apd.normalizers import global_count
from apd.perspective import ABSENT_LOGIT, full_precision, match_grids, resize_labels, valid_pixels
from apd.validation import (
    check_choice,
    check_classes,
    check_grids,
    check_labels,
    check_map,
    check_positive,
    check_values,
    without_infinities,
)

Reduction = Literal["pixel", "element"]

DEFAULT_WEIGHTS = {"regularisation": 1.0, "alignment": 10.0, "observation": 1.0, "pixel_kd": 1.0}
"""Own choice, for ``reduction="pixel"``. The released code's weight of 10 in front of its element means is 10 / K or
10 / (classes present) per pixel, about 0.1 to 2 on its data sets, so the two KL terms get 1 here. The alignment does
not depend on the reduction and keeps 10."""

RELEASED_WEIGHTS = {"regularisation": 1.0, "alignment": 10.0, "observation": 10.0, "pixel_kd": 10.0}
"""The released code's, for ``reduction="element"``."""


def upsample(maps_BKhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize with aligned corners, the released code's way from the feature grid to the label grid."""
    if maps_BKhw.shape[2:] == size:
        return maps_BKhw
    return F.interpolate(maps_BKhw, size=size, mode="bilinear", align_corners=True)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` is true; a connected zero when it is true nowhere."""
    return torch.where(mask, values, 0.0).sum() / global_count(mask.sum())


def _check_same_shape(student_name: str, student: Tensor, teacher_name: str, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{student_name} has shape {tuple(student.shape)} but {teacher_name} {tuple(teacher.shape)}: "
            "they must be equal"
        )


def _check_present(present_BK: Tensor, shape: tuple[int, ...]) -> None:
    if present_BK.dtype != torch.bool or present_BK.shape != shape:
        raise ValueError(
            f"present is {present_BK.dtype} of shape {tuple(present_BK.shape)}: expected torch.bool of {tuple(shape)}"
        )


@full_precision
def regularisation_loss(
    teacher_observations_BKhw: Tensor,
    labels_BHW: Tensor,
    present_BK: Tensor | None = None,
    *,
    ignore_index: int = 255,
) -> Tensor:
    """Cross-entropy of the teacher's observations, upsampled to the label grid, against the labels.

    It makes the teacher's perspective a good classifier, and is the only term that trains the teacher's head. Mean
    over counted pixels under either reduction.

    Args:
        teacher_observations_BKhw: from :func:`apd.observe`.
        labels_BHW: integer labels, usually finer than the observations.
        present_BK: which classes have a prototype. Pixels of a class that has none (it vanished on the feature grid)
            are then not counted, since no perspective could get them right: the default, own choice, and needed with
            ``absent="mask"``. ``None`` counts them, as the released code does with ``absent="zero"``.
        ignore_index: label of pixels not to count.

    Returns:
        A scalar. Memory: a few maps of (B, K, h, W); the label grid is worked through in bands of rows
        (:mod:`apd.fused`).

    Raises:
        ValueError, TypeError: wrong rank, dtype or batch. RuntimeError: labels out of range.

    >>> import torch
    >>> from apd import regularisation_loss
    >>> observations = torch.tensor([[[[2.0]], [[0.0]]]])
    >>> regularisation_loss(observations, torch.tensor([[[0, 255]]]))
    tensor(0.1269)
    """
    check_map("teacher_observations", teacher_observations_BKhw)
    batch, num_classes = teacher_observations_BKhw.shape[:2]
    check_labels(labels_BHW, batch)
    counted_BHW = valid_pixels(labels_BHW, num_classes, ignore_index=ignore_index)
    labels_BHW = torch.where(counted_BHW, labels_BHW.long(), 0)
    if present_BK is not None:
        _check_present(present_BK, (batch, num_classes))
        counted_BHW = counted_BHW & present_BK.gather(1, labels_BHW.flatten(1)).view_as(labels_BHW)
    return upsampled_entropy(teacher_observations_BKhw, labels_BHW, counted_BHW) / global_count(counted_BHW.sum())


@full_precision
def alignment_loss(student_prototypes_BKD: Tensor, teacher_prototypes_BKD: Tensor, present_BK: Tensor) -> Tensor:
    """Half the mean, over present (image, class) pairs, of 1 - cosine(student prototype, teacher prototype).

    In [0, 1]. The teacher's prototypes are constants here: no gradient reaches them.

    Args:
        student_prototypes_BKD, teacher_prototypes_BKD: unit rows from :func:`apd.class_prototypes`.
        present_BK: which rows exist.

    >>> import torch
    >>> from apd import alignment_loss
    >>> rows = torch.eye(2)[None]
    >>> alignment_loss(rows, -rows, torch.tensor([[True, False]]))
    tensor(1.)
    """
    _check_same_shape("student_prototypes", student_prototypes_BKD, "teacher_prototypes", teacher_prototypes_BKD)
    _check_present(present_BK, student_prototypes_BKD.shape[:2])
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
    """KL(teacher observations ‖ student observations) over present classes.

    Each net is observed through its own perspective. The teacher's observations are constants here; the student's
    carry gradient to its pixels and to its prototypes (released code; the abstract does not say).

    Args:
        student_observations_BKhw, teacher_observations_BKhw: from :func:`apd.observe`; the logits of absent classes
            are of no account.
        present_BK: which classes have a prototype.
        labels_Bhw: integer labels on the same grid, for validity only.
        ignore_index: label of pixels not to count.
        reduction: ``"pixel"`` (default, own choice) sums over classes and averages over valid pixels; ``"element"``
            (released code) averages over all pairs of a present class and a pixel, valid or not.

    Returns:
        A scalar. Memory: about four (B, K, h, w) maps.

    >>> import torch
    >>> from apd import observation_loss
    >>> student, teacher = torch.tensor([[[[0.0]], [[0.0]]]]), torch.tensor([[[[2.0]], [[0.0]]]])
    >>> observation_loss(student, teacher, torch.tensor([[True, True]]), torch.tensor([[[0]]]))
    tensor(0.3278)
    """
    check_map("student_observations", student_observations_BKhw)
    check_choice("reduction", reduction, ("pixel", "element"))
    _check_same_shape(
        "student_observations", student_observations_BKhw, "teacher_observations", teacher_observations_BKhw
    )
    batch, num_classes = student_observations_BKhw.shape[:2]
    _check_present(present_BK, (batch, num_classes))
    check_labels(labels_Bhw, batch)
    if labels_Bhw.shape[1:] != student_observations_BKhw.shape[2:]:
        raise ValueError(
            f"labels are on a grid of {tuple(labels_Bhw.shape[1:])} but observations on "
            f"{tuple(student_observations_BKhw.shape[2:])}: call resize_labels(labels, observations.shape[2:]) first"
        )
    valid_Bhw = valid_pixels(labels_Bhw, num_classes, ignore_index=ignore_index)
    absent_BK11 = ~present_BK[:, :, None, None]
    divergence_BKhw = _divergence(
        student_observations_BKhw.masked_fill(absent_BK11, ABSENT_LOGIT),
        teacher_observations_BKhw.masked_fill(absent_BK11, ABSENT_LOGIT),
    )
    if reduction == "element":
        elements = present_BK.sum() * labels_Bhw[0].numel()
        return divergence_BKhw.sum() / global_count(elements)
    return masked_mean(divergence_BKhw.sum(1), valid_Bhw)


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

    The teacher's logits are constants here.

    Args:
        student_logits_BKhw, teacher_logits_BKhw: raw logits; grids may differ, the coarser wins. The teacher's may be
            -inf for classes that it rules out.
        labels_BHW: integer labels on any grid, for validity only.
        temperature: T (default 1, the released code's).
        ignore_index: label of pixels not to count.
        reduction: ``"pixel"`` (default, own choice) sums over classes and averages over valid pixels; ``"element"``
            (released code) averages over classes and all pixels, valid or not.
        upsample_logits: compare on the label grid after bilinear upsampling, as the released code does. Off by
            default (own choice): the logits' own grid carries the same information at 1/64 of the memory for a
            stride of 8, and the labels go to it by the nearest rule.

    Returns:
        A scalar. Memory: about four maps (B, K, h, w), or (B, K, H, W) when upsampled.

    Raises:
        ValueError, TypeError: wrong rank, dtype, batch, number of classes or aspect ratio; on a CPU, logits that are
            not finite. RuntimeError: labels out of range.

    >>> import torch
    >>> from apd import pixel_kd_loss
    >>> student, teacher = torch.tensor([[[[0.0]], [[0.0]]]]), torch.tensor([[[[2.0]], [[0.0]]]])
    >>> pixel_kd_loss(student, teacher, torch.tensor([[[0]]]))
    tensor(0.3278)
    """
    check_map("student_logits", student_logits_BKhw)
    check_map("teacher_logits", teacher_logits_BKhw)
    check_choice("reduction", reduction, ("pixel", "element"))
    check_positive("temperature", temperature)
    check_classes(student_logits_BKhw, teacher_logits_BKhw)
    batch, num_classes = student_logits_BKhw.shape[:2]
    check_labels(labels_BHW, batch)
    logits = {"student_logits": student_logits_BKhw, "teacher_logits": teacher_logits_BKhw}
    check_grids(logits | {"labels": labels_BHW})
    check_values(None, logits)
    teacher_logits_BKhw = without_infinities(teacher_logits_BKhw)
    if upsample_logits:
        size = labels_BHW.shape[1:]
        student_logits_BKhw = upsample(student_logits_BKhw, size)
        teacher_logits_BKhw = upsample(teacher_logits_BKhw, size)
    else:
        student_logits_BKhw, teacher_logits_BKhw = match_grids(student_logits_BKhw, teacher_logits_BKhw)
    valid_BHW = valid_pixels(labels_BHW, num_classes, ignore_index=ignore_index)
    valid_Bhw = resize_labels(valid_BHW.to(torch.uint8), student_logits_BKhw.shape[2:]).bool()
    divergence_BKhw = temperature**2 * _divergence(student_logits_BKhw / temperature, teacher_logits_BKhw / temperature)
    if reduction == "element":
        elements = torch.full((), divergence_BKhw.numel(), device=divergence_BKhw.device)
        return divergence_BKhw.sum() / global_count(elements)
    return masked_mean(divergence_BKhw.sum(1), valid_Bhw)


def two_channel_logits(logits_B1hw: Tensor) -> Tensor:
    """The two logits of a binary network that has one, before its sigmoid: 0 for class 0, and its own for class 1.

    Their softmax is the sigmoid, so that every distiller takes them, with ``num_classes=2``. Labels are then 0 and 1;
    those of masks with 0 and 255 are ``(masks > 0).long()``, since 255 is ignored.

    >>> import torch
    >>> from apd import two_channel_logits
    >>> two_channel_logits(torch.tensor([[[[1.5]]]])).flatten()
    tensor([0.0000, 1.5000])
    """
    check_map("logits", logits_B1hw)
    if logits_B1hw.shape[1] != 1:
        raise ValueError(f"logits has shape {tuple(logits_B1hw.shape)}: expected one channel (batch, 1, height, width)")
    return torch.cat([torch.zeros_like(logits_B1hw), logits_B1hw], dim=1)


def _divergence(student_BKhw: Tensor, teacher_BKhw: Tensor) -> Tensor:
    """The summands, class by class, of KL(softmax(teacher) ‖ softmax(student)); the teacher is a constant."""
    student_log_BKhw = F.log_softmax(student_BKhw, dim=1)
    teacher_log_BKhw = F.log_softmax(teacher_BKhw.detach(), dim=1)
    return F.kl_div(student_log_BKhw, teacher_log_BKhw, reduction="none", log_target=True)


def checked_weights(given: Mapping[str, float], *, has_heads: bool) -> dict[str, float]:
    """Defaults overlaid with ``given``; refuses unknown names, values that are no weight, and all zeros."""
    if not isinstance(given, Mapping):
        raise TypeError(f"weights is a {type(given).__name__}: expected a dict of terms and numbers")
    for name, value in given.items():
        if name not in DEFAULT_WEIGHTS:
            near = difflib.get_close_matches(str(name), DEFAULT_WEIGHTS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"weights has no term {name!r}: {hint}the terms are {', '.join(DEFAULT_WEIGHTS)}")
        check_positive(f"weights[{name!r}]", value, or_zero=True)
    if not has_heads and given.get("regularisation"):
        raise ValueError(
            f"weights['regularisation']={given['regularisation']} with width=None: this term trains the teacher's "
            "head and there is none; give a width, or weight 0"
        )
    defaults = DEFAULT_WEIGHTS if has_heads else DEFAULT_WEIGHTS | {"regularisation": 0.0}
    weights = {name: float(given.get(name, default)) for name, default in defaults.items()}
    if not any(weights.values()):
        raise ValueError("weights are all 0: nothing would be distilled; give at least one term a positive weight")
    return weights
