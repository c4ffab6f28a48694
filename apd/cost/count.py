"""What a training step computes and keeps, counted in seconds on PyTorch's fake tensors, without a GPU or data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN

from apd.config.experiment import Experiment
from apd.distillers.base import DetectorPair, DetectorView
from apd.losses import task_loss
from apd.models.segmenter import SegOutput
from apd.training.run import task_of
from apd.training.segmentation import auxiliary_logits, distilled_of
from apd.validation import values_unchecked

FAKE_DEVICE = "cuda"  # what the code sees; no GPU is needed. As on a CPU, it would look into the labels, which are none
IMAGES = 2  # batch norm cannot train on one pooled vector; everything below is per image
BACKWARD = 2  # a convolution's backward pass is two products of the size of its forward pass
STRIDE = 32  # torchvision pads the images of a batch to multiples of this


@dataclass(frozen=True)
class NetworkCost:
    """A network at the training crop."""

    parameters: int  #: Parameters used in inference: all but those of the auxiliary head.
    macs: int  #: Multiply-accumulates of convolutions and matrix products in the inference of one image of that size.


@dataclass(frozen=True)
class StepCost:
    """A training step of an experiment, in float32."""

    student: NetworkCost
    teacher: NetworkCost | None  #: None where nothing is distilled.
    macs_per_image: int
    """Forward passes of student (with its auxiliary head), teacher and projection heads, and backward passes of what is
    trained, each counted as twice its forward pass."""
    fixed_bytes: int  #: Parameters of all networks; gradients and optimisers' state of those that are trained.
    bytes_per_image: int
    """What autograd keeps for the backward pass; what is alive for a moment only, or past PyTorch, comes on top."""

    def memory_bytes(self, images: int) -> int:
        """About what a process takes that has this many images in a step."""
        return self.fixed_bytes + images * self.bytes_per_image


def step_cost(experiment: Experiment, num_classes: int) -> StepCost:
    """Count what a training step of the experiment takes. Weights are not read and no data are touched.

    In detection: the largest image, the sampled boxes with a quarter of objects, in inference as many as there may be,
    and of the teacher pyramid and box head. `num_classes` is without background. ExperimentError: it cannot be built.
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
    passes = _detection_passes if experiment.task == "detection" else _segmentation_passes
    size, infer, learn, teach, loss = passes(experiment, student)
    with FakeTensorMode(), values_unchecked():  # fake tensors have no values
        for module in (*networks, distillers):  # not by `to`, which the mode refuses
            module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=FAKE_DEVICE))
        images = torch.empty(IMAGES, 3, *size, device=FAKE_DEVICE)
        costs = []
        for network in networks:
            with FlopCounterMode(display=False) as inference, torch.no_grad():
                infer(network.eval(), images[:1])
            parameters = (p.numel() for name, p in network.named_parameters() if not name.startswith("aux_head."))
            costs.append(NetworkCost(sum(parameters), inference.get_total_flops() // 2))
        with FlopCounterMode(display=False) as of_teacher, torch.no_grad():
            teacher_output = None if teacher is None else teach(teacher, images)

        own = {tensor.untyped_storage()._cdata for tensor in (*student.parameters(), *distillers.parameters())}
        kept: dict[int, Tensor] = {}  # by storage: what two operations keep counts once
        hooks = (lambda tensor: kept.setdefault(tensor.untyped_storage()._cdata, tensor), lambda tensor: tensor)
        with FlopCounterMode(display=False) as of_student, torch.autograd.graph.saved_tensors_hooks(*hooks):
            loss(distillers, learn(student.train(), images), teacher_output)
        kept_bytes = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    flops = (1 + BACKWARD) * of_student.get_total_flops() + of_teacher.get_total_flops()
    return StepCost(
        student=costs[0],
        teacher=costs[1] if teacher is not None else None,
        macs_per_image=flops // 2 // IMAGES,
        fixed_bytes=_fixed_bytes(student, teacher, distillers, experiment.training.optimiser),
        bytes_per_image=kept_bytes // IMAGES,
    )


def _fixed_bytes(student: nn.Module, teacher: nn.Module | None, distillers: nn.ModuleList, optimiser: str) -> int:
    """Parameters and buffers; a gradient and SGD's momentum, or Adam's two moments, for those that are trained."""

    def size(tensors: Iterable[Tensor]) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    fixed = sum(size((*m.parameters(), *m.buffers())) for m in (student, teacher, distillers) if m is not None)
    of_student = [*student.parameters(), *(p for module in distillers for p in module.student_parameters())]
    of_teacher = [p for module in distillers for p in module.teacher_parameters()]
    return fixed + (2 if optimiser == "sgd" else 3) * size(of_student) + 3 * size(of_teacher)


_Passes = tuple[tuple[int, int], Callable, Callable, Callable, Callable]
"""The images' size; passes of a network and images: inference, student's and teacher's in a step; loss of the two."""


def _segmentation_passes(experiment: Experiment, student: nn.Module) -> _Passes:
    size = experiment.data.crop_height, experiment.data.crop_width

    def loss(distillers: nn.ModuleList, seen: SegOutput, teacher: SegOutput | None) -> Tensor:
        labels = torch.zeros(IMAGES, *size, dtype=torch.long, device=FAKE_DEVICE)
        total = task_loss(seen.logits, labels, 255)
        for logits in auxiliary_logits(seen) if experiment.training.auxiliary_weight else ():
            total = total + experiment.training.auxiliary_weight * task_loss(logits, labels, 255)
        return total + sum(distiller(**distilled_of(seen, teacher, labels))["loss"] for distiller in distillers)

    forward = nn.Module.__call__
    return size, forward, forward, forward, loss


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

    learn = partial(_detector_view, boxes=boxes, masks=objects)
    teach = partial(_detector_view, boxes=boxes, masks=0, proposing=False)
    return (height, width), infer, learn, teach, loss


def _detector_view(
    network: FasterRCNN, images: Tensor, *, boxes: int, masks: int, proposing: bool = True
) -> DetectorView:
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
