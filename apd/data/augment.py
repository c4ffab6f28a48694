"""Augmentation of an image and its labels together: random scale, rotation, blur, crop, flip and colour jitter.

Ten numbers decide both, so the same numbers always give the same pair. Images stay uint8 and are resized bilinearly
with antialiasing; labels are only ever copied from the nearest pixel. Everything runs on the device of the sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from apd.data.specs import Sample

ROTATION_CHANCE = 0.5  # the public semseg code's, on which the released code builds


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied. Checked at construction.

    Scale 0.5 to 2, flip and crop are the released code's (and its base, semseg's), and so are ``rotation=10`` and
    ``blur=0.5``, which are off by default. Colour jitter, off by default too, is this study's own choice.

    Args:
        crop: (height, width) in pixels of every augmented sample; smaller pictures are padded.
        scale: least and greatest factor of size, drawn uniformly (default 0.5 to 2); (1, 1) keeps the size.
        flip: probability of a horizontal flip (default 0.5).
        colour: strength c in [0, 1) of colour jitter: brightness, contrast and saturation are each multiplied by a
            factor drawn uniformly from 1-c to 1+c, in this order (default 0: none).
        rotation: greatest angle in degrees, from 0 to 180. Every other picture on average is turned about its centre by
            an angle drawn uniformly from minus to plus this one, and keeps its size (default 0: none).
        blur: probability of a Gaussian blur with a kernel of 5×5 pixels and a standard deviation of 1.1 (default 0).

    Raises:
        ValueError: a field out of its range, with the value got and the one expected.

    Example:
        >>> Augmentation(crop=(160, 208), scale=(0.75, 1.5), colour=0.2)
        Augmentation(crop=(160, 208), scale=(0.75, 1.5), flip=0.5, colour=0.2, rotation=0.0, blur=0.0)
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    colour: float = 0.0
    rotation: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or not all(isinstance(side, int) and side >= 1 for side in self.crop):
            raise ValueError(f"crop={self.crop!r}; expected (height, width), two whole numbers of at least 1 pixel")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale={self.scale!r}; expected (least, greatest) with 0 < least <= greatest")
        for name in ("flip", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected a probability from 0 to 1")
        if not 0 <= self.colour < 1:
            raise ValueError(f"colour={self.colour!r}; expected a strength from 0 (none) to below 1")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation={self.rotation!r}; expected degrees from 0 (none) to 180")


class Draws(NamedTuple):
    """The ten numbers, each uniform in [0, 1), that decide how one sample is varied, in the order they are drawn in."""

    scale: float
    top: float
    left: float
    flip: float
    brightness: float
    contrast: float
    saturation: float
    # drawn last: the first seven are what they were before there was rotation or blur
    rotate: float
    angle: float
    blur: float

    @property
    def colour(self) -> tuple[float, float, float]:
        """Those of brightness, contrast and saturation."""
        return self.brightness, self.contrast, self.saturation

    @classmethod
    def of(cls, generator: np.random.Generator) -> "Draws":
        """The generator's next ten."""
        return cls(*generator.random(len(cls._fields)).tolist())


def augment(sample: Sample, augmentation: Augmentation, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A randomly scaled, rotated, blurred, cropped, flipped and recoloured copy of a sample.

    Every call draws the same count of numbers, whatever the settings and the picture's size: switching one kind of
    variation on or off leaves the others as they were. Only what the crop shows is rotated and blurred, to what the
    whole picture's rotation and blur would give there.

    Args:
        sample: image_3HW uint8 and labels_HW uint8 on any device; not changed.
        augmentation: the kinds of variation and their ranges.
        generator: source of randomness, advanced by ten numbers.

    Returns:
        image_3hw uint8 and labels_hw uint8 with h, w = ``augmentation.crop``. Corners that a rotation leaves empty have
        ImageNet's mean colour (before blur and jitter) and the label 255. Where the scaled picture is smaller than the
        crop it lies at a random place on that colour, its labels on 255.

    Raises:
        ValueError: the image is not 3×H×W uint8, or the labels are not H×W uint8 of the same size.

    Example:
        >>> from apd.data.specs import Sample
        >>> image_3HW, labels_HW = torch.full((3, 40, 60), 128).byte(), torch.zeros(40, 60).byte()
        >>> grey = Sample(image_3HW, labels_HW, "grey")
        >>> image_3hw, labels_hw = augment(grey, Augmentation(crop=(32, 32)), np.random.default_rng(0))
        >>> image_3hw.shape, labels_hw.shape
        (torch.Size([3, 32, 32]), torch.Size([32, 32]))
    """
    # late: torchvision is not needed to import this module
    from apd.data.paired_pixels import as_pair, flipped, padded, recoloured, resized, taken_from

    check_sample(sample)
    draws, strength = Draws.of(generator), augmentation.colour
    size, taken, placed = placement(sample.labels_HW.shape, augmentation, draws)
    image, labels = resized(*as_pair(sample.image_3HW, sample.labels_HW), size)
    angle = (2 * draws.angle - 1) * augmentation.rotation if draws.rotate < ROTATION_CHANCE else 0.0
    image, labels = taken_from(image, labels, taken, angle, draws.blur < augmentation.blur)
    if draws.flip < augmentation.flip:
        # the place on a padded crop is uniform, so flipping before placing it changes no distribution
        image, labels = flipped(image, labels)
    if strength:
        image = recoloured(image, colour_factors(strength, draws.colour))
    if labels.shape != augmentation.crop:
        image, labels = padded(image, labels, placed, augmentation.crop)
    return image.as_subclass(Tensor).contiguous(), labels.as_subclass(Tensor).contiguous()


def check_sample(sample: Sample) -> None:
    """Raise ValueError unless the sample's image is 3×H×W uint8 and its labels are H×W uint8."""
    image, labels, name = sample
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image of {name!r} is {tuple(image.shape)} {image.dtype}; expected (3, H, W) torch.uint8")
    if labels.dtype != torch.uint8 or labels.shape != image.shape[1:]:
        raise ValueError(
            f"labels of {name!r} are {tuple(labels.shape)} {labels.dtype}; "
            f"expected {tuple(image.shape[1:])} torch.uint8"
        )


def placement(
    size: tuple[int, ...], augmentation: Augmentation, draws: Draws
) -> tuple[tuple[int, int], tuple[slice, slice], tuple[slice, slice]]:
    """Size of the scaled image, the rows and columns of it that are taken, and those of the crop where they go."""
    (least, greatest), crop = augmentation.scale, augmentation.crop
    factor = least + (greatest - least) * draws.scale
    # not below 2 pixels: torch's antialiased resize of a contiguous image to 1×1 fails with an internal error
    height, width = (max(min(side, 2), round(side * factor)) for side in size)
    top, left = int(draws.top * (abs(height - crop[0]) + 1)), int(draws.left * (abs(width - crop[1]) + 1))
    return (height, width), *_overlap((height, width), crop, (top, left))


def colour_factors(strength: float, numbers: Sequence[float]) -> tuple[float, ...]:
    """Factors between 1-strength and 1+strength for numbers from 0 to 1."""
    return tuple(1 - strength + 2 * strength * number for number in numbers)


def _overlap(
    size: tuple[int, int], crop: tuple[int, int], offset: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """What of the picture is taken and where in the crop it goes; along a side, the offset is in the longer of both."""
    taken, placed = [], []
    for length, wanted, start in zip(size, crop, offset, strict=True):
        common = min(length, wanted)
        taken.append(slice(start, start + common) if length > wanted else slice(0, common))
        placed.append(slice(start, start + common) if length < wanted else slice(0, common))
    return tuple(taken), tuple(placed)
