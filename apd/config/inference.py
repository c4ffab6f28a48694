"""How a network is shown a picture when it is judged or used. Nothing here imports torch."""

import math
from dataclasses import dataclass

SMALLEST_SIDE = 32
"""Pixels of the shortest side that a network takes."""


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Which looks at a picture are averaged. The default is one look at the whole picture.

    With several looks, the softmax probabilities are averaged, not the logits. A score depends on all of this, so it
    belongs to the number: the released code's scores are those of ``InferenceOptions(window=(713, 713), flip=True)`` on
    Cityscapes and ``(473, 473)`` on the other two, at one scale. Checked at construction.

    Example:
        >>> InferenceOptions(window=(713, 713), flip=True).least_side(1024, 2048)
        713
        >>> InferenceOptions(scales=(0.5,)).least_side(96, 128)
        48

    Raises:
        ValueError: a field out of its range, with the value got and the one expected.
    """

    window: tuple[int, int] | None = None
    """Height and width of a sliding window, usually the training crop; None shows the whole picture at once."""
    stride: float = 2 / 3
    """From one window to the next, as a part of the window's side (released code: 2/3); no part of whole pictures."""
    flip: bool = False
    """Average each look with that at its mirror image (released code: always)."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which the picture is shown, as multiples of its own (released code: 1)."""

    def __post_init__(self) -> None:
        for name in ("window", "scales"):  # JSON has lists
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        sides = self.window
        if sides is not None and not (
            isinstance(sides, tuple) and len(sides) == 2 and all(type(side) is int and side >= 1 for side in sides)
        ):
            self._refuse("window", "None or (height, width), two whole numbers of at least 1 pixel")
        if not (_is_number(self.stride) and 0 < self.stride <= 1):
            self._refuse("stride", "a part of the window, above 0 and at most 1: windows may not leave gaps")
        if not isinstance(self.flip, bool):
            self._refuse("flip", "True or False")
        if not (isinstance(self.scales, tuple) and self.scales and all(_is_number(s) and s > 0 for s in self.scales)):
            self._refuse("scales", "at least one number above 0")
        # 1 and 1.0 make one experiment with one fingerprint
        object.__setattr__(self, "stride", float(self.stride))
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))

    def _refuse(self, name: str, expected: str) -> None:
        raise ValueError(f"InferenceOptions.{name} = {getattr(self, name)!r}: expected {expected}")

    def least_side(self, height: int, width: int) -> int:
        """Pixels of the shortest side of what a network is shown of a picture of that size."""
        if self.window is not None:
            return min(self.window)
        return min(scaled_side(side, scale) for side in (height, width) for scale in self.scales)


def scaled_side(side: int, scale: float) -> int:
    """Pixels of a side at a scale; at least 1."""
    return max(round(side * scale), 1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


WHOLE_IMAGE = InferenceOptions()
"""One look at the whole picture, at its own size."""
