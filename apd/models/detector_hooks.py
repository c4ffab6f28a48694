"""What two detectors make of the same boxes of the same images, side by side as the pixels of a map of one row."""

from contextlib import ExitStack
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from apd.distillers.base import NO_BOX, DetectorPair, DetectorView
from apd.perspective import resize_labels


class DetectorTap:
    """Context manager that remembers what a torchvision detector does in its training steps, and changes nothing.

    Open it around a loop, or around one step, for the detector itself, which may be wrapped when it is called. Its
    properties raise a RuntimeError before the first training step.

    Example:
        >>> from apd.models.detector import build_detector
        >>> small = dict(min_size=64, max_size=64, width=16, box_width=32, smallest_anchor=8, proposals=50, rois=16)
        >>> detector = build_detector("mobilenet_v3_small", 3, masks=False, **small)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
        >>> with DetectorTap(detector) as tap:
        ...     losses = detector([torch.rand(3, 64, 64), torch.rand(3, 64, 64)], [target, target])
        >>> tap.view.vectors_BC1N.shape, tap.view.logits_BK1N.shape[:2]
        (torch.Size([2, 32, 1, 16]), torch.Size([2, 4]))
    """

    def __init__(self, detector: GeneralizedRCNN) -> None:
        if not isinstance(detector, GeneralizedRCNN):
            expected = "a Faster or Mask R-CNN of torchvision; for a wrapped one give what is inside (ddp.module)"
            raise TypeError(f"detector is a {type(detector).__name__}: expected {expected}")
        self._detector, self._undo = detector, ExitStack()
        self._seen: dict[str, Any] = {}

    def __enter__(self) -> Self:
        detector, heads = self._detector, self._detector.roi_heads
        hooks = [
            detector.register_forward_pre_hook(lambda *_: self._seen.clear()),
            detector.transform.register_forward_hook(lambda _m, _i, output: self._seen.update(images=output[0])),
            detector.backbone.register_forward_hook(lambda _m, _i, output: self._seen.update(pyramid=output)),
            heads.box_head.register_forward_hook(lambda _m, _i, output: self._seen.update(vectors=output)),
            heads.box_predictor.register_forward_hook(lambda _m, _i, output: self._seen.update(logits=output[0])),
        ]
        for hook in hooks:
            self._undo.enter_context(hook)
        sample, select = detector.rpn.fg_bg_sampler, heads.select_training_samples

        def sample_and_keep(labels: list[Tensor]) -> tuple:
            sampled = sample(labels)
            self._seen.update(anchors=sampled)
            return sampled

        def select_and_keep(*args: object) -> tuple:
            selected = select(*args)
            self._seen.update(boxes=selected[0], labels=selected[2])
            return selected

        # no modules, so they have no hooks
        self._undo.enter_context(patch.object(detector.rpn, "fg_bg_sampler", sample_and_keep))
        self._undo.enter_context(patch.object(heads, "select_training_samples", select_and_keep))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _get(self, name: str) -> Any:
        if name not in self._seen:
            fix = "call detector(images, targets) inside the with block first"
            raise RuntimeError(f"the detector has not run in training mode: {fix}")
        return self._seen[name]

    @property
    def boxes(self) -> list[Tensor]:
        """The boxes (n, 4) that the box head was trained on, ground truth included, in the resized images' pixels."""
        return list(self._get("boxes"))

    @property
    def labels_B1N(self) -> Tensor:
        """The label that each box was matched with, padded with :data:`NO_BOX` where an image has fewer boxes."""
        return _side_by_side([labels[:, None] for labels in self._get("labels")], fill=NO_BOX)[:, 0]

    @property
    def loss_counts(self) -> dict[str, Tensor]:
        """How many boxes, objects or anchors each of torchvision's task losses is a mean over, by its name."""
        labels = torch.cat(self._get("labels"))
        boxes, objects = labels.new_tensor(len(labels)), (labels > 0).sum()
        anchors = sum(chosen.count_nonzero() for side in self._get("anchors") for chosen in side)
        counts = {"loss_classifier": boxes, "loss_box_reg": boxes, "loss_mask": objects}
        return counts | {"loss_objectness": anchors, "loss_rpn_box_reg": anchors}

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the padded batch."""
        return tuple(self._get("images").tensors.shape[2:])

    @property
    def view(self) -> DetectorView:
        """Features and logits of the last training step, with their graph."""
        sizes = list(self._get("images").image_sizes)
        return _view(self._get("pyramid"), self._get("vectors"), self._get("logits"), self._get("boxes"), sizes)


@torch.no_grad()
def teacher_view(
    teacher: GeneralizedRCNN, images: list[Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
) -> DetectorView:
    """What a frozen detector makes of given boxes: its own pyramid and, from it, its box head at these boxes.

    `boxes`, (n, 4) for each image, are in pixels at `image_sizes`, and scaled to the teacher's.
    """
    if teacher.training:
        raise ValueError("teacher is in training mode: call teacher.eval() first")
    resized, _ = teacher.transform(images)
    pyramid = teacher.backbone(resized.tensors)
    sizes = zip(image_sizes, resized.image_sizes, strict=True)
    scales = [boxes[0].new_tensor([own[1] / given[1], own[0] / given[0]] * 2) for given, own in sizes]
    moved = [boxes_N4 * scale for boxes_N4, scale in zip(boxes, scales, strict=True)]
    vectors = teacher.roi_heads.box_head(teacher.roi_heads.box_roi_pool(pyramid, moved, resized.image_sizes))
    return _view(pyramid, vectors, teacher.roi_heads.box_predictor(vectors)[0], boxes, resized.image_sizes)


def training_step(
    student: nn.Module,
    tap: DetectorTap,
    teacher: GeneralizedRCNN,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> tuple[dict[str, Tensor], DetectorPair]:
    """One training forward of a student, and the frozen teacher's view of the boxes that the student drew.

    `student` is what is called: the tapped detector or its wrapper, with an open `tap`; the teacher may differ in all
    but the classes. `images` are float32 (3, H, W) in [0, 1], `targets` those of :func:`apd.data.instances.as_target`.
    Returned are torchvision's task losses by name, unweighted, and the pair of views.
    """
    if not student.training:
        raise ValueError("student is in eval mode: call student.train() first, or it draws no boxes to train on")
    losses, boxes = student(images, targets), tap.boxes
    if boxes[0].dtype in (torch.float16, torch.bfloat16):
        fix = "run detectors without autocast (precision fp32)"
        raise ValueError(f"the student's boxes are {boxes[0].dtype}, too coarse for coordinates: {fix}")
    ours, labels_B1N = tap.view, tap.labels_B1N
    theirs = teacher_view(teacher, images, boxes, ours.image_sizes)
    if ours.logits_BK1N.shape[1] != theirs.logits_BK1N.shape[1]:
        counts = f"{ours.logits_BK1N.shape[1]} logits and the teacher {theirs.logits_BK1N.shape[1]}"
        raise ValueError(f"the student has {counts}, background included: they must be trained for the same classes")
    maps = [target["class_map"] for target in targets if "class_map" in target]
    class_map_BHW = pad_maps(maps, ours.image_sizes, tap.padded_size) if len(maps) == len(targets) else None
    inside = [torch.zeros(size, dtype=torch.int64, device=boxes[0].device) for size in ours.image_sizes]
    inside_BHW = pad_maps(inside, ours.image_sizes, tap.padded_size)
    return losses, DetectorPair(ours, theirs, labels_B1N, class_map_BHW, inside_BHW)


def pad_maps(maps: list[Tensor], image_sizes: list[tuple[int, int]], padded_size: tuple[int, int]) -> Tensor:
    """Label maps (H, W) resized by the nearest rule to where images are in a padded batch, :data:`NO_BOX` around."""
    padded_BHW = maps[0].new_full((len(maps), *padded_size), NO_BOX)
    for own_HW, map_HW, size in zip(padded_BHW, maps, image_sizes, strict=True):
        own_HW[: size[0], : size[1]] = resize_labels(map_HW[None], size)[0]
    return padded_BHW


def _view(
    pyramid: dict[str, Tensor], vectors: Tensor, logits: Tensor, boxes: list[Tensor], sizes: list[tuple[int, int]]
) -> DetectorView:
    counts = [len(boxes_N4) for boxes_N4 in boxes]
    return DetectorView(pyramid, *(_side_by_side(rows.split(counts)) for rows in (vectors, logits)), sizes)


def _side_by_side(rows: list[Tensor] | tuple[Tensor, ...], fill: float = 0) -> Tensor:
    """(n, C) for each image to (B, C, 1, N), with N the most boxes that an image has, at least one place."""
    rows_BNC = pad_sequence(list(rows), batch_first=True, padding_value=fill)
    if rows_BNC.shape[1] == 0:  # not one box in the batch
        rows_BNC = F.pad(rows_BNC, (0, 0, 0, 1), value=fill)
    return rows_BNC.mT.unsqueeze(2)
