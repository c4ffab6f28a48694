"""Augmentation of an image and its labels together: random scale, rotation, blur, crop, flip and colour jitter.

One generator drives both, so the same numbers always give the same pair. Images stay uint8 and are resized bilinearly
with antialiasing; labels are only ever copied from the nearest pixel. Everything runs on the device of the sample.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apd.data.sample import Sample

IMAGE_PADDING = (124, 116, 104)  # ImageNet's mean colour: close to zero after a network's own normalisation
LABEL_PADDING = 255
ROTATION_CHANCE = 0.5  # the public semseg code's, on which the released code builds
BLUR_SIZE, BLUR_SIGMA = 5, 1.1  # semseg's kernel; the width that OpenCV documents for that size


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
        >>> from apd.data.sample import Sample
        >>> image_3HW, labels_HW = torch.full((3, 40, 60), 128).byte(), torch.zeros(40, 60).byte()
        >>> grey = Sample(image_3HW, labels_HW, "grey")
        >>> image_3hw, labels_hw = augment(grey, Augmentation(crop=(32, 32)), np.random.default_rng(0))
        >>> image_3hw.shape, labels_hw.shape
        (torch.Size([3, 32, 32]), torch.Size([32, 32]))
    """
    image, labels, name = sample
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image of {name!r} is {tuple(image.shape)} {image.dtype}; expected (3, H, W) torch.uint8")
    if labels.dtype != torch.uint8 or labels.shape != image.shape[1:]:
        raise ValueError(
            f"labels of {name!r} are {tuple(labels.shape)} {labels.dtype}; "
            f"expected {tuple(image.shape[1:])} torch.uint8"
        )
    at_scale, at_top, at_left, at_flip, *at_colour = (float(number) for number in generator.random(7))
    # drawn last: the first seven are what they were before there was rotation or blur
    at_rotate, at_angle, at_blur = (float(number) for number in generator.random(3))
    least, greatest = augmentation.scale
    image, labels = _resize_pair(image, labels, least + (greatest - least) * at_scale)

    size, crop = labels.shape, augmentation.crop
    top, left = int(at_top * (abs(size[0] - crop[0]) + 1)), int(at_left * (abs(size[1] - crop[1]) + 1))
    taken, placed = _overlap(size, crop, (top, left))
    angle = (2 * at_angle - 1) * augmentation.rotation if at_rotate < ROTATION_CHANCE else 0.0
    image, labels = _take(image, labels, taken, angle, at_blur < augmentation.blur)
    if at_flip < augmentation.flip:
        # the place on a padded crop is uniform, so flipping before placing it changes no distribution
        image, labels = image.flip(-1), labels.flip(-1)
    image = _recolour(image, augmentation.colour, at_colour)
    if labels.shape != crop:
        padded_image = image.new_tensor(IMAGE_PADDING)[:, None, None].repeat(1, *crop)
        padded_labels = labels.new_full(crop, LABEL_PADDING)
        padded_image[:, *placed], padded_labels[placed] = image, labels
        return padded_image, padded_labels
    return image.contiguous(), labels.contiguous()


def _overlap(
    size: tuple[int, int], crop: tuple[int, int], offset: tuple[int, int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What of the picture is taken and where in the crop it goes; along a side, the offset is in the longer of both."""
    taken, placed = [], []
    for length, wanted, start in zip(size, crop, offset, strict=True):
        common = min(length, wanted)
        taken.append(slice(start, start + common) if length > wanted else slice(0, common))
        placed.append(slice(start, start + common) if length < wanted else slice(0, common))
    return tuple(taken), tuple(placed)


def _resize_pair(image_3HW: Tensor, labels_HW: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    # not below 2 pixels: torch's antialiased resize of a contiguous picture to 1×1 fails with an internal error
    size = [max(min(side, 2), round(side * factor)) for side in labels_HW.shape]
    if size == list(labels_HW.shape):
        return image_3HW, labels_HW
    # torchvision is imported where it is used: `import apd.data` must not need it
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    image = F.resize_image(image_3HW, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    # NEAREST_EXACT takes the pixel under the centre, where bilinear resizing looks too; NEAREST is half a pixel off
    labels = F.resize_image(labels_HW[None], size, interpolation=InterpolationMode.NEAREST_EXACT)[0]
    return image, labels


def _take(
    image_3HW: Tensor, labels_HW: Tensor, taken: tuple[slice, ...], angle: float, blurred: bool
) -> tuple[Tensor, Tensor]:
    """The rows and columns `taken` of the picture after it was rotated and blurred."""
    wider = _grown(taken, BLUR_SIZE // 2 if blurred else 0, labels_HW.shape)
    if angle:
        image, labels = _rotated(image_3HW, labels_HW, wider, angle)
    else:
        image, labels = image_3HW[:, *wider], labels_HW[wider]
    if blurred:
        inner = _within(taken, wider)
        image, labels = _blur(image)[:, *inner], labels[inner]
    return image, labels


def _grown(region: tuple[slice, ...], margin: int, size: tuple[int, ...]) -> tuple[slice, ...]:
    """The region with a margin around it, as far as the picture reaches."""
    return tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, length))
        for side, length in zip(region, size, strict=True)
    )


def _within(region: tuple[slice, ...], wider: tuple[slice, ...]) -> tuple[slice, ...]:
    """Where the region lies in a wider one."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(region, wider, strict=True))


def _rotated(image_3HW: Tensor, labels_HW: Tensor, region: tuple[slice, ...], angle: float) -> tuple[Tensor, Tensor]:
    """A region of the picture turned about its centre, counter-clockwise by `angle` degrees."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    source = _source_of(region, angle, labels_HW.shape)
    inner = _within(region, source)
    centre = [length / 2 - side.start for length, side in zip(labels_HW.shape, source, strict=True)][::-1]

    def turned(pixels_CHW: Tensor, padding: tuple[int, ...], mode: InterpolationMode) -> Tensor:
        # beyond the picture the sampling reads zeros: with the padding taken off first, they mean the padding
        padding_C11 = torch.tensor(padding, dtype=torch.float32, device=pixels_CHW.device)[:, None, None]
        rotated = F.rotate_image(pixels_CHW[:, *source] - padding_C11, angle, mode, center=centre)
        return (rotated[:, *inner] + padding_C11).round_().to(torch.uint8)

    image = turned(image_3HW, IMAGE_PADDING, InterpolationMode.BILINEAR)
    return image, turned(labels_HW[None], (LABEL_PADDING,), InterpolationMode.NEAREST)[0]


def _source_of(region: tuple[slice, ...], angle: float, size: tuple[int, ...]) -> tuple[slice, ...]:
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


def _blur(image_3hw: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    # a kernel reaches over the edge into the mirrored picture, so it cannot be wider than that
    kernel = [min(BLUR_SIZE, 2 * side - 1) for side in reversed(image_3hw.shape[1:])]
    return F.gaussian_blur_image(image_3hw, kernel, [BLUR_SIGMA, BLUR_SIGMA])


def _recolour(image_3hw: Tensor, strength: float, numbers: list[float]) -> Tensor:
    if strength == 0:
        return image_3hw
    from torchvision.transforms.v2 import functional as F

    brightness, contrast, saturation = (1 - strength + 2 * strength * number for number in numbers)
    image_3hw = F.adjust_brightness(image_3hw, brightness)
    image_3hw = F.adjust_contrast(image_3hw, contrast)
    return F.adjust_saturation(image_3hw, saturation)
