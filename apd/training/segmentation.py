"""Semantic segmentation as the task of a run: its data, its networks, its loss and its scores."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from apd.config.datasets import Splits, build_split, build_splits, require_segmentation, spec_of
from apd.config.experiment import Experiment, NetworkConfig
from apd.config.inference_options import InferenceOptions, require_split_sides
from apd.data.augment import Augmentation
from apd.data.batches import Batch, DeviceStream, on_device
from apd.data.census import Census, census_of, require_labels
from apd.data.dataset_yaml import unlabelled_images
from apd.data.images import DataWarning
from apd.data.specs import UNLABELLED, SegmentationDataset
from apd.evaluation.inference import agreement_of, confusion_of, resolve_precision, scores
from apd.fields import ExperimentError, imported, require
from apd.losses import task_loss, upsample, valid_weight
from apd.models.checkpoints import load_weights
from apd.models.custom_network import CustomSegmenter, build_custom
from apd.models.segmenter import Segmenter, SegOutput, build_segmenter
from apd.normalizers import global_count
from apd.training.distributed import Ranks
from apd.training.task import RunTask, recomputing
from apd.validation import values_unchecked, without_infinities


def build_network(
    network: NetworkConfig, num_classes: int, device: torch.device, seed: int, *, weights_follow: bool = False
) -> Segmenter | CustomSegmenter:
    """A network whose initial weights depend on the seed alone; with `weights_follow` the caller loads others."""
    require_segmentation(network)
    return SegmentationTask(Experiment()).network(network, num_classes, device, seed, weights_follow=weights_follow)


def distilled_of(student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
    """The keywords of a distiller's call."""
    networks = {"student": student, "teacher": teacher}.items()
    maps = {f"{who}_{what}": getattr(seen, what) for who, seen in networks for what in ("features", "logits")}
    return maps | {"labels": labels}


def auxiliary_logits(output: SegOutput) -> tuple[Tensor, ...]:
    """Those of the auxiliary head, or of each."""
    return (output.aux,) if isinstance(output.aux, Tensor) else output.aux or ()


def balanced_weights(counts_K: list[int]) -> list[float]:
    """Weight N / (K n) of a class with n of N pixels, where K classes occur (scikit-learn's "balanced"); 0 of none.

    >>> balanced_weights([300, 100, 0])
    [0.6666666666666666, 2.0, 0.0]
    """
    occurring = sum(count > 0 for count in counts_K)
    return [sum(counts_K) / (occurring * count) if count else 0.0 for count in counts_K]


def scaled_weights(weights_K: list[float], device: torch.device) -> Tensor:
    """The weights over the smallest above 0, so that those of any pixels sum to at least 1, or to 0: means stay."""
    weights = torch.tensor(weights_K, dtype=torch.float64)
    return (weights / weights[weights > 0].min()).float().to(device)


def added_loss(kind: str, logits_BKhw: Tensor, labels_BHW: Tensor, ignore_index: int) -> Tensor:
    """The loss "focal", "dice" or "lovasz" of segmentation-models-pytorch; a connected zero when no pixel is valid.

    Dice and Lovász are not means over pixels: of a batch in parts (ranks, micro-batches) each part computes its own,
    weighted by its share of the valid pixels.
    """
    losses, logits_BKHW = loss_library(), upsample(logits_BKhw.float(), labels_BHW.shape[1:])
    valid = valid_weight(labels_BHW, ignore_index)
    options = {"mode": "multiclass", "ignore_index": ignore_index}
    if kind == "focal":
        return losses.FocalLoss(**options, reduction="sum")(logits_BKHW, labels_BHW) / global_count(valid)
    loss = (losses.DiceLoss if kind == "dice" else losses.LovaszLoss)(**options)(logits_BKHW, labels_BHW)
    return loss.sum() * (valid / global_count(valid))  # Lovász of no pixel is an empty tensor


def loss_library() -> Any:
    """The losses of segmentation-models-pytorch; ExperimentError without the package."""
    return imported("segmentation_models_pytorch", "training.added_loss", "losses", ExperimentError).losses


