"""From an experiment's fields to objects: data sets, networks, distillers, optimisers."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from apd.config.detection import DetectorConfig, InstanceDataConfig
from apd.config.experiment import DataConfig, Experiment, ExperimentError, NetworkConfig, TrainingConfig
from apd.data.augment import Augmentation
from apd.data.converted import ConvertedDataset
from apd.data.dataset_yaml import folder_spec, open_folder
from apd.data.image_folder import CamVid, find_data
from apd.data.instances import InstanceDataset
from apd.data.labelmefacade import LABELMEFACADE, LabelMeFacade
from apd.data.long_side import LongSide
from apd.data.published_specs import ADE20K, CITYSCAPES, COCO_STUFF, PASCAL_CONTEXT_59, PASCAL_CONTEXT_60
from apd.data.scenes import Scenes
from apd.data.specs import CAMVID, SCENES, DatasetSpec, SegmentationDataset
from apd.distillers.configs import APDConfig, DistillerConfig
from apd.distillers.detection_configs import DenseAPDConfig, DetectionDistillerConfig, RoIAPDConfig
from apd.models.segmenter import Segmenter, build_segmenter
from apd.training.distributed import Ranks, of_every_rank, own_gpu

_PUBLISHED = {spec.name: spec for spec in (CITYSCAPES, ADE20K, PASCAL_CONTEXT_59, PASCAL_CONTEXT_60, COCO_STUFF)}


class Splits(NamedTuple):
    """The data sets of one run. `evaluation` is the experiment's split; `others` are further test splits, by name."""

    train: SegmentationDataset | InstanceDataset
    val: SegmentationDataset | InstanceDataset
    evaluation: SegmentationDataset | InstanceDataset
    others: Mapping[str, SegmentationDataset] = MappingProxyType({})


def choose_device(name: str | None = None) -> torch.device:
    """The torch device of that name; without a name cuda where there is one, else cpu.

    Of several ranks, each takes the GPU of its own number where none is named.

    Raises:
        ExperimentError: there is no such device here.
    """
    if not name:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = own_gpu()
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # a device that torch knows may still not be in this machine
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ExperimentError(f"device = {name!r}: expected cpu, or cuda where there is a GPU ({reason})") from error
    return device


def require_equal_parts(training: TrainingConfig, ranks: Ranks, least: int) -> None:
    """Refuse a batch that cannot be divided evenly over ranks and the steps of an accumulation.

    Args:
        training: whose batch and accumulation are divided.
        ranks: the processes that share a batch.
        least: images that a part must have for batch norm to train on.

    Raises:
        ExperimentError: it cannot, or a part is too small for batch norm to train on.
    """
    parts = ranks.size * training.accumulation
    if training.batch_size % parts or training.batch_size < least * parts:
        raise of_every_rank(
            ExperimentError(
                f"TrainingConfig.batch_size = {training.batch_size}: expected a multiple of ranks x accumulation = "
                f"{ranks.size} x {training.accumulation} = {parts}, and {least} or more images in each part"
            )
        )


def _require_segmentation(config: object) -> None:
    """What knows of segmentation only refuses the parts of a detection experiment, instead of stumbling over them."""
    if isinstance(config, InstanceDataConfig | DetectorConfig):
        raise ExperimentError(
            f"{type(config).__name__} belongs to detection, and what was asked for is there for segmentation only: "
            "apd.training.tasks.task_of(experiment) gives data and networks of both tasks"
        )


def build_split(data: DataConfig, split: str) -> SegmentationDataset:
    """One split of the experiment's data; missing or damaged data raises a DataError that says what to do.

    `long_side` is for evaluation: the training split keeps the size of `height` and `width`.
    """
    _require_segmentation(data)
    if data.name == "scenes":
        count = data.train_images if split == "train" else data.evaluation_images
        return Scenes(
            count, height=data.height, width=data.width, context_shift=data.context_shift, seed=data.world, split=split
        )
    size = {"height": data.height or None, "width": data.width or None}
    dataset: SegmentationDataset
    if data.name == "camvid":
        dataset = CamVid(find_data("CamVid"), split, **size)
    elif data.name == "labelmefacade":
        dataset = LabelMeFacade(split, **size)
    elif data.name == "folder":
        dataset = open_folder(data.folder, split, **size)
    else:
        spec = _PUBLISHED[data.name]
        if split not in dict(spec.splits):
            raise ExperimentError(f"split = {split!r}: the labels of {spec.name}'s {split} are not public, so use val")
        dataset = ConvertedDataset(spec, split, **size)
    return LongSide(dataset, data.long_side) if data.long_side and split != "train" else dataset


def spec_of(data: DataConfig) -> DatasetSpec:
    """Names and colours of the experiment's classes, without touching pictures (a folder's dataset.yaml is read)."""
    _require_segmentation(data)
    if data.name == "folder":
        return folder_spec(data.folder)
    return {"camvid": CAMVID, "labelmefacade": LABELMEFACADE, "scenes": SCENES, **_PUBLISHED}[data.name]


def build_splits(data: DataConfig) -> Splits:
    """Training, validation and evaluation data; the last two are one object when they are one split."""
    val = build_split(data, "val")
    evaluation = val if data.evaluation_split == "val" else build_split(data, data.evaluation_split)
    others = {split: build_split(data, split) for split in data.other_splits}
    return Splits(build_split(data, "train"), val, evaluation, others)


def build_augmentation(data: DataConfig) -> Augmentation:
    """How training images are varied."""
    return Augmentation(
        crop=(data.crop_height, data.crop_width),
        scale=(data.scale_min, data.scale_max),
        flip=data.flip,
        colour=data.jitter,
        rotation=data.rotation,
        blur=data.blur,
    )


