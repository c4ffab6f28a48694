"""Augmentation of an image and its labels, or its objects, together; labels are copied from the nearest pixel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from apd.data.instances import InstanceSample
from apd.data.specs import IMAGE_PADDING, LABEL_PADDING, Sample

ROTATION_CHANCE = 0.5  # the public semseg code's, on which the released code builds
BLUR_SIZE, BLUR_SIGMA = 5, 1.1  # semseg's kernel; the width that OpenCV documents for that size
LEAST_SIDE = 1.0  # pixels: an object whose box is left with a shorter side after cropping is gone

Region = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Augmentation:
    """How training images are augmented; ValueError where a field is out of its range.

    Scale, flip and crop are the released code's (and its base, semseg's), as are ``rotation=10`` and ``blur=0.5``; both
    are off by default, as is colour jitter, this study's own choice.
    """

    crop: tuple[int, int]  #: (height, width) in pixels of every augmented sample; smaller images are padded
    scale: tuple[float, float] = (0.5, 2.0)  #: least and greatest factor of size, drawn uniformly
    flip: float = 0.5  #: probability of a horizontal flip
    colour: float = 0.0  #: strength c in [0, 1): brightness, contrast and saturation times uniform factors in 1-c..1+c
    rotation: float = 0.0  #: greatest angle in degrees, 0 to 180, by which half of the images are turned, either way
    blur: float = 0.0  #: probability of a Gaussian blur, 5×5 pixels with a standard deviation of 1.1

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in self.crop):
            raise ValueError(f"crop={self.crop!r}; expected (height, width), two whole numbers of at least 1 pixel")
        check_ranges(self, "flip", "blur")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation={self.rotation!r}; expected degrees from 0 (none) to 180")


def check_ranges(augmentation: object, *probabilities: str) -> None:
    """Raise ValueError unless scale, colour and these probabilities are in their ranges."""
    scale, colour = augmentation.scale, augmentation.colour
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(f"scale={scale!r}; expected (least, greatest) with 0 < least <= greatest")
    if not 0 <= colour < 1:
        raise ValueError(f"colour={colour!r}; expected a strength from 0 (none) to below 1")
    for name in probabilities:
        if not 0 <= getattr(augmentation, name) <= 1:
            raise ValueError(f"{name}={getattr(augmentation, name)!r}; expected a probability from 0 to 1")


def augment(sample: Sample, augmentation: Augmentation, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A randomly scaled, rotated, blurred, cropped, flipped and recoloured copy: image (3, h, w), labels (h, w), uint8.

    The generator advances by ten numbers, whatever the settings: one kind of augmentation leaves the others as they
    were. Corners that a rotation leaves empty, and what is beside an image smaller than the crop, have ImageNet's mean
    colour (before blur and jitter) and the label 255. A sample that is not uint8 is a ValueError.
    """
    check_sample(sample)
    # the first seven numbers are what they were before there was rotation or blur
    scale, top, left, flip, *factors, rotate, angle, blur = generator.random(10).tolist()
    image, labels, _ = sample
    crop = augmentation.crop
    size, taken, placed = placement(labels.shape, augmentation, scale, top, left)
    if size != labels.shape:
        image, labels = torchvision_functions().resize_image(image, list(size)), nearest(labels[None], size)[0]
    degrees = (2 * angle - 1) * augmentation.rotation if rotate < ROTATION_CHANCE else 0.0
    blurred = blur < augmentation.blur
    wider = _grown(taken, BLUR_SIZE // 2 if blurred else 0, labels.shape)
    image, labels = _rotated(image, wider, degrees), _rotated(labels, wider, degrees)
    if blurred:
        # a kernel reaches over the edge into the mirrored image, so it cannot be wider than that
        kernel, inner = [min(BLUR_SIZE, 2 * side - 1) for side in reversed(image.shape[1:])], _within(taken, wider)
        image = torchvision_functions().gaussian_blur_image(image, kernel, [BLUR_SIGMA] * 2)
        image, labels = image[:, *inner], labels[inner]
    if flip < augmentation.flip:
        # the place on a padded crop is uniform, so flipping before placing it changes no distribution
        image, labels = image.flip(-1), labels.flip(-1)
    if augmentation.colour:
        image = recoloured(image, *colour_factors(augmentation.colour, factors))
    if labels.shape != crop:
        image, labels = padded(image, placed, crop), padded(labels[None], placed, crop, (LABEL_PADDING,))[0]
    return image.contiguous(), labels.contiguous()


def check_sample(sample: Sample) -> None:
    """Raise ValueError unless the image is 3×H×W and the labels are H×W, both uint8."""
    image, labels, name = sample
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image of {name!r} is {tuple(image.shape)} {image.dtype}; expected (3, H, W) torch.uint8")
    if labels.dtype != torch.uint8 or labels.shape != image.shape[1:]:
        expected = f"{tuple(image.shape[1:])} torch.uint8"
        raise ValueError(f"labels of {name!r} are {tuple(labels.shape)} {labels.dtype}; expected {expected}")


def placement(
    size: tuple[int, ...], augmentation: Augmentation, scale: float, top: float, left: float
) -> tuple[tuple[int, int], Region, Region]:
    """Size of the scaled image, the rows and columns of it that are taken, and those of the crop where they go."""
    least, greatest = augmentation.scale
    # not below 2 pixels: torch's antialiased resize of a contiguous image to 1×1 fails with an internal error
    height, width = (max(min(side, 2), round(side * (least + (greatest - least) * scale))) for side in size)
    return (height, width), *overlap((height, width), augmentation.crop, (top, left))


def colour_factors(strength: float, numbers: Sequence[float]) -> tuple[float, ...]:
    """Of brightness, contrast and saturation: from 1-strength to 1+strength for numbers from 0 to 1."""
    return tuple(1 - strength + 2 * strength * number for number in numbers)


def overlap(size: tuple[int, int], crop: tuple[int, int], place: tuple[float, float]) -> tuple[Region, Region]:
    """What of an image is taken and where in the crop it goes; `place`, from 0 to 1, is drawn along each side."""
    taken, placed = [], []
    for length, wanted, at in zip(size, crop, place, strict=True):
        start, common = int(at * (abs(length - wanted) + 1)), min(length, wanted)
        taken.append(slice(start, start + common) if length > wanted else slice(0, common))
        placed.append(slice(start, start + common) if length < wanted else slice(0, common))
    return tuple(taken), tuple(placed)


def padded(maps_Chw: Tensor, placed: Region, size: tuple[int, int], values: Sequence[int] = IMAGE_PADDING) -> Tensor:
    """Maps at rows and columns `placed` of larger ones of these values, by default an image's of the mean colour."""
    whole = torch.stack([maps_Chw.new_full(size, value) for value in values])  # a GPU need not be waited for
    whole[:, *placed] = maps_Chw
    return whole


def nearest(maps_NHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, H, W) at another size, from the pixels under the new centres, as bilinear resizing places them."""
    return torch.nn.functional.interpolate(maps_NHW[None], size, mode="nearest-exact")[0]


def torchvision_functions() -> ModuleType:
    """torchvision's functions of tensors, imported late: reading data must not need torchvision."""
    from torchvision.transforms.v2 import functional

    return functional


def _grown(region: Region, margin: int, size: tuple[int, ...]) -> Region:
    sides = zip(region, size, strict=True)
    return tuple(slice(max(side.start - margin, 0), min(side.stop + margin, length)) for side, length in sides)


def _within(region: Region, wider: Region) -> Region:
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(region, wider, strict=True))


