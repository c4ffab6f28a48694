"""One optimiser step: from a batch to new weights of the student and of the heads.

`Objective` is what a loss is computed in, `Update` what is done with it. Both know nothing of folders, logs and data.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from apd.data.batches import Batch
from apd.evaluate.inference import autocast
from apd.means import PartsInTurn, across_processes, divisor
from apd.models.segmenter import Segmenter, SegOutput
from apd.study.build import build_optimisers
from apd.study.distillers import build_distiller
from apd.study.experiment import Experiment
from apd.study.ranks import ALONE, Ranks


def task_loss(logits_BKhw: Tensor, labels_BHW: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy over valid pixels after upsampling; a connected zero when no pixel is valid."""
    logits_BKHW = F.interpolate(logits_BKhw.float(), labels_BHW.shape[-2:], mode="bilinear", align_corners=True)
    total = F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=ignore_index, reduction="sum")
    return total / divisor((labels_BHW != ignore_index).sum())


class Objective(nn.Module):
    """Student and distillers as one module whose forward gives the loss.

    So DistributedDataParallel finds every parameter of a step in one forward pass; the teacher has none and stays out.

    Args:
        experiment: its weights, precision and distillers.
        student, distillers: the networks with parameters.
        ignore_index: label of pixels not to count.
        precision: "fp32" or "bf16", of the student's forward pass.
    """

    def __init__(
        self, experiment: Experiment, student: Segmenter, distillers: nn.ModuleDict, ignore_index: int, precision: str
    ) -> None:
        super().__init__()
        self.student, self.distillers = student, distillers
        self.ignore_index, self.precision = ignore_index, precision
        self.auxiliary_weight = experiment.training.auxiliary_weight
        if not self.auxiliary_weight:  # a parameter that waits for a gradient and gets none stalls several ranks
            student.aux_head.requires_grad_(False)
        self._student = called(student, compiled=experiment.training.compile)
        self._shapes: dict[torch.Size, tuple[torch.Size, torch.Size]] = {}  # of one picture's logits and features

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


class Update:
    """What a batch does to the weights, and everything that has to be kept from one batch to the next.

    Args:
        experiment: its training, precision and distillers.
        student: is trained in place.
        teacher: in eval mode and without gradients, or None.
        precision: "fp32" or "bf16".
        ignore_index: label of pixels not to count.
        ranks: the processes that share every batch.

    Attributes:
        distillers: the loss modules by method.
        optimisers: by name: "student", and "teacher_heads" where a teacher's head is trained.
        average: the averaged network, or None.
    """

    def __init__(
        self,
        experiment: Experiment,
        student: Segmenter,
        teacher: Segmenter | None,
        *,
        precision: str,
        ignore_index: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.training, self.precision, self.ranks = experiment.training, precision, ranks
        self.device = next(student.parameters()).device
        self._layout = torch.channels_last if self.training.channels_last else torch.contiguous_format
        for network in filter(None, (student, teacher)):
            network.to(memory_format=self._layout)
        ranks.synchronise_batch_norm(student)
        self.student = student
        self.distillers = nn.ModuleDict(
            {
                config.method: build_distiller(
                    config, student=student, teacher=teacher, ignore_index=ignore_index, seed=experiment.seed
                )
                for config in experiment.distillers
            }
        )
        self.optimisers = build_optimisers(
            experiment, student, zip(experiment.distillers, self.distillers.values(), strict=True)
        )
        decay = self.training.ema_decay
        self.average = decay and AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._teacher = None if teacher is None else called(teacher, compiled=self.training.compile)
        self._objective = Objective(experiment, student, self.distillers, ignore_index, precision)
        self._shared_objective = ranks.wrapped(self._objective)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """One update of the student, its heads and the teacher's heads. Returns the detached terms.

        `batch` is this rank's part; the mean over ranks of a term is that of the whole batch.
        """
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        parts = self._on_device(batch)
        terms = self._accumulate(parts) if len(parts) > 1 else self._backward(parts[0])
        if self.training.clip_norm is not None:
            trained = [p for group in self.optimisers["student"].param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.training.clip_norm)
        for optimiser in self.optimisers.values():
            optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.student)
        return terms

    def _on_device(self, batch: Batch) -> list[Batch]:
        """The steps of the accumulation, on the device."""
        if self.training.pinned_memory and self.device.type == "cuda":
            batch = Batch(batch.images_B3HW.pin_memory(), batch.labels_BHW.pin_memory())
        images = batch.images_B3HW.to(self.device, memory_format=self._layout, non_blocking=True)
        labels = batch.labels_BHW.to(self.device, non_blocking=True)
        steps = self.training.accumulation
        return [Batch(*pair) for pair in zip(images.chunk(steps), labels.chunk(steps), strict=True)]

    @torch.no_grad()
    def _taught(self, batch: Batch) -> SegOutput | None:
        """The teacher's output, where there is something to distil."""
        with autocast(self.device, self.precision):
            return self._teacher(batch.images_B3HW) if self._teacher is not None and self.distillers else None

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        with across_processes() if self.ranks.size > 1 else nullcontext():
            terms = self._shared_objective(*batch, self._taught(batch))
        terms["loss"].backward()
        return {name: value.detach() for name, value in terms.items()}

    def _accumulate(self, parts: list[Batch]) -> dict[str, Tensor]:
        """The gradients of the whole batch, a part at a time; each part's terms are shares of the whole's."""
        taught = [self._taught(part) for part in parts]
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
