"""What a training step computes and keeps, found out without computing it: for plans, before there is a GPU or data.

PyTorch's fake tensors have shapes and no numbers, so a step at the real size takes seconds on any machine.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN

from apd.config.experiment import Experiment
from apd.distillers.base import DetectorPair, DetectorView
from apd.models.segmenter import SegOutput
from apd.training.run import task_of
from apd.training.segmentation import task_loss
from apd.validation import values_unchecked

FAKE_DEVICE = "cuda"  # what the code sees; no GPU is needed. As on a CPU, it would look into the labels, which are none
IMAGES = 2  # batch norm cannot train on one pooled vector; everything below is per image
BACKWARD = 2  # a convolution's backward pass is two products of the size of its forward pass
STRIDE = 32  # torchvision pads the images of a batch to multiples of this


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
        student: the network alone.
        teacher: the network alone, or None where nothing is distilled.
        macs_per_image: multiply-accumulates of a step: forward passes of student (with its auxiliary head), teacher and
            projection heads, and backward passes of what is trained, each counted as twice its forward pass.
        fixed_bytes: parameters of all networks; gradients and the optimisers' state of those that are trained.
        bytes_per_image: what autograd keeps of one image for the backward pass. What is alive for a moment only, and
            what libraries take past PyTorch, comes on top.
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

    In detection the image is the largest that the detector resizes to. Training counts the sampled boxes, a quarter of
    them objects (the most that torchvision takes), and inference as many proposals and detections as the network may
    have; of the teacher, a step counts the pyramid and the box head at the student's boxes.

    Args:
        experiment: its networks, size of crops or images, and distillers.
        num_classes: classes K of its data, a detector's background not counted.

    Raises:
        ExperimentError: a network cannot be built.

    Example:
        >>> from apd.study.recipes import recipe
        >>> cost = step_cost(recipe("tiny", "student"), num_classes=10)
        >>> cost.teacher is None, cost.macs_per_image > 3 * cost.student.macs
        (True, True)
        >>> cost = step_cost(recipe("scenes_detection", "student"), num_classes=3)
        >>> f"{cost.student.parameters / 1e6:.1f} M"
        '12.5 M'
    """
    task, nowhere = task_of(experiment), torch.device("meta")  # no memory is taken and no number drawn
    with nowhere:
        student = task.network(experiment.network, num_classes, nowhere, seed=0, weights_follow=True)
        teacher = None
        if experiment.distillers:
            teacher = task.network(experiment.teacher.network, num_classes, nowhere, seed=0, weights_follow=True)
            teacher.eval().requires_grad_(False)
        distillers = nn.ModuleList(task.distiller(config, student, teacher) for config in experiment.distillers)
    networks = [network for network in (student, teacher) if network is not None]
    passes = (_detection_passes if experiment.task == "detection" else _segmentation_passes)(experiment, student)
    with FakeTensorMode(), values_unchecked():  # fake tensors have no values
        for module in (*networks, distillers):
            _give_fake_tensors(module)
        images = torch.empty(IMAGES, 3, *passes.size, device=FAKE_DEVICE)
        costs = []
        for network in networks:
            with FlopCounterMode(display=False) as inference, torch.no_grad():
                passes.infer(network.eval(), images[:1])
            parameters = (p.numel() for name, p in network.named_parameters() if not name.startswith("aux_head."))
            costs.append(NetworkCost(sum(parameters), inference.get_total_flops() // 2))
        with FlopCounterMode(display=False) as of_teacher, torch.no_grad():
            teacher_output = None if teacher is None else passes.teach(teacher, images)

        def step() -> None:
            passes.loss(distillers, passes.learn(student.train(), images), teacher_output)

        with FlopCounterMode(display=False) as of_student:
            kept_bytes = _kept_bytes(step, (*student.parameters(), *distillers.parameters()))
    flops = (1 + BACKWARD) * of_student.get_total_flops() + of_teacher.get_total_flops()
    return StepCost(
        student=costs[0],
        teacher=costs[1] if teacher is not None else None,
        macs_per_image=flops // 2 // IMAGES,
        fixed_bytes=_fixed_bytes(student, teacher, distillers, experiment.training.optimiser),
        bytes_per_image=kept_bytes // IMAGES,
    )


def teacher_step_cost(experiment: Experiment, num_classes: int) -> StepCost:
    """The same for the run that trains the teacher."""
    return step_cost(replace(experiment.teacher_experiment(), name="teacher"), num_classes)


def _give_fake_tensors(network: nn.Module) -> None:
    """Put a fake tensor in the place of each parameter and buffer; the mode refuses `Module.to`."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=FAKE_DEVICE)
            setattr(module, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=FAKE_DEVICE))


def _kept_bytes(step: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps of a forward pass beside the parameters: what two operations keep, counted once."""
    kept: dict[int, Tensor] = {}
    own = {tensor.untyped_storage()._cdata for tensor in parameters}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


def _fixed_bytes(student: nn.Module, teacher: nn.Module | None, distillers: nn.ModuleList, optimiser: str) -> int:
    """Parameters and buffers; a gradient and SGD's momentum, or Adam's two moments, for those that are trained."""

    def size(tensors: Iterable[Tensor]) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    fixed = sum(size((*m.parameters(), *m.buffers())) for m in (student, teacher, distillers) if m is not None)
    of_student = [p for module in distillers for p in module.student_parameters()] + list(student.parameters())
    of_teacher = [p for module in distillers for p in module.teacher_parameters()]
    return fixed + (2 if optimiser == "sgd" else 3) * size(of_student) + 3 * size(of_teacher)


class _Passes(NamedTuple):
    """A task's forward passes of a network and images, its loss of both outputs, and the images' size."""

    size: tuple[int, int]
    infer: Callable[[nn.Module, Tensor], Any]
    learn: Callable[[nn.Module, Tensor], Any]
    teach: Callable[[nn.Module, Tensor], Any]
    loss: Callable[[nn.ModuleList, Any, Any], object]


def _segmentation_passes(experiment: Experiment, student: nn.Module) -> _Passes:
    size, auxiliary_weight = (
        (experiment.data.crop_height, experiment.data.crop_width),
        experiment.training.auxiliary_weight,
    )

    def loss(distillers: nn.ModuleList, seen: SegOutput, teacher: SegOutput | None) -> Tensor:
        labels = torch.zeros(IMAGES, *size, dtype=torch.long, device=FAKE_DEVICE)
        total = task_loss(seen.logits, labels, 255)
        if auxiliary_weight:
            total = total + auxiliary_weight * task_loss(seen.aux, labels, 255)
        for distiller in distillers:
            distilled = distiller(
                student_features=seen.features,
                teacher_features=teacher.features,
                student_logits=seen.logits,
                teacher_logits=teacher.logits,
                labels=labels,
            )
            total = total + distilled["loss"]
        return total

    def forward(network: nn.Module, images: Tensor) -> SegOutput:
        return network(images)

    return _Passes(size, forward, forward, forward, loss)


def _detection_passes(experiment: Experiment, student: FasterRCNN) -> _Passes:
    height, width = (-(-side // STRIDE) * STRIDE for side in (experiment.data.height, experiment.data.width))
    sampler = student.roi_heads.fg_bg_sampler
    boxes, objects = sampler.batch_size_per_image, int(sampler.batch_size_per_image * sampler.positive_fraction)

    def infer(network: FasterRCNN, image_13HW: Tensor) -> DetectorView:
        boxes, masks = network.rpn.post_nms_top_n(), network.roi_heads.detections_per_img
        return _detector_view(network, image_13HW, boxes=boxes, masks=masks)

    def loss(distillers: nn.ModuleList, seen: DetectorView, teacher: DetectorView | None) -> list[Any]:
        labels_B1N = torch.zeros(IMAGES, 1, boxes, dtype=torch.long, device=FAKE_DEVICE)
        map_BHW = torch.zeros(IMAGES, height, width, dtype=torch.long, device=FAKE_DEVICE)
        return [distiller(DetectorPair(seen, teacher, labels_B1N, map_BHW, map_BHW)) for distiller in distillers]

    return _Passes(
        (height, width),
        infer,
        partial(_detector_view, boxes=boxes, masks=objects),
        partial(_detector_view, boxes=boxes, masks=0, proposing=False),
        loss,
    )


def _detector_view(
    network: FasterRCNN, images: Tensor, *, boxes: int, masks: int, proposing: bool = True
) -> DetectorView:
    """Every convolution and product of a forward pass, with so many boxes an image in the place of those it draws."""
    pyramid, heads, count = network.backbone(images), network.roi_heads, len(images)
    if proposing:
        network.rpn.head(list(pyramid.values()))

    def pooled(pool: nn.Module, each: int) -> Tensor:
        return torch.empty(count * each, network.backbone.out_channels, *pool.output_size, device=images.device)

    vectors = heads.box_head(pooled(heads.box_roi_pool, boxes))
    logits, _ = heads.box_predictor(vectors)
    if heads.has_mask() and masks:
        heads.mask_predictor(heads.mask_head(pooled(heads.mask_roi_pool, masks)))
    rows = (part.reshape(count, boxes, -1).mT.unsqueeze(2) for part in (vectors, logits))
    return DetectorView(pyramid, *rows, [tuple(images.shape[2:])] * count)
