"""What distillation adds to a training step of a detector: the student's step, the teacher's look, and the rest."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from apd.config.experiment import Experiment
from apd.cost.measure import Latency
from apd.cost.step import FAKE_DEVICE, PICTURES, NetworkCost, StepCost, count_step, fixed_bytes_of, give_fake_tensors
from apd.data.augment_instances import InstanceBatch
from apd.data.batches import unit_range
from apd.data.instances import InstanceSample, as_target
from apd.models.detector_hooks import DetectorPair, DetectorTap, DetectorView, teacher_view, training_step
from apd.training.run import task_of

Distiller = Callable[[DetectorPair], Mapping[str, Tensor]]


class DetectorStepCost(NamedTuple):
    """Quartiles over the repeats.

    Attributes:
        student: milliseconds of the student's step alone: forward, task losses, backward.
        teacher: milliseconds of the teacher's look at the boxes that the student drew.
        steps: milliseconds of the step with each distiller, the teacher's look included, by name.
        added: what each distiller adds beyond the teacher's look, as a share of the student's step, by name: repeat by
            repeat (step − student − teacher) / student, all three of the same pictures and boxes.
    """

    student: Latency
    teacher: Latency
    steps: dict[str, Latency]
    added: dict[str, Latency]


def made_up_batch(
    batch: int, height: int, width: int, *, num_classes: int, things: int = 8, seed: int = 0
) -> InstanceBatch:
    """Pictures of noise with rectangles as things: the cost of a step does not depend on what is seen.

    Args:
        batch: pictures B.
        height, width: of each, in pixels.
        num_classes: classes K of things.
        things: in each picture (default 8; a picture of COCO has about seven).
        seed: of the noise.

    >>> images, targets = made_up_batch(2, 64, 96, num_classes=3)
    >>> images[0].shape, targets[0]["masks"].shape
    (torch.Size([3, 64, 96]), torch.Size([8, 64, 96]))
    """
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for number in range(batch):
        image_3HW = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        size_N2 = 0.1 + 0.3 * torch.rand(things, 2, generator=generator)
        corner_N2 = (1 - size_N2) * torch.rand(things, 2, generator=generator)
        boxes_N4 = (torch.cat([corner_N2, corner_N2 + size_N2], 1) * torch.tensor([width, height] * 2)).round()
        masks_NHW = torch.zeros(things, height, width, dtype=torch.bool)
        for mask_HW, (x0, y0, x1, y1) in zip(masks_NHW, boxes_N4.int().tolist(), strict=True):
            mask_HW[y0:y1, x0:x1] = True
        labels_N = torch.randint(0, num_classes, (things,), generator=generator)
        areas_N, crowd_N = masks_NHW.flatten(1).sum(1).float(), torch.zeros(things, dtype=torch.bool)
        sample = InstanceSample(image_3HW, boxes_N4, labels_N, masks_NHW, crowd_N, areas_N, f"made up {number}")
        images.append(unit_range(image_3HW))
        targets.append(as_target(sample))
    return InstanceBatch(images, targets)


def detector_step_cost(
    student: GeneralizedRCNN,
    teacher: GeneralizedRCNN,
    distillers: Mapping[str, Distiller],
    batch: InstanceBatch,
    *,
    warmup: int = 1,
    repeats: int = 5,
) -> DetectorStepCost:
    """Time training steps of one batch: the student alone, the teacher's look, and each distiller, in turn.

    They take turns within a repeat, so that what slows the machine for a while slows all of them, and draw the same
    boxes. The optimiser's step is left out: it is the same for all but for the heads' few parameters. The networks are
    left as they are; the distillers' parameters are left without gradients.

    Args:
        student: Faster or Mask R-CNN.
        teacher: in eval mode, on the same device.
        distillers: called as those of :mod:`apd.distillers.roi_apd`, by name, on the same device.
        batch: pictures with their targets, on that device.
        warmup: repeats before the clock counts (default 1).
        repeats: counted (default 5), at least 2.

    Raises:
        ValueError: `warmup` is below 0 or `repeats` below 2, or what
            :func:`~apd.models.detector_hooks.training_step` refuses.
    """
    if warmup < 0 or repeats < 2:
        raise ValueError(f"warmup={warmup}, repeats={repeats}: expected at least 0 and 2")
    student = copy.deepcopy(student).train()
    device = next(student.parameters()).device
    trained = [student, *(each for each in distillers.values() if isinstance(each, nn.Module))]

    def clocked(step: Callable[[], object], repeat: int) -> float:
        torch.manual_seed(repeat)  # the boxes that are drawn
        started = _now(device)
        step()
        milliseconds = 1e3 * (_now(device) - started)
        for module in trained:
            module.zero_grad(set_to_none=True)
        return milliseconds

    def alone() -> None:
        sum(student(*batch).values()).backward()

    def distilled(distiller: Distiller) -> None:
        with DetectorTap(student) as tap:
            losses, pair = training_step(student, tap, teacher, *batch)
            (sum(losses.values()) + distiller(pair)["loss"]).backward()

    def drawn(repeat: int) -> tuple[list[Tensor], list[Tensor], list[tuple[int, int]]]:
        with DetectorTap(student) as tap, torch.no_grad():
            torch.manual_seed(repeat)
            student(*batch)
            return batch.images, tap.boxes, tap.view.image_sizes

    rows: list[dict[str, float]] = []
    with torch.random.fork_rng():
        for repeat in range(-warmup, repeats):
            row = {"": clocked(alone, repeat + warmup)}
            row["teacher"] = clocked(partial(teacher_view, teacher, *drawn(repeat + warmup)), repeat + warmup)
            row |= {f"+{name}": clocked(partial(distilled, each), repeat + warmup) for name, each in distillers.items()}
            if repeat >= 0:
                rows.append(row)
    return DetectorStepCost(
        student=_quartiles([row[""] for row in rows]),
        teacher=_quartiles([row["teacher"] for row in rows]),
        steps={name: _quartiles([row[f"+{name}"] for row in rows]) for name in distillers},
        added={
            name: _quartiles([(row[f"+{name}"] - row[""] - row["teacher"]) / row[""] for row in rows])
            for name in distillers
        },
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _quartiles(values: list[float]) -> Latency:
    return Latency(*statistics.quantiles(values, n=4, method="inclusive"))


# What a training step of a detector computes and keeps, found out without computing it.

STRIDE = 32
"""torchvision pads the pictures of a batch to multiples of this."""


class _Boxes(NamedTuple):
    """How many boxes of a picture each head looks at."""

    classified: int
    masked: int


def detector_step_cost_OF_detector_step_cost(experiment: Experiment, num_classes: int) -> StepCost:
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
        >>> cost = detector_step_cost_OF_detector_step_cost(recipe("scenes_detection", "student"), num_classes=3)
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
