"""Label maps of images, averages over windows, mirror images and scales; the confusion matrix and its scores."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from apd.config.inference_options import WHOLE_IMAGE, InferenceOptions, scaled_side
from apd.data.batches import evaluation_batches
from apd.data.specs import IMAGE_PADDING, SegmentationDataset
from apd.validation import check_ignore_index

FORMULA = tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20")  # so begins what a spreadsheet computes
WINDOWS_AT_ONCE = 8  # in one call of the network (own choice: a batch that the trained sizes fit in)


class Scores(NamedTuple):
    """Scores of a whole data set, as fractions in [0, 1]: pixels are summed over all images before the division.

    `iou` and `accuracy` (recall) are by class, (K,): NaN for a class that neither occurs nor is predicted, and that
    does not occur. `miou` and `macc` are means over the others, `aacc` is the share of valid pixels that are right.
    """

    iou: Tensor
    accuracy: Tensor
    miou: float
    macc: float
    aacc: float
    classes_counted: int  #: Classes in the mean of `iou`.


class ConfusionMatrix:
    """`matrix_KK[t, p]` (int64, on the labels' device): pixels of class t that were predicted as p, over all images."""

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes = {num_classes}: expected at least 2")
        self.num_classes, self.ignore_index = num_classes, check_ignore_index(ignore_index, num_classes)
        self.matrix_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add images' pixels: integers of one shape in 0..K-1 or, in `labels`, `ignore_index`; else a ValueError."""
        for name, values in (("labels", labels), ("predictions", predictions)):
            if values.is_floating_point() or values.is_complex():
                raise ValueError(f"{name} are {values.dtype}: expected integer classes, such as logits.argmax(1)")
        if predictions.shape != labels.shape:
            shapes = f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} differ in shape"
            raise ValueError(f"{shapes}: predict on the labels' grid, predict_labels(model, images, labels.shape[-2:])")
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


def csv_row(*cells: object) -> str:
    """A line of CSV: floats of 6 digits, empty where undefined, and nothing that a spreadsheet would compute."""
    known = ("" if cell is None or cell != cell else cell for cell in cells)
    row = (f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in known)
    written = io.StringIO()
    quoted = ("'" * cell.startswith(FORMULA) + cell.replace("\r", " ") for cell in row)
    csv.writer(written, lineterminator="\n").writerow(quoted)
    return written.getvalue()


def class_csv(matrix_KK: Tensor, class_names: Sequence[str]) -> str:
    """A row for each class: class, IoU and accuracy, pixels that are labelled so."""
    result = scores(matrix_KK)
    columns = class_names, result.iou.tolist(), result.accuracy.tolist(), matrix_KK.sum(1).tolist()
    rows = [("class", "IoU", "accuracy", "pixels"), *zip(*columns, strict=True)]
    return "".join(csv_row(*row) for row in rows)


