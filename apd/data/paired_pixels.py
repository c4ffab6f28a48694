"""What is done to the pixels of an image and its labels: resizing, turning, blurring, cutting out and recolouring.

An image goes through torchvision's v2 functions as `tv_tensors.Image`, its labels as `tv_tensors.Mask`; by these types
each function knows what not to interpolate. Both are uint8 and may be on any device. The decisions are made in
:mod:`apd.data.augment`, which imports this module when it has a picture: nothing before that needs torchvision.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image, Mask

from apd.data.specs import IMAGE_PADDING, LABEL_PADDING

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
