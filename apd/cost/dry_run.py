"""A run that does not run: everything is built and checked, and what training would take is reported.

A thing that is missing is reported and put aside, so that one dry run names all of them.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from apd.config.datasets import Splits, spec_of
from apd.config.detection import DetectorConfig
from apd.config.experiment import Experiment, ExperimentError
from apd.config.identity import fingerprint
from apd.cost.count import StepCost, step_cost, teacher_step_cost
from apd.data.augment_instances import InstanceBatch
from apd.data.images import DataError
from apd.data.instances import IGNORED, InstanceSpec, Noise
from apd.data.scenes import OBJECTS
from apd.data.specs import COCO_STUFF, DatasetSpec
from apd.training.distributed import ALONE, choose_device
from apd.training.optim import described
from apd.training.run import run_folder, task_of
from apd.training.teacher import TeacherError, load_teacher
from apd.training.trainer import TrainStep

CHECKED = 20
"""Images of each split that are read, spread evenly over it (own choice); the script of a data set checks all."""
PATIENCE = 20.0  # seconds; a machine whose first step takes longer is not asked for more of them
MACS_ON_A_CPU = 10**11  # a larger step is measured with two images there: nobody trains it on a CPU


class Measured(NamedTuple):
    """A few training steps on this machine: how many were timed, of how many images, and seconds for an image.

    `images` are fewer than the experiment's batch on a CPU, or where a GPU's memory does not hold it. `load_seconds`
    are those of reading and augmenting. `classes_seen` are mean numbers of classes, in an image and in a step.
    """

    steps: int
    images: int
    load_seconds: float
    step_seconds: float
    classes_seen: tuple[float, float]


def dry_run(
    experiment: Experiment, *, device: str | None = None, steps: int = 3, tell: Callable[[str], object] = print
) -> list[str]:
    """Build and check all that a run needs, report what it will take, and return what is missing; nothing is written.

    Reported are the data (:data:`CHECKED` images of each split are read), parameters and multiply-accumulates, an
    estimate of memory, the number of steps, and an estimate of time from measured steps at the real crop: on noise
    where the data are missing, with random weights where files of weights are. The teacher is loaded or built, and not
    scored.

    Args:
        experiment: the full configuration.
        device: torch device; default is cuda where there is one, else cpu.
        steps: timed steps, after one that is not, at least 1.
        tell: called with each line.

    Returns:
        One message for each thing that is missing or wrong, empty when training can start.

    Raises:
        ExperimentError: the device is not there, or a network cannot be built whatever its weights.
        ValueError: fewer than one step.

    Example:
        >>> from apd.study.recipes import recipe
        >>> dry_run(recipe("tiny", "student"), device="cpu", steps=1, tell=lambda line: None)
        []
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1")
    where, missing = choose_device(device), []
    _build_and_tell(experiment, where, steps, missing, tell)
    for number, message in enumerate(missing, start=1):
        tell(f"missing {number} of {len(missing)}: {message}")
    return missing


def _build_and_tell(
    experiment: Experiment, where: torch.device, steps: int, missing: list[str], tell: Callable[[str], object]
) -> None:
    tell(f"{experiment.name}, fingerprint {fingerprint(experiment)}, on {where}")
    if (run_folder(experiment) / "record.json").exists():
        tell(f"this run is finished: {run_folder(experiment) / 'record.json'}")
    splits = _splits(experiment, missing, tell)
    try:
        source = splits.train if splits is not None else _noise(experiment)
    except DataError:  # a folder without its dataset.yaml: nobody knows its classes
        return
    spec = source.spec
    student = _network(experiment, "student", spec, where, missing, tell)
    teacher = _network(experiment, "teacher", spec, where, missing, tell) if experiment.teacher is not None else None
    cost = step_cost(experiment, spec.num_classes)
    _tell_cost(experiment, cost, tell)
    training = experiment.training
    seen = training.iterations * training.batch_size
    passes = f", {seen / len(splits.train):.1f} times each training image" if splits is not None else ""
    tell(f"iterations: {training.iterations} of {training.batch_size} images{passes}")
    tell(f"optimiser: {described(training)}")
    images = training.batch_size
    if where.type == "cpu" and images * cost.macs_per_image > MACS_ON_A_CPU:
        images = 2
    measured = measure_steps(experiment, student, teacher, source, steps, images)
    _tell_time(experiment, cost, measured, spec, "noise" if splits is None else "the data", tell)


