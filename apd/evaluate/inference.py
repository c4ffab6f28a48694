"""Inference: label maps of images, and the scores of a network on a data set."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from apd.data.batches import evaluation_batches
from apd.data.sample import SegmentationDataset
from apd.evaluate.confusion import ConfusionMatrix
from apd.evaluate.protocol import WHOLE_PICTURE, Inference
from apd.evaluate.windows import class_probabilities


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
    inference: Inference = WHOLE_PICTURE,
) -> Tensor:
    """Most likely class of each pixel.

    Args:
        model: in eval mode; a :class:`~apd.models.Segmenter`, or any module whose output has `logits` (B, K, h, w).
        images_B3HW: float in [0, 1].
        size: grid of the answer; default is that of the images. Logits are resized bilinearly (align_corners, as
            published) before the arg max.
        inference: windows, mirror images and sizes to average over, see
            :func:`~apd.evaluate.windows.class_probabilities`; default is one look at the whole image.

    Returns:
        (B, H, W) int64.
    """
    if model.training:
        raise ValueError("model is in training mode: call model.eval() first, or dropout and batch norm change scores")
    if inference != WHOLE_PICTURE:
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
    inference: Inference = WHOLE_PICTURE,
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
    inference: Inference = WHOLE_PICTURE,
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
    inference: Inference = WHOLE_PICTURE,
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
