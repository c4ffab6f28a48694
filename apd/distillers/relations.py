"""Methods that compare relations inside an image: SKD's pairs of nodes, IFVD's variation, and pairs of prototypes.

Those of prototypes (:func:`apd.class_prototypes` of one image) compare all pairs of an image's classes: K² · D
operations, whatever the number of pixels. Pixels of ``ignore_index`` are left out.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from apd.distillers.base import IGNORED, DistillerConfig, FeatureDistiller, convolved
from apd.fields import require
from apd.losses import masked_mean
from apd.perspective import class_prototypes, full_precision, inverse_length


@full_precision
def pairwise_loss(student_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor, *, window: tuple[int, int]) -> Tensor:
    """Squared distance of two cosine matrices between the nodes of max-pooled maps: mean over pairs of nodes.

    A node is the maximum, channel by channel, over the valid pixels of a ``window``; without one there is no node.
    """
    nodes_BN = F.max_pool2d(valid_Bhw[:, None].to(student_BChw.dtype), window, ceil_mode=True).flatten(1) > 0

    def cosines(features_BChw: Tensor) -> Tensor:
        valid_BChw = torch.where(valid_Bhw[:, None], features_BChw, torch.finfo(features_BChw.dtype).min)
        pooled_BCN = F.max_pool2d(valid_BChw, window, ceil_mode=True).flatten(2)
        pooled_BCN = torch.where(nodes_BN[:, None], pooled_BCN, 0.0)
        pooled_BCN = pooled_BCN * inverse_length(pooled_BCN, dim=1)
        return pooled_BCN.mT @ pooled_BCN

    pairs_BNN = nodes_BN[:, :, None] & nodes_BN[:, None]
    return masked_mean((cosines(student_BChw) - cosines(teacher_BChw)).square(), pairs_BNN)


@full_precision
def variation_loss(student_BChw: Tensor, teacher_BChw: Tensor, labels_Bhw: Tensor, num_classes: int) -> Tensor:
    """Squared distance of each pixel's cosine to the centre of its own class in its image: mean over valid pixels."""
    labels_BN = labels_Bhw.flatten(1)
    member_BKN = labels_BN[:, None] == torch.arange(num_classes, device=labels_BN.device)[:, None]

    def own_cosine(features_BChw: Tensor) -> Tensor:
        features_BCN = features_BChw.flatten(2)
        # A class's mean and its sum have the same direction, so the division by the pixel count is left out.
        centres_BKC = member_BKN.to(features_BCN.dtype) @ features_BCN.mT
        products_BKN = (centres_BKC * inverse_length(centres_BKC, dim=2)) @ features_BCN
        return torch.where(member_BKN, products_BKN, 0.0).sum(1) * inverse_length(features_BCN, dim=1)[:, 0]

    return masked_mean((own_cosine(student_BChw) - own_cosine(teacher_BChw)).square(), labels_BN != IGNORED)


