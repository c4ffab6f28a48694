"""Batches as they are stored, with the random numbers drawn for them, to be varied on the device that trains.

Reading stays with the loader's processes, which touch no GPU; resizing, rotation, blur, cropping, flips and jitter,
which are most of the loader's work, go to the device. Which samples and which numbers make a batch is decided where
:mod:`apd.data.batches` decides it, and what is done with them is :func:`apd.data.transforms.varied` in both: on one
device both ways give the same bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from apd.data.batches import Batch, BatchStream, served, unit_range
from apd.data.sample import IMAGE_PADDING, LABEL_PADDING, SegmentationDataset
from apd.data.transforms import Augmentation, Draws, check_sample, varied


class Place(NamedTuple):
    """Where a picture or a label map lies among a batch's bytes, and how."""

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, bytes_N: Tensor) -> Tensor:
        """The picture or label map itself, without a copy."""
        return bytes_N.as_strided(self.shape, self.strides, bytes_N.storage_offset() + self.start)


@dataclass(frozen=True)
class StoredBatch:
    """Samples of any sizes, not varied yet.

    All pictures and label maps lie in one tensor, so that a batch goes from process to process, into page-locked memory
    and onto a device in one piece each time, however many samples it has.

    Attributes:
        bytes_N: uint8, all pictures and label maps one after the other, each in the order its data set has it.
        images: where each picture 3×H×W lies.
        labels: where each label map H×W lies.
        draws: the numbers that decide each sample's variation.
        augmentation: the kinds of variation and their ranges.
    """

    bytes_N: Tensor
    images: tuple[Place, ...]
    labels: tuple[Place, ...]
    draws: tuple[Draws, ...]
    augmentation: Augmentation

    def to(self, device: torch.device | str) -> "StoredBatch":
        """The batch on a device."""
        return self._with(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> "StoredBatch":
        """The batch in page-locked memory, from which a GPU copies without being waited for."""
        return self._with(Tensor.pin_memory)

    def varied(self) -> Batch:
        """The training pictures, made on the device where the stored ones lie.

        Sample by sample, since each has a scale, a window and a mean brightness of its own, and each is written to its
        place in a batch of padding; that batch is converted as a whole. Nothing waits for a GPU but rotation, whose
        angle torchvision sends there as a matrix.

        Memory: beside the stored bytes and the result, 20 bytes for each pixel of the crops, there are 4 bytes for each
        of these pixels and the intermediate values of one sample at a time. Those of resizing are the largest: on a GPU
        torchvision does it in float32, so 12 bytes for each pixel before and after.
        """
        count, crop = len(self.draws), self.augmentation.crop
        images_B3HW = self.bytes_N.new_empty(count, 3, *crop)
        for channel, value in enumerate(IMAGE_PADDING):
            images_B3HW[:, channel] = value
        labels_BHW = self.bytes_N.new_full((count, *crop), LABEL_PADDING)
        for slot, (image, labels, draws) in enumerate(zip(self.images, self.labels, self.draws, strict=True)):
            image_3hw, labels_hw, placed = varied(
                image.of(self.bytes_N), labels.of(self.bytes_N), self.augmentation, draws
            )
            images_B3HW[slot, :, *placed], labels_BHW[slot, *placed] = image_3hw, labels_hw
        return Batch(unit_range(images_B3HW), labels_BHW.long())

    def by_name(self) -> dict[str, Tensor]:
        """The varied batch's tensors with their names, as they are kept in a file."""
        return self.varied().by_name()

    def _with(self, change: Callable[[Tensor], Tensor]) -> "StoredBatch":
        return replace(self, bytes_N=change(self.bytes_N))


class StoredStream(BatchStream):
    """Batch t as ``stream[t]``, a pure function of the settings and t. See `stored_batches`."""

    def __getitem__(self, iteration: int) -> StoredBatch:
        samples, generators = zip(*self.samples(iteration), strict=True)
        for sample in samples:
            check_sample(sample)
        draws = tuple(Draws.of(generator) for generator in generators)
        stored = [sample.image_3HW for sample in samples] + [sample.labels_HW for sample in samples]
        starts = [0]
        for pixels in stored:
            starts.append(starts[-1] + pixels.numel())
        bytes_N = torch.empty(starts.pop(), dtype=torch.uint8)
        places = []
        for start, pixels in zip(starts, stored, strict=True):
            # in the order that it has, rows of pixels or whole channels: it is copied faster and resized the same way
            strides = torch.empty_like(pixels, device="meta").stride()
            places.append(Place(start, tuple(pixels.shape), strides))
            places[-1].of(bytes_N).copy_(pixels)
        count = len(samples)
        return StoredBatch(bytes_N, tuple(places[:count]), tuple(places[count:]), draws, self.augmentation)


def stored_batches(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    augmentation: Augmentation,
    seed: int,
    start_iteration: int = 0,
    iterations: int,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterator[StoredBatch]:
    """What :func:`~apd.data.batches.training_batches` gives for the same arguments, not varied yet.

    Order, random numbers, resuming, workers and parts are the same: ``batch.varied()`` is bit-equal to that function's
    batch on a CPU, and ``batch.to("cuda").varied()`` is equal to it up to the rounding of the GPU's resizing.

    Args:
        dataset: samples of any size.
        batch_size: samples in a batch, B.
        augmentation: variation of the samples, and their size.
        seed: whole number from 0.
        start_iteration: number of the first batch (default 0).
        iterations: total length of the run, the number after the last batch's. The iterator ends there.
        workers: processes that read batches ahead (default 0: in this process, when asked for).
        part: (r, n) gives part r of n of every batch, its slots in order (default: all of it).

    Raises:
        ValueError: an empty data set, a number out of its range, or a sample of another kind than uint8.

    Example:
        >>> from apd.data.scenes import Scenes
        >>> scenes = Scenes(8, height=48, width=64, context_shift=0.5, seed=0, split="train")
        >>> crops = Augmentation(crop=(32, 48))
        >>> stored = next(stored_batches(scenes, batch_size=4, augmentation=crops, seed=1, iterations=10))
        >>> stored.bytes_N.shape  # 4 pictures of 48×64 pixels: three channels, and labels
        torch.Size([49152])
        >>> batch = stored.varied()  # stored.to("cuda").varied() does it there
        >>> batch.images_B3HW.shape, batch.labels_BHW.shape
        (torch.Size([4, 3, 32, 48]), torch.Size([4, 32, 48]))
    """
    stream = StoredStream(dataset, batch_size, augmentation, seed, part)
    return served(stream, start_iteration, iterations, workers)
