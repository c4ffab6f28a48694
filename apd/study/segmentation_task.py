"""Semantic segmentation as the task of a run; see :class:`apd.study.tasks.Task` for what each method is."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from apd.data.batches import Batch, training_batches
from apd.data.catalogue import DatasetSpec
from apd.data.census import Census, census_of
from apd.data.device_batches import device_batches
from apd.data.sample import SegmentationDataset
from apd.evaluate.confusion import scores
from apd.evaluate.inference import agreement_of, confusion_of, resolve_precision
from apd.evaluate.protocol import Inference
from apd.models.segmenter import Segmenter
from apd.study.build import Splits, build_augmentation, build_network, build_split, build_splits, spec_of
from apd.study.distiller_configs import DistillerConfig
from apd.study.distillers import build_distiller
from apd.study.experiment import Experiment, NetworkConfig
from apd.study.ranks import Ranks
from apd.study.segmentation_objective import SegmentationObjective
from apd.study.shown_size import require_split_sides


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
        """See :func:`apd.study.build.build_network`; no pre-trained weights know classes."""
        return build_network(config, num_classes, device, seed, weights_follow=weights_follow)

    def parameters(self, network: Segmenter) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Those of the backbone, and those of heads and classifier."""
        return list(network.backbone_parameters()), list(network.head_parameters())

    def distiller(self, config: DistillerConfig, student: Segmenter, teacher: Segmenter) -> nn.Module:
        """See :func:`apd.study.distillers.build_distiller`."""
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
