"""What two detectors make of the same boxes of the same pictures: all that distillation between them looks at.

torchvision's detectors keep to themselves what happens inside a training step: which proposals were drawn, which label
each got, the box head's vectors. A :class:`DetectorTap` listens to one while it runs and changes nothing. The boxes of
a picture come side by side, as the pixels of a map of one row, so that every loss of pixels is a loss of boxes.
Shape letters: B pictures, N boxes of a picture, C channels, K classes with the background before them.
"""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from apd.distillers.base import NO_BOX, DetectorPair, DetectorView


class DetectorTap:
    """Context manager that remembers what a torchvision detector does in its training steps.

    Open it once around a loop, or around one step; what it attached is gone when the block is left. The detector may be
    wrapped (as in ``DistributedDataParallel``) when it is called; the tap wants the detector itself.

    Args:
        detector: Faster R-CNN, Mask R-CNN or another ``GeneralizedRCNN`` of torchvision.

    Raises:
        TypeError: it is something else.

    Example:
        >>> import torch
        >>> from apd.models.detector import build_detector
        >>> small = dict(min_size=64, max_size=64, width=16, box_width=32, smallest_anchor=8, proposals=50, rois=16)
        >>> detector = build_detector("mobilenet_v3_small", 3, masks=False, **small)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
        >>> with DetectorTap(detector) as tap:
        ...     losses = detector([torch.rand(3, 64, 64), torch.rand(3, 64, 64)], [target, target])
        ...     view = tap.view
        >>> view.vectors_BC1N.shape, view.logits_BK1N.shape[:2]
        (torch.Size([2, 32, 1, 16]), torch.Size([2, 4]))
    """

    def __init__(self, detector: GeneralizedRCNN) -> None:
        if not isinstance(detector, GeneralizedRCNN):
            raise TypeError(
                f"detector is a {type(detector).__name__}: expected a Faster or Mask R-CNN of torchvision; for a "
                "wrapped one give what is inside (ddp.module)"
            )
        self._detector = detector
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: dict[str, object] = {}

    def __enter__(self) -> Self:
        detector, heads = self._detector, self._detector.roi_heads
        self._hooks = [
            detector.register_forward_pre_hook(lambda *_: self._seen.clear()),
            detector.transform.register_forward_hook(lambda _m, _i, output: self._keep(images=output[0])),
            detector.backbone.register_forward_hook(lambda _m, _i, output: self._keep(pyramid=output)),
            heads.box_head.register_forward_hook(lambda _m, _i, output: self._keep(vectors=output)),
            heads.box_predictor.register_forward_hook(lambda _m, _i, output: self._keep(logits=output[0])),
        ]
        self._sampler_before = detector.rpn.fg_bg_sampler

        def sample_and_keep(labels: list[Tensor]) -> tuple:
            sampled = self._sampler_before(labels)
            self._keep(anchors=sampled)
            return sampled

        detector.rpn.fg_bg_sampler = sample_and_keep
        draw = heads.select_training_samples
        self._drawn_before = heads.__dict__.get("select_training_samples")

        def draw_and_keep(*args: object) -> tuple:
            drawn = draw(*args)
            self._keep(boxes=drawn[0], labels=drawn[2])
            return drawn

        # a method, not a module, so it has no hooks: the instance's attribute comes before its class's
        heads.select_training_samples = draw_and_keep
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._detector.rpn.fg_bg_sampler = self._sampler_before
        if self._drawn_before is None:
            del self._detector.roi_heads.select_training_samples
        else:  # an outer tap's
            self._detector.roi_heads.select_training_samples = self._drawn_before

    def _keep(self, **things: object) -> None:
        self._seen |= things

    def _get(self, name: str) -> object:
        if name not in self._seen:
            raise RuntimeError(
                "the detector has not run in training mode: call detector(images, targets) inside the with block first"
            )
        return self._seen[name]

    @property
    def boxes(self) -> list[Tensor]:
        """The boxes (n, 4) that the box head was trained on, ground truth included, in the resized pictures' pixels.

        This and the properties below raise a RuntimeError before the first training step.
        """
        return list(self._get("boxes"))

    @property
    def labels_B1N(self) -> Tensor:
        """The label that each box was matched with; :data:`NO_BOX` in the places that a picture leaves free."""
        return _side_by_side([labels[:, None] for labels in self._get("labels")], fill=NO_BOX)[:, 0]

    @property
    def loss_counts(self) -> dict[str, Tensor]:
        """What each of torchvision's task losses is a mean over, by its name: how many boxes, things or anchors."""
        labels = torch.cat(self._get("labels"))
        boxes, things = labels.new_tensor(len(labels)), (labels > 0).sum()
        anchors = sum(chosen.count_nonzero() for side in self._get("anchors") for chosen in side)
        counts = {"loss_classifier": boxes, "loss_box_reg": boxes, "loss_mask": things}
        return counts | {"loss_objectness": anchors, "loss_rpn_box_reg": anchors}

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the padded batch."""
        return tuple(self._get("images").tensors.shape[2:])

    @property
    def view(self) -> DetectorView:
        """Features and logits of the last training step, with their graph."""
        counts = [len(boxes) for boxes in self._get("boxes")]
        return DetectorView(
            self._get("pyramid"),
            _side_by_side(self._get("vectors").split(counts)),
            _side_by_side(self._get("logits").split(counts)),
            list(self._get("images").image_sizes),
        )


@torch.no_grad()
def teacher_view(
    teacher: GeneralizedRCNN, images: list[Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
) -> DetectorView:
    """What a frozen detector makes of given boxes: its own pyramid and, from it, its box head at these boxes.

    It proposes nothing itself, so its proposal network does not run.

    Args:
        teacher: in eval mode.
        images: float32 (3, H, W) in [0, 1], as the student got them.
        boxes: (n, 4) for each picture, in the pixels of pictures resized to `image_sizes`. Where the teacher resizes
            to another size the boxes are moved along.
        image_sizes: see there.

    Raises:
        ValueError: the teacher is in training mode, in which its batch norm would change.
    """
    if teacher.training:
        raise ValueError("teacher is in training mode: call teacher.eval() first")
    resized, _ = teacher.transform(images)
    pyramid = teacher.backbone(resized.tensors)
    moved = []
    for boxes_N4, (height, width), (own_height, own_width) in zip(boxes, image_sizes, resized.image_sizes, strict=True):
        factor = boxes_N4.new_tensor([own_width / width, own_height / height])
        moved.append(boxes_N4 * factor.repeat(2))
    vectors = teacher.roi_heads.box_head(teacher.roi_heads.box_roi_pool(pyramid, moved, resized.image_sizes))
    logits = teacher.roi_heads.box_predictor(vectors)[0]
    counts = [len(boxes_N4) for boxes_N4 in boxes]
    return DetectorView(
        pyramid, _side_by_side(vectors.split(counts)), _side_by_side(logits.split(counts)), resized.image_sizes
    )


def training_step(
    student: nn.Module,
    tap: DetectorTap,
    teacher: GeneralizedRCNN,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> tuple[dict[str, Tensor], DetectorPair]:
    """One training forward of a student, and the frozen teacher's look at the boxes that the student drew.

    Args:
        student: what is called: the tapped detector, or its wrapper.
        tap: an open tap on the detector.
        teacher: in eval mode; backbone, widths and sizes may be others than the student's.
        images: float32 (3, H, W) in [0, 1].
        targets: see :func:`apd.data.instances.as_target`; `class_map` may be left out where no loss looks at pixels.

    Returns:
        torchvision's task losses by name, unweighted, and the pair of views.

    Raises:
        ValueError: the student is not in training mode, the teacher is, their numbers of classes differ, or the boxes
            are in half precision: under autocast torchvision computes them in it, and a bfloat16 holds no coordinate
            above 256 to the pixel.

    Example:
        >>> import torch
        >>> from apd.models.detector import build_detector
        >>> small = dict(masks=False, min_size=64, max_size=64, smallest_anchor=8, proposals=50, rois=16)
        >>> student = build_detector("mobilenet_v3_small", 3, width=16, box_width=32, **small)
        >>> teacher = build_detector("resnet18", 3, width=32, box_width=64, **small).eval()
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
        >>> images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
        >>> with DetectorTap(student) as tap:
        ...     losses, pair = training_step(student, tap, teacher, images, [target, target])
        >>> sorted(losses), pair.teacher.vectors_BC1N.shape
        (['loss_box_reg', 'loss_classifier', 'loss_objectness', 'loss_rpn_box_reg'], torch.Size([2, 64, 1, 16]))
    """
    if not student.training:
        raise ValueError("student is in eval mode: call student.train() first, or it draws no boxes to train on")
    losses = student(images, targets)
    if tap.boxes[0].dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the student's boxes are {tap.boxes[0].dtype}, too coarse for coordinates: run detectors without autocast "
            "(precision fp32)"
        )
    seen = tap.view
    taught = teacher_view(teacher, images, tap.boxes, seen.image_sizes)
    if seen.logits_BK1N.shape[1] != taught.logits_BK1N.shape[1]:
        raise ValueError(
            f"the student has {seen.logits_BK1N.shape[1]} logits and the teacher {taught.logits_BK1N.shape[1]}, each "
            "with the background: they must be trained for the same classes"
        )
    maps = [target.get("class_map") for target in targets]
    inside = [torch.zeros(size, dtype=torch.int64, device=tap.boxes[0].device) for size in seen.image_sizes]
    pair = DetectorPair(
        seen,
        taught,
        tap.labels_B1N,
        None if any(map_HW is None for map_HW in maps) else pad_maps(maps, seen.image_sizes, tap.padded_size),
        pad_maps(inside, seen.image_sizes, tap.padded_size),
    )
    return losses, pair


def pad_maps(
    maps: list[Tensor], image_sizes: list[tuple[int, int]], padded_size: tuple[int, int], fill: int = NO_BOX
) -> Tensor:
    """Label maps (H, W) of pictures as they were, to where the pictures are in a padded batch.

    Each goes to its picture's new size by the nearest rule, and `fill` (default :data:`NO_BOX`) around it.

    >>> pad_maps([torch.tensor([[0, 1, 2, 3]])], [(1, 2)], (2, 3))
    tensor([[[ 0,  2, -1],
             [-1, -1, -1]]])
    """
    padded = []
    for map_HW, size in zip(maps, image_sizes, strict=True):
        rows, columns = (
            torch.arange(cells, device=map_HW.device) * pixels // cells
            for cells, pixels in zip(size, map_HW.shape, strict=True)
        )
        margins = (0, padded_size[1] - size[1], 0, padded_size[0] - size[0])
        padded.append(F.pad(map_HW[rows][:, columns], margins, value=fill))
    return torch.stack(padded)


def _side_by_side(rows: list[Tensor] | tuple[Tensor, ...], fill: float = 0) -> Tensor:
    """(n, C) for each picture to (B, C, 1, N), with N the most boxes that a picture has, at least one place."""
    rows_BNC = pad_sequence(list(rows), batch_first=True, padding_value=fill)
    if rows_BNC.shape[1] == 0:  # not one box in the batch
        rows_BNC = F.pad(rows_BNC, (0, 0, 0, 1), value=fill)
    return rows_BNC.mT.unsqueeze(2)