def _rotated(pixels: Tensor, region: Region, angle: float) -> Tensor:
    """A region of an image (3, H, W) or labels (H, W) turned about its centre, counter-clockwise by `angle` degrees."""
    if not angle:
        return pixels[..., *region]
    size = pixels.shape[-2:]
    source = _source_of(region, angle, size)
    centre = [length / 2 - side.start for length, side in zip(size, source, strict=True)][::-1]
    # beyond the image the sampling reads zeros: with the padding taken off first, they mean the padding
    padding, mode = (IMAGE_PADDING, 2) if pixels.ndim == 3 else ((LABEL_PADDING,), 0)  # pillow's bilinear and nearest
    shift = torch.tensor(padding, dtype=torch.float32, device=pixels.device)[:, None, None]
    shifted = pixels.reshape(-1, *size)[:, *source] - shift
    turned = torchvision_functions().rotate_image(shifted, angle, mode, center=centre)[:, *_within(region, source)]
    return (turned + shift).round_().to(torch.uint8).reshape(*pixels.shape[:-2], *turned.shape[1:])


def _source_of(region: Region, angle: float, size: tuple[int, ...]) -> Region:
    """The smallest window of the image that holds a region and all that a rotation brings into it."""
    middle_y, middle_x = (length / 2 for length in size)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    rows, columns = region
    corners = [(y - middle_y, x - middle_x) for y in (rows.start, rows.stop) for x in (columns.start, columns.stop)]
    from_y = [middle_y + cosine * y + sine * x for y, x in corners]
    from_x = [middle_x + cosine * x - sine * y for y, x in corners]
    both = tuple(
        slice(min(max(math.floor(min(reached)), 0), b.start), max(min(math.ceil(max(reached)), length), b.stop))
        for reached, b, length in zip((from_y, from_x), region, size, strict=True)
    )
    return _grown(both, 1, size)  # bilinear sampling reaches half a pixel further


