"""One optimiser step: from a batch to new weights of the student and of the heads.

What a loss is computed in is the task's (:mod:`apd.training.tasks`); `Update` is what is done with it. It knows
nothing of folders, logs and data.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from apd.config.experiment import Experiment
from apd.normalizers import PartsInTurn, across_processes
from apd.training.build import build_optimisers
from apd.training.cuda_graph import CapturedStep
from apd.training.distributed import ALONE, Ranks
from apd.training.tasks import Batch, task_of
from apd.validation import values_unchecked


class Update:
    """What a batch does to the weights, and everything that has to be kept from one batch to the next.

    Args:
        experiment: its training, precision and distillers.
        student: is trained in place.
        teacher: in eval mode and without gradients, or None.
        precision: "fp32" or "bf16".
        ranks: the processes that share every batch.

    Attributes:
        distillers: the loss modules by method.
        optimisers: by name: "student", and "teacher_heads" where a teacher's head is trained.
        average: the averaged network, or None.
    """

    def __init__(
        self,
        experiment: Experiment,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        precision: str,
        ranks: Ranks = ALONE,
    ) -> None:
        task = task_of(experiment)
        self.training, self.ranks = experiment.training, ranks
        self.device = next(student.parameters()).device
        layout = torch.channels_last if self.training.channels_last else torch.contiguous_format
        for network in filter(None, (student, teacher)):
            network.to(memory_format=layout)
        ranks.synchronise_batch_norm(student)
        self.student = student
        self.distillers = nn.ModuleDict(
            {config.method: task.distiller(config, student, teacher) for config in experiment.distillers}
        )
        self.optimisers = build_optimisers(
            experiment, task.parameters(student), zip(experiment.distillers, self.distillers.values(), strict=True)
        )
        decay = self.training.ema_decay
        self.average = decay and AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._objective = task.objective(student, teacher, self.distillers, precision)
        self._shared_objective = ranks.wrapped(self._objective)
        captured = self.training.cuda_graph and self.device.type == "cuda" and ranks.size == 1
        self._captured = CapturedStep(self._backward) if captured else None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """One update of the student, its heads and the teacher's heads. Returns the detached terms.

        `batch` is this rank's part; the mean over ranks of a term is that of the whole batch.
        """
        if self._captured is None or not self._captured.recorded:
            for optimiser in self.optimisers.values():
                optimiser.zero_grad(set_to_none=True)
        parts = self._objective.parts(batch, self.device)
        with values_unchecked():  # the loop looks at the losses
            terms = self._accumulate(parts) if len(parts) > 1 else (self._captured or self._backward)(parts[0])
        if self.training.clip_norm is not None:
            trained = [p for group in self.optimisers["student"].param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.training.clip_norm)
        for optimiser in self.optimisers.values():
            optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.student)
        return terms

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        with across_processes() if self.ranks.size > 1 else nullcontext():
            terms = self._shared_objective(*batch, self._objective.taught(batch))
        terms["loss"].backward()
        return {name: value.detach() for name, value in terms.items()}

    def _accumulate(self, parts: list[Batch]) -> dict[str, Tensor]:
        """The gradients of the whole batch, a part at a time; each part's terms are shares of the whole's."""
        taught = [self._objective.taught(part) for part in parts]
        turns = PartsInTurn(over_processes=self.ranks.size > 1)
        for part, teacher in zip(parts, taught, strict=True):
            with turns.counting():
                self._objective.count(*part, teacher)
        shares: list[dict[str, Tensor]] = []
        for part, teacher in zip(parts, taught, strict=True):
            with turns.computing(), self.ranks.not_yet(self._shared_objective, when=len(shares) < len(parts) - 1):
                terms = self._shared_objective(*part, teacher)
                terms["loss"].backward()
            shares.append({name: value.detach() for name, value in terms.items()})
        return {name: torch.stack([share[name] for share in shares]).sum(0) for name in shares[0]}
