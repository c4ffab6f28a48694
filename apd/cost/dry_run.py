"""A run that does not run: everything is built and checked, what is missing is named, and the cost is reported."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from apd.config.datasets import Splits, spec_of
from apd.config.experiment import Experiment, ExperimentError
from apd.config.identity import fingerprint
from apd.cost.count import StepCost, step_cost
from apd.data.batches import InstanceBatch
from apd.data.images import DataError
from apd.data.instances import IGNORED, InstanceSpec, Noise
from apd.data.specs import COCO_STUFF, UNLABELLED, DatasetSpec
from apd.training.distributed import ALONE, choose_device
from apd.training.run import in_steps, run_folder, task_of
from apd.training.task import TeacherError, described, load_teacher
from apd.training.trainer import TrainStep

CHECKED = 20  # images of each split that are read, spread evenly (own choice); the script of a data set checks all
PATIENCE = 20.0  # seconds; a machine whose first step takes longer is not asked for more of them
MACS_ON_A_CPU = 10**11  # a larger step is measured with two images there: nobody trains it on a CPU


class Measured(NamedTuple):
    """A few training steps on this machine: how many were timed, of how many images, and seconds for an image."""

    steps: int
    images: int  #: Fewer than the experiment's batch on a CPU, or where a GPU's memory does not hold it.
    load_seconds: float  #: Of reading and augmenting.
    step_seconds: float
    classes_seen: tuple[float, float]  #: Mean numbers of classes, in an image and in a step.


def dry_run(
    experiment: Experiment, *, device: str | None = None, steps: int = 3, tell: Callable[[str], object] = print
) -> list[str]:
    """Build and check all that a run needs, report what it will take, and return what is missing; nothing is written.

    Reported to `tell` are the data (:data:`CHECKED` images of each split are read), parameters, multiply-accumulates,
    memory, the number of steps, and time, from `steps` that are measured after one at the real crop: on
    noise where data are missing, with random weights where files of weights are. ExperimentError where `device`
    (default: cuda, else cpu) is not there, or a network cannot be built at all; DataError: epochs without the images.
    """
    run = _DryRun(in_steps(experiment), choose_device(device), tell)
    run.report(steps)
    for number, message in enumerate(run.missing, start=1):
        tell(f"missing {number} of {len(run.missing)}: {message}")
    return run.missing


class _DryRun:
    def __init__(self, experiment: Experiment, device: torch.device, tell: Callable[[str], object]) -> None:
        self.experiment, self.device, self.tell = experiment, device, tell
        self.task, self.detection = task_of(experiment), experiment.task == "detection"
        self.missing: list[str] = []

    def report(self, steps: int) -> None:
        experiment, training, images = self.experiment, self.experiment.training, self.experiment.training.batch_size
        self.tell(f"{experiment.name}, fingerprint {fingerprint(experiment)}, on {self.device}")
        if (record := run_folder(experiment) / "record.json").exists():
            self.tell(f"this run is finished: {record}")
        splits = self.splits()
        try:
            source = splits.train if splits is not None else _noise(experiment)
        except DataError:  # a folder without its dataset.yaml: nobody knows its classes
            return
        student = self.network("student", source.spec)
        teacher = self.network("teacher", source.spec) if experiment.teacher is not None else None
        cost = step_cost(experiment, source.spec.num_classes)
        self.tell_cost(cost)
        passes = f", {training.iterations * images / len(splits.train):.1f} times each training image" if splits else ""
        self.tell(f"iterations: {training.iterations} of {images} images{passes}")
        self.tell(f"optimiser: {described(training)}")
        if self.device.type == "cpu" and images * cost.macs_per_image > MACS_ON_A_CPU:
            images = 2
        measured = measure_steps(experiment, student, teacher, source, steps, images)
        self.tell_time(measured, cost, source.spec, on_noise=splits is None)

    def splits(self) -> Splits | None:
        """The data, if they are there and what is read of them is in order."""
        data = self.experiment.data
        try:
            splits = self.task.splits()
            for split in splits.by_name(data.evaluation_split).values():
                for index in sorted(set(np.linspace(0, len(split) - 1, min(CHECKED, len(split))).round().astype(int))):
                    split[int(index)]
            census = self.task.census(splits)
            warnings = census.warnings(data.folder) if census is not None else []
        except (DataError, ExperimentError) as error:  # the second where a library is missing
            self.missing.append(str(error))
            self.tell(f"data: {data.name}, NOT in order")
            return None
        named = f"{len(splits.train)} images to train, {len(splits.val)} of val"
        if splits.evaluation is not splits.val:
            named += f", {len(splits.evaluation)} of {data.evaluation_split}"
        self.tell(f"data: {data.name}, {named}; at most {CHECKED} of each were read and are in order")
        counted = "not counted" if self.detection else f"`apd check {data.name}` counts those of every image"
        table = census.table() if census is not None else [f"labels: {counted}"]
        for line in (*table, *(f"warning: {sentence}" for sentence in warnings)):
            self.tell(line)
        return splits

    def network(self, role: str, spec: DatasetSpec | InstanceSpec) -> nn.Module:
        """Student or teacher with the weights it starts from, or with random ones where those are missing."""
        experiment, task, classes = self.experiment, self.task, spec.num_classes
        config = experiment.network if role == "student" else experiment.teacher.network
        if self.detection:
            line = f"{config.kind} {config.backbone}, {config.width} channels, boxes' vectors of {config.box_width}"
        else:
            line = f"{config.backbone} {config.head}, {config.head_width} channels, stride {config.output_stride}"
            line = config.builder or line
        try:
            if role == "teacher" and (path := experiment.teacher.weights_file):
                network = load_teacher(task, Path(path), classes, self.device)
                least = f"{'box AP' if self.detection else 'mIoU'} {getattr(experiment.teacher, task.expected)}"
                line += f", weights of {path}; must reach {least} before the first step"
            else:
                network = task.network(config, classes, self.device, experiment.seed)
                line += ", trained first unless its run is finished" if role == "teacher" else ""
        except (ExperimentError, TeacherError) as error:
            self.missing.append(f"{role}: {error}")
            if self.detection:  # a frozen norm without its weights lets numbers grow beyond bounds
                config = replace(config, weights="none")
            network = task.network(config, classes, self.device, experiment.seed, weights_follow=True)
            line += ", weights MISSING"
        self.tell(f"{role}: {line}")
        return network.eval().requires_grad_(False) if role == "teacher" else network.train()

    def tell_cost(self, cost: StepCost) -> None:
        data, batch = self.experiment.data, self.experiment.training.batch_size
        size = f"{data.height}x{data.width}" if self.detection else f"{data.crop_height}x{data.crop_width}"
        for role, network in (("student", cost.student), ("teacher", cost.teacher)):
            if network is not None:
                counts = f"{network.parameters / 1e6:.1f} M parameters, {network.macs / 1e9:.1f} GMAC at {size}"
                self.tell(f"{role}: {counts}")
        self.tell(f"a step: {cost.macs_per_image / 1e9:.1f} GMAC for an image, forward and backward")
        fixed, image = _size(cost.fixed_bytes), _size(cost.bytes_per_image)
        less = " (less with gradient checkpointing)" if self.experiment.training.gradient_checkpointing else ""
        self.tell(f"memory, estimated in fp32{less}: {fixed} and {image} for an image, and workspaces on top")
        parts = self.experiment.training.accumulation
        for ranks in (1, 2, 4):
            count, rest = divmod(batch, ranks * parts)
            if not rest and count >= (1 if self.detection else 2):  # as a run asks for
                where = f"in each of {ranks} processes" if ranks > 1 else "in one process"
                where += f", {parts} times a step" if parts > 1 else ""
                self.tell(f"  {_size(cost.memory_bytes(count))} for {count} image{'s' * (count > 1)} {where}")

    def tell_time(
        self, measured: Measured, cost: StepCost, spec: DatasetSpec | InstanceSpec, *, on_noise: bool
    ) -> None:
        training, teacher = self.experiment.training, self.experiment.teacher
        of_an_image = f"{measured.load_seconds:.3f} s to load and {measured.step_seconds:.3f} s to compute"
        steps = f"{measured.steps} steps of {measured.images} images"
        self.tell(f"measured on {'noise' if on_noise else 'the data'}: {steps}; an image takes {of_an_image}")
        if not on_noise:
            (in_one, in_all), kind = measured.classes_seen, "image" if self.detection else "crop"
            seen = f"{in_one:.1f} in one {kind}, {in_all:.1f} in {measured.images} {kind}s, of {spec.num_classes}"
            self.tell(f"classes in sight: {seen}")
        seconds = training.iterations * training.batch_size * (measured.load_seconds + measured.step_seconds)
        self.tell(f"time, in one process on this machine: {_duration(seconds)}, without scoring")
        if teacher is not None and not teacher.weights_file:
            alone = step_cost(self.experiment.teacher_experiment(), spec.num_classes)
            an_image = measured.load_seconds + measured.step_seconds * alone.macs_per_image / cost.macs_per_image
            seconds = teacher.training.iterations * teacher.training.batch_size * an_image
            self.tell(f"the teacher's training before it, by its share of multiply-accumulates: {_duration(seconds)}")


def _noise(experiment: Experiment) -> Noise:
    """An image in the place of absent data, with their classes; of an absent COCO folder, those of COCO itself."""
    data = experiment.data
    if experiment.task == "segmentation":
        return Noise(spec_of(data), (data.crop_height, data.crop_width))
    return Noise(InstanceSpec("coco", COCO_STUFF.thing_names), (data.height, data.width), masks=data.masks)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def measure_steps(
    experiment: Experiment, student: nn.Module, teacher: nn.Module | None, dataset: Any, steps: int, images: int
) -> Measured:
    """Time steps of training on so many images each, or the largest half, quarter... that a GPU's memory holds."""
    while images >= 4:
        with contextlib.suppress(torch.OutOfMemoryError):
            return _measure(experiment, student, teacher, dataset, steps, images)
        images //= 2
        torch.cuda.empty_cache()
    return _measure(experiment, student, teacher, dataset, steps, images)


