"""Augmentation of an image and its objects together, and batches of them: flip, scale jitter and colour jitter.

The size of the image stays, by cropping or padding: a detector resizes what it is given and would undo other jitter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from apd.data.augment import check_ranges, colour_factors, nearest, overlap, padded, recoloured, torchvision_functions
from apd.data.batches import BatchStream, training_batches, unit_range
from apd.data.instances import InstanceDataset, InstanceSample, as_target

LEAST_SIDE = 1.0  # pixels: an object whose box is left with a shorter side after cropping is gone


@dataclass(frozen=True)
class InstanceAugmentation:
    """How training images with objects are augmented; ValueError where a field is out of its range."""

    flip: float = 0.5  #: probability of a horizontal flip (torchvision's and Detectron2's)
    scale: tuple[float, float] = (1.0, 1.0)  #: least and greatest factor of size, drawn uniformly (torchvision: none)
    colour: float = 0.0  #: strength of colour jitter, as in :class:`apd.data.augment.Augmentation`

    def __post_init__(self) -> None:
        check_ranges(self, "flip")


def augment_instances(
    sample: InstanceSample, augmentation: InstanceAugmentation, generator: np.random.Generator
) -> InstanceSample:
    """A randomly scaled, flipped and recoloured copy of a sample, of the same size, by seven numbers of the generator.

    Objects that a crop leaves without pixels, or with a box thinner than a pixel, are gone from the copy.
    """
    at_scale, at_top, at_left, at_flip, *at_colour = generator.random(7).tolist()
    least, greatest = augmentation.scale
    sample = _rescaled(sample, least + (greatest - least) * at_scale, (at_top, at_left))
    if at_flip < augmentation.flip:
        (x0_N, y0_N, x1_N, y1_N), width = sample.boxes_N4.unbind(1), sample.image_3HW.shape[2]
        boxes_N4 = torch.stack([width - x1_N, y0_N, width - x0_N, y1_N], dim=1)
        masks_NHW = None if sample.masks_NHW is None else sample.masks_NHW.flip(-1)
        sample = sample._replace(image_3HW=sample.image_3HW.flip(-1), boxes_N4=boxes_N4, masks_NHW=masks_NHW)
    if strength := augmentation.colour:
        sample = sample._replace(image_3HW=recoloured(sample.image_3HW, *colour_factors(strength, at_colour)))
    return sample._replace(image_3HW=sample.image_3HW.contiguous())


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


class InstanceBatch(NamedTuple):
    """Training images, float32 (3, H, W) in [0, 1] and of any sizes, and the :func:`as_target` of each."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]

    def to(self, device: torch.device | str) -> "InstanceBatch":
        """The batch on a device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> "InstanceBatch":
        """The batch in page-locked memory, from which a GPU copies without being waited for."""
        return self._each(Tensor.pin_memory)

    def by_name(self) -> dict[str, Tensor]:
        """The tensors with names, as they are kept in a file: `image.0`, `target.0.boxes` and so on."""
        named = {f"image.{number}": image for number, image in enumerate(self.images)}
        for number, target in enumerate(self.targets):
            named |= {f"target.{number}.{name}": value for name, value in target.items()}
        return named

    def _each(self, change: Callable[[Tensor], Tensor]) -> "InstanceBatch":
        targets = [{name: change(value) for name, value in target.items()} for target in self.targets]
        return InstanceBatch([change(image) for image in self.images], targets)


class InstanceStream(BatchStream):
    """Batch t as ``stream[t]``, a pure function of the settings and t. See `training_instance_batches`."""

    def __getitem__(self, iteration: int) -> InstanceBatch:
        slots, how = self.slots_of(iteration), self.augmentation
        samples = [augment_instances(self.dataset[index], how, generator) for index, generator in slots]
        return InstanceBatch([unit_range(sample.image_3HW) for sample in samples], list(map(as_target, samples)))


def training_instance_batches(dataset: InstanceDataset, **settings: Any) -> Iterator[InstanceBatch]:
    """As :func:`apd.data.batches.training_batches`, of images with objects, by an :class:`InstanceAugmentation`."""
    return training_batches(dataset, **settings, stream=InstanceStream)


def evaluation_instance_batches(
    dataset: InstanceDataset, batch_size: int
) -> Iterator[tuple[list[Tensor], list[InstanceSample]]]:
    """The whole data set once, in order, not augmented: images, float32 in [0, 1], with their samples."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected a whole number of at least 1")
    for first in range(0, len(dataset), batch_size):
        samples = [dataset[index] for index in range(first, min(first + batch_size, len(dataset)))]
        yield [unit_range(sample.image_3HW) for sample in samples], samples
