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
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image, Mask

from apd.data.specs import IMAGE_PADDING, LABEL_PADDING, Sample

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
    from apd.data.augment import as_pair, flipped, padded, recoloured, resized, taken_from

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


# What is done to the pixels of an image and its labels: resizing, turning, blurring, cutting out and recolouring.

Pixels = Image | Mask

BLUR_SIZE, BLUR_SIGMA = 5, 1.1  # semseg's kernel; the width that OpenCV documents for that size


def as_pair(image_3HW: Tensor, labels_HW: Tensor) -> tuple[Image, Mask]:
    """An image and its labels as what they are; memory is shared."""
    # not by the constructors, which take anything and so look at what they got for longer than a flip takes
    return image_3HW.as_subclass(Image), labels_HW.as_subclass(Mask)


def flipped(image_3hw: Image, labels_hw: Mask) -> tuple[Image, Mask]:
    """Both mirrored, left for right."""
    return F.horizontal_flip(image_3hw), F.horizontal_flip(labels_hw)


def padded(image_3hw: Image, labels_hw: Mask, placed: tuple[slice, slice], size: tuple[int, int]) -> tuple[Image, Mask]:
    """Both at rows and columns `placed` of a larger picture of the mean colour and of ignored pixels."""
    rows, columns = placed
    around = [columns.start, rows.start, size[1] - columns.stop, size[0] - rows.stop]
    return F.pad(image_3hw, around, fill=list(IMAGE_PADDING)), F.pad(labels_hw, around, fill=LABEL_PADDING)


def resized(image_3HW: Image, labels_HW: Mask, size: tuple[int, int]) -> tuple[Image, Mask]:
    """Both at another size: the image bilinearly with antialiasing, labels from the nearest pixel."""
    if size == tuple(labels_HW.shape):
        return image_3HW, labels_HW
    image = F.resize(image_3HW, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    # NEAREST_EXACT takes the pixel under the centre, where bilinear resizing looks too; NEAREST is half a pixel off.
    # F.resize gives a Mask NEAREST in many versions of torchvision, whatever is asked, so its kernel is called instead.
    labels = F.resize_image(
        labels_HW.as_subclass(Tensor)[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT
    )
    return image, tv_tensors.wrap(labels[0], like=labels_HW)


def taken_from(
    image_3HW: Image, labels_HW: Mask, taken: tuple[slice, slice], angle: float, blurred: bool
) -> tuple[Image, Mask]:
    """The rows and columns `taken` of the picture after it was rotated and blurred."""
    wider = _grown(taken, BLUR_SIZE // 2 if blurred else 0, labels_HW.shape)
    if angle:
        image = _rotated(image_3HW, IMAGE_PADDING, wider, angle)
        labels = _rotated(labels_HW, (LABEL_PADDING,), wider, angle)
    else:
        image, labels = _cut(image_3HW, wider), _cut(labels_HW, wider)
    if blurred:
        inner = _within(taken, wider)
        image, labels = _cut(_blur(image), inner), _cut(labels, inner)
    return image, labels


def _cut(pixels: Pixels, region: tuple[slice, slice]) -> Pixels:
    rows, columns = region
    return F.crop(pixels, rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)


def _grown(region: tuple[slice, slice], margin: int, size: tuple[int, ...]) -> tuple[slice, slice]:
    """The region with a margin around it, as far as the picture reaches."""
    return tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, length))
        for side, length in zip(region, size, strict=True)
    )


def _within(region: tuple[slice, slice], wider: tuple[slice, slice]) -> tuple[slice, slice]:
    """Where the region lies in a wider one."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(region, wider, strict=True))


def _rotated(pixels: Pixels, padding: tuple[int, ...], region: tuple[slice, slice], angle: float) -> Pixels:
    """A region of the picture turned about its centre, counter-clockwise by `angle` degrees."""
    size = pixels.shape[-2:]
    source = _source_of(region, angle, size)
    centre = [length / 2 - side.start for length, side in zip(size, source, strict=True)][::-1]
    # beyond the picture the sampling reads zeros: with the padding taken off first, they mean the padding
    shift_C11 = torch.tensor(padding, dtype=torch.float32, device=pixels.device)[:, None, None]
    shift = shift_C11 if pixels.ndim == 3 else shift_C11[0]
    shifted = tv_tensors.wrap(_cut(pixels, source).as_subclass(Tensor) - shift, like=pixels)
    # a Mask is never interpolated, whatever is asked for
    turned = F.rotate(shifted, angle, InterpolationMode.BILINEAR, center=centre)
    inner = _cut(turned, _within(region, source)).as_subclass(Tensor)
    return tv_tensors.wrap((inner + shift).round_().to(torch.uint8), like=pixels)


def _source_of(region: tuple[slice, slice], angle: float, size: tuple[int, ...]) -> tuple[slice, slice]:
    """The smallest window of the picture that holds a region and all that a rotation brings into it."""
    middle_y, middle_x = (length / 2 for length in size)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    rows, columns = region
    corners = [(y - middle_y, x - middle_x) for y in (rows.start, rows.stop) for x in (columns.start, columns.stop)]
    from_y = [middle_y + cosine * y + sine * x for y, x in corners]
    from_x = [middle_x + cosine * x - sine * y for y, x in corners]
    reached = (
        slice(math.floor(min(from_y)), math.ceil(max(from_y))),
        slice(math.floor(min(from_x)), math.ceil(max(from_x))),
    )
    both = tuple(
        slice(min(max(a.start, 0), b.start), max(min(a.stop, length), b.stop))
        for a, b, length in zip(reached, region, size, strict=True)
    )
    return _grown(both, 1, size)  # bilinear sampling looks half a pixel further


def _blur(image_3hw: Image) -> Image:
    # a kernel reaches over the edge into the mirrored picture, so it cannot be wider than that
    kernel = [min(BLUR_SIZE, 2 * side - 1) for side in reversed(image_3hw.shape[1:])]
    return F.gaussian_blur(image_3hw, kernel, [BLUR_SIGMA, BLUR_SIGMA])


def recoloured(image_3hw: Tensor, factors: Sequence[float]) -> Tensor:
    """Brightness, contrast and saturation, in this order, times the three factors."""
    brightness, contrast, saturation = factors
    image_3hw = F.adjust_brightness(image_3hw, brightness)
    image_3hw = F.adjust_contrast(image_3hw, contrast)
    return F.adjust_saturation(image_3hw, saturation)
