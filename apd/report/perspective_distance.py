"""How far an image's own perspective is from the one that all images share: numbers per image, pure functions.

The shared perspective is a network's classifier, the own one the image's prototypes. Two views of their distance:

- :func:`distance_to_shared` compares directions. Rows of the classifier and prototypes lie in one space only before the
  projection heads, so it takes features without them. The number is then one of image and network alone: it is fixed
  before any student is trained, and no student's gain can have caused it.
- :func:`compare_views` compares what is seen. Scores of classes can be compared whatever space they come from, so it
  takes the observations that the student was really shown, heads included.

Shape letters as in :mod:`apd.perspective`. Nothing here has a gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from apd.perspective import ABSENT_LOGIT, assert_without_waiting, inverse_length, valid_pixels
from apd.validation import check_labels


class Distance(NamedTuple):
    """How far images' own perspectives are from the shared one.

    Attributes:
        distance_B: 1 - mean cosine, from 0 to 2; NaN for an image with fewer than two classes.
        cosines_BKK: what :func:`cosines_to_shared` gives; the mean is that of the diagonal.
    """

    distance_B: Tensor
    cosines_BKK: Tensor


class Views(NamedTuple):
    """What an image looks like through its own and through the shared perspective, over its valid cells.

    Attributes:
        divergence_B: mean KL(own ‖ shared) in nats; NaN, as all of these, without a valid cell or a second class.
        disagreement_B: share of cells that the two call differently.
        own_right_B, shared_right_B: share of cells that each names right.
    """

    divergence_B: Tensor
    disagreement_B: Tensor
    own_right_B: Tensor
    shared_right_B: Tensor


class ImageScores(NamedTuple):
    """Scores of single images.

    Attributes:
        miou_B: mean intersection over union of the classes in the image's labels; NaN without a valid pixel.
        right_B: share of valid pixels that are right; NaN without one.
        valid_B: number of valid pixels.
    """

    miou_B: Tensor
    right_B: Tensor
    valid_B: Tensor


def centred(rows_BKD: Tensor, present_BK: Tensor) -> Tensor:
    """Rows of present classes minus their mean; zero rows for the others.

    A vector that is added to all rows changes no softmax over them. So the mean says nothing about the classes, and
    two perspectives are compared without it.

    >>> import torch
    >>> centred(torch.tensor([[[3.0], [5.0], [9.0]]]), torch.tensor([[True, True, False]])).flatten()
    tensor([-1.,  1.,  0.])
    """
    weight_BK1 = present_BK[:, :, None].to(rows_BKD.dtype)
    count_B11 = weight_BK1.sum(1, keepdim=True).clamp(min=1)
    mean_B1D = (rows_BKD * weight_BK1).sum(1, keepdim=True) / count_B11
    return (rows_BKD - mean_B1D) * weight_BK1


def cosines_to_shared(weights_KC: Tensor, prototypes_BKC: Tensor, present_BK: Tensor) -> Tensor:
    """(B, K, K) cosines between rows of the classifier and prototypes, both centred over an image's present classes.

    Row k of an image's square is the classifier's class k, column j its prototype of class j; NaN where either class is
    absent. A row or prototype that is the mean of all has no direction, and a cosine of 0 with everything.

    Args:
        weights_KC: rows of the classifier, without biases.
        prototypes_BKC, present_BK: from :func:`apd.class_prototypes`, of the features that the classifier reads.

    Raises:
        ValueError: shapes that do not fit.
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
    shared_BKC = centred(weights_KC.expand_as(prototypes_BKC), present_BK)
    own_BKC = centred(prototypes_BKC, present_BK)
    shared_BKC, own_BKC = (rows_BKC * inverse_length(rows_BKC, dim=2) for rows_BKC in (shared_BKC, own_BKC))
    both_BKK = present_BK[:, :, None] & present_BK[:, None, :]
    return torch.where(both_BKK, shared_BKC @ own_BKC.mT, torch.nan)


def distance_to_shared(weights_KC: Tensor, prototypes_BKC: Tensor, present_BK: Tensor) -> Distance:
    """1 - mean over present classes of the cosine between a class's classifier row and its prototype, both centred.

    Only present classes take part, in the centring too: an image has no perspective on the others. Lengths are left
    out, because they are a temperature. The value is not 0 for a typical image, since a classifier need not point along
    its classes' means; what is read is how it differs between images.

    Args:
        weights_KC, prototypes_BKC, present_BK: see :func:`cosines_to_shared`.

    >>> import torch
    >>> found = distance_to_shared(torch.eye(2), torch.eye(2)[None], torch.tensor([[True, True]]))
    >>> found.distance_B.abs() < 1e-6
    tensor([True])
    """
    cosines_BKK = cosines_to_shared(weights_KC, prototypes_BKC, present_BK)
    distance_B = 1 - cosines_BKK.diagonal(dim1=1, dim2=2).nanmean(1)
    return Distance(torch.where(present_BK.sum(1) < 2, torch.nan, distance_B), cosines_BKK)


def compare_views(
    own_BKhw: Tensor, shared_BKhw: Tensor, present_BK: Tensor, labels_Bhw: Tensor, *, ignore_index: int = 255
) -> Views:
    """Compare two views of the same cells, as class scores, over the image's present classes.

    Args:
        own_BKhw: observations through the image's own perspective (:func:`apd.observe`).
        shared_BKhw: the classifier's logits. Of both, scores of absent classes are of no account, so that neither view
            knows more than the other about which classes are there.
        present_BK: which classes take part.
        labels_Bhw: labels on the same grid.

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

    A class that is not in the labels has no term of its own: what is wrongly called by it is missing in others.

    Raises:
        RuntimeError: labels or predictions out of range.

    >>> import torch
    >>> image_scores(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]]), 2).miou_B
    tensor([0.5000], dtype=torch.float64)
    """
    batch = len(labels_BHW)
    valid_BN = valid_pixels(labels_BHW, num_classes, ignore_index=ignore_index).flatten(1)
    truth_BN = torch.where(valid_BN, labels_BHW.flatten(1).long(), 0)
    called_BN = predictions_BHW.flatten(1).long()
    in_range = ((called_BN >= 0) & (called_BN < num_classes)) | ~valid_BN
    assert_without_waiting(in_range, f"predictions hold a value outside 0..{num_classes - 1}")
    cell_BN = truth_BN * num_classes + called_BN.clamp(0, num_classes - 1)
    counts_BQ = torch.zeros(batch, num_classes**2, dtype=torch.float64, device=cell_BN.device)
    counts_BQ.scatter_add_(1, cell_BN, valid_BN.double())
    counts_BKK = counts_BQ.view(batch, num_classes, num_classes)
    hit_BK, in_labels_BK = counts_BKK.diagonal(dim1=1, dim2=2), counts_BKK.sum(2)
    union_BK = in_labels_BK + counts_BKK.sum(1) - hit_BK
    iou_BK = torch.where(in_labels_BK > 0, hit_BK / union_BK, torch.nan)
    valid_B = valid_BN.sum(1)
    return ImageScores(iou_BK.nanmean(1), hit_BK.sum(1) / valid_B, valid_B)