def prototypes_of_both(
    student_BChw: Tensor, teacher_BChw: Tensor, labels_Bhw: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``student_BKC``, ``teacher_BKC``, and ``pairs_BKK``: the pairs of different classes that an image has."""
    (student_BKC, present_BK), (teacher_BKC, _) = (
        class_prototypes(features_BChw, labels_Bhw, num_classes, ignore_index=IGNORED)
        for features_BChw in (student_BChw, teacher_BChw)
    )
    same_KK = torch.eye(num_classes, dtype=torch.bool, device=labels_Bhw.device)
    return student_BKC, teacher_BKC, present_BK[:, :, None] & present_BK[:, None] & ~same_KK


# from differences for any number of rows: of squares and products, small distances would be lost
_distances = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")


@full_precision
def triplet_loss(student_BKD: Tensor, teacher_BKD: Tensor, pairs_BKK: Tensor, *, margin: float) -> Tensor:
    """max(0, ‖s_k - t_k‖ - ‖s_k - t_j‖ + margin), mean over pairs of classes k, j."""
    distances_BKK = _distances(student_BKD, teacher_BKD.to(student_BKD.dtype))
    own_BK1 = distances_BKK.diagonal(dim1=1, dim2=2)[:, :, None]
    return masked_mean((own_BK1 - distances_BKK + margin).relu(), pairs_BKK)


@full_precision
def inter_class_loss(student_BKD: Tensor, teacher_BKd: Tensor, pairs_BKK: Tensor) -> Tensor:
    """(‖s_k - s_j‖ - ‖t_k - t_j‖)², mean over pairs of classes k, j; the two widths may differ."""
    differences_BKK = _distances(student_BKD, student_BKD) - _distances(teacher_BKd, teacher_BKd)
    return masked_mean(differences_BKK.square(), pairs_BKK)


class SKDConfig(DistillerConfig):
    """Settings of :class:`apd.PairwiseSimilarity`."""

    method: Literal["skd"] = "skd"
    weight: float = 0.5
    pool: float = 0.5  #: Side of a pooling window as a share of the map's.

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.pool <= 1, self, "pool", "0 < pool <= 1")


class PairwiseSimilarity(FeatureDistiller, config=SKDConfig):
    """The pair-wise term of structured knowledge distillation, SKD (Liu et al. 2019), without its adversarial one.

    Defaults are the official script's (the CIRKD code has weight 10). ``pool`` decides the number of nodes, whatever
    the grid: a half makes at most 9, a tenth at most 400.
    """

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        window = (max(1, int(self.pool * student.shape[2])), max(1, int(self.pool * student.shape[3])))
        return {"skd": pairwise_loss(student, teacher, labels_Bhw != IGNORED, window=window)}


class IFVDConfig(DistillerConfig):
    """Settings of :class:`apd.IFVD`."""

    method: Literal["ifvd"] = "ifvd"
    weight: float = 200.0


class IFVD(FeatureDistiller, config=IFVDConfig):
    """Intra-class feature variation distillation (Wang et al. 2020), without its adversarial terms.

    The term is the squared distance between the two nets' cosines of a pixel with the centre of its own class in its
    image. An ignored pixel does not count (in the official code it is its own centre and counts in the mean). The
    weight of 200 is the official code's; the CIRKD code takes 20.
    """

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        return {"ifvd": variation_loss(student, teacher, labels_Bhw, self.num_classes)}


class I2CKDConfig(DistillerConfig):
    """Settings of :class:`apd.I2CKD`."""

    method: Literal["i2ckd"] = "i2ckd"
    weight: float = 1.0
    margin: float = 1.0  #: By how much another class has to be farther than the own one.


class I2CKD(FeatureDistiller, config=I2CKDConfig):
    """Intra- and inter-class knowledge distillation (Karine, Napoléon and Jridi 2024, arXiv 2403.18490).

    A triplet loss between the class prototypes of the two networks. Only the abstract could be read, so the rest is own
    choice: a triplet is the student's prototype of a class (anchor), the teacher's of that class (positive) and the
    teacher's of another class of the image (negative). The student's go through a 1×1 convolution without bias.
    """

    adapted = True

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        prototypes = prototypes_of_both(convolved(self.adapter, student), teacher, labels_Bhw, self.num_classes)
        return {"i2ckd": triplet_loss(*prototypes, margin=self.margin)}


class IDDConfig(DistillerConfig):
    """Settings of :class:`apd.InterClassDistance`."""

    method: Literal["idd"] = "idd"
    weight: float = 10.0


class InterClassDistance(FeatureDistiller, config=IDDConfig):
    """The inter-class distances of IDD (Zhang, Zhou and Tu, IJCAI 2022), without its position information.

    Only the abstract could be read, so term and weight are own choice: (‖s_k - s_j‖ - ‖t_k - t_j‖)² of two classes'
    prototypes, mean over all pairs of an image's classes.
    """

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        return {"idd": inter_class_loss(*prototypes_of_both(student, teacher, labels_Bhw, self.num_classes))}


# KL between two nets' similarities with many samples, without ever holding a map of pixels by samples.

BLOCK_ELEMENTS = 2**20
"""Logits in a block on a CPU, of both nets: 128 pixels at 4096 samples, 4 MiB in float32 (own choice, measured)."""
BLOCK_ELEMENTS_BESIDE_A_CPU = 2**25
"""The same on any other device, where each block costs a dozen launches (own choice, not measured): 128 MiB."""


class _RelationDivergence(torch.autograd.Function):
    """(student_ND, teacher_ND, samples_SD) to divergence_N; the gradient goes to the student only."""

    @staticmethod
    def forward(ctx: Any, student_ND: Tensor, teacher_ND: Tensor, samples_SD: Tensor) -> Tensor:
        divergences, gradients = [], []
        elements = BLOCK_ELEMENTS if samples_SD.device.type == "cpu" else BLOCK_ELEMENTS_BESIDE_A_CPU
        step = max(1, elements // (2 * len(samples_SD)))
        for student_nD, teacher_nD in zip(student_ND.split(step), teacher_ND.split(step), strict=True):
            # One product for both nets: the samples are packed once.
            logits_2nS = torch.stack([student_nD, teacher_nD]) @ samples_SD.mT
            logits_2nS.sub_(logits_2nS.amax(2, keepdim=True))
            difference_nS = logits_2nS[1] - logits_2nS[0]
            student_nS, teacher_nS = logits_2nS.exp_()
            student_n1, teacher_n1 = student_nS.sum(1, keepdim=True), teacher_nS.sum(1, keepdim=True)
            ratio_n1 = student_n1 / teacher_n1
            expected_n = torch.linalg.vecdot(teacher_nS, difference_nS) / teacher_n1[:, 0]
            divergences.append(expected_n + ratio_n1[:, 0].log())
            if ctx.needs_input_grad[0]:
                student_nS.sub_(teacher_nS.mul_(ratio_n1))
                gradients.append((student_nS @ samples_SD).div_(student_n1))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(divergences)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_divergence_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return to_divergence_N[:, None] * gradient_ND, None, None


def relation_divergence(student_ND: Tensor, teacher_ND: Tensor, samples_SD: Tensor) -> Tensor:
    """KL of each pixel between softmax(teacher · samples) and softmax(student · samples), over the samples.

    The vectors of the N pixels are divided by the temperature; only the student's are no constants. The result,
    ``divergence_N``, can be differentiated once. Memory beside the input: twice the gradient's (N, D) map, which is put
    together from its blocks, and a few blocks of :data:`BLOCK_ELEMENTS`; nothing of the size N × S.
    """
    return _RelationDivergence.apply(student_ND, teacher_ND, samples_SD)
