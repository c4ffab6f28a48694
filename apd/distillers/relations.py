"""Methods that compare relations inside an image: SKD's pair-wise similarity and intra-class feature variation (IFVD).

Neither needs an adapter, since a cosine is a number whatever the channels. Pixels of ``ignore_index`` are left out.
Shape letters as in :mod:`apd.perspective`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from apd.distillers.base import IGNORED, DistillerConfig, FeatureDistiller
from apd.fields import require
from apd.losses import masked_mean
from apd.perspective import full_precision, inverse_length


@full_precision
def pairwise_loss(student_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor, *, window: tuple[int, int]) -> Tensor:
    """Squared distance of two cosine matrices between the nodes of max-pooled maps: mean over pairs of valid nodes.

    A node is the maximum, channel by channel, over the valid pixels of a ``window``; one without a valid pixel is in
    no pair.
    """
    nodes_BN = F.max_pool2d(valid_Bhw[:, None].to(student_BChw.dtype), window, ceil_mode=True).flatten(1) > 0

    def cosines(features_BChw: Tensor) -> Tensor:
        lowest = torch.finfo(features_BChw.dtype).min
        pooled_BCN = F.max_pool2d(
            torch.where(valid_Bhw[:, None], features_BChw, lowest), window, ceil_mode=True
        ).flatten(2)
        pooled_BCN = torch.where(nodes_BN[:, None], pooled_BCN, 0.0)
        pooled_BCN = pooled_BCN * inverse_length(pooled_BCN, dim=1)
        return pooled_BCN.mT @ pooled_BCN

    pairs_BNN = nodes_BN[:, :, None] & nodes_BN[:, None]
    return masked_mean((cosines(student_BChw) - cosines(teacher_BChw)).square(), pairs_BNN)


@full_precision
def variation_loss(student_BChw: Tensor, teacher_BChw: Tensor, labels_Bhw: Tensor, num_classes: int) -> Tensor:
    """Squared distance of each pixel's cosine to the centre of its own class in its image: mean over valid pixels.

    ``labels_Bhw`` hold :data:`apd.distillers.base.IGNORED` where no class is. Memory: one (B, K, h, w) map a net.
    """
    labels_BN = labels_Bhw.flatten(1)
    member_BKN = labels_BN[:, None] == torch.arange(num_classes, device=labels_BN.device)[:, None]

    def own_cosine(features_BChw: Tensor) -> Tensor:
        features_BCN = features_BChw.flatten(2)
        # A class's mean and its sum have the same direction, so the division by the pixel count is left out.
        centres_BKC = member_BKN.to(features_BCN.dtype) @ features_BCN.mT
        products_BKN = (centres_BKC * inverse_length(centres_BKC, dim=2)) @ features_BCN
        return torch.where(member_BKN, products_BKN, 0.0).sum(1) * inverse_length(features_BCN, dim=1)[:, 0]

    return masked_mean((own_cosine(student_BChw) - own_cosine(teacher_BChw)).square(), labels_BN != IGNORED)


class PairwiseSimilarity(FeatureDistiller):
    """The pair-wise term of structured knowledge distillation, SKD (Liu et al. 2019).

    Features are max-pooled to a few nodes; the term is the mean squared distance between the two nets' matrices of
    cosines between an image's nodes. The pixel KD and the adversarial term of the published method are not part of
    this: the former is a distiller of its own, :class:`apd.PixelKD`.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K, by which labels are checked.
        weight: of the term in ``"loss"`` (default 0.5, official training script; its option's own default is 1, and
            the CIRKD code takes 10 on a grid pooled 2×2).
        pool: side of a pooling window as a share of the map's (default 0.5, official script, which leaves 2×2 nodes,
            or 3×3 on odd grids). It decides the number of nodes, whatever the
            grid: a half makes at most 9, a tenth at most 400.
        ignore_index: label of pixels not to count (default 255): the maximum is over valid pixels, and nodes without
            one are in no pair (the published code counts all).

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`apd.APDLoss` raises them.

    >>> import torch
    >>> from apd import PairwiseSimilarity
    >>> student = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two orthogonal pixels
    >>> distiller = PairwiseSimilarity(2, 2, num_classes=3).eval()  # only to measure
    >>> labels = torch.tensor([[[0, 1]]])
    >>> distiller(student_features=student, teacher_features=torch.ones(1, 2, 1, 2), labels=labels)["skd"]
    tensor(0.5000)
    """

    shown = ("pool",)

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        weight: float = 0.5,
        pool: float = 0.5,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            student_channels, teacher_channels, num_classes, weights={"skd": weight}, ignore_index=ignore_index
        )
        if not 0 < pool <= 1:
            raise ValueError(f"pool={pool}: expected a share of the map's side, 0 < pool <= 1")
        self.pool = pool

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.terms`."""
        window = (max(1, int(self.pool * student.shape[2])), max(1, int(self.pool * student.shape[3])))
        return {"skd": pairwise_loss(student, teacher, labels_Bhw != IGNORED, window=window)}


