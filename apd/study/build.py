"""From an experiment's fields to objects: data sets, networks, distillers, optimisers."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from apd.data.catalogue import CAMVID, SCENES, DatasetSpec
from apd.data.converted import ConvertedDataset
from apd.data.folder import CamVid, find_data
from apd.data.instances import InstanceDataset
from apd.data.labelmefacade import LABELMEFACADE, LabelMeFacade
from apd.data.long_side import LongSide
from apd.data.own_folder import folder_spec, open_folder
from apd.data.published_sets import ADE20K, CITYSCAPES, COCO_STUFF, PASCAL_CONTEXT_59, PASCAL_CONTEXT_60
from apd.data.sample import SegmentationDataset
from apd.data.scenes import Scenes
from apd.data.transforms import Augmentation
from apd.models.segmenter import Segmenter, build_segmenter
from apd.study.detection_config import DetectorConfig, InstanceDataConfig
from apd.study.detection_distiller_configs import DenseAPDConfig, DetectionDistillerConfig, RoIAPDConfig
from apd.study.distiller_configs import APDConfig, DistillerConfig
from apd.study.experiment import DataConfig, Experiment, ExperimentError, NetworkConfig, TrainingConfig
from apd.study.ranks import Ranks, of_every_rank, own_gpu

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
            "apd.study.tasks.task_of(experiment) gives data and networks of both tasks"
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
