"""Whether pictures come as fast as training takes them: images per second of loader and training, side by side."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from apd.config.datasets import build_augmentation, build_splits
from apd.config.experiment import Experiment
from apd.data.augment import Augmentation
from apd.data.batches import Batch, training_batches
from apd.data.device_batches import device_batches
from apd.data.specs import SegmentationDataset
from apd.training.optim import set_learning_rates
from apd.training.segmentation import SegmentationTask, build_network
from apd.training.trainer import Trainer


@dataclass(frozen=True)
class Feeding:
    """Images per second with one number of workers.

    Attributes:
        workers: processes that prepare batches; 0 prepares each when it is asked for.
        loader: what reading and augmentation give when nobody computes.
        training: what training takes when a batch is there already.
        together: what training gets done on the loader's batches.
        device_augmentation: whether the batches were made on the device, which then is the loader.
    """

    workers: int
    loader: float
    training: float
    together: float
    device_augmentation: bool = False

    def __str__(self) -> str:
        where = ", augmented on the device" if self.device_augmentation else ""
        return (
            f"{self.workers} workers{where}: loader {self.loader:.1f}, training {self.training:.1f}, "
            f"together {self.together:.1f} images/s ({self.together / self.training:.0%} of training alone)"
        )


def feeding_of(
    step: Callable[[Batch], object],
    dataset: SegmentationDataset,
    augmentation: Augmentation,
    *,
    batch_size: int,
    workers: Iterable[int] = (0, 1, 2),
    seed: int = 0,
    device: torch.device | str = "cpu",
    warmup: int = 2,
    batches: int = 10,
    device_augmentation: bool = False,
) -> Iterator[Feeding]:
    """Measure the loader, training, and both together.

    Where the loader is faster than training, workers hide it; without workers the two take turns. Workers take cores
    from training where there are few, which only the last number tells. The batches are gone through once before: what
    a data set or the system keeps in memory is there, as in a second epoch.

    Args:
        step: trains on a batch; it may leave work in a GPU's queue, which is waited for.
        dataset: read as in training.
        augmentation: as in training.
        batch_size: images in a batch.
        workers: numbers of processes to measure, one result each.
        seed: of order and augmentation.
        device: where `step` computes.
        warmup: batches before the clock starts, at least 1.
        batches: timed batches, at least 2.
        device_augmentation: make the batches on the device, see :func:`~apd.data.device_batches.device_batches`; no
            number of workers changes anything then.

    Raises:
        ValueError: a count below its least.

    Example:
        >>> from apd.data.scenes import Scenes
        >>> scenes = Scenes(8, height=48, width=64, context_shift=0.5, seed=0, split="train")
        >>> crops = Augmentation(crop=(32, 48))
        >>> (found,) = feeding_of(lambda batch: None, scenes, crops, batch_size=2, workers=[0], batches=2)
        >>> found.workers, found.loader > 0
        (0, True)
    """
    for name, value, least in (("warmup", warmup, 1), ("batches", batches, 2)):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    device = torch.device(device)

    def supply(count: int) -> Iterator[Batch]:
        there = device_augmentation
        make = partial(device_batches, device=device) if there else partial(training_batches, workers=count)
        return make(dataset, batch_size=batch_size, augmentation=augmentation, seed=seed, iterations=warmup + batches)

    def rate(supplied: Iterator, work: Callable[[Any], object]) -> float:
        """Images per second from the end of the warm-up to the last batch's end."""
        for batch in itertools.islice(supplied, warmup):
            work(batch)
        _wait(device)
        start, done = time.perf_counter(), 0
        for batch in supplied:
            work(batch)
            done += 1
        _wait(device)
        return done * batch_size / (time.perf_counter() - start)

    rate(supply(0), lambda batch: None)
    training = rate(itertools.repeat(next(supply(0)), warmup + batches), step)
    for count in workers:
        loader = rate(supply(count), lambda batch: None)
        yield Feeding(count, loader, training, rate(supply(count), step), device_augmentation)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Loader against training for an experiment: its own data, augmentation and student.


def feeding_of_experiment(
    experiment: Experiment, device: torch.device, *, workers: Iterable[int] = (0, 1, 2), batches: int = 10
) -> Iterator[Feeding]:
    """Images per second of the loader and of the plain student's training step.

    The teacher and the distillers are left out: a step with them takes longer, so the loader has it easier there. On a
    GPU the loader is measured with each number of processes, and then augmentation on the device, which takes none.

    Args:
        experiment: whose training split, crops, batch size, student and precision are taken.
        device: where the student trains.
        workers: numbers of loading processes to measure.
        batches: timed batches for each number.

    Raises:
        DataError: the data are missing or damaged.
        ExperimentError: the network cannot be built.
    """
    alone = dataclasses.replace(experiment, teacher=None, distillers=())
    splits, training = build_splits(alone.data), alone.training
    classes = len(splits.train.spec.class_names)
    student = build_network(alone.network, classes, device, seed=alone.seed, weights_follow=True)
    workers = tuple(workers)
    with tempfile.TemporaryDirectory() as folder:  # a run has one, and these steps leave nothing in it
        run = Trainer(SegmentationTask(alone), Path(folder), splits, student, None)
        set_learning_rates(run.optimisers, training, 0)
        run.student.train()
        on_device = not (alone.data.rotation or alone.data.blur)  # which has neither
        both = (False, True) if device.type == "cuda" and on_device else (training.device_augmentation,)
        for there in both:
            yield from feeding_of(
                run.step,
                splits.train,
                build_augmentation(alone.data),
                batch_size=training.batch_size,
                workers=(0,) if there else workers,
                seed=alone.seed,
                device=device,
                batches=batches,
                device_augmentation=there,
            )
