"""What a task of a run is, whichever: its networks, its distillers and its teacher, which has to be good enough."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apd.config.datasets import Splits
from apd.config.experiment import Experiment, ExperimentError
from apd.distillers.base import DistillerConfig, build_distiller
from apd.models.checkpoints import load_weights
from apd.training.distributed import ALONE, Ranks, of_every_rank


class TeacherError(RuntimeError):
    """Teacher weights that do not fit, or that score below what the experiment states."""


class RunTask(nn.Module):
    """The common part of the tasks: called with a batch, one gives the loss; student and distillers are submodules."""

    expected: Literal["expected_miou", "expected_ap"]  # field of the teacher's configuration: its least headline score
    libraries: tuple[str, ...] = ()  # packages, beside the usual ones, whose version belongs to what is measured
    kind: str
    ignore_index: int = 255  # of labels; a detector's are its own

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.experiment = experiment

    def _of_batches(self, start: int, ranks: Ranks) -> dict[str, Any]:
        """What every supply of this rank's batches from iteration `start` on is asked for."""
        training, part = self.experiment.training, (ranks.rank, ranks.size)
        steps = {"start_iteration": start, "iterations": training.iterations}
        return {"batch_size": training.batch_size, "seed": self.experiment.seed, "part": part, **steps}

    def distiller(self, config: DistillerConfig, student: nn.Module, teacher: nn.Module) -> nn.Module:
        """The loss module of one distiller, on the student's device, its heads initialised from the seed alone."""
        ignore, seed = self.ignore_index, self.experiment.seed
        return build_distiller(config, student=student, teacher=teacher, ignore_index=ignore, seed=seed)

    def prepare(self, student: Any, teacher: Any) -> None:
        """Take the networks that `forward` calls (the teacher in eval mode) and build the distillers between them."""
        self.student, configs = student, self.experiment.distillers
        self.distillers = nn.ModuleDict({c.method: self.distiller(c, student, teacher) for c in configs})

    def network(
        self,
        config: Any,
        num_classes: int,
        device: torch.device,
        seed: int,
        *,
        class_names: Sequence[str] = (),
        weights_follow: bool = False,
    ) -> Any:
        """A network with initial weights (`weights_follow`: the caller loads others). ExperimentError: not possible."""
        return built(partial(self._build, config, num_classes, class_names, weights_follow), self.kind, device, seed)

    def with_loss(self, terms: dict[str, Tensor], loss: Tensor, distilled: dict[str, dict[str, Tensor]]) -> Any:
        """The terms with those of the distillers, and "loss", the sum of all losses."""
        for name, of_one in distilled.items():
            loss = loss + of_one["loss"]
            terms |= {f"{name}.{term}": value for term, value in of_one.items() if term != "loss"}
        return terms | {"loss": loss}

    def least_part(self, ranks: Ranks, device: torch.device) -> int:
        """Images that batch norm needs in each part of a batch."""
        return 1

    def precision(self, device: torch.device) -> str:
        """fp32 or bf16, of the networks' forward passes; coordinates of boxes would be too coarse in bf16."""
        return "fp32"

    def compare(self, student: nn.Module, teacher: nn.Module, dataset: Any, ranks: Ranks) -> dict[str, Any]:
        """What the record's entry `teacher` says of both networks together."""
        return {}


def built(build: Callable[[], nn.Module], kind: str, device: torch.device, seed: int) -> Any:
    """A network whose initial weights depend on the seed alone. ExperimentError where it cannot be built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = build()
        except (ValueError, RuntimeError) as error:
            raise ExperimentError(f"this {kind} cannot be built: {error}") from error
    return network.to(device, memory_format=torch.channels_last)


def load_teacher(task: Any, path: Path, num_classes: int, device: torch.device) -> nn.Module:
    """The task's teacher with strictly loaded weights, in eval mode, without gradients, or TeacherError."""
    if not path.is_file():
        raise TeacherError(f"teacher weights {path}: there is no such file (--teacher.weights-file)")
    network = task.experiment.teacher.network
    teacher = task.network(network, num_classes, device, seed=0, weights_follow=True)
    try:
        load_weights(teacher, path)
    except (RuntimeError, OSError) as error:
        raise TeacherError(f"teacher weights {error}; the network is {network} with {num_classes} classes") from error
    return teacher.eval().requires_grad_(False)


def measure_teacher(task: Any, teacher: nn.Module, splits: Splits, ranks: Ranks = ALONE) -> dict[str, Any]:
    """What the task measures of the teacher on the evaluation split; TeacherError where it is not good enough."""
    experiment, split = task.experiment, task.experiment.data.evaluation_split
    fact = task.evaluate(teacher, splits.evaluation, experiment.inference, ranks)
    (score, value), expected = task.headline(fact), getattr(experiment.teacher, task.expected)
    ranks.print(f"{experiment.name}: teacher {score} {value:.4f} on {split}")
    if not value >= expected:
        reason = f"below teacher.{task.expected} = {expected}: wrong weights, wrong data or wrong image size"
        raise of_every_rank(TeacherError(f"the teacher's {score} is {value:.4f} on {split}, {reason}"))
    return fact
