"""How images are shown to a network in evaluation, and whether every image is large enough for that."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from apd.data.images import DataError, image_size, long_side_size
from apd.fields import LONGEST_SIDE, require, require_types

SMALLEST_SIDE = 32  # Pixels of the shortest side that a network takes.


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Which views of an image are averaged, by their softmax probabilities. The default is the whole image, once.

    The released code's scores are those of ``InferenceOptions(window=(713, 713), flip=True)`` on Cityscapes and
    ``(473, 473)`` on the other two. ExperimentError: a field is out of its range.
    """

    window: tuple[int, int] | None = None  #: (height, width) of a sliding window; None: the whole image at once.
    stride: float = 2 / 3  #: From a window to the next, in parts of its side (released code: 2/3); not of whole images.
    flip: bool = False  #: Average each view with that of its mirror image (released code: always).
    scales: tuple[float, ...] = (1.0,)  #: Sizes at which the image is shown, as multiples of its own.

    def __post_init__(self) -> None:
        require_types(self)
        two = self.window is None or [1 <= side <= LONGEST_SIDE for side in self.window] == [True] * 2
        expected = f"None or (height, width), two whole numbers of at least 1 pixel and at most {LONGEST_SIDE}"
        require(two, self, "window", expected)
        expected = "at least 0.01 of the window, thus above 0 and at most 1: windows may not leave gaps"
        require(0.01 <= self.stride <= 1, self, "stride", expected)
        some = 0 < len(self.scales) <= 64 and all(1e-3 <= scale <= 16 for scale in self.scales)
        require(some, self, "scales", "1 to 64 numbers, each from 0.001 to 16")


def scaled_side(side: int, scale: float) -> int:
    """Pixels of a side at a scale; at least 1."""
    return max(round(side * scale), 1)


WHOLE_IMAGE = InferenceOptions()  # The whole image, at its own size.


def shown_size(data: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a run with these data shows its network an image of that size in evaluation."""
    size = (data.height, data.width) if data.height else (height, width)
    return long_side_size(*size, data.long_side) if data.long_side else size


def least_side(data: Any, inference: InferenceOptions, height: int, width: int) -> int:
    """Pixels of the shortest side that a network sees of an image of that size, at any scale and in any window."""
    shown = shown_size(data, height, width)
    return min(inference.window or (scaled_side(side, scale) for side in shown for scale in inference.scales))


def require_sides(data: Any, inference: InferenceOptions, images: Iterable[tuple[object, tuple[int, int]]]) -> None:
    """Raise DataError unless every image, (what to call it, (height, width)), can be shown to a network."""
    for name, size in images:
        if (least := least_side(data, inference, *size)) < SMALLEST_SIDE:
            seen = f"of which a network would be shown a side of {least} pixels; the least is {SMALLEST_SIDE}"
            fix = "enlarge it or leave it out, or use larger --scales (of an experiment --inference.scales), a larger "
            fix += "--data.long-side, a window of at least 32x32, or one size for all (--data.height, --data.width)"
            raise DataError(f"{name} has {size[0]}×{size[1]} pixels (height × width), {seen}: {fix}")


def require_split_sides(data: Any, dataset: Any, inference: InferenceOptions = WHOLE_IMAGE) -> None:
    """Raise DataError unless every image of an evaluation split can be shown to a network; only headers are read."""
    if not data.height:  # of one size for all, the experiment is checked
        pairs = getattr(dataset, "dataset", dataset).pairs  # of what a LongSide wraps
        require_sides(data, inference, ((image, image_size(image)[::-1]) for image, _ in pairs))