def resolve_precision(device: torch.device, precision: str) -> str:
    """What "auto" means here: "bf16" where the device multiplies it natively (emulated it is slow), else "fp32"."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


@torch.no_grad()
def predict_labels(
    model: nn.Module,
    images_B3HW: Tensor,
    size: tuple[int, int] | None = None,
    *,
    inference: InferenceOptions = WHOLE_IMAGE,
) -> Tensor:
    """Most likely class of each pixel, (B, H, W) int64.

    `model`, in eval mode, gives an output with `logits` (B, K, h, w); images are float in [0, 1]. Logits are resized
    bilinearly (align_corners, as published) to `size` (default: the images'); `inference` says what to average over.
    """
    if inference == WHOLE_IMAGE:
        return _logits(model, images_B3HW, size).argmax(1)
    return class_probabilities(model, images_B3HW, inference, size).argmax(1)


def predict_dataset(
    models: Iterable[nn.Module],
    dataset: SegmentationDataset,
    *,
    batch_size: int = 8,
    precision: str = "fp32",
    inference: InferenceOptions = WHOLE_IMAGE,
    progress: str = "",
) -> Iterator[tuple[list[Tensor], Tensor, tuple[str, ...]]]:
    """Several networks' predictions on the same batches, on the labels' grid: [(B, H, W) per model], labels, names."""
    models = list(models)
    device = next(models[0].parameters()).device
    bf16 = resolve_precision(device, precision) == "bf16"
    shown = {"total": -(-len(dataset) // batch_size), "desc": progress, "disable": None if progress else True}
    for images, labels, names in tqdm(evaluation_batches(dataset, batch_size), leave=False, **shown):
        images, size = images.to(device, memory_format=torch.channels_last), tuple(labels.shape[-2:])
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):  # left before the yield
            predictions = [predict_labels(model, images, size, inference=inference) for model in models]
        yield predictions, labels, names


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Networks in eval mode, and back in their own modes afterwards."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)


def confusion_of(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    on_batch: Callable[[Tensor, tuple[str, ...]], None] | None = None,
    **options: object,
) -> Tensor:
    """counts[true, predicted] of a network on a data set, (K, K) on the CPU; it is in eval mode for the call only.

    `on_batch` gets predictions (B, H, W) and image names of each batch; `options` are those of :func:`predict_dataset`.
    """
    confusion = ConfusionMatrix(len(dataset.spec.class_names), dataset.spec.ignore_index)
    with evaluating(model):
        for (predictions,), labels, names in predict_dataset([model], dataset, **options):
            confusion.update(predictions, labels.to(predictions.device))
            if on_batch is not None:
                on_batch(predictions.cpu(), names)
    return confusion.matrix_KK.cpu()


def agreement_of(student: nn.Module, teacher: nn.Module, dataset: SegmentationDataset, **options: object) -> Tensor:
    """counts[teacher's class, student's class] over valid pixels, (K, K) on the CPU; see :func:`confusion_of`."""
    ignore = dataset.spec.ignore_index
    confusion = ConfusionMatrix(len(dataset.spec.class_names), ignore)
    with evaluating(student, teacher):
        for (by_student, by_teacher), labels, _names in predict_dataset([student, teacher], dataset, **options):
            labels = labels.to(by_teacher.device)
            confusion.update(by_student, torch.where(labels == ignore, ignore, by_teacher))
    return confusion.matrix_KK.cpu()


@torch.no_grad()
def class_probabilities(
    model: nn.Module, images_B3HW: Tensor, inference: InferenceOptions, size: tuple[int, int] | None = None
) -> Tensor:
    """Average of a network's softmax over the windows, mirror images and scales of `inference`: (B, K, H, W) float32.

    Logits are resized bilinearly (align_corners, as published) before the softmax, probabilities to `size` after it.
    """
    height, width = images_B3HW.shape[-2:]
    size = size or (height, width)
    total_BKHW = None
    for scale in inference.scales:
        shown = resized(images_B3HW, (scaled_side(height, scale), scaled_side(width, scale)))
        if inference.window is None:
            probabilities = _whole(model, shown, inference)
        else:
            strips = window_strips(model, lambda a, b, of=shown: of[:, :, a:b], shown.shape[-2:], inference)
            probabilities = torch.cat(list(strips), 2)
        if probabilities.shape[-2:] != size:
            probabilities = F.interpolate(probabilities, size, mode="bilinear", align_corners=False)
        total_BKHW = probabilities if total_BKHW is None else total_BKHW.add_(probabilities)
    return total_BKHW.div_(len(inference.scales))


def window_starts(length: int, window: int, stride: float) -> list[int]:
    """Where windows begin along a side that is at least as long as they are; the last one ends where the side does."""
    step = math.ceil(window * stride)
    return [min(index * step, length - window) for index in range(math.ceil((length - window) / step) + 1)]


def window_strips(
    model: nn.Module, rows: Callable[[int, int], Tensor], size: tuple[int, int], inference: InferenceOptions
) -> Iterator[Tensor]:
    """Mean softmax of the windows that see a pixel, from top to bottom as soon as no other will: strips (B, K, r, W).

    `rows(top, bottom)` gives rows of images of that `size` (height, width), float (B, 3, r, W) in [0, 1]. One strip as
    high as a window is in memory, whatever the height. What is smaller than a window lies in its middle on mean colour.
    """
    height, width = inference.window
    tops, lefts = (window_starts(max(pair), pair[1], inference.stride) for pair in zip(size, inference.window))
    total_BKhW = counts_hW = None
    for top, following in zip(tops, [*tops[1:], tops[-1] + height], strict=True):
        strip_B3hW, inside = _padded(rows(top, min(top + height, size[0])), inference.window)
        at_once = max(WINDOWS_AT_ONCE // len(strip_B3hW), 1)
        for group in (lefts[first : first + at_once] for first in range(0, len(lefts), at_once)):
            places = [slice(left, left + width) for left in group]
            found = _whole(model, torch.cat([strip_B3hW[..., place] for place in places]), inference)
            if total_BKhW is None:
                total_BKhW = found.new_zeros(len(strip_B3hW), found.shape[1], *strip_B3hW.shape[-2:])
                counts_hW = torch.zeros_like(total_BKhW[0, 0])
            for place, part in zip(places, found.split(len(strip_B3hW)), strict=True):
                total_BKhW[..., place] += part
                counts_hW[:, place] += 1
        done = following - top
        yield (total_BKhW[:, :, :done] / counts_hW[:done])[:, :, *inside]
        total_BKhW, counts_hW = (F.pad(part[..., done:, :], (0, 0, 0, done)) for part in (total_BKhW, counts_hW))


def _whole(model: nn.Module, images_B3HW: Tensor, inference: InferenceOptions) -> Tensor:
    probabilities = _logits(model, images_B3HW).softmax(1)
    if inference.flip:
        probabilities.add_(_logits(model, images_B3HW.flip(-1)).softmax(1).flip(-1)).div_(2)
    return probabilities


def _logits(model: nn.Module, images_B3HW: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    if model.training:
        raise ValueError("model is in training mode: call model.eval() first, or dropout and batch norm change scores")
    size = size or tuple(images_B3HW.shape[-2:])
    return F.interpolate(model(images_B3HW).logits.float(), size, mode="bilinear", align_corners=True)


def resized(images_B3HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Images in [0, 1] at another size, antialiased as training images are; the filter may leave [0, 1] by a bit."""
    if images_B3HW.shape[-2:] == size:
        return images_B3HW
    return F.interpolate(images_B3HW, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _padded(images_B3HW: Tensor, least: tuple[int, int]) -> tuple[Tensor, tuple[slice, slice]]:
    """The images, grown to at least that size where they are smaller, and where they lie in it."""
    size = tuple(images_B3HW.shape[-2:])
    grown = tuple(map(max, size, least))
    inside = tuple(slice((new - old) // 2, (new - old) // 2 + old) for old, new in zip(size, grown, strict=True))
    if grown == size:
        return images_B3HW, inside
    padded = images_B3HW.new_tensor(IMAGE_PADDING)[:, None, None].div(255).repeat(len(images_B3HW), 1, *grown)
    padded[:, :, *inside] = images_B3HW
    return padded, inside