@dataclass(frozen=True, kw_only=True)
class SKDConfig(DistillerConfig, module=PairwiseSimilarity):
    """The pair-wise term of structured knowledge distillation, as `apd.PairwiseSimilarity`."""

    method: Literal["skd"] = "skd"
    weight: float = 0.5
    pool: float = 0.5
    """Side of a pooling window as a share of the map's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.pool <= 1, self, "pool", "0 < pool <= 1")


class IFVD(FeatureDistiller):
    """Intra-class feature variation distillation (Wang et al. 2020): how far each pixel is from its class's centre.

    A class's centre is the mean of its pixels' features in one image; the term is the mean squared distance between
    the two nets' cosines of a pixel with the centre of its own class. The pixel KD (weight 10) and the adversarial
    terms of the published method are not part of this: the former is a distiller of its own, :class:`apd.PixelKD`.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K.
        weight: of the term in ``"loss"`` (default 200, official code; the CIRKD code takes 20).
        ignore_index: label of pixels not to count (default 255). In the official code an ignored pixel is its own
            centre, so that it adds nothing to the sum but counts in the mean; here it does not count.

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`apd.APDLoss` raises them.

    >>> import torch
    >>> from apd import IFVD
    >>> student = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two orthogonal pixels of one class
    >>> distiller = IFVD(2, 2, num_classes=3).eval()  # only to measure
    >>> labels = torch.tensor([[[0, 0]]])
    >>> distiller(student_features=student, teacher_features=torch.ones(1, 2, 1, 2), labels=labels)["ifvd"]
    tensor(0.0858)
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        weight: float = 200.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            student_channels, teacher_channels, num_classes, weights={"ifvd": weight}, ignore_index=ignore_index
        )

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.terms`."""
        return {"ifvd": variation_loss(student, teacher, labels_Bhw, self.num_classes)}


@dataclass(frozen=True, kw_only=True)
class IFVDConfig(DistillerConfig, module=IFVD):
    """Intra-class feature variation distillation, as `apd.IFVD`."""

    method: Literal["ifvd"] = "ifvd"
    weight: float = 200.0


# KL between two nets' similarities with many samples, without ever holding a map of pixels by samples.

BLOCK_ELEMENTS = 2**20
"""Logits in a block on a CPU, of both nets: 128 pixels at 4096 samples, 4 MiB in float32.

Own choice: on one core with a cache of 1 MiB and 32 MiB shared, 2**19 to 2**21 are equally fast, 2**17 and 2**22 a
tenth slower or more.
"""

BLOCK_ELEMENTS_BESIDE_A_CPU = 2**25
"""The same on any other device, where each block costs a dozen launches (own choice, not measured): 128 MiB."""


def block_of_pixels(samples_SD: Tensor) -> int:
    """How many pixels are compared with those samples at a time."""
    elements = BLOCK_ELEMENTS if samples_SD.device.type == "cpu" else BLOCK_ELEMENTS_BESIDE_A_CPU
    return max(1, elements // (2 * len(samples_SD)))


class _RelationDivergence(torch.autograd.Function):
    """(student_ND, teacher_ND, samples_SD) to divergence_N; the gradient goes to the student only."""

    @staticmethod
    def forward(ctx: Any, student_ND: Tensor, teacher_ND: Tensor, samples_SD: Tensor) -> Tensor:
        divergences, gradients = [], []
        step = block_of_pixels(samples_SD)
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
    def backward(ctx: Any, to_divergence_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return to_divergence_N[:, None] * gradient_ND, None, None


def relation_divergence(student_ND: Tensor, teacher_ND: Tensor, samples_SD: Tensor) -> Tensor:
    """KL of each pixel between softmax(teacher · samples) and softmax(student · samples), over the samples.

    Args:
        student_ND: vectors of N pixels, divided by the temperature; the gradient reaches these.
        teacher_ND: the same of the teacher, a constant.
        samples_SD: what both are compared with, a constant.

    Returns:
        ``divergence_N``. It can be differentiated once. Memory beside the input: the gradient's (N, D) map, if one is
        wanted, and blocks of a few MiB; nothing of the size N × S.

    >>> import torch
    >>> from apd.distillers.relations import relation_divergence
    >>> samples = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> student, teacher = torch.tensor([[2.0, 2.0], [3.0, 1.0]]), torch.tensor([[5.0, 5.0], [1.0, 3.0]])
    >>> relation_divergence(student, teacher, samples)
    tensor([0.0000, 1.5232])
    """
    return _RelationDivergence.apply(student_ND, teacher_ND, samples_SD)
