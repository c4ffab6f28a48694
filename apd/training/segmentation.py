"""What a segmentation network is trained by: its task's loss and the distillers' terms, from a batch to one number."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.config.experiment import Experiment, NetworkConfig
from apd.config.image_sizes import require_split_sides
from apd.config.inference import Inference
from apd.data.batches import Batch, training_batches
from apd.data.census import Census, census_of
from apd.data.device_batches import device_batches
from apd.data.specs import DatasetSpec, SegmentationDataset
from apd.distillers.build import build_distiller
from apd.distillers.configs import DistillerConfig
from apd.evaluation.inference import agreement_of, autocast, confusion_of, resolve_precision
from apd.evaluation.metrics import scores
from apd.models.segmenter import Segmenter, SegOutput
from apd.normalizers import divisor
from apd.training.build import Splits, build_augmentation, build_network, build_split, build_splits, spec_of
from apd.training.distributed import Ranks


def task_loss(logits_BKhw: Tensor, labels_BHW: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy over valid pixels after upsampling; a connected zero when no pixel is valid."""
    logits_BKHW = F.interpolate(logits_BKhw.float(), labels_BHW.shape[-2:], mode="bilinear", align_corners=True)
    total = F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=ignore_index, reduction="sum")
    return total / divisor((labels_BHW != ignore_index).sum())


class SegmentationObjective(nn.Module):
    """Student and distillers as one module whose forward gives the loss.

    So DistributedDataParallel finds every parameter of a step in one forward pass; the teacher has none and stays out.

    Args:
        experiment: its weights and switches.
        student, distillers: the networks with parameters.
        teacher: in eval mode and without gradients, or None.
        ignore_index: label of pixels not to count.
        precision: "fp32" or "bf16", of both networks' forward passes.
    """

    def __init__(
        self,
        experiment: Experiment,
        student: Segmenter,
        teacher: Segmenter | None,
        distillers: nn.ModuleDict,
        ignore_index: int,
        precision: str,
    ) -> None:
        super().__init__()
        self.student, self.distillers = student, distillers
        self.training_config, self.ignore_index, self.precision = experiment.training, ignore_index, precision
        self.auxiliary_weight = experiment.training.auxiliary_weight
        if not self.auxiliary_weight:  # a parameter that waits for a gradient and gets none stalls several ranks
            student.aux_head.requires_grad_(False)
        compiled = experiment.training.compile
        self._student = called(student, compiled=compiled)
        # the bound method: a module would become a part of this one
        self._teacher = None if teacher is None else called(teacher, compiled=compiled).__call__
        self._shapes: dict[torch.Size, tuple[torch.Size, torch.Size]] = {}  # of one picture's logits and features

    def parts(self, batch: Batch, device: torch.device) -> list[Batch]:
        """The steps of the accumulation, on the device."""
        training = self.training_config
        if training.pinned_memory and device.type == "cuda" and not batch.images_B3HW.is_cuda:
            batch = batch.pinned()
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        images = batch.images_B3HW.to(device, memory_format=layout, non_blocking=True)
        labels = batch.labels_BHW.to(device, non_blocking=True)
        steps = training.accumulation
        return [Batch(*pair) for pair in zip(images.chunk(steps), labels.chunk(steps), strict=True)]

    @torch.no_grad()
    def taught(self, batch: Batch) -> SegOutput | None:
        """The teacher's output, where there is something to distil."""
        with autocast(batch.images_B3HW.device, self.precision):
            return self._teacher(batch.images_B3HW) if self._teacher is not None and self.distillers else None

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor, teacher: SegOutput | None) -> dict[str, Tensor]:
        """The unweighted terms by name, and "loss", their weighted sum. `teacher`: its output for the images."""
        with autocast(images_B3HW.device, self.precision):
            student: SegOutput = self._student(images_B3HW)
        terms = {"task": task_loss(student.logits, labels_BHW, self.ignore_index)}
        loss = terms["task"]
        if student.aux is not None and self.auxiliary_weight:
            terms["auxiliary"] = task_loss(student.aux, labels_BHW, self.ignore_index)
            loss = loss + self.auxiliary_weight * terms["auxiliary"]
        for name, distilled in self._distil(student, teacher, labels_BHW).items():
            loss = loss + distilled["loss"]
            terms |= {f"{name}.{term}": value for term, value in distilled.items() if term != "loss"}
        return terms | {"loss": loss}

    def _distil(self, student: SegOutput, teacher: SegOutput | None, labels: Tensor) -> dict[str, dict[str, Tensor]]:
        return {
            name: distiller(
                student_features=student.features,
                teacher_features=cast(SegOutput, teacher).features,
                student_logits=student.logits,
                teacher_logits=cast(SegOutput, teacher).logits,
                labels=labels,
            )
            for name, distiller in self.distillers.items()
        }

    @torch.no_grad()
    def count(self, images_B3HW: Tensor, labels_BHW: Tensor, teacher: SegOutput | None) -> None:
        """Ask for the divisors that `forward` will ask for, in its order, without the student.

        Labels and the teacher decide what the distillers count, so zeros of the right shapes stand for the student.
        """
        for _ in range(2 if self.auxiliary_weight else 1):
            divisor((labels_BHW != self.ignore_index).sum())
        if not self.distillers:
            return
        modes = [(module, module.training) for module in self.modules()]
        self.eval()  # no memory is written, no batch statistics move
        picture = images_B3HW.shape[2:]
        if picture not in self._shapes:
            output: SegOutput = self.student(images_B3HW[:1])
            self._shapes[picture] = output.logits.shape[1:], output.features.shape[1:]
        nothing = images_B3HW.new_zeros(1)
        logits, features = (nothing.expand(len(images_B3HW), *shape) for shape in self._shapes[picture])
        self._distil(SegOutput(logits, features, None), teacher, labels_BHW)
        for module, training in modes:
            module.training = training