def build_network(
    network: NetworkConfig, num_classes: int, device: torch.device, seed: int, *, weights_follow: bool = False
) -> Segmenter:
    """A network whose initial weights depend on the seed alone; the global random state is left as it was.

    With `weights_follow` the caller loads a full state dict next, so ImageNet weights are not asked for: a trained
    network can be read on a machine that does not have them.
    """
    _require_segmentation(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = build_segmenter(
                network.backbone,
                num_classes,
                head=network.head,
                head_width=network.head_width,
                output_stride=network.output_stride,
                weights="none" if weights_follow else network.weights,
                dropout=network.dropout,
                dilation=network.dilation,
                aspp_reach=network.aspp_reach,
                weights_file="" if weights_follow else network.weights_file,
            )
        except (ValueError, RuntimeError) as error:
            raise ExperimentError(f"this network cannot be built: {error}") from error
    return model.to(device, memory_format=torch.channels_last)


def build_optimisers(
    experiment: Experiment,
    student: tuple[list[nn.Parameter], list[nn.Parameter]],
    distillers: Iterable[tuple[DistillerConfig | DetectionDistillerConfig, nn.Module]],
) -> dict[str, torch.optim.Optimizer]:
    """The student's SGD or AdamW, and Adam for the teacher's projection head when there is one.

    A parameter group that follows a schedule carries `base_rate`; that of a teacher's head does only where the
    experiment says so, and else keeps its rate (released code). `student` are the parameters of its backbone, and the
    rest, which learn `head_multiplier` times as fast.
    """
    training: TrainingConfig = experiment.training
    backbone_parameters, head_parameters = map(list, student)
    teacher_groups = []
    for config, module in distillers:
        head_parameters += list(module.student_parameters())
        if parameters := list(module.teacher_parameters()):
            assert isinstance(config, APDConfig | RoIAPDConfig | DenseAPDConfig)
            group = {"params": parameters, "lr": config.teacher_head_rate}
            if config.teacher_head_schedule == "poly":
                group["base_rate"] = config.teacher_head_rate
            teacher_groups.append(group)
    head_rate = training.learning_rate * training.head_multiplier
    groups = [
        {"params": backbone_parameters, "base_rate": training.learning_rate},
        {"params": head_parameters, "base_rate": head_rate},
    ]
    # fused None leaves the choice to torch, which does not take the fused one
    common = {"lr": training.learning_rate, "weight_decay": training.weight_decay, "fused": training.fused or None}
    optimisers: dict[str, torch.optim.Optimizer] = {
        "student": torch.optim.AdamW(groups, **common)
        if training.optimiser == "adamw"
        else torch.optim.SGD(groups, momentum=training.momentum, **common)
    }
    if teacher_groups:
        optimisers["teacher_heads"] = torch.optim.Adam(teacher_groups, betas=(0.9, 0.99), fused=training.fused or None)
    return optimisers


# How learning rates move over a training: a factor for each step, and the rates that follow it.


def poly_factor(training: TrainingConfig, step: int) -> float:
    """(1 − step/iterations)^power: from 1 before the first step to 0 after the last."""
    return (1 - step / training.iterations) ** training.power


def steps_factor(training: TrainingConfig, step: int) -> float:
    """A tenth for every milestone that is reached: a rate falls at the step whose number the milestone is."""
    return 0.1 ** sum(milestone <= step for milestone in training.milestones)


def warmup_factor(training: TrainingConfig, step: int) -> float:
    """(step + 1)/warmup, at most 1: the first step already moves the weights, and the last of the warm-up fully."""
    return min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0


def rate_factor(training: TrainingConfig, step: int) -> float:
    """What a rate of the student is multiplied by in a step: its schedule times its warm-up.

    Args:
        training: the schedule.
        step: steps done before, from 0 to iterations − 1.

    Example:
        >>> training = TrainingConfig(iterations=90, schedule="steps", milestones=(60, 80), warmup=10)
        >>> [round(rate_factor(training, step), 6) for step in (0, 4, 9, 59, 60, 80)]
        [0.1, 0.5, 1.0, 1.0, 0.1, 0.01]
    """
    scheduled = poly_factor(training, step) if training.schedule == "poly" else steps_factor(training, step)
    return scheduled * warmup_factor(training, step)


def set_rates(optimisers: dict[str, torch.optim.Optimizer], training: TrainingConfig, step: int) -> None:
    """Give each parameter group that has a `base_rate` its rate for a step.

    Args:
        optimisers: by name: "student" follows :func:`rate_factor`; a teacher's head that follows anything follows
            :func:`poly_factor`, whatever the student does.
        training: the student's schedule.
        step: steps done before.
    """
    for name, optimiser in optimisers.items():
        factor = rate_factor(training, step) if name == "student" else poly_factor(training, step)
        for group in optimiser.param_groups:
            if "base_rate" in group:
                group["lr"] = group["base_rate"] * factor


def described(training: TrainingConfig) -> str:
    """Optimiser and schedule in words.

    Example:
        >>> described(TrainingConfig(warmup=100))
        'sgd, rate 0.01 and 0.1 for heads, poly with power 0.9, rising over the first 100 steps'
    """
    heads = training.learning_rate * training.head_multiplier
    told = f"{training.optimiser}, rate {training.learning_rate:g} and {heads:g} for heads, "
    if training.schedule == "poly":
        told += f"poly with power {training.power:g}"
    else:
        told += f"falling to a tenth at {', '.join(map(str, training.milestones))}"
    return told + (f", rising over the first {training.warmup} steps" if training.warmup else "")
