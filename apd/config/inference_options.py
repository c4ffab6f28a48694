"""How images are shown to a network in evaluation, and whether every image is large enough for that."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from apd.data.images import DataError, image_size, long_side_size
from apd.fields import LONGEST_SIDE, require

SMALLEST_SIDE = 32  # Pixels of the shortest side that a network takes.


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Which views of an image are averaged, by their softmax probabilities. The default is the whole image, once.

    The released code's scores are those of ``InferenceOptions(window=(713, 713), flip=True)`` on Cityscapes and
    ``(473, 473)`` on the other two. ExperimentError: a field is out of its range.
    """

    window: tuple[int, int] | None = None
    """Height and width of a sliding window, usually the training crop; None shows the whole image at once."""
    stride: float = 2 / 3  #: From a window to the next, in parts of its side (released code: 2/3); not of whole images.
    flip: bool = False  #: Average each view with that of its mirror image (released code: always).
    scales: tuple[float, ...] = (1.0,)  #: Sizes at which the image is shown, as multiples of its own.

    def __post_init__(self) -> None:
        for name in ("window", "scales"):  # JSON has lists
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        window, stride, scales = self.window, self.stride, self.scales
        two = isinstance(window, tuple) and [type(s) is int and 1 <= s <= LONGEST_SIDE for s in window] == [True] * 2
        expected = f"None or (height, width), two whole numbers of at least 1 pixel and at most {LONGEST_SIDE}"
        require(window is None or two, self, "window", expected)
        expected = "at least 0.01 of the window, thus above 0 and at most 1: windows may not leave gaps"
        require(_is_positive(stride) and 0.01 <= stride <= 1, self, "stride", expected)
        require(isinstance(self.flip, bool), self, "flip", "True or False")
        some = isinstance(scales, tuple) and 0 < len(scales) <= 64 and all(map(_is_positive, scales))
        require(some, self, "scales", "at least one number above 0, at most 64 of them and none above 16")
        # 1 and 1.0 make one experiment with one fingerprint
        object.__setattr__(self, "stride", float(stride))
        object.__setattr__(self, "scales", tuple(map(float, scales)))

    def least_side(self, height: int, width: int) -> int:
        """Pixels of the shortest side of what a network is shown of an image of that size."""
        if self.window is not None:
            return min(self.window)
        return min(scaled_side(side, scale) for side in (height, width) for scale in self.scales)


def scaled_side(side: int, scale: float) -> int:
    """Pixels of a side at a scale; at least 1."""
    return max(round(side * scale), 1)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-3 <= value <= 16


WHOLE_IMAGE = InferenceOptions()  # The whole image, at its own size.


def shown_size(data: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a run with these data shows its network an image of that size in evaluation."""
    size = (data.height, data.width) if data.height else (height, width)
    return long_side_size(*size, data.long_side) if data.long_side else size


def least_side(data: Any, inference: InferenceOptions, height: int, width: int) -> int:
    """Pixels of the shortest side that a network sees of an image of that size, at any scale and in any window."""
    return inference.least_side(*shown_size(data, height, width))


def require_sides(data: Any, inference: InferenceOptions, images: Iterable[tuple[object, tuple[int, int]]]) -> None:
    """Raise DataError unless every image, (what to call it, (height, width)), can be shown to a network."""
    for name, size in images:
        if (least := least_side(data, inference, *size)) >= SMALLEST_SIDE:
            continue
        if inference.window is not None:
            fix = f"use a window of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} (--inference.window)"
        elif min(shown_size(data, *size)) >= SMALLEST_SIDE:
            fix = f"use larger --scales (of an experiment --inference.scales) than {min(inference.scales):g}"
        elif data.long_side:
            fix = f"use a larger --data.long-side than {data.long_side}"
        else:
            fix = "enlarge it or leave it out, or train with one size for all images (--data.height, --data.width)"
        seen = f"of which a network would be shown a side of {least} pixels; the least is {SMALLEST_SIDE}"
        raise DataError(f"{name} has {size[0]}×{size[1]} pixels (height × width), {seen}: {fix}")


def require_split_sides(data: Any, dataset: Any, inference: InferenceOptions = WHOLE_IMAGE) -> None:
    """Raise DataError unless every image of an evaluation split can be shown to a network; only headers are read."""
    if not data.height:  # of one size for all, the experiment is checked
        pairs = getattr(dataset, "dataset", dataset).pairs  # of what a LongSide wraps
        require_sides(data, inference, ((image, image_size(image)[::-1]) for image, _ in pairs))
