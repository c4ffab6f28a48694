"""What a training step computes and keeps, found out without computing it: for plans, before there is a GPU or data.

PyTorch's fake tensors have shapes and no numbers, so a step at the real size takes seconds on any machine.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from apd.config.experiment import Experiment
from apd.distillers.build import build_distiller
from apd.models.segmenter import SegOutput
from apd.training.segmentation import build_network, task_loss
from apd.validation import values_unchecked

FAKE_DEVICE = "cuda"  # what the code sees; no GPU is needed. As on a CPU, it would look into the labels, which are none
PICTURES = 2  # batch norm cannot train on one pooled vector; everything below is per image
BACKWARD = 2  # a convolution's backward pass is two products of the size of its forward pass


@dataclass(frozen=True)
class NetworkCost:
    """A network at the training crop.

    Attributes:
        parameters: numbers that inference needs: all parameters but those of the auxiliary head.
        macs: multiply-accumulates of the inference of one image of the crop's size, of convolutions and matrix products
            only, as usual in published figures.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class StepCost:
    """A training step of an experiment, in float32.

    Attributes:
        student: the student alone.
        teacher: the teacher alone, or None where nothing is distilled.
        macs_per_image: multiply-accumulates of a step: forward passes of student (with its auxiliary head), teacher and
            projection heads, and backward passes of what is trained, each counted as twice its forward pass.
        fixed_bytes: parameters of all networks; gradients and the optimisers' state of those that are trained.
        bytes_per_image: what autograd keeps of one image for the backward pass. What is alive for a moment only, and
            what libraries take past PyTorch, comes on top.

    Example:
        >>> from apd.study.recipes import recipe
        >>> cost = step_cost(recipe("tiny", "student"), num_classes=10)
        >>> cost.teacher is None, cost.macs_per_image > 3 * cost.student.macs
        (True, True)
    """

    student: NetworkCost
    teacher: NetworkCost | None
    macs_per_image: int
    fixed_bytes: int
    bytes_per_image: int

    def memory_bytes(self, images: int) -> int:
        """About what a process takes that has this many images in a step."""
        return self.fixed_bytes + images * self.bytes_per_image


def step_cost(experiment: Experiment, num_classes: int) -> StepCost:
    """Count what a training step of the experiment takes. Weights are not read and no data are touched.

    Args:
        experiment: its networks, crop and distillers.
        num_classes: classes K of its data.

    Raises:
        ExperimentError: a network cannot be built.
    """
    height, width = experiment.data.crop_height, experiment.data.crop_width
    nowhere = torch.device("meta")  # no memory is taken and no number drawn
    with nowhere:
        student = build_network(experiment.network, num_classes, nowhere, seed=0, weights_follow=True)
        teacher = None
        if experiment.distillers:
            teacher = build_network(experiment.teacher.network, num_classes, nowhere, seed=0, weights_follow=True)
            teacher.eval().requires_grad_(False)
        distillers = nn.ModuleList(
            build_distiller(config, student=student, teacher=teacher, ignore_index=255, seed=0)
            for config in experiment.distillers
        )
    with FakeTensorMode():
        for module in filter(None, (student, teacher, distillers)):
            give_fake_tensors(module)
        images = torch.empty(PICTURES, 3, height, width, device=FAKE_DEVICE)
        labels = torch.zeros(PICTURES, height, width, dtype=torch.long, device=FAKE_DEVICE)
        with FlopCounterMode(display=False) as in_inference, torch.no_grad():
            student.eval()(images[:1])
        with values_unchecked():  # fake tensors have none
            counted = count_step(
                (student, distillers),
                lambda: student.train()(images),
                lambda: None if teacher is None else teacher(images),
                lambda seen, taught: _loss(experiment, distillers, seen, taught, labels),
            )
    return StepCost(
        student=NetworkCost(_inferring_parameters(student), in_inference.get_total_flops() // 2),
        teacher=teacher and NetworkCost(_inferring_parameters(teacher), counted.teacher_macs),
        macs_per_image=counted.macs,
        fixed_bytes=fixed_bytes_of(student, teacher, distillers, experiment.training.optimiser),
        bytes_per_image=counted.kept_bytes,
    )


class Counted(NamedTuple):
    """A step on fake tensors, per image: multiply-accumulates of the teacher and of all, and bytes kept by autograd."""

    teacher_macs: int
    macs: int
    kept_bytes: int


def count_step(
    trained: Iterable[nn.Module],
    look: Callable[[], Any],
    teach: Callable[[], Any],
    judge: Callable[[Any, Any], object],
) -> Counted:
    """Count a step on :data:`PICTURES` fake images, inside a FakeTensorMode.

    Args:
        trained: the modules with trained parameters, which are no part of what is kept.
        look: the student's forward pass in training.
        teach: the teacher's; counted without gradients.
        judge: the losses of what both saw.
    """
    kept: dict[int, Tensor] = {}  # by storage: what two operations keep is in memory once

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    for module in trained:
        for parameter in module.parameters():
            keep(parameter)
    own = set(kept)
    with FlopCounterMode(display=False) as in_student, torch.autograd.graph.saved_tensors_hooks(keep, _as_it_is):
        seen = look()
    with FlopCounterMode(display=False) as in_teacher, torch.no_grad():
        taught = teach()
    with FlopCounterMode(display=False) as in_loss, torch.autograd.graph.saved_tensors_hooks(keep, _as_it_is):
        judge(seen, taught)
    saved = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    forward = in_student.get_total_flops() + in_loss.get_total_flops()
    teacher = in_teacher.get_total_flops()
    return Counted(teacher // 2 // PICTURES, ((1 + BACKWARD) * forward + teacher) // 2 // PICTURES, saved // PICTURES)


def teacher_step_cost(experiment: Experiment, num_classes: int) -> StepCost:
    """The same for the run that trains the teacher."""
    return step_cost(replace(experiment.teacher_experiment(), name="teacher"), num_classes)


def give_fake_tensors(network: nn.Module) -> None:
    """Put a fake tensor in the place of each parameter and buffer; the mode refuses `Module.to`."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=FAKE_DEVICE)
            setattr(module, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=FAKE_DEVICE))


def _as_it_is(tensor: Tensor) -> Tensor:
    """The tensor: how a saved one is unpacked."""
    return tensor


def _inferring_parameters(network: nn.Module) -> int:
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("aux_head."))


def _loss(
    experiment: Experiment, distillers: nn.ModuleList, seen: SegOutput, taught: SegOutput | None, labels: Tensor
) -> Tensor:
    loss = task_loss(seen.logits, labels, 255)
    if experiment.training.auxiliary_weight:
        loss = loss + experiment.training.auxiliary_weight * task_loss(seen.aux, labels, 255)
    for distiller in distillers:
        distilled = distiller(
            student_features=seen.features,
            teacher_features=taught.features,
            student_logits=seen.logits,
            teacher_logits=taught.logits,
            labels=labels,
        )
        loss = loss + distilled["loss"]
    return loss


def fixed_bytes_of(student: nn.Module, teacher: nn.Module | None, distillers: nn.ModuleList, optimiser: str) -> int:
    """Parameters and buffers; a gradient and SGD's momentum, or Adam's two moments, for those that are trained."""

    def size(tensors) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    fixed = sum(size((*m.parameters(), *m.buffers())) for m in (student, teacher, distillers) if m is not None)
    of_student = [p for module in distillers for p in module.student_parameters()] + list(student.parameters())
    of_teacher = [p for module in distillers for p in module.teacher_parameters()]
    return fixed + (2 if optimiser == "sgd" else 3) * size(of_student) + 3 * size(of_teacher)
