"""A picture as distillation between detectors sees it: the boxes that a student draws and both nets' perspectives."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from apd.data.batches import unit_range
from apd.data.instances import InstanceDataset, InstanceSample, as_target
from apd.distillers.base import NO_BOX
from apd.models.detector_hooks import DetectorTap, training_step
from apd.perspective import class_prototypes


class BoxPerspectives(NamedTuple):
    """What a picture's boxes are and how alike its classes look, for a student and its teacher; all on the CPU.

    Attributes:
        boxes_N4: drawn from the student's proposals and the true boxes, to train its box head on; in pixels.
        labels_N: int64 label that each was matched with, 0 for the background.
        student_KK, teacher_KK: cosines between the prototypes of the labels, the background first; NaN where a label
            has no box.
        class_map_HW: the things' masks as labels of pixels (:func:`apd.data.instances.class_map`); None where the data
            have no masks.
    """

    boxes_N4: Tensor
    labels_N: Tensor
    student_KK: Tensor
    teacher_KK: Tensor
    class_map_HW: Tensor | None


def cosines_of_prototypes(vectors_C1N: Tensor, labels_1N: Tensor, num_labels: int) -> Tensor:
    """(K, K) cosines between the mean directions of the vectors of each label; NaN where a label has none.

    >>> vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> cosines_of_prototypes(vectors, torch.tensor([[0, 2]]), 3)
    tensor([[1., nan, 0.],
            [nan, nan, nan],
            [0., nan, 1.]])
    """
    found_1KC, present_1K = class_prototypes(vectors_C1N[None], labels_1N[None], num_labels, ignore_index=NO_BOX)
    prototypes_KC, present_K = found_1KC[0], present_1K[0]
    both_KK = present_K[:, None] & present_K
    return torch.where(both_KK, prototypes_KC @ prototypes_KC.T, torch.nan)


@torch.no_grad()
def box_perspectives(
    student: GeneralizedRCNN, teacher: GeneralizedRCNN, sample: InstanceSample, *, seed: int = 0
) -> BoxPerspectives:
    """Let a student draw boxes in a picture as it does in training, and look at them with both networks.

    The vectors are the box heads' own, before any projection. The student's batch norm stays as it is, its modes are
    put back, and torch's global generator is left as it was.

    Args:
        student: its proposals and its drawing of boxes count; on one device with the teacher.
        teacher: in eval mode.
        sample: the picture.
        seed: of the drawing.

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


def first_with_all_classes(dataset: InstanceDataset) -> int:
    """The first picture in which a thing of each class has to be found; 0 where there is none.

    >>> from apd.data.scenes.instances import SceneInstances
    >>> first_with_all_classes(SceneInstances(20, height=48, width=64, context_shift=0.5, seed=0)) < 20
    True
    """
    for place in range(len(dataset)):
        sample = dataset[place]
        if len(sample.labels_N[~sample.crowd_N].unique()) == dataset.spec.num_classes:
            return place
    return 0