class SegmentationTask(RunTask):
    """Semantic segmentation, scored by a confusion matrix."""

    expected, kind = "expected_miou", "network"
    train_split: SegmentationDataset | None = None  # whose labels class weights are balanced by
    known_census: Census | None = None

    @cached_property
    def ignore_index(self) -> int:
        """The label of pixels that count for nothing."""
        return spec_of(self.experiment.data).ignore_index

    def split(self, name: str, *, unlabelled: bool = False) -> SegmentationDataset:
        """The split "train" (its labelled images, or all), "val" or "test". DataError: it is missing or damaged."""
        return build_split(replace(self.experiment.data, unlabelled=unlabelled), name)

    def splits(self) -> Splits:
        """All that a run needs. DataError where they are missing or damaged."""
        data, splits = self.experiment.data, build_splits(self.experiment.data)
        require_split_sides(data, splits.val)
        require_split_sides(data, splits.evaluation, self.experiment.inference)
        require_labels(splits.by_name(data.evaluation_split))
        training, classes = self.experiment.training, splits.train.spec.num_classes
        if training.added_loss != "none":
            loss_library()
        right = isinstance(training.class_weights, str) or len(training.class_weights) == classes
        require(right, training, "class_weights", f"{classes} numbers, one for each class of the data")
        unused = data.name == "folder" and not data.unlabelled and self.experiment.distillers
        if unused and (left := unlabelled_images(data.folder)):
            note = f"{len(left)} images without labels are left out: --data.unlabelled trains on them as well"
            warnings.warn(note, DataWarning, stacklevel=2)
        self.train_split = splits.train
        return splits

    def census(self, splits: Splits) -> Census | None:
        """Counts of the labels of a folder of the user's own; others checked published sets and scenes."""
        data = self.experiment.data
        self.known_census = census_of(splits.by_name(data.evaluation_split)) if data.name == "folder" else None
        return self.known_census

    def class_weights(self) -> list[float] | None:
        """The weights that the experiment asks for; balanced ones by the training labels, which are counted once."""
        asked, train = self.experiment.training.class_weights, self.train_split
        if asked == "none" or train is None:  # a dry run's steps are of that cost with any weights
            return None
        if asked != "balanced":
            return list(asked)
        counts = (self.known_census or census_of({"train": train})).counts["train"]
        return balanced_weights(counts[:-1].tolist())

    def _supply(self, workers: int, device: torch.device) -> dict[str, Any]:
        data, there = self.experiment.data, self.experiment.training.device_augmentation
        how = {"stream": partial(DeviceStream, device=device)} if there else {"workers": workers}
        crop, scale = (data.crop_height, data.crop_width), (data.scale_min, data.scale_max)
        more = dict(flip=data.flip, colour=data.jitter, rotation=data.rotation, blur=data.blur)
        return {**how, "augmentation": Augmentation(crop, scale, **more)}

    def precision(self, device: torch.device) -> str:
        """What the experiment asks for; auto is bf16 where the device multiplies it natively."""
        return resolve_precision(device, self.experiment.precision)

    @staticmethod
    def _build(network: NetworkConfig, num_classes: int, weights_follow: bool) -> Segmenter | CustomSegmenter:
        options = asdict(network) | ({"weights": "none", "weights_file": ""} if weights_follow else {})
        paths, builder = options.pop("auxiliary"), options.pop("builder")
        custom = {name: options.pop(name) for name in ("features", "logits", "builder_sha256")}
        if not network.builder:
            return build_segmenter(num_classes=num_classes, **options)
        model = build_custom(builder, num_classes, *paths, **custom)
        if options["weights_file"]:
            load_weights(model, options["weights_file"])
        return model

    def parameter_groups(self, network: Segmenter) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters of the backbone, and those of heads and classifier."""
        return list(network.backbone_parameters()), list(network.head_parameters())

    def prepare(self, student: Segmenter, teacher: Segmenter | None) -> None:
        """As :class:`RunTask`; evaluation, whose sizes vary, calls the networks uncompiled."""
        super().prepare(student, teacher)
        training, device = self.experiment.training, next(student.parameters()).device
        if isinstance(student, CustomSegmenter):
            student.open_taps()
        elif not training.auxiliary_weight:  # a parameter that waits for a gradient and gets none stalls several ranks
            student.aux_head.requires_grad_(False)
        self.used_weights = self.class_weights()
        self._weights_K = self.used_weights and scaled_weights(self.used_weights, device)
        bf16 = self.precision(device) == "bf16"
        self._autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
        # bound methods, since a module would become a part of this one
        called = [torch.compile(n.forward) if training.compile else n.__call__ for n in (student, teacher) if n]
        self._student, self._teacher = called[0], called[1] if teacher else None
        self._shapes: dict[torch.Size, tuple[torch.Size, torch.Size]] = {}  # of one image's logits and features

    def micro_batches(self, batch: Batch, device: torch.device) -> list[Batch]:
        """The parts of an accumulation, on the device."""
        training = self.experiment.training
        images, labels = on_device(batch, device, pinned=training.pinned_memory)
        images = images.to(memory_format=torch.channels_last if training.channels_last else torch.contiguous_format)
        parts = (values.chunk(training.accumulation) for values in (images, labels))
        return [Batch(*pair) for pair in zip(*parts, strict=True)]

    @torch.no_grad()
    def teacher_outputs(self, batch: Batch) -> SegOutput | None:
        """The teacher's output, where there is something to distil."""
        with self._autocast():
            return self._teacher(batch.images_B3HW) if self._teacher is not None and self.distillers else None

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor, teacher: SegOutput | None) -> dict[str, Tensor]:
        """The unweighted terms by name, and "loss", their weighted sum. `teacher`: its output for the images."""
        with self._autocast(), recomputing(self.blocks) if self.blocks else nullcontext():
            student: SegOutput = self._student(images_B3HW)
        labels_BHW, distilled_BHW = self._labels(labels_BHW, teacher)
        training, seen = self.experiment.training, (labels_BHW, self.ignore_index)
        how = self._weights_K, training.label_smoothing
        logits_BKHW = upsample(student.logits.float(), labels_BHW.shape[1:])
        loss = task_loss(logits_BKHW, *seen, *how)
        terms, kind = {"task": loss}, training.added_loss
        if kind != "none":
            terms[kind] = added_loss(kind, logits_BKHW, *seen)
            loss = loss + training.added_loss_weight * terms[kind]
        for number, logits in enumerate(auxiliary_logits(student) if training.auxiliary_weight else ()):
            name = f"auxiliary_{number}" if isinstance(student.aux, tuple) else "auxiliary"
            terms[name] = task_loss(logits, *seen, *how)
            loss = loss + training.auxiliary_weight * terms[name]
        for name, of_one in self._distil(student, teacher, distilled_BHW).items():
            loss = loss + of_one.pop("loss")
            terms |= {f"{name}.{term}": value for term, value in of_one.items()}
        return terms | {"loss": loss}

    @torch.no_grad()
    def _labels(self, labels_BHW: Tensor, teacher: SegOutput | None) -> tuple[Tensor, Tensor]:
        """For the task loss and for the distillers: in images without labels ignored, and the teacher's predictions."""
        if not self.experiment.data.unlabelled:
            return labels_BHW, labels_BHW
        without_BHW = labels_BHW == UNLABELLED
        predicted_BHW = upsample(without_infinities(teacher.logits.float()), labels_BHW.shape[1:]).argmax(1)
        return labels_BHW.masked_fill(without_BHW, self.ignore_index), predicted_BHW.where(without_BHW, labels_BHW)

    def _distil(self, *seen: Any) -> dict[str, dict[str, Tensor]]:
        given = distilled_of(*seen) if self.distillers else {}
        return {name: distiller(**given) for name, distiller in self.distillers.items()}

    @torch.no_grad()
    def count(self, images_B3HW: Tensor, labels_BHW: Tensor, teacher: SegOutput | None) -> None:
        """Ask for the divisors that `forward` will ask for, in its order; zeros stand for the student's output."""
        labels_BHW, distilled_BHW = self._labels(labels_BHW, teacher)
        training, labels, student = self.experiment.training, (labels_BHW, self.ignore_index), self.student
        weights = valid_weight(*labels, self._weights_K)
        added = [] if training.added_loss == "none" else [valid_weight(*labels)]
        heads = len(student.paths) - 2 if isinstance(student, CustomSegmenter) else 1
        for count in (weights, *added, *[weights] * (heads if training.auxiliary_weight else 0)):
            global_count(count)
        if not self.distillers:
            return
        modes = [(module, module.training) for module in self.modules()]  # a part may be kept in eval mode
        self.eval()  # no memory is written, no batch statistics move
        size = images_B3HW.shape[2:]
        if size not in self._shapes:
            output: SegOutput = self.student(images_B3HW[:1])
            self._shapes[size] = output.logits.shape[1:], output.features.shape[1:]
        nothing = images_B3HW.new_zeros(1)
        logits, features = (nothing.expand(len(images_B3HW), *shape) for shape in self._shapes[size])
        with values_unchecked():  # what is read of the first maps is read of the student's own
            self._distil(SegOutput(logits, features, None), teacher, distilled_BHW)
        for module, training in modes:
            module.training = training

    def evaluate(
        self, network: nn.Module, dataset: SegmentationDataset, inference: InferenceOptions, ranks: Ranks
    ) -> dict[str, Any]:
        """The confusion matrix as `confusion`."""
        precision = self.experiment.precision
        matrix_KK = confusion_of(network, ranks.part(dataset), precision=precision, inference=inference)
        return {"confusion": ranks.total(matrix_KK).tolist()}

    def compare(
        self, student: nn.Module, teacher: nn.Module, dataset: SegmentationDataset, ranks: Ranks
    ) -> dict[str, Any]:
        """Counts of the teacher's and the student's classes as `agreement`."""
        how = dict(precision=self.experiment.precision, inference=self.experiment.inference)
        return {"agreement": ranks.total(agreement_of(student, teacher, ranks.part(dataset), **how)).tolist()}

    def headline(self, fact: Mapping[str, Any]) -> tuple[str, float]:
        """The mIoU."""
        return "mIoU", scores(torch.tensor(fact["confusion"])).miou
