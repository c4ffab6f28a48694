"""Task losses of segmentation: cross-entropy with class weights and smoothing, and what may be added to it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.fields import ExperimentError, imported
from apd.losses import upsample
from apd.normalizers import global_count


def balanced_weights(counts_K: list[int]) -> list[float]:
    """Weight N / (K n) of a class with n of N pixels, where K classes occur (scikit-learn's "balanced"); 0 of none.

    >>> balanced_weights([300, 100, 0])
    [0.6666666666666666, 2.0, 0.0]
    """
    occurring = sum(count > 0 for count in counts_K)
    return [sum(counts_K) / (occurring * count) if count else 0.0 for count in counts_K]


def scaled_weights(weights_K: list[float], device: torch.device) -> Tensor:
    """The weights over the smallest above 0, so that those of any pixels sum to at least 1, or to 0: means stay."""
    weights = torch.tensor(weights_K, dtype=torch.float64)
    return (weights / weights[weights > 0].min()).float().to(device)


def valid_weight(labels_BHW: Tensor, ignore_index: int, weights_K: Tensor | None = None) -> Tensor:
    """The number of valid pixels, or the sum of their classes' weights: what the sum of a loss is divided by."""
    valid = labels_BHW != ignore_index
    return valid.sum() if weights_K is None else (weights_K[labels_BHW.where(valid, 0)] * valid).sum()


def task_loss(
    logits_BKhw: Tensor, labels_BHW: Tensor, ignore_index: int, weights_K: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy over valid pixels after upsampling, as torch's with weights; a connected zero without any."""
    options = {"ignore_index": ignore_index, "reduction": "sum", "label_smoothing": smoothing}
    logits_BKHW = upsample(logits_BKhw.float(), labels_BHW.shape[1:])
    total = F.cross_entropy(logits_BKHW, labels_BHW, weights_K, **options)
    return total / global_count(valid_weight(labels_BHW, ignore_index, weights_K))


def added_loss(kind: str, logits_BKhw: Tensor, labels_BHW: Tensor, ignore_index: int) -> Tensor:
    """The loss "focal", "dice" or "lovasz" of segmentation-models-pytorch; a connected zero when no pixel is valid.

    Dice and Lovász are no means: of a batch in parts (ranks, micro-batches) each has its own, by its valid pixels.
    """
    losses, logits_BKHW = library(), upsample(logits_BKhw.float(), labels_BHW.shape[1:])
    valid = valid_weight(labels_BHW, ignore_index)
    options = {"mode": "multiclass", "ignore_index": ignore_index}
    if kind == "focal":
        return losses.FocalLoss(**options, reduction="sum")(logits_BKHW, labels_BHW) / global_count(valid)
    loss = (losses.DiceLoss if kind == "dice" else losses.LovaszLoss)(**options)(logits_BKHW, labels_BHW)
    return loss.sum() * (valid / global_count(valid))  # Lovász of no pixel is an empty tensor


def library() -> Any:
    """The losses of segmentation-models-pytorch; ExperimentError without the package."""
    return imported("segmentation_models_pytorch", "training.added_loss", "losses", ExperimentError).losses
