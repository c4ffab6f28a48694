"""Class probabilities of pictures, averaged over windows, mirror images and sizes."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.data.sample import IMAGE_PADDING
from apd.evaluate.protocol import Inference, scaled_side

WINDOWS_AT_ONCE = 8
"""Windows in one call of the network (own choice: a batch that the trained sizes fit in)."""


@torch.no_grad()
def class_probabilities(
    model: nn.Module, images_B3HW: Tensor, inference: Inference, size: tuple[int, int] | None = None
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
        >>> looks = Inference(window=(64, 64), flip=True, scales=(1.0, 1.5))
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


def _over_windows(model: nn.Module, images_B3HW: Tensor, inference: Inference) -> Tensor:
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