def recoloured(image_3hw: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """The image with the three, in this order, changed by these factors."""
    F = torchvision_functions()
    image_3hw = F.adjust_contrast_image(F.adjust_brightness_image(image_3hw, brightness), contrast)
    return F.adjust_saturation_image(image_3hw, saturation)


@dataclass(frozen=True)
class InstanceAugmentation:
    """How training images with objects are augmented; ValueError where a field is out of its range."""

    flip: float = 0.5  #: probability of a horizontal flip (torchvision's and Detectron2's)
    scale: tuple[float, float] = (1.0, 1.0)  #: least and greatest factor of size, drawn uniformly (torchvision: none)
    colour: float = 0.0  #: strength of colour jitter, as in :class:`Augmentation`

    def __post_init__(self) -> None:
        check_ranges(self, "flip")


def augment_instances(
    sample: InstanceSample, augmentation: InstanceAugmentation, generator: np.random.Generator
) -> InstanceSample:
    """A randomly scaled, flipped and recoloured copy of a sample, of the same size: a detector would undo another.

    The generator advances by seven numbers, whatever the settings. Objects that a crop leaves without pixels, or with a
    box thinner than a pixel, are gone from the copy; what is padded belongs to no object.
    """
    at_scale, at_top, at_left, at_flip, *at_colour = generator.random(7).tolist()
    least, greatest = augmentation.scale
    sample = _rescaled(sample, least + (greatest - least) * at_scale, (at_top, at_left))
    if at_flip < augmentation.flip:
        (x0_N, y0_N, x1_N, y1_N), width = sample.boxes_N4.unbind(1), sample.image_3HW.shape[2]
        boxes_N4 = torch.stack([width - x1_N, y0_N, width - x0_N, y1_N], dim=1)
        masks_NHW = None if sample.masks_NHW is None else sample.masks_NHW.flip(-1)
        sample = sample._replace(image_3HW=sample.image_3HW.flip(-1), boxes_N4=boxes_N4, masks_NHW=masks_NHW)
    image_3HW = sample.image_3HW
    if augmentation.colour:
        image_3HW = recoloured(image_3HW, *colour_factors(augmentation.colour, at_colour))
    return sample._replace(image_3HW=image_3HW.contiguous())


def _rescaled(sample: InstanceSample, factor: float, place: tuple[float, float]) -> InstanceSample:
    """The image at another scale on a canvas of its own size; `place` says where, from 0 to 1 along each side."""
    canvas = tuple(sample.image_3HW.shape[1:])
    size = tuple(max(2, round(side * factor)) for side in canvas)
    if size == canvas:
        return sample
    image = torchvision_functions().resize_image(sample.image_3HW, list(size))
    taken, placed = overlap(size, canvas, place)
    # along each axis scaled, shifted and cut off at what is seen of the image
    ends = [
        (sample.boxes_N4[:, 1 - axis :: 2] * (new / old) + (there.start - here.start)).clamp(there.start, there.stop)
        for axis, new, old, here, there in zip((0, 1), size, canvas, taken, placed, strict=True)
    ]
    boxes_N4 = torch.stack(ends[::-1], dim=2).flatten(1)
    kept_N = (boxes_N4[:, 2:] - boxes_N4[:, :2] >= LEAST_SIDE).all(1)
    masks_NHW = sample.masks_NHW
    if masks_NHW is not None:
        masks_NHW = torch.zeros(len(kept_N), *canvas, dtype=torch.bool)
        if len(kept_N):
            masks_NHW[:, *placed] = nearest(sample.masks_NHW.to(torch.uint8), size)[:, *taken].bool()
        kept_N = kept_N & masks_NHW.flatten(1).any(1)
        masks_NHW = masks_NHW[kept_N]
    areas_N = sample.areas_N[kept_N] * (size[0] / canvas[0]) * (size[1] / canvas[1])
    objects = boxes_N4[kept_N], sample.labels_N[kept_N], masks_NHW, sample.crowd_N[kept_N], areas_N
    return InstanceSample(padded(image[:, *taken], placed, canvas), *objects, sample.name)