def _measure(
    experiment: Experiment, student: nn.Module, teacher: nn.Module | None, dataset: Any, steps: int, images: int
) -> Measured:
    device, longest = next(student.parameters()).device, max(experiment.training.iterations, steps + 1)
    # one process measures a step of its own: a batch as large as the device takes, in one part
    training = replace(experiment.training, batch_size=images, accumulation=1, iterations=longest)
    task = task_of(replace(experiment, training=training))
    batches = task.batches(dataset, start=0, ranks=ALONE, workers=0, device=device)
    train_step = TrainStep(task, student.train(), teacher)
    ignored = {IGNORED} if experiment.task == "detection" else {dataset.spec.ignore_index, UNLABELLED}
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
        classes = [found - ignored for part in labels if UNLABELLED not in (found := set(part.unique().tolist()))]
        classes = classes or [set()]  # those of images without labels are the teacher's to say
        seen.append((np.mean([len(each) for each in classes]), len(set().union(*classes))))
        if sum(times[0]) > PATIENCE:
            break
    timed = times[1:] or times  # the first one also allocates and chooses algorithms
    load, step = (float(np.median([pair[part] for pair in timed])) / images for part in (0, 1))
    return Measured(len(timed), images, load, step, tuple(np.mean(seen, axis=0).tolist()))
