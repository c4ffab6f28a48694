"""What a training step of a detector computes and keeps, found out without computing it.

As :mod:`apd.study.step_cost` for segmentation. What boxes a detector draws depends on numbers, which fake tensors have
not, so its parts are run one after the other on as many boxes as it draws at most.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN

from apd.models.detector_view import DetectorPair, DetectorView
from apd.study.experiment import Experiment
from apd.study.step_cost import (
    FAKE_DEVICE,
    PICTURES,
    NetworkCost,
    StepCost,
    count_step,
    fixed_bytes_of,
    give_fake_tensors,
)
from apd.study.tasks import task_of

STRIDE = 32
"""torchvision pads the pictures of a batch to multiples of this."""


class _Boxes(NamedTuple):
    """How many boxes of a picture each head looks at."""

    classified: int
    masked: int


def detector_step_cost(experiment: Experiment, num_classes: int) -> StepCost:
    """Count what a training step of an experiment in detection takes. Weights are not read and no data are touched.

    The picture is the largest that the detector resizes to. Training counts the sampled boxes, a quarter of them things
    (the most that torchvision takes), and inference as many proposals and findings as the network may have. Of the
    teacher the pyramid and the box head at the student's boxes run in a step, where anything is distilled.

    Args:
        experiment: its networks, size of pictures and distillers.
        num_classes: classes K of its data, the background not counted.

    Raises:
        ExperimentError: a network cannot be built.

    Example:
        >>> from apd.study.recipes import recipe
        >>> cost = detector_step_cost(recipe("scenes_detection", "student"), num_classes=3)
        >>> cost.teacher is None, f"{cost.student.parameters / 1e6:.1f} M"
        (True, '12.5 M')
    """
    task, nowhere = task_of(experiment), torch.device("meta")
    with nowhere:
        student = task.network(experiment.network, num_classes, nowhere, seed=0, weights_follow=True)
        teacher = None
        if experiment.distillers:
            teacher = task.network(experiment.teacher.network, num_classes, nowhere, seed=0, weights_follow=True)
            teacher.eval().requires_grad_(False)
        distillers = nn.ModuleList(task.distiller(config, student, teacher) for config in experiment.distillers)
    size = tuple(-(-side // STRIDE) * STRIDE for side in (experiment.data.height, experiment.data.width))
    sampler = student.roi_heads.fg_bg_sampler
    drawn = _Boxes(sampler.batch_size_per_image, int(sampler.batch_size_per_image * sampler.positive_fraction))
    looked_at = _Boxes(drawn.classified, 0)  # by the teacher
    with FakeTensorMode():
        for module in filter(None, (student, teacher, distillers)):
            give_fake_tensors(module)
        images = torch.empty(PICTURES, 3, *size, device=FAKE_DEVICE)
        in_inference = [_inference_flops(network, images[:1]) for network in filter(None, (student, teacher))]
        counted = count_step(
            (student, distillers),
            lambda: _forward(student.train(), images, drawn),
            lambda: None if teacher is None else _forward(teacher, images, looked_at, proposing=False),
            lambda seen, taught: [distiller(_pair(seen, taught, size)) for distiller in distillers],
        )
    costs = [
        NetworkCost(sum(p.numel() for p in network.parameters()), flops // 2)
        for network, flops in zip(filter(None, (student, teacher)), in_inference, strict=True)
    ]
    return StepCost(
        student=costs[0],
        teacher=costs[1] if teacher is not None else None,
        macs_per_image=counted.macs,
        fixed_bytes=fixed_bytes_of(student, teacher, distillers, experiment.training.optimiser),
        bytes_per_image=counted.kept_bytes,
    )


def _inference_flops(network: FasterRCNN, image_13HW: Tensor) -> int:
    most = _Boxes(network.rpn.post_nms_top_n(), network.roi_heads.detections_per_img)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _forward(network.eval(), image_13HW, most)
    return counter.get_total_flops()


def _forward(network: FasterRCNN, images: Tensor, boxes: _Boxes, *, proposing: bool = True) -> DetectorView:
    """Every convolution and product of a forward pass, with boxes in the place of those it would draw."""
    pyramid, heads, count = network.backbone(images), network.roi_heads, len(images)
    if proposing:
        network.rpn.head(list(pyramid.values()))
    channels = network.backbone.out_channels

    def pooled(pool: nn.Module, each: int) -> Tensor:
        return torch.empty(count * each, channels, *pool.output_size, device=images.device)

    vectors = heads.box_head(pooled(heads.box_roi_pool, boxes.classified))
    logits, _ = heads.box_predictor(vectors)
    if heads.has_mask() and boxes.masked:
        heads.mask_predictor(heads.mask_head(pooled(heads.mask_roi_pool, boxes.masked)))
    rows = (part.reshape(count, boxes.classified, -1).mT.unsqueeze(2) for part in (vectors, logits))
    return DetectorView(pyramid, *rows, [tuple(images.shape[2:])] * count)


def _pair(seen: DetectorView, taught: DetectorView, size: tuple[int, int]) -> DetectorPair:
    boxes = seen.vectors_BC1N.shape[-1]
    labels_B1N = torch.zeros(PICTURES, 1, boxes, dtype=torch.long, device=FAKE_DEVICE)
    map_BHW = torch.zeros(PICTURES, *size, dtype=torch.long, device=FAKE_DEVICE)
    return DetectorPair(seen, taught, labels_B1N, map_BHW, map_BHW)
