"""Single images of detection: what is right in them, which to show, and their boxes as distillation sees them.

AP is a score of a whole data set. For one image the detections that the detector is fairly sure of are counted instead.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import box_area, box_iou

from apd.data.batches import unit_range
from apd.data.instances import InstanceDataset, InstanceSample, as_target
from apd.distillers.base import NO_BOX
from apd.evaluation.average_precision import Detections
from apd.models.detector_hooks import DetectorTap, training_step
from apd.perspective import class_prototypes

LEAST_OVERLAP = 0.5
"""Overlap (intersection over union of boxes) from which a detection is right, that of AP50."""
LEAST_SCORE = 0.5
"""How sure a detector has to be for a detection to be counted and drawn (own choice)."""


class ImageCount(NamedTuple):
    """Objects found in one image, detections that are no object or one found already, and objects missed."""

    right: int
    false: int
    missed: int

    @property
    def score(self) -> int:
        """Objects found minus false detections."""
        return self.right - self.false


def count_in_image(truth: InstanceSample, found: Detections) -> ImageCount:
    """Count what the detections of one image get right, those of a score below LEAST_SCORE passed over.

    As COCO matches them: the surest first, each takes the free object of its class that it overlaps most, if by
    LEAST_OVERLAP. A detection of which that share lies in a crowd of its class is neither right nor false.

    Example:
        >>> box, area, crowd = torch.tensor([[2.0, 2.0, 40.0, 40.0]]), torch.tensor([1444.0]), torch.tensor([False])
        >>> image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        >>> truth = InstanceSample(image, box, torch.tensor([1]), None, crowd, area, "a dog")
        >>> twice = Detections(box.repeat(2, 1), torch.tensor([0.9, 0.8]), torch.tensor([1, 1]), None)
        >>> count_in_image(truth, twice)
        ImageCount(right=1, false=1, missed=0)
    """
    surest = found.scores_N.argsort(descending=True, stable=True).tolist()
    same_NM = found.labels_N[:, None] == truth.labels_N[None]
    overlaps_NM = box_iou(found.boxes_N4, truth.boxes_N4).nan_to_num(0.0)
    wanted_NM = torch.where(same_NM & ~truth.crowd_N, overlaps_NM, -1.0)
    corner_NM2 = torch.maximum(found.boxes_N4[:, None, :2], truth.boxes_N4[:, :2])
    common_NM = (torch.minimum(found.boxes_N4[:, None, 2:], truth.boxes_N4[:, 2:]) - corner_NM2).clamp(min=0).prod(2)
    inside_NM = common_NM / box_area(found.boxes_N4)[:, None]
    in_crowd_N = ((inside_NM >= LEAST_OVERLAP) & same_NM & truth.crowd_N).any(1)
    right = false = 0
    for i in surest:
        if found.scores_N[i] < LEAST_SCORE:
            break
        best = int(wanted_NM[i].argmax()) if wanted_NM.shape[1] else -1
        if best >= 0 and wanted_NM[i, best] >= LEAST_OVERLAP:
            right += 1
            wanted_NM[:, best] = -1.0
        elif not in_crowd_N[i]:
            false += 1
    return ImageCount(right, false, int((~truth.crowd_N).sum()) - right)


def least_middle_most(differences: Sequence[float]) -> dict[str, int]:
    """The images with the greatest, the middle and the least difference: a choice by rule, not by looking.

    Of equal ones it is the first that has not been named yet; the middle one is the lower median. Fewer than three come
    back only where all pictures of that difference are named.

    Args:
        differences: of two detectors' scores, image by image.

    >>> least_middle_most([0, 2, -1, 1, 2])
    {'greatest': 1, 'median': 3, 'least': 2}
    """
    values = list(differences)
    if not values:
        return {}
    ordered = sorted(values)
    wanted = {"greatest": ordered[-1], "median": ordered[(len(ordered) - 1) // 2], "least": ordered[0]}
    chosen: dict[str, int] = {}
    for name, value in wanted.items():
        equal = [place for place, other in enumerate(values) if other == value and place not in chosen.values()]
        if equal:
            chosen[name] = equal[0]
    return chosen


def first_with_all_classes(dataset: InstanceDataset) -> int:
    """The first image in which an object of each class has to be found; 0 where there is none."""
    for place in range(len(dataset)):
        sample = dataset[place]
        if len(sample.labels_N[~sample.crowd_N].unique()) == dataset.spec.num_classes:
            return place
    return 0


class BoxPerspectives(NamedTuple):
    """An image's boxes and the cosines between its classes, for a student and its teacher; all on the CPU."""

    boxes_N4: Tensor
    """Drawn from the student's proposals and the true boxes, to train its box head on; in pixels."""
    labels_N: Tensor
    """int64 label that each was matched with, 0 for the background."""
    student_KK: Tensor
    """Cosines between the prototypes of the labels, the background first; NaN where a label has no box."""
    teacher_KK: Tensor
    class_map_HW: Tensor | None
    """The objects' masks as labels of pixels (:func:`apd.data.instances.class_map`); None without masks."""


def cosines_of_prototypes(vectors_C1N: Tensor, labels_1N: Tensor, num_labels: int) -> Tensor:
    """(K, K) cosines between the mean directions of the vectors of each label; NaN where a label has none."""
    found_1KC, present_1K = class_prototypes(vectors_C1N[None], labels_1N[None], num_labels, ignore_index=NO_BOX)
    prototypes_KC, present_K = found_1KC[0], present_1K[0]
    both_KK = present_K[:, None] & present_K
    return torch.where(both_KK, prototypes_KC @ prototypes_KC.T, torch.nan)


@torch.no_grad()
def box_perspectives(
    student: GeneralizedRCNN, teacher: GeneralizedRCNN, sample: InstanceSample, *, seed: int = 0
) -> BoxPerspectives:
    """Let a student draw boxes in an image as it does in training, and look at them with both networks.

    The vectors are the box heads' own, before any projection. The student's batch norm stays as it is, its modes are
    put back, and torch's global generator is left as it was.

    Raises:
        ValueError: the teacher is in training mode, or the networks have other numbers of classes.
    """
    device = next(student.parameters()).device
    target = {name: value.to(device) for name, value in as_target(sample).items()}
    modes = {module: module.training for module in student.modules()}
    student.train()
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    try:
        with torch.random.fork_rng(), DetectorTap(student) as tap:
            torch.manual_seed(seed)
            _, pair = training_step(student, tap, teacher, [unit_range(sample.image_3HW).to(device)], [target])
            boxes_N4, (height, width) = tap.boxes[0].cpu(), pair.student.image_sizes[0]
    finally:
        for module, mode in modes.items():
            module.training = mode
    rows, columns = sample.image_3HW.shape[1:]
    labels_1N, num_labels = pair.labels_B1N[0], pair.student.logits_BK1N.shape[1]
    cosines = [
        cosines_of_prototypes(view.vectors_BC1N[0], labels_1N, num_labels).cpu()
        for view in (pair.student, pair.teacher)
    ]
    map_HW = target.get("class_map")
    return BoxPerspectives(
        boxes_N4 * boxes_N4.new_tensor([columns / width, rows / height]).repeat(2),
        labels_1N[0].cpu(),
        *cosines,
        None if map_HW is None else map_HW.cpu(),
    )