def called(network: nn.Module, *, compiled: bool) -> Callable[[Tensor], SegOutput]:
    """How a network is called in training. Evaluation calls the network itself: its sizes vary, and it is short."""
    return torch.compile(network.forward) if compiled else network


# Semantic segmentation as the task of a run; see :class:`apd.training.tasks.Task` for what each method is.


class SegmentationTask:
    """A class for every pixel, judged by a confusion matrix."""

    expected = "expected_miou"
    libraries = ()

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    @cached_property
    def _spec(self) -> DatasetSpec:
        return spec_of(self.experiment.data)

    def split(self, name: str) -> SegmentationDataset:
        """One split of the data."""
        return build_split(self.experiment.data, name)

    def splits(self) -> Splits:
        """All that a run needs."""
        data, splits = self.experiment.data, build_splits(self.experiment.data)
        require_split_sides(data, splits.val)
        require_split_sides(data, splits.evaluation, self.experiment.inference)
        return splits

    def census(self, splits: Splits) -> Census | None:
        """Of a folder of one's own."""
        data = self.experiment.data
        named = {"train": splits.train, "val": splits.val, data.evaluation_split: splits.evaluation}
        return census_of(named) if data.name == "folder" else None

    def least_part(self, ranks: Ranks, device: torch.device) -> int:
        """Two, since the pooled branch has one vector an image; one where norms are synchronised over GPUs."""
        return 1 if ranks.size > 1 and device.type == "cuda" else 2

    def precision(self, device: torch.device) -> str:
        """What the experiment asks for, on this device."""
        return resolve_precision(device, self.experiment.precision)

    def network(
        self,
        config: NetworkConfig,
        num_classes: int,
        device: torch.device,
        seed: int,
        *,
        class_names: Sequence[str] = (),
        weights_follow: bool = False,
    ) -> Segmenter:
        """See :func:`apd.training.build.build_network`; no pre-trained weights know classes."""
        return build_network(config, num_classes, device, seed, weights_follow=weights_follow)

    def parameters(self, network: Segmenter) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Those of the backbone, and those of heads and classifier."""
        return list(network.backbone_parameters()), list(network.head_parameters())

    def distiller(self, config: DistillerConfig, student: Segmenter, teacher: Segmenter) -> nn.Module:
        """See :func:`apd.distillers.build.build_distiller`."""
        ignore_index, seed = self._spec.ignore_index, self.experiment.seed
        return build_distiller(config, student=student, teacher=teacher, ignore_index=ignore_index, seed=seed)

    def objective(
        self, student: Segmenter, teacher: Segmenter | None, distillers: nn.ModuleDict, precision: str
    ) -> SegmentationObjective:
        """Cross-entropy of the pixels, and the distillers."""
        ignore_index = self._spec.ignore_index
        return SegmentationObjective(self.experiment, student, teacher, distillers, ignore_index, precision)

    def batches(
        self, dataset: SegmentationDataset, *, start: int, ranks: Ranks, workers: int, device: torch.device
    ) -> Iterator[Batch]:
        """Crops of one size, made by the loader or on the device."""
        training = self.experiment.training
        there = training.device_augmentation
        supply = partial(device_batches, device=device) if there else partial(training_batches, workers=workers)
        return supply(
            dataset,
            batch_size=training.batch_size,
            augmentation=build_augmentation(self.experiment.data),
            seed=self.experiment.seed,
            start_iteration=start,
            iterations=training.iterations,
            part=(ranks.rank, ranks.size),
        )

    def evaluate(
        self, network: nn.Module, dataset: SegmentationDataset, *, precision: str, inference: Inference, ranks: Ranks
    ) -> dict[str, Any]:
        """The confusion matrix as `confusion`."""
        matrix_KK = confusion_of(network, ranks.part(dataset), precision=precision, inference=inference)
        return {"confusion": ranks.total(matrix_KK).tolist()}

    def compare(
        self, student: nn.Module, teacher: nn.Module, dataset: SegmentationDataset, *, precision: str, ranks: Ranks
    ) -> dict[str, Any]:
        """Counts of the teacher's and the student's classes as `agreement`."""
        inference = self.experiment.inference
        counts = agreement_of(student, teacher, ranks.part(dataset), precision=precision, inference=inference)
        return {"agreement": ranks.total(counts).tolist()}

    def headline(self, fact: Mapping[str, Any]) -> tuple[str, float]:
        """The mIoU."""
        return "mIoU", scores(torch.tensor(fact["confusion"])).miou