def _noise(experiment: Experiment) -> Noise:
    """An image in the place of absent data, with their classes; of an absent COCO folder, those of COCO itself."""
    data = experiment.data
    if experiment.task == "segmentation":
        return Noise(spec_of(data), (data.crop_height, data.crop_width))
    spec = OBJECTS if data.name == "scenes" else InstanceSpec("coco", COCO_STUFF.thing_names)
    return Noise(spec, (data.height, data.width), masks=data.masks)


def _splits(experiment: Experiment, missing: list[str], tell: Callable[[str], object]) -> Splits | None:
    """The data, if they are there and what is read of them is in order."""
    try:
        splits = task_of(experiment).splits()
        for split in splits:
            count = len(split)
            for index in sorted({round(place) for place in np.linspace(0, count - 1, min(CHECKED, count))}):
                split[index]
        census = task_of(experiment).census(splits)
        sentences = census.warnings(experiment.data.folder) if census is not None else []
    except (DataError, ExperimentError) as error:  # the second where a library is missing
        missing.append(str(error))
        tell(f"data: {experiment.data.name}, NOT in order")
        return None
    named = f"{len(splits.train)} images to train, {len(splits.val)} of val"
    if splits.evaluation is not splits.val:
        named += f", {len(splits.evaluation)} of {experiment.data.evaluation_split}"
    tell(f"data: {experiment.data.name}, {named}; at most {CHECKED} of each were read and are in order")
    counted = f"`apd check {experiment.data.name}` counts those of every image"
    uncounted = f"labels: {counted if experiment.task == 'segmentation' else 'not counted'}"
    for line in census.table() if census is not None else [uncounted]:
        tell(line)
    for sentence in sentences:
        tell(f"warning: {sentence}")
    return splits


def _network(
    experiment: Experiment,
    role: str,
    spec: DatasetSpec | InstanceSpec,
    device: torch.device,
    missing: list[str],
    tell: Callable[[str], object],
) -> nn.Module:
    """Student or teacher with the weights it starts from, or with random ones where those are missing."""
    config = experiment.network if role == "student" else experiment.teacher.network
    task, classes = task_of(experiment), spec.num_classes
    if isinstance(config, DetectorConfig):
        told = f"{role}: {config.kind} {config.backbone}, {config.width} channels, boxes' vectors of {config.box_width}"
    else:
        told = f"{role}: {config.backbone} {config.head}, {config.head_width} channels, stride {config.output_stride}"
    try:
        if role == "teacher" and experiment.teacher.weights_file:
            path = Path(experiment.teacher.weights_file)
            network = load_teacher(task, path, classes, device)
            score = "box AP" if experiment.task == "detection" else "mIoU"
            least = getattr(experiment.teacher, task.expected)
            told += f", weights of {path}; must reach {score} {least} before the first step"
        else:
            network = task.network(config, classes, device, experiment.seed, class_names=spec.class_names)
            told += ", trained first unless its run is finished" if role == "teacher" else ""
    except (ExperimentError, TeacherError) as error:
        missing.append(f"{role}: {error}")
        if isinstance(config, DetectorConfig):  # a frozen norm without its weights lets numbers grow beyond bounds
            config = replace(config, weights="none")
        network = task.network(config, classes, device, experiment.seed, weights_follow=True)
        told += ", weights MISSING"
    tell(told)
    return network.eval().requires_grad_(False) if role == "teacher" else network.train()


