"""Augmentation of a picture and its things together: flip, scale jitter and colour jitter.

One generator drives all of it, so the same numbers always give the same sample. The size of the picture stays: scaled
up it is cropped, scaled down it is padded, since a detector resizes what it is given and would undo any other jitter.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from apd.data.augment import _overlap, colour_factors
from apd.data.batches import BatchStream, served, unit_range
from apd.data.instances import InstanceDataset, InstanceSample, as_target
from apd.data.specs import IMAGE_PADDING

LEAST_SIDE = 1.0
"""A thing whose box is left with a side below this, in pixels, after cropping is gone."""


@dataclass(frozen=True)
class InstanceAugmentation:
    """How training pictures with things are varied. Checked at construction.

    Args:
        flip: probability of a horizontal flip (default 0.5, torchvision's and Detectron2's).
        scale: least and greatest factor of size, drawn uniformly; (1, 1), the default, keeps the size, as torchvision
            does. The picture is cropped or padded at a random place to the size that it had.
        colour: strength c in [0, 1) of colour jitter, see :class:`apd.data.augment.Augmentation` (default 0: none).

    Raises:
        ValueError: a field out of its range, with the value got and the one expected.

    Example:
        >>> InstanceAugmentation(scale=(0.8, 1.25))
        InstanceAugmentation(flip=0.5, scale=(0.8, 1.25), colour=0.0)
    """

    flip: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip!r}; expected a probability from 0 to 1")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale={self.scale!r}; expected (least, greatest) with 0 < least <= greatest")
        if not 0 <= self.colour < 1:
            raise ValueError(f"colour={self.colour!r}; expected a strength from 0 (none) to below 1")


def vary(sample: InstanceSample, augmentation: InstanceAugmentation, generator: np.random.Generator) -> InstanceSample:
    """A randomly scaled, flipped and recoloured copy of a sample, of the same size.

    Every call draws the same count of numbers, whatever the settings and the picture: switching one kind of variation
    on or off leaves the others as they were. Things that a crop leaves without pixels, or with a box thinner than
    :data:`LEAST_SIDE`, are gone from the copy; what is padded belongs to no thing.

    Args:
        sample: not changed.
        augmentation: the kinds of variation and their ranges.
        generator: source of randomness, advanced by seven numbers.

    Example:
        >>> from apd.data.scenes.instances import SceneInstances
        >>> sample = SceneInstances(1, height=96, width=128, context_shift=0.5, seed=0)[0]
        >>> flipped = vary(sample, InstanceAugmentation(flip=1.0), np.random.default_rng(0))
        >>> torch.equal(flipped.boxes_N4[:, 2], 128 - sample.boxes_N4[:, 0])
        True
    """
    at_scale, at_top, at_left, at_flip, *at_colour = (float(number) for number in generator.random(7))
    least, greatest = augmentation.scale
    sample = _rescale(sample, least + (greatest - least) * at_scale, (at_top, at_left))
    if at_flip < augmentation.flip:
        sample = _flip(sample)
    image = sample.image_3HW
    if augmentation.colour:
        # torchvision is imported where it is used: `import apd.data` must not need it
        from apd.data.paired_pixels import recoloured

        image = recoloured(image, colour_factors(augmentation.colour, at_colour))
    return sample._replace(image_3HW=image.contiguous())


def _flip(sample: InstanceSample) -> InstanceSample:
    x0_N, y0_N, x1_N, y1_N = sample.boxes_N4.unbind(1)
    width = sample.image_3HW.shape[2]
    return sample._replace(
        image_3HW=sample.image_3HW.flip(-1),
        boxes_N4=torch.stack([width - x1_N, y0_N, width - x0_N, y1_N], dim=1),
        masks_NHW=None if sample.masks_NHW is None else sample.masks_NHW.flip(-1),
    )


def _rescale(sample: InstanceSample, factor: float, place: tuple[float, float]) -> InstanceSample:
    """The picture at another scale on a canvas of its own size; `place` says where, from 0 to 1 along each side."""
    canvas = tuple(sample.image_3HW.shape[1:])
    size = tuple(max(2, round(side * factor)) for side in canvas)
    if size == canvas:
        return sample
    # torchvision is imported where it is used: `import apd.data` must not need it
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    image = F.resize_image(sample.image_3HW, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    offset = tuple(int(at * (abs(new - old) + 1)) for at, new, old in zip(place, size, canvas, strict=True))
    taken, placed = _overlap(size, canvas, offset)
    padded = torch.tensor(IMAGE_PADDING, dtype=torch.uint8)[:, None, None].repeat(1, *canvas)
    padded[:, *placed] = image[:, *taken]

    def moved(lengths: Tensor, axis: int) -> Tensor:
        """Coordinates along one axis, scaled, shifted and cut off at what is seen of the picture."""
        shifted = lengths * (size[axis] / canvas[axis]) + (placed[axis].start - taken[axis].start)
        return shifted.clamp(placed[axis].start, placed[axis].stop)

    x0_N, y0_N, x1_N, y1_N = sample.boxes_N4.unbind(1)
    boxes_N4 = torch.stack([moved(x0_N, 1), moved(y0_N, 0), moved(x1_N, 1), moved(y1_N, 0)], dim=1)
    kept_N = (boxes_N4[:, 2:] - boxes_N4[:, :2] >= LEAST_SIDE).all(1)
    masks_NHW = sample.masks_NHW
    if masks_NHW is not None:
        masks_NHW = torch.zeros(len(kept_N), *canvas, dtype=torch.bool)
        if len(kept_N):
            resized = F.resize_image(
                sample.masks_NHW.to(torch.uint8), list(size), interpolation=InterpolationMode.NEAREST_EXACT
            )
            masks_NHW[:, *placed] = resized[:, *taken].bool()
        kept_N = kept_N & masks_NHW.flatten(1).any(1)
        masks_NHW = masks_NHW[kept_N]
    return InstanceSample(
        padded,
        boxes_N4[kept_N],
        sample.labels_N[kept_N],
        masks_NHW,
        sample.crowd_N[kept_N],
        sample.areas_N[kept_N] * (size[0] / canvas[0]) * (size[1] / canvas[1]),
        sample.name,
    )


# Batches of pictures with things, by the rules of :mod:`apd.data.batches`: a function of seed and iteration only.


class InstanceBatch(NamedTuple):
    """Training pictures, float32 (3, H, W) in [0, 1] and of any sizes, and what :func:`as_target` says of each."""

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
        images = {f"image.{number}": image for number, image in enumerate(self.images)}
        return images | {
            f"target.{number}.{name}": value
            for number, target in enumerate(self.targets)
            for name, value in target.items()
        }

    def _each(self, change: Callable[[Tensor], Tensor]) -> "InstanceBatch":
        targets = [{name: change(value) for name, value in target.items()} for target in self.targets]
        return InstanceBatch([change(image) for image in self.images], targets)


class InstanceStream(BatchStream):
    """Batch t as ``stream[t]``, a pure function of the settings and t. See `training_instance_batches`."""

    def __getitem__(self, iteration: int) -> InstanceBatch:
        samples = [vary(sample, self.augmentation, generator) for sample, generator in self.samples(iteration)]
        return InstanceBatch(
            [unit_range(sample.image_3HW) for sample in samples], [as_target(sample) for sample in samples]
        )


def training_instance_batches(
    dataset: InstanceDataset,
    *,
    batch_size: int,
    augmentation: InstanceAugmentation,
    seed: int,
    start_iteration: int = 0,
    iterations: int,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterator[InstanceBatch]:
    """Augmented batches `start_iteration` to `iterations` - 1 of an endless stream.

    What :func:`apd.data.batches.training_batches` says of its batches holds for these.

    Args:
        dataset: samples of any size, also such without a thing.
        batch_size: samples in a batch, B.
        augmentation: variation of the samples.
        seed: whole number from 0.
        start_iteration: number of the first batch (default 0).
        iterations: total length of the run, the number after the last batch's. The iterator ends there.
        workers: processes that prepare batches ahead (default 0: in this process, when asked for).
        part: (r, n) gives part r of n of every batch, its slots in order (default: all of it).

    Raises:
        ValueError: an empty data set, or a number out of its range.

    Example:
        >>> from apd.data.scenes.instances import SceneInstances
        >>> things = SceneInstances(8, height=48, width=64, context_shift=0.5, seed=0)
        >>> batches = training_instance_batches(
        ...     things, batch_size=2, augmentation=InstanceAugmentation(), seed=1, iterations=10
        ... )
        >>> images, targets = next(batches)
        >>> images[0].shape, sorted(targets[0])
        (torch.Size([3, 48, 64]), ['boxes', 'class_map', 'labels', 'masks'])
    """
    return served(InstanceStream(dataset, batch_size, augmentation, seed, part), start_iteration, iterations, workers)


def evaluation_instance_batches(
    dataset: InstanceDataset, batch_size: int
) -> Iterator[tuple[list[Tensor], list[InstanceSample]]]:
    """The whole data set once, in order, not augmented: images, float32 in [0, 1], with their samples.

    Raises:
        ValueError: batch_size below 1.

    Example:
        >>> from apd.data.scenes.instances import SceneInstances
        >>> things = SceneInstances(5, height=48, width=64, context_shift=0.5, seed=0, split="val")
        >>> [len(images) for images, samples in evaluation_instance_batches(things, 2)]
        [2, 2, 1]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected a whole number of at least 1")
    for first in range(0, len(dataset), batch_size):
        samples = [dataset[index] for index in range(first, min(first + batch_size, len(dataset)))]
        yield [unit_range(sample.image_3HW) for sample in samples], samples
