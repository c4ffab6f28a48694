"""How far an image's own perspective, its prototypes, is from the shared one, the classifier: numbers without gradient.

:func:`distance_to_shared` compares directions of features before the projection heads, so it is fixed before any
student is trained; :func:`compare_views` compares the observations that the student is shown, heads included.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from apd.data.batches import evaluation_batches
from apd.data.specs import SegmentationDataset
from apd.distill import APDLoss
from apd.evaluation.inference import predict_dataset
from apd.evaluation.metrics import ConfusionMatrix, scores
from apd.models.segmenter import Segmenter
from apd.perspective import ABSENT_LOGIT, class_prototypes, inverse_length, observe, resize_labels, valid_pixels
from apd.validation import check_labels


class Distance(NamedTuple):
    """How far images' own perspectives are from the shared one."""

    distance_B: Tensor
    """1 - mean of the cosines' diagonal, from 0 to 2; NaN for an image with fewer than two classes."""
    cosines_BKK: Tensor
    """Between classifier row k and prototype j, both centred over the present classes; NaN where one is absent."""


class Views(NamedTuple):
    """An image seen through its own and the shared perspective; NaN without a valid cell or a second class.

    Mean KL(own ‖ shared) in nats, and shares of the valid cells: on which the two differ, and that each gets right.
    """

    divergence_B: Tensor
    disagreement_B: Tensor
    own_right_B: Tensor
    shared_right_B: Tensor


class ImageScores(NamedTuple):
    """Of single images: mIoU of the classes in its labels and share of valid pixels right, NaN without one; number."""

    miou_B: Tensor
    right_B: Tensor
    valid_B: Tensor


def centred(rows_BKD: Tensor, present_BK: Tensor) -> Tensor:
    """Rows of present classes minus their mean; zero rows for the others.

    A vector that is added to all rows changes no softmax over them, so perspectives are compared without their mean.
    """
    weight_BK1 = present_BK[:, :, None].to(rows_BKD.dtype)
    count_B11 = weight_BK1.sum(1, keepdim=True).clamp(min=1)
    mean_B1D = (rows_BKD * weight_BK1).sum(1, keepdim=True) / count_B11
    return (rows_BKD - mean_B1D) * weight_BK1


def distance_to_shared(weights_KC: Tensor, prototypes_BKC: Tensor, present_BK: Tensor) -> Distance:
    """1 - mean over present classes of the cosine between a class's classifier row and its prototype, both centred.

    Lengths are left out, because they are a temperature. The value is not 0 for a typical image, since a classifier
    need not point along its classes' means; what is read is how it differs between images.

    Args:
        weights_KC: rows of the classifier, without biases.
        prototypes_BKC, present_BK: from :func:`apd.class_prototypes`, of the features that the classifier reads.

    >>> found = distance_to_shared(torch.eye(2), torch.eye(2)[None], torch.tensor([[True, True]]))
    >>> found.distance_B.abs() < 1e-6
    tensor([True])
    """
    if prototypes_BKC.ndim != 3 or weights_KC.shape != prototypes_BKC.shape[1:]:
        raise ValueError(
            f"weights has shape {tuple(weights_KC.shape)} and prototypes {tuple(prototypes_BKC.shape)}: expected "
            "(classes, channels) and (batch, classes, channels); prototypes must be made without a projection head"
        )
    if present_BK.shape != prototypes_BKC.shape[:2] or present_BK.dtype != torch.bool:
        raise ValueError(
            f"present is {present_BK.dtype} of shape {tuple(present_BK.shape)}: "
            f"expected torch.bool of shape {tuple(prototypes_BKC.shape[:2])}"
        )
    both = centred(weights_KC.expand_as(prototypes_BKC), present_BK), centred(prototypes_BKC, present_BK)
    shared_BKC, own_BKC = (rows_BKC * inverse_length(rows_BKC, dim=2) for rows_BKC in both)
    both_BKK = present_BK[:, :, None] & present_BK[:, None, :]
    cosines_BKK = torch.where(both_BKK, shared_BKC @ own_BKC.mT, torch.nan)
    distance_B = 1 - cosines_BKK.diagonal(dim1=1, dim2=2).nanmean(1)
    return Distance(torch.where(present_BK.sum(1) < 2, torch.nan, distance_B), cosines_BKK)


