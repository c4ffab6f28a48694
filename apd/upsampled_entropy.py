"""Cross-entropy after bilinear upsampling, without ever holding the upsampled map.

Upsampling is linear and separable, and the loss is a sum over pixels: so the label grid is worked through in bands of
rows, and each band's gradient goes back to the coarse grid at once. What is kept is the gradient on the coarse grid.
The floor is one exponential per class and pixel of the label grid, about ten arithmetic operations each, and no
traffic to memory but the labels'; three maps of (B, K, H, W) are what the same costs written with library calls.
"""

from typing import Any

import torch
from torch import Tensor

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

    Args:
        logits_BKhw: on any grid; may be coarser or finer than the labels'.
        labels_BHW: int64, each in 0 .. K - 1, also where not counted.
        counted_BHW: boolean; the other pixels have no part in value and gradient.

    Returns:
        A scalar. Memory beside the input: three maps of (B, K, h, W) and a few bands of ``BAND_ELEMENTS``.
    """
    return _UpsampledEntropy.apply(logits_BKhw, labels_BHW, counted_BHW)
