"""What a run does that depends on what its network predicts.

The trainer, its checkpoints, records and campaigns know nothing of classes of pixels or of boxes: they ask the
experiment's task. There are two, :class:`~apd.training.segmentation.SegmentationTask` and
:class:`~apd.training.detection.DetectionTask`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from apd.config.detection import DetectorConfig
from apd.config.experiment import Experiment, NetworkConfig
from apd.config.inference import Inference
from apd.data.census import Census
from apd.distillers.configs import DistillerConfig
from apd.distillers.detection_configs import DetectionDistillerConfig
from apd.training.build import Splits
from apd.training.detection import DetectionTask
from apd.training.distributed import Ranks
from apd.training.segmentation import SegmentationTask

Fact = Mapping[str, Any]
"""What was measured of a network, as JSON has it: one entry, `confusion` or `ap`, from which scores are computed."""


class Batch(Protocol):
    """Training pictures and what is known of them: a named tuple, whose parts an objective's forward takes."""

    def __iter__(self) -> Iterator[Any]:
        """The parts."""
        ...

    def by_name(self) -> dict[str, Tensor]:
        """Its tensors with names, as they are kept in a file."""
        ...


class Objective(Protocol):
    """A module whose forward, of a batch's parts and `taught`, gives the unweighted terms by name, and "loss".

    It holds everything with trained parameters, so that DistributedDataParallel finds them in one forward pass, and
    the teacher in a way that makes it no part of the module. Its means are sums divided by
    :func:`apd.normalizers.divisor`, so that the mean over ranks is that of the whole batch. Where batches may be
    accumulated it has a method `count`, too, called as its forward and asking for the same divisors.
    """

    def parts(self, batch: Batch, device: torch.device) -> list[Batch]:
        """The steps of the accumulation, on the device."""
        ...

    def taught(self, batch: Batch) -> Any:
        """What the teacher says of a part before the student has seen it; None where there is nothing to say."""
        ...

    def __call__(self, *parts: Any) -> dict[str, Tensor]:
        """The terms."""
        ...


class Task(Protocol):
    """The task of an experiment; see :func:`task_of`."""

    experiment: Experiment
    expected: Literal["expected_miou", "expected_ap"]
    """Field of the teacher's configuration with the least that its headline may be."""
    libraries: tuple[str, ...]
    """Packages, beside the usual ones, whose version belongs to what is measured."""

    def split(self, name: str) -> Any:
        """The data set "train", "val" or "test". DataError where it is missing or damaged."""
        ...

    def splits(self) -> Splits:
        """All that a run needs. DataError where they are missing or damaged, ExperimentError where a library is."""
        ...

    def census(self, splits: Splits) -> Census | None:
        """Counts of the labels of train, val and evaluation; None where only `apd check` counts them.

        They are counted before every training on data of the user's own, since published sets and scenes were checked
        by others: linear in pixels, each label map once.
        """
        ...

    def least_part(self, ranks: Ranks, device: torch.device) -> int:
        """Images that each part of a batch must have for batch norm to train on."""
        ...

    def precision(self, device: torch.device) -> str:
        """ "fp32" or "bf16", of the networks' forward passes."""
        ...

    def network(
        self,
        config: NetworkConfig | DetectorConfig,
        num_classes: int,
        device: torch.device,
        seed: int,
        *,
        class_names: Sequence[str] = (),
        weights_follow: bool = False,
    ) -> nn.Module:
        """A network whose random weights depend on the seed alone; the global random state is left as it was.

        `class_names` find the classes in pre-trained weights that have some. With `weights_follow` the caller loads a
        full state dict next, so none are asked for. ExperimentError where it cannot be built.
        """
        ...

    def parameters(self, network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters of the backbone, and all others."""
        ...

    def distiller(
        self, config: DistillerConfig | DetectionDistillerConfig, student: nn.Module, teacher: nn.Module
    ) -> nn.Module:
        """The loss module of one distiller, on the student's device, its heads initialised from the seed alone."""
        ...

    def objective(
        self, student: nn.Module, teacher: nn.Module | None, distillers: nn.ModuleDict, precision: str
    ) -> Objective:
        """What a step of training computes."""
        ...

    def batches(self, dataset: Any, *, start: int, ranks: Ranks, workers: int, device: torch.device) -> Iterator[Batch]:
        """This rank's parts of the training batches from iteration `start` to the last, for training on `device`."""
        ...

    def evaluate(
        self, network: nn.Module, dataset: Any, *, precision: str, inference: Inference, ranks: Ranks
    ) -> dict[str, Any]:
        """The :data:`Fact` of a network on a data set, each rank looking at its part of the images."""
        ...

    def compare(
        self, student: nn.Module, teacher: nn.Module, dataset: Any, *, precision: str, ranks: Ranks
    ) -> dict[str, Any]:
        """Entries of a record's `teacher` that tell of both networks; may be empty."""
        ...

    def headline(self, fact: Fact) -> tuple[str, float]:
        """Name and value of the one score by which networks are called better."""
        ...


def task_of(experiment: Experiment) -> Task:
    """The task of an experiment, by the class of its data."""
    return DetectionTask(experiment) if experiment.task == "detection" else SegmentationTask(experiment)