def _tell_cost(experiment: Experiment, cost: StepCost, tell: Callable[[str], object]) -> None:
    data, batch = experiment.data, experiment.training.batch_size
    detection = experiment.task == "detection"
    size = f"{data.height}x{data.width}" if detection else f"{data.crop_height}x{data.crop_width}"
    for role, network in (("student", cost.student), ("teacher", cost.teacher)):
        if network is not None:
            tell(f"{role}: {network.parameters / 1e6:.1f} M parameters, {network.macs / 1e9:.1f} GMAC at {size}")
    tell(f"a step: {cost.macs_per_image / 1e9:.1f} GMAC for an image, forward and backward")
    tell(
        f"memory, estimated in fp32: {_size(cost.fixed_bytes)} and {_size(cost.bytes_per_image)} for an image, and "
        "workspaces on top"
    )
    for ranks in (1, 2, 4):
        if batch % ranks == 0 and batch // ranks >= (1 if detection else 2):  # see SegmentationTask.least_part
            count = batch // ranks
            told = f"{_size(cost.memory_bytes(count))} for {f'{count} images' if count > 1 else 'an image'}"
            tell(f"  {told} in each of {ranks} processes" if ranks > 1 else f"  {told} in one process")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def measure_steps(
    experiment: Experiment, student: nn.Module, teacher: nn.Module | None, dataset: Any, steps: int, images: int
) -> Measured:
    """Time some steps of training on so many images each, or the largest half, quarter... that a GPU's memory holds.

    The networks are changed by them.
    """
    while True:
        try:
            return _measure(experiment, student, teacher, dataset, steps, images)
        except torch.OutOfMemoryError:
            if images < 4:
                raise
            images //= 2
            torch.cuda.empty_cache()


def _measure(
    experiment: Experiment, student: nn.Module, teacher: nn.Module | None, dataset: Any, steps: int, images: int
) -> Measured:
    device, longest = next(student.parameters()).device, max(experiment.training.iterations, steps + 1)
    # one process measures a step of its own: a batch as large as the device takes, in one part
    training = replace(experiment.training, batch_size=images, accumulation=1, iterations=longest)
    task = task_of(replace(experiment, training=training))
    batches = task.batches(dataset, start=0, ranks=ALONE, workers=0, device=device)
    train_step = TrainStep(task, student.train(), teacher)
    ignore = IGNORED if experiment.task == "detection" else dataset.spec.ignore_index
    times, seen = [], []
    for _ in range(steps + 1):
        start = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        train_step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((loaded - start, time.perf_counter() - loaded))
        labels = [t["labels"] for t in batch.targets] if isinstance(batch, InstanceBatch) else batch.labels_BHW
        classes = [set(part.unique().tolist()) - {ignore} for part in labels]
        seen.append((np.mean([len(each) for each in classes]), len(set().union(*classes))))
        if sum(times[0]) > PATIENCE:
            break
    timed = times[1:] or times  # the first one also allocates and chooses algorithms
    load, step = (float(np.median([pair[part] for pair in timed])) / images for part in (0, 1))
    return Measured(len(timed), images, load, step, tuple(np.mean(seen, axis=0).tolist()))


def _tell_time(
    experiment: Experiment,
    cost: StepCost,
    measured: Measured,
    spec: DatasetSpec | InstanceSpec,
    source: str,
    tell: Callable[[str], object],
) -> None:
    training = experiment.training
    tell(
        f"measured on {source}: {measured.steps} steps of {measured.images} images; an image takes "
        f"{measured.load_seconds:.3f} s to load and {measured.step_seconds:.3f} s to compute"
    )
    if source != "noise":
        in_one, in_all = measured.classes_seen
        seen = f"{in_one:.1f} in a {{0}}, {in_all:.1f} in {measured.images} {{0}}s, of {spec.num_classes}"
        tell(f"classes in sight: {seen.format('picture' if experiment.task == 'detection' else 'crop')}")
    images = training.iterations * training.batch_size
    seconds = images * (measured.load_seconds + measured.step_seconds)
    tell(f"time, in one process on this machine: {_duration(seconds)}, without scoring")
    if experiment.teacher is not None and not experiment.teacher.weights_file:
        own = experiment.teacher.training
        macs = teacher_step_cost(experiment, spec.num_classes).macs_per_image / cost.macs_per_image
        first = own.iterations * own.batch_size * (measured.load_seconds + measured.step_seconds * macs)
        tell(f"the teacher's training before it, by its share of multiply-accumulates: {_duration(first)}")
