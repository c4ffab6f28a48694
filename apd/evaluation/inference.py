"""Inference: label maps of images, and the scores of a network on a data set."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from apd.config.inference import WHOLE_IMAGE, InferenceOptions, scaled_side
from apd.data.batches import evaluation_batches
from apd.data.specs import IMAGE_PADDING, SegmentationDataset
from apd.evaluation.metrics import ConfusionMatrix


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast of a run: bf16 or none. `precision` is "fp32", "bf16" or "auto" (see `resolve_precision`)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(device, precision) == "bf16")


def resolve_precision(device: torch.device, precision: str) -> str:
    """What "auto" means here: "bf16" where the device multiplies it natively, else "fp32".

    On a CPU that is asked of oneDNN's own instruction-set query (AVX-512-BF16 or AMX); emulated bf16 is slower
    than fp32 and never chosen.
    """
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
    """Most likely class of each pixel.

    Args:
        model: in eval mode; a :class:`~apd.models.Segmenter`, or any module whose output has `logits` (B, K, h, w).
        images_B3HW: float in [0, 1].
        size: grid of the answer; default is that of the images. Logits are resized bilinearly (align_corners, as
            published) before the arg max.
        inference: windows, mirror images and sizes to average over, see
            :func:`~apd.evaluation.inference.class_probabilities`; default is one look at the whole image.

    Returns:
        (B, H, W) int64.
    """
    if model.training:
        raise ValueError("model is in training mode: call model.eval() first, or dropout and batch norm change scores")
    if inference != WHOLE_IMAGE:
        return class_probabilities(model, images_B3HW, inference, size).argmax(1)
    logits_BKhw = model(images_B3HW).logits.float()
    size = size or tuple(images_B3HW.shape[-2:])
    return F.interpolate(logits_BKhw, size, mode="bilinear", align_corners=True).argmax(1)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def predict_dataset(
    models: Iterable[nn.Module],
    dataset: SegmentationDataset,
    *,
    batch_size: int = 8,
    precision: str = "fp32",
    inference: InferenceOptions = WHOLE_IMAGE,
    progress: str = "",
) -> Iterator[tuple[list[Tensor], Tensor, tuple[str, ...]]]:
    """Predictions of several networks on the same batches: ([(B, H, W) per model], labels (B, H, W), B names).

    Predictions are on the labels' grid, which may be another than the images'.
    """
    models = list(models)
    device = _device(models[0])
    total = -(-len(dataset) // batch_size)
    batches = evaluation_batches(dataset, batch_size)
    for images, labels, names in tqdm(
        batches, total=total, desc=progress, leave=False, disable=None if progress else True
    ):
        images = images.to(device, memory_format=torch.channels_last)
        with autocast(device, precision):  # left before the yield: whoever takes the answer does not run in it
            size = tuple(labels.shape[-2:])
            predictions = [predict_labels(model, images, size, inference=inference) for model in models]
        yield predictions, labels, names


def confusion_of(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    batch_size: int = 8,
    precision: str = "fp32",
    inference: InferenceOptions = WHOLE_IMAGE,
    progress: str = "",
    on_batch: Callable[[Tensor, tuple[str, ...]], None] | None = None,
) -> Tensor:
    """Confusion matrix (K, K) of a network on every image of a data set, counts[true, predicted], on the CPU.

    The model is put into eval mode for the call and back into its mode after it. `on_batch` is called with the
    predictions (B, H, W) of each batch, on the CPU, and the names of its images.
    """
    confusion = ConfusionMatrix(len(dataset.spec.class_names), dataset.spec.ignore_index)
    training = model.training
    model.eval()
    try:
        for (on_device,), labels, names in predict_dataset(
            [model], dataset, batch_size=batch_size, precision=precision, inference=inference, progress=progress
        ):
            predictions = on_device.cpu()
            confusion.update(predictions, labels)
            if on_batch is not None:
                on_batch(predictions, names)
    finally:
        model.train(training)
    return confusion.matrix_KK


def agreement_of(
    student: nn.Module,
    teacher: nn.Module,
    dataset: SegmentationDataset,
    *,
    batch_size: int = 8,
    precision: str = "fp32",
    inference: InferenceOptions = WHOLE_IMAGE,
) -> Tensor:
    """counts[teacher's class, student's class] over the valid pixels of a data set, (K, K) on the CPU."""
    spec = dataset.spec
    confusion = ConfusionMatrix(len(spec.class_names), spec.ignore_index)
    modes = student.training, teacher.training
    student.eval(), teacher.eval()
    try:
        for (by_student, by_teacher), labels, _names in predict_dataset(
            [student, teacher], dataset, batch_size=batch_size, precision=precision, inference=inference
        ):
            reference = torch.where(labels == spec.ignore_index, spec.ignore_index, by_teacher.cpu())
            confusion.update(by_student.cpu(), reference)
    finally:
        student.train(modes[0]), teacher.train(modes[1])
    return confusion.matrix_KK


# Class probabilities of pictures, averaged over windows, mirror images and sizes.

WINDOWS_AT_ONCE = 8
"""Windows in one call of the network (own choice: a batch that the trained sizes fit in)."""


@torch.no_grad()
def class_probabilities(
    model: nn.Module, images_B3HW: Tensor, inference: InferenceOptions, size: tuple[int, int] | None = None
) -> Tensor:
    """Average of a network's softmax over all looks that `inference` names.

    Each look's logits are resized bilinearly (align_corners, as published) to what the network was shown before the
    softmax; probabilities of another size than the answer's are resized bilinearly. Beside the network's own, memory is
    linear in pixels: two maps of K classes, at the largest scale and at the answer's size.

    Args:
        model: in eval mode, with an output that has `logits` (B, K, h, w).
        images_B3HW: float in [0, 1].
        inference: which looks.
        size: grid of the answer; default is that of the images.

    Returns:
        (B, K, H, W) float32, non-negative, of sum 1 over K.

    Example:
        >>> from apd.models import build_segmenter
        >>> student = build_segmenter("test_efficientnet", 11, head_width=16).eval()
        >>> looks = InferenceOptions(window=(64, 64), flip=True, scales=(1.0, 1.5))
        >>> class_probabilities(student, torch.rand(1, 3, 96, 128), looks).shape
        torch.Size([1, 11, 96, 128])
    """
    height, width = images_B3HW.shape[-2:]
    size = size or (height, width)
    total_BKHW = None
    for scale in inference.scales:
        shown = _resized(images_B3HW, (scaled_side(height, scale), scaled_side(width, scale)))
        if inference.window is None:
            probabilities = _one_look(model, shown, inference.flip)
        else:
            probabilities = _over_windows(model, shown, inference)
        if probabilities.shape[-2:] != size:
            probabilities = F.interpolate(probabilities, size, mode="bilinear", align_corners=False)
        total_BKHW = probabilities if total_BKHW is None else total_BKHW.add_(probabilities)
    return total_BKHW.div_(len(inference.scales))


def window_starts(length: int, window: int, stride: float) -> list[int]:
    """Where windows begin along a side that is at least as long as they are; the last one ends where the side does.

    >>> window_starts(1024, 713, 2 / 3), window_starts(60, 60, 0.5)
    ([0, 311], [0])
    """
    step = math.ceil(window * stride)
    count = math.ceil((length - window) / step) + 1
    return [min(index * step, length - window) for index in range(count)]


def _over_windows(model: nn.Module, images_B3HW: Tensor, inference: InferenceOptions) -> Tensor:
    """Mean over the windows that see a pixel; pictures smaller than a window lie in its middle on mean colour."""
    padded, inside = _padded(images_B3HW, inference.window)
    batch, (height, width), (rows, columns) = len(padded), inference.window, padded.shape[-2:]
    places = [
        (slice(top, top + height), slice(left, left + width))
        for top in window_starts(rows, height, inference.stride)
        for left in window_starts(columns, width, inference.stride)
    ]
    counts_HW = padded.new_zeros(rows, columns, dtype=torch.float32)
    total_BKHW = None
    for group in _in_groups(places, max(WINDOWS_AT_ONCE // batch, 1)):
        looks = _one_look(model, torch.cat([padded[:, :, *place] for place in group]), inference.flip)
        if total_BKHW is None:
            total_BKHW = looks.new_zeros(batch, looks.shape[1], rows, columns)
        for place, look in zip(group, looks.split(batch), strict=True):
            total_BKHW[:, :, *place] += look
            counts_HW[place] += 1
    return total_BKHW.div_(counts_HW)[:, :, *inside]


def _one_look(model: nn.Module, images_B3HW: Tensor, flip: bool) -> Tensor:
    probabilities = _softmax(model, images_B3HW)
    if flip:
        probabilities = probabilities.add_(_softmax(model, images_B3HW.flip(-1)).flip(-1)).div_(2)
    return probabilities


def _softmax(model: nn.Module, images_B3HW: Tensor) -> Tensor:
    logits_BKhw = model(images_B3HW).logits.float()
    size = images_B3HW.shape[-2:]
    return F.interpolate(logits_BKhw, size, mode="bilinear", align_corners=True).softmax(1)


def _resized(images_B3HW: Tensor, size: tuple[int, int]) -> Tensor:
    if images_B3HW.shape[-2:] == size:
        return images_B3HW
    # antialiased, as training pictures are; the filter may leave [0, 1] by a rounding
    return F.interpolate(images_B3HW, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _padded(images_B3HW: Tensor, least: tuple[int, int]) -> tuple[Tensor, tuple[slice, slice]]:
    """The images, grown to at least that size where they are smaller, and where they lie in it."""
    size = tuple(images_B3HW.shape[-2:])
    grown = tuple(max(side, window) for side, window in zip(size, least, strict=True))
    starts = ((wide - side) // 2 for wide, side in zip(grown, size, strict=True))
    inside = tuple(slice(start, start + side) for start, side in zip(starts, size, strict=True))
    if grown == size:
        return images_B3HW, inside
    colour_311 = images_B3HW.new_tensor(IMAGE_PADDING)[:, None, None] / 255
    padded = colour_311.expand(len(images_B3HW), 3, *grown).contiguous()
    padded[:, :, *inside] = images_B3HW
    return padded, inside


def _in_groups(places: Sequence[tuple[slice, slice]], size: int) -> Iterator[Sequence[tuple[slice, slice]]]:
    for first in range(0, len(places), size):
        yield places[first : first + size]