def compare_views(
    own_BKhw: Tensor, shared_BKhw: Tensor, present_BK: Tensor, labels_Bhw: Tensor, *, ignore_index: int = 255
) -> Views:
    """Compare observations through images' own perspectives with the classifier's logits, over their present classes.

    Raises:
        ValueError: the two views have different shapes. RuntimeError: labels out of range.
    """
    if own_BKhw.shape != shared_BKhw.shape:
        raise ValueError(
            f"own has shape {tuple(own_BKhw.shape)} but shared {tuple(shared_BKhw.shape)}: they must agree"
        )
    check_labels(labels_Bhw, len(own_BKhw))
    absent_BK11 = ~present_BK[:, :, None, None]
    own_BKhw, shared_BKhw = (v.masked_fill(absent_BK11, ABSENT_LOGIT) for v in (own_BKhw, shared_BKhw))
    own_log_BKhw, shared_log_BKhw = own_BKhw.log_softmax(1), shared_BKhw.log_softmax(1)
    divergence_Bhw = F.kl_div(shared_log_BKhw, own_log_BKhw, reduction="none", log_target=True).sum(1)
    own_Bhw, seen_Bhw = own_BKhw.argmax(1), shared_BKhw.argmax(1)

    valid_Bhw = valid_pixels(labels_Bhw, own_BKhw.shape[1], ignore_index=ignore_index)
    count_B = valid_Bhw.flatten(1).sum(1)
    count_B = torch.where(present_BK.sum(1) < 2, 0, count_B)  # one class leaves nothing to compare

    def mean(values_Bhw: Tensor) -> Tensor:
        total_B = torch.where(valid_Bhw, values_Bhw.to(own_log_BKhw.dtype), 0).flatten(1).sum(1)
        return torch.where(count_B > 0, total_B / count_B, torch.nan)

    return Views(
        mean(divergence_Bhw),
        mean(own_Bhw != seen_Bhw),
        mean(own_Bhw == labels_Bhw),
        mean(seen_Bhw == labels_Bhw),
    )


def image_scores(
    predictions_BHW: Tensor, labels_BHW: Tensor, num_classes: int, *, ignore_index: int = 255
) -> ImageScores:
    """mIoU over the classes of its labels, and share of pixels right, for each image by itself.

    A class that is not in the labels has no term of its own: what is wrongly labelled by it is missing in others.

    >>> image_scores(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]]), 2).miou_B
    tensor([0.5000], dtype=torch.float64)
    """
    rows = []
    for prediction_HW, labels_HW in zip(predictions_BHW, labels_BHW, strict=True):
        confusion = ConfusionMatrix(num_classes, ignore_index)
        confusion.update(prediction_HW, labels_HW)
        truth_K, found = confusion.matrix_KK.sum(1), scores(confusion.matrix_KK)
        rows.append((found.iou[truth_K.cpu() > 0].mean().item(), found.aacc, truth_K.sum().item()))
    rows_B3 = torch.tensor(rows, dtype=torch.float64)
    return ImageScores(rows_B3[:, 0], rows_B3[:, 1], rows_B3[:, 2].long())


class OwnPerspectives(NamedTuple):
    """:class:`Distance` and :class:`Views` of a data set's N images, on the CPU."""

    distance_N: Tensor
    cosines_NKK: Tensor
    views: Views

    @property
    def furthest_N(self) -> Tensor:
        """The class whose prototype has the smallest cosine with its row; -1 for an image without a distance."""
        # rounded, because of an image's two only classes both have the same: the first is named
        furthest_N = self.cosines_NKK.diagonal(dim1=1, dim2=2).nan_to_num(torch.inf).round(decimals=4).argmin(1)
        return torch.where(self.distance_N.isnan(), -1, furthest_N)


@torch.no_grad()
def own_perspectives(
    teacher: Segmenter, distiller: APDLoss, dataset: SegmentationDataset, *, batch_size: int = 8
) -> OwnPerspectives:
    """Compare each image's own perspective with the classifier of the teacher, which is in eval mode.

    The distiller brings the head and the scale of the views; the distance uses neither.
    """
    parts = []
    device, spec = next(teacher.parameters()).device, dataset.spec
    for images_B3HW, labels_BHW, _names in evaluation_batches(dataset, batch_size):
        output = teacher(images_B3HW.to(device))
        labels_Bhw = resize_labels(labels_BHW.to(device), output.features.shape[2:])
        own_BKC, present_BK = class_prototypes(
            output.features, labels_Bhw, spec.num_classes, ignore_index=spec.ignore_index
        )
        found = distance_to_shared(teacher.classifier.weight.flatten(1), own_BKC, present_BK)
        projected_BDhw = distiller.teacher_head(output.features)
        own_BKD, _ = class_prototypes(projected_BDhw, labels_Bhw, spec.num_classes, ignore_index=spec.ignore_index)
        own_BKhw = observe(projected_BDhw, own_BKD, present_BK, scale=distiller.scale)
        views = compare_views(own_BKhw, output.logits, present_BK, labels_Bhw, ignore_index=spec.ignore_index)
        parts.append((*found, *views))
    distance_N, cosines_NKK, *views = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return OwnPerspectives(distance_N, cosines_NKK, Views(*views))


def scores_by_image(networks: Mapping[str, Segmenter], dataset: SegmentationDataset) -> dict[str, ImageScores]:
    """Every image's scores, by network; the networks must be in eval mode."""
    spec, parts = dataset.spec, {name: [] for name in networks}
    for predictions, labels_BHW, _names in predict_dataset(networks.values(), dataset):
        for name, prediction_BHW in zip(networks, predictions, strict=True):
            found = image_scores(prediction_BHW.cpu(), labels_BHW, spec.num_classes, ignore_index=spec.ignore_index)
            parts[name].append(found)
    return {name: ImageScores(*map(torch.cat, zip(*found, strict=True))) for name, found in parts.items()}
