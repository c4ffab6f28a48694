"""Batches whose content depends on the seed and the iteration only, so that a run resumes exactly where it stopped.

The samples form one endless stream: a permutation of the data set for each epoch, one after the other, nothing dropped
at the borders. Batch t is places t·B to t·B+B-1 of the stream, and slot b of it is augmented by a generator of its own.
"""

import signal
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from apd.data.augment import Augmentation, augment
from apd.data.specs import Sample, SegmentationDataset

_EPOCH, _SAMPLE = 0, 1  # first word of a stream's key: keeps the permutations' numbers apart from the augmentations'


class Batch(NamedTuple):
    """Training pictures: images_B3HW float32 in [0, 1], labels_BHW int64 with 255 for ignored pixels."""

    images_B3HW: Tensor
    labels_BHW: Tensor

    def pinned(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies without being waited for."""
        return Batch(self.images_B3HW.pin_memory(), self.labels_BHW.pin_memory())

    def by_name(self) -> dict[str, Tensor]:
        """The tensors with their names, as they are kept in a file."""
        return self._asdict()


class EvaluationBatch(NamedTuple):
    """Pictures to be judged, in the data set's order: images_B3HW float32 in [0, 1], labels_BHW int64, B names.

    Labels may have another size than the images (see :class:`~apd.data.long_side.LongSide`); scores are on theirs.
    """

    images_B3HW: Tensor
    labels_BHW: Tensor
    names: tuple[str, ...]


def generator_for(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on the seed and the key only; different keys of one length are independent."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@lru_cache(maxsize=4)  # a batch looks its epoch's order up slot by slot
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order, (count,) int64, in which epoch `epoch` visits a data set of `count` samples."""
    # sorting numbers instead of Generator.permutation: NumPy may change how it shuffles, less so its uniform numbers
    order = np.argsort(generator_for(seed, _EPOCH, epoch).random(count), kind="stable")
    order.flags.writeable = False  # it is cached
    return order


class BatchStream(Dataset):
    """Batch t as ``stream[t]``, a pure function of the settings and t. See `training_batches`.

    Raises:
        ValueError: an empty data set, or a number out of its range.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the data set is empty; training needs at least one sample")
        for field, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{field}={value}; expected a whole number of at least {least}")
        number, parts = part
        if not 0 <= number < parts or batch_size % parts:
            raise ValueError(f"part={part}: expected (r, n) with 0 <= r < n, n a divisor of batch_size={batch_size}")
        self.dataset, self.batch_size, self.augmentation, self.seed = dataset, batch_size, augmentation, seed
        self._count = len(dataset)
        self.slots = range(number * batch_size // parts, (number + 1) * batch_size // parts)

    def indices(self, iteration: int) -> list[int]:
        """Which samples the whole batch `iteration` holds, in order."""
        first = iteration * self.batch_size
        places = (divmod(place, self._count) for place in range(first, first + self.batch_size))
        return [int(epoch_order(self.seed, epoch, self._count)[place]) for epoch, place in places]

    def slots_of(self, iteration: int) -> Iterator[tuple[int, np.random.Generator]]:
        """Which samples this part of batch `iteration` has, each with the source of its random numbers."""
        indices = self.indices(iteration)
        for slot in self.slots:
            yield indices[slot], generator_for(self.seed, _SAMPLE, iteration, slot)

    def samples(self, iteration: int) -> Iterator[tuple[Sample, np.random.Generator]]:
        """The same with the samples themselves, as they are stored."""
        for index, generator in self.slots_of(iteration):
            yield self.dataset[index], generator

    def __getitem__(self, iteration: int) -> Batch:
        pairs = [augment(sample, self.augmentation, generator) for sample, generator in self.samples(iteration)]
        images, labels = zip(*pairs, strict=True)
        return Batch(unit_range(torch.stack(images)), torch.stack(labels).long())


def training_batches(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    augmentation: Augmentation,
    seed: int,
    start_iteration: int = 0,
    iterations: int,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Augmented batches `start_iteration` to `iterations` - 1 of an endless stream.

    Batch t is a pure function of (data set, batch_size, augmentation, seed, t): a run that starts at t sees what the
    uninterrupted one saw, any number of workers gives equal batches, and the global random state is neither read nor
    changed. Every epoch visits every sample exactly once; a batch may reach over the border of two epochs.

    Args:
        dataset: samples of any size.
        batch_size: samples in a batch, B.
        augmentation: variation of the samples, and their size.
        seed: whole number from 0.
        start_iteration: number of the first batch (default 0).
        iterations: total length of the run, the number after the last batch's. The iterator ends there.
        workers: processes that prepare batches ahead (default 0: in this process, when asked for).
        part: (r, n) gives part r of n of every batch, its slots in order, so that n processes share the batches of
            one (default: all of it).

    Returns:
        Iterator over `iterations` - `start_iteration` batches with the augmentation's crop as H, W.

    Raises:
        ValueError: an empty data set, or a number out of its range.

    Example:
        >>> from apd.data.scenes import Scenes
        >>> scenes = Scenes(8, height=48, width=64, context_shift=0.5, seed=0, split="train")
        >>> crops = Augmentation(crop=(32, 48))
        >>> batch = next(training_batches(scenes, batch_size=4, augmentation=crops, seed=1, iterations=10))
        >>> batch.images_B3HW.shape, batch.labels_BHW.shape
        (torch.Size([4, 3, 32, 48]), torch.Size([4, 32, 48]))
    """
    stream = BatchStream(dataset, batch_size, augmentation, seed, part)
    return served(stream, start_iteration, iterations, workers)


def served(stream: BatchStream, start_iteration: int, iterations: int, workers: int) -> Iterator[Any]:
    """A stream's items `start_iteration` to `iterations` - 1, prepared by worker processes where there are some.

    Raises:
        ValueError: a number out of its range.
    """
    for field, value in (("iterations", iterations), ("workers", workers)):
        if value < 0:
            raise ValueError(f"{field}={value}; expected a whole number of at least 0")
    if not 0 <= start_iteration <= iterations:
        raise ValueError(f"start_iteration={start_iteration}; expected 0 to iterations={iterations}")
    order = range(start_iteration, iterations)
    if workers == 0:
        return (stream[iteration] for iteration in order)
    return iter(
        DataLoader(
            stream,
            batch_size=None,
            sampler=order,
            num_workers=workers,
            worker_init_fn=leave_stopping_to_the_trainer,
            # of its own: the loader draws a seed for its workers, by default from the global state
            generator=torch.Generator(),
        )
    )


def leave_stopping_to_the_trainer(_worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes; the trainer finishes its step, then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def evaluation_batches(dataset: SegmentationDataset, batch_size: int) -> Iterator[EvaluationBatch]:
    """The whole data set once, in order, not augmented.

    A batch ends early where the next picture or its labels have another size, so pictures of many sizes come one by
    one; the last batch is shorter where the count does not divide.

    Args:
        dataset: samples of any sizes.
        batch_size: most samples in a batch, B.

    Raises:
        ValueError: batch_size below 1.

    Example:
        >>> from apd.data.scenes import Scenes
        >>> scenes = Scenes(5, height=48, width=64, context_shift=0.5, seed=0, split="val")
        >>> [len(batch.names) for batch in evaluation_batches(scenes, 2)]
        [2, 2, 1]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected a whole number of at least 1")
    return _evaluation_batches(dataset, batch_size)


def _evaluation_batches(dataset: SegmentationDataset, batch_size: int) -> Iterator[EvaluationBatch]:
    together: list[Sample] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if together and (len(together) == batch_size or _sizes(sample) != _sizes(together[0])):
            yield _evaluation_batch(together)
            together = []
        together.append(sample)
    if together:
        yield _evaluation_batch(together)


def _sizes(sample: Sample) -> tuple[torch.Size, torch.Size]:
    return sample.image_3HW.shape, sample.labels_HW.shape


def _evaluation_batch(samples: list[Sample]) -> EvaluationBatch:
    images, labels, names = zip(*samples, strict=True)
    return EvaluationBatch(unit_range(torch.stack(images)), torch.stack(labels).long(), names)


def unit_range(images_B3HW: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [0, 1]."""
    return images_B3HW.to(torch.float32).div_(255).contiguous()
