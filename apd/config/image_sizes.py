"""The size at which a run's network is shown an image, and the check that it can take it."""

from collections.abc import Iterable
from typing import Any

from apd.config.inference import SMALLEST_SIDE, WHOLE_IMAGE, InferenceOptions
from apd.data.images import DataError, image_size, long_side_size


def shown_size(data: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a run with these data shows its network an image of that size in evaluation."""
    size = (data.height, data.width) if data.height else (height, width)
    return long_side_size(*size, data.long_side) if data.long_side else size


def least_side(data: Any, inference: InferenceOptions, height: int, width: int) -> int:
    """Pixels of the shortest side that a network sees of an image of that size, at any scale and in any window."""
    return inference.least_side(*shown_size(data, height, width))


def require_sides(data: Any, inference: InferenceOptions, images: Iterable[tuple[object, tuple[int, int]]]) -> None:
    """Raise DataError unless every image, (what to call it, (height, width)), can be shown to a network.

    The one place where sizes of images are checked: before training, scoring and predicting.
    """
    for name, size in images:
        if (least := least_side(data, inference, *size)) >= SMALLEST_SIDE:
            continue
        shown = shown_size(data, *size)
        if inference.window is None and min(shown) >= SMALLEST_SIDE:
            fix = f"use larger --scales (of an experiment --inference.scales) than {min(inference.scales):g}"
        elif inference.window is not None:
            fix = f"use a window of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} (--inference.window)"
        elif data.long_side:
            fix = f"use a larger --data.long-side than {data.long_side}"
        else:
            fix = "enlarge it or leave it out, or train with one size for all images (--data.height, --data.width)"
        raise DataError(
            f"{name} has {size[0]}×{size[1]} pixels (height × width), of which a network would be shown a side of "
            f"{least} pixels; the least is {SMALLEST_SIDE}: {fix}"
        )


def require_split_sides(data: Any, dataset: Any, inference: InferenceOptions = WHOLE_IMAGE) -> None:
    """Raise DataError unless every image of an evaluation split can be shown to a network; only headers are read."""
    if not data.height:  # of one size for all, the experiment is checked
        pairs = getattr(dataset, "dataset", dataset).pairs  # of what a LongSide wraps
        require_sides(data, inference, ((image, image_size(image)[::-1]) for image, _ in pairs))
