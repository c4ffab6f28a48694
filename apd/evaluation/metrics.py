"""The confusion matrix of a data set and its scores: counts are summed over the whole set before any division."""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """Fractions in [0, 1]: IoU and recall by class, (K,), NaN where undefined; their means; right pixels."""

    iou: Tensor
    accuracy: Tensor
    miou: float
    macc: float
    aacc: float
    classes_counted: int


class ConfusionMatrix:
    """`matrix_KK[t, p]` (int64, where the labels live): pixels of class t that were called p, summed over images."""

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes = {num_classes}: expected at least 2")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.matrix_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add images' pixels: integers of one shape in 0..K-1 or, in `labels`, `ignore_index`; else a ValueError."""
        for name, values in (("labels", labels), ("predictions", predictions)):
            if values.is_floating_point() or values.is_complex():
                raise ValueError(f"{name} are {values.dtype}: expected integer classes, such as logits.argmax(1)")
        if predictions.shape != labels.shape:
            raise ValueError(f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} differ in shape")
        labels = labels.long()
        valid = labels != self.ignore_index
        truth, called = labels[valid], predictions.to(labels.device).long()[valid]
        for name, values in (("labels", truth), ("predictions", called)):
            if values.numel() and (values.amin() < 0 or values.amax() >= self.num_classes):
                wrong = values[(values < 0) | (values >= self.num_classes)].unique().tolist()
                also = f" or {self.ignore_index} (ignore)" if name == "labels" else ""
                raise ValueError(f"{name} hold {wrong}: expected 0..{self.num_classes - 1}{also}")
        counts = torch.bincount(truth * self.num_classes + called, minlength=self.num_classes**2)
        self.matrix_KK = self.matrix_KK.to(counts.device) + counts.view(self.num_classes, self.num_classes)


def scores(matrix_KK: Tensor) -> Scores:
    """The scores of counts[true, predicted]; without a valid pixel, NaN throughout and zero counted classes."""
    if matrix_KK.ndim != 2 or matrix_KK.shape[0] != matrix_KK.shape[1]:
        raise ValueError(f"matrix has shape {tuple(matrix_KK.shape)}: expected (K, K)")
    matrix_KK = matrix_KK.double().cpu()
    hit, truth, called = matrix_KK.diagonal(), matrix_KK.sum(1), matrix_KK.sum(0)
    iou, accuracy = hit / (truth + called - hit), hit / truth  # 0/0 is NaN: the class is absent
    means = iou.nanmean().item(), accuracy.nanmean().item(), (hit.sum() / truth.sum()).item()
    return Scores(iou, accuracy, *means, classes_counted=int((~iou.isnan()).sum()))


def too_weak(matrix_KK: Tensor, class_names: Sequence[str]) -> str:
    """A sentence where predictions hold one class only or score no more than a constant answer; else empty."""
    called_K, truth_K = matrix_KK.sum(0), matrix_KK.double().sum(1)
    if int((called_K > 0).sum()) == 1:
        only = class_names[int(called_K.argmax())]
        return f"every pixel is called {only}: the network does not distinguish classes, so its scores mean nothing"
    miou, constant = scores(matrix_KK).miou, (truth_K.max() / truth_K.sum() / (truth_K > 0).sum()).item()
    if miou <= constant:
        frequent = class_names[int(truth_K.argmax())]
        return f"an mIoU of {miou:.4f} is no better than that of always answering {frequent}, {constant:.4f}"
    return ""


def class_csv(matrix_KK: Tensor, class_names: Sequence[str]) -> str:
    """A row for each class: class, IoU and accuracy (6 digits, empty where undefined), pixels that are labelled so."""
    result, written = scores(matrix_KK), io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(("class", "IoU", "accuracy", "pixels"))
    columns = result.iou.tolist(), result.accuracy.tolist(), matrix_KK.sum(1).tolist()
    for name, *fractions, pixels in zip(class_names, *columns, strict=True):
        table.writerow((name, *("" if math.isnan(value) else f"{value:.6f}" for value in fractions), pixels))
    return written.getvalue()
