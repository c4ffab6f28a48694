"""What a segmentation network is trained by: its task's loss and the distillers' terms, from a batch to one number."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.data.batches import Batch
from apd.evaluate.inference import autocast
from apd.means import divisor
from apd.models.segmenter import Segmenter, SegOutput
from apd.study.experiment import Experiment


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
