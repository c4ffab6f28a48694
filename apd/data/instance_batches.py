"""Batches of pictures with things, by the rules of :mod:`apd.data.batches`: a function of seed and iteration only."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from apd.data.batches import BatchStream, served, unit_range
from apd.data.instance_transforms import InstanceAugmentation, vary
from apd.data.instances import InstanceDataset, InstanceSample, as_target


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
        >>> from apd.data.scene_instances import SceneInstances
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
        >>> from apd.data.scene_instances import SceneInstances
        >>> things = SceneInstances(5, height=48, width=64, context_shift=0.5, seed=0, split="val")
        >>> [len(images) for images, samples in evaluation_instance_batches(things, 2)]
        [2, 2, 1]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected a whole number of at least 1")
    for first in range(0, len(dataset), batch_size):
        samples = [dataset[index] for index in range(first, min(first + batch_size, len(dataset)))]
        yield [unit_range(sample.image_3HW) for sample in samples], samples
