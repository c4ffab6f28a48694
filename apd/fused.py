"""Prototypes and observations of a map through its own perspective, in one step with its gradient written out.

With u = x / |x| of a pixel's features x, M the membership of pixels in classes, S = M u, P = S / |S| and O = s P u, the
gradient in x is g - u (u · g), where g collects what arrives at constant length: from O, and from P through S.
Everything in it but g itself is a product of thin matrices.
"""

from typing import Any

import torch
from torch import Tensor

from apd.perspective import ABSENT_LOGIT, Absent, Scope, class_members, full_precision, inverse_length
from apd.validation import check_choice


class _ObserveItself(torch.autograd.Function):
    """(features_BDN, member_BKN, present_BK, …) to (prototypes_BKD, observations_BKN)."""

    @staticmethod
    def forward(
        ctx: Any,
        features_BDN: Tensor,
        member_BKN: Tensor,
        present_BK: Tensor,
        scale: float,
        fill: float,
        pooled: bool,
        detach_prototypes: bool,
    ) -> tuple[Tensor, Tensor]:
        inverse_B1N = inverse_length(features_BDN, dim=1)
        weight_BKN = member_BKN * inverse_B1N
        sums_BKD = weight_BKN @ features_BDN.mT
        if pooled:
            sums_BKD = sums_BKD.sum(0, keepdim=True).expand_as(sums_BKD)
        inverse_BK1 = inverse_length(sums_BKD, dim=2)
        prototypes_BKD = sums_BKD * inverse_BK1
        observations_BKN = (prototypes_BKD @ features_BDN).mul_(scale * inverse_B1N)
        observations_BKN.masked_fill_(~present_BK[:, :, None], fill)
        ctx.save_for_backward(features_BDN, weight_BKN, inverse_B1N, prototypes_BKD, inverse_BK1, present_BK)
        ctx.scale, ctx.pooled, ctx.detach_prototypes = scale, pooled, detach_prototypes
        return prototypes_BKD, observations_BKN

    @staticmethod
    def backward(ctx: Any, to_prototypes_BKD: Tensor, to_observations_BKN: Tensor) -> tuple[Tensor | None, ...]:
        features_BDN, weight_BKN, inverse_B1N, prototypes_BKD, inverse_BK1, present_BK = ctx.saved_tensors
        cosines_BKN = (to_observations_BKN * (ctx.scale * inverse_B1N)).masked_fill(~present_BK[:, :, None], 0.0)
        if not ctx.detach_prototypes:
            to_prototypes_BKD = to_prototypes_BKD + cosines_BKN @ features_BDN.mT
        if ctx.pooled:
            to_prototypes_BKD = to_prototypes_BKD.sum(0, keepdim=True).expand_as(to_prototypes_BKD)
        along_BK1 = (prototypes_BKD * to_prototypes_BKD).sum(2, keepdim=True)
        to_sums_BKD = inverse_BK1 * (to_prototypes_BKD - prototypes_BKD * along_BK1)
        rows = torch.cat([to_sums_BKD, prototypes_BKD], dim=1)  # 2K rows of D, against 2K rows of N
        columns = torch.cat([weight_BKN, cosines_BKN], dim=1)
        gradient_BDN = rows.mT @ columns
        along_B1N = (columns * (rows @ features_BDN)).sum(1, keepdim=True)
        gradient_BDN.addcmul_(features_BDN, along_B1N.mul_(inverse_B1N.square()), value=-1.0)
        return gradient_BDN, None, None, None, None, None, None


@full_precision
def observe_itself(
    features_BDhw: Tensor,
    labels_Bhw: Tensor,
    num_classes: int,
    *,
    ignore_index: int = 255,
    scope: Scope = "image",
    scale: float = 10.0,
    absent: Absent = "mask",
    detach_prototypes: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A map's own perspective and its observations: ``prototypes_BKD``, ``present_BK`` and ``observations_BKhw``.

    In value, arguments and errors :func:`apd.class_prototypes` followed by :func:`apd.observe`, in fewer passes over
    the features; with ``detach_prototypes`` the observations' gradient stops at the prototypes. Memory beside the
    input: three (B, K, N) maps; the gradient adds one map of the input's size and four (B, K, N) maps.
    """
    check_choice("absent", absent, ("mask", "zero"))
    member_BKN, present_BK = class_members(
        features_BDhw, labels_Bhw, num_classes, ignore_index=ignore_index, scope=scope
    )
    fill = ABSENT_LOGIT if absent == "mask" else 0.0
    prototypes_BKD, observations_BKN = _ObserveItself.apply(
        features_BDhw.flatten(2), member_BKN, present_BK, scale, fill, scope == "batch", detach_prototypes
    )
    return prototypes_BKD, present_BK, observations_BKN.unflatten(2, features_BDhw.shape[2:])


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
        step = max(1, BAND_ELEMENTS // (batch * classes * columns))
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
    def backward(ctx: Any, to_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_BKhw,) = ctx.saved_tensors
        return to_total * gradient_BKhw, None, None


def upsampled_entropy(logits_BKhw: Tensor, labels_BHW: Tensor, counted_BHW: Tensor) -> Tensor:
    """Cross-entropy, summed over counted pixels, of logits upsampled (bilinear, aligned corners) to the labels' grid.

    Labels are int64 in 0 .. K - 1, also where not counted. Memory beside the input: three maps of (B, K, h, W).
    """
    return _UpsampledEntropy.apply(logits_BKhw, labels_BHW, counted_BHW)
