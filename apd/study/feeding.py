"""Loader against training for an experiment: its own data, augmentation and student."""

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from apd.evaluate.feeding import Feeding, feeding_of
from apd.study.build import build_augmentation, build_network, build_splits
from apd.study.experiment import Experiment
from apd.study.loop import Run
from apd.study.schedule import set_rates


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
        run = Run(alone, Path(folder), device, False, splits, student, None)
        set_rates(run.optimisers, training, 0)
        run.student.train()
        on_device = not (alone.data.rotation or alone.data.blur)  # which has neither
        both = (False, True) if device.type == "cuda" and on_device else (training.device_augmentation,)
        for there in both:
            yield from feeding_of(
                run._step,
                splits.train,
                build_augmentation(alone.data),
                batch_size=training.batch_size,
                workers=(0,) if there else workers,
                seed=alone.seed,
                device=device,
                batches=batches,
                device_augmentation=there,
            )
