"""Methods that compare the class prototypes of two networks: I2CKD's triplets and the inter-class distances of IDD.

Prototypes are those of :func:`apd.class_prototypes`: of unit length, pooled over one image, pixels of ``ignore_index``
left out. Both methods look at all pairs of an image's classes: K² · D operations and a few (B, K, K) maps on top of
what prototypes cost, whatever the number of pixels (on a GPU, with 25 classes or fewer, :func:`torch.cdist` takes
(B, K, K, D) numbers in its backward pass). Shape letters as in :mod:`apd.perspective`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from apd.distillers.base import IGNORED, DistillerConfig, FeatureDistiller, convolved
from apd.fields import require
from apd.losses import masked_mean
from apd.perspective import class_prototypes, full_precision
from apd.validation import check_positive


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


@full_precision
def triplet_loss(student_BKD: Tensor, teacher_BKD: Tensor, pairs_BKK: Tensor, *, margin: float) -> Tensor:
    """max(0, ‖s_k - t_k‖ - ‖s_k - t_j‖ + margin), mean over pairs of classes k, j."""
    distances_BKK = torch.cdist(student_BKD, teacher_BKD)
    own_BK1 = distances_BKK.diagonal(dim1=1, dim2=2)[:, :, None]
    return masked_mean((own_BK1 - distances_BKK + margin).relu(), pairs_BKK)


@full_precision
def inter_class_loss(student_BKD: Tensor, teacher_BKd: Tensor, pairs_BKK: Tensor) -> Tensor:
    """(‖s_k - s_j‖ - ‖t_k - t_j‖)², mean over pairs of classes k, j; the two widths may differ."""
    differences_BKK = torch.cdist(student_BKD, student_BKD) - torch.cdist(teacher_BKd, teacher_BKd)
    return masked_mean(differences_BKK.square(), pairs_BKK)


class I2CKD(FeatureDistiller):
    """Intra- and inter-class knowledge distillation (Karine, Napoléon and Jridi 2024, arXiv 2403.18490).

    As published: class prototypes of feature maps, and a triplet loss between those of the two networks that brings
    prototypes of the same class together and keeps those of different classes apart. Only the abstract could be read
    and no code is known, so the rest is own choice: a triplet is the student's prototype of a class (anchor), the
    teacher's of that class (positive) and the teacher's of another class of the image (negative); the term is
    max(0, ‖s_k - t_k‖ - ‖s_k - t_j‖ + margin), mean over all triplets of the batch's images. The student's features
    go through a 1×1 convolution without bias, as in :class:`apd.FitNet`. An image of one class has no triplet.

    APD's alignment term is the positive part alone, ‖s_k - t_k‖² / 4, through heads on both sides.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K.
        weight: of the term in ``"loss"`` (default 1, own choice).
        margin: by how much another class has to be farther than the own one (default 1, own choice, that of
            :class:`torch.nn.TripletMarginLoss`; distances of prototypes are at most 2).
        ignore_index: label of pixels not to count (default 255).

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`apd.APDLoss` raises them.

    >>> import torch
    >>> from apd import I2CKD
    >>> teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two orthogonal classes of one pixel each
    >>> distiller = I2CKD(2, 2, num_classes=3).eval()  # only to measure
    >>> _ = torch.nn.init.dirac_(distiller.adapter.weight)
    >>> maps = {"teacher_features": teacher, "labels": torch.tensor([[[0, 1]]])}
    >>> [distiller(student_features=student, **maps)["i2ckd"] for student in (teacher, -teacher)]
    [tensor(0., grad_fn=<DivBackward0>), tensor(1.5858, grad_fn=<DivBackward0>)]
    """

    shown = ("margin",)

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        weight: float = 1.0,
        margin: float = 1.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            student_channels, teacher_channels, num_classes, weights={"i2ckd": weight}, ignore_index=ignore_index
        )
        check_positive("margin", margin)
        self.margin = margin
        self.adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.terms`."""
        prototypes = prototypes_of_both(convolved(self.adapter, student), teacher, labels_Bhw, self.num_classes)
        return {"i2ckd": triplet_loss(*prototypes, margin=self.margin)}


@dataclass(frozen=True, kw_only=True)
class I2CKDConfig(DistillerConfig, module=I2CKD):
    """Triplets of class prototypes, as `apd.I2CKD`."""

    method: Literal["i2ckd"] = "i2ckd"
    weight: float = 1.0
    margin: float = 1.0
    """By how much another class has to be farther than the own one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.margin > 0, self, "margin", "a number > 0")


class InterClassDistance(FeatureDistiller):
    """The inter-class distances of IDD (Zhang, Zhou and Tu, IJCAI 2022), without its position information.

    As published: the distances between classes in feature space are made equal to the teacher's. The abstract is what
    could be read and no code is known, so the rest is own choice: a class is its prototype, a distance is Euclidean,
    and the term is (‖s_k - s_j‖ - ‖t_k - t_j‖)², mean over all pairs of an image's classes. It needs no adapter, since
    distances are numbers whatever the channels; an image of one class has no pair.

    IDD's second part, which distils the position information that a further network reads from the features, is left
    out: that network is not described where it could be read, and it looks at no class.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K.
        weight: of the term in ``"loss"`` (default 10, own choice).
        ignore_index: label of pixels not to count (default 255).

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`apd.APDLoss` raises them.

    >>> import torch
    >>> from apd import InterClassDistance
    >>> teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two orthogonal classes of one pixel each
    >>> distiller = InterClassDistance(2, 2, num_classes=3).eval()  # only to measure
    >>> labels = torch.tensor([[[0, 1]]])
    >>> distiller(student_features=torch.ones(1, 2, 1, 2), teacher_features=teacher, labels=labels)["idd"]
    tensor(2.0000)
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        weight: float = 10.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            student_channels, teacher_channels, num_classes, weights={"idd": weight}, ignore_index=ignore_index
        )

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.terms`."""
        return {"idd": inter_class_loss(*prototypes_of_both(student, teacher, labels_Bhw, self.num_classes))}


@dataclass(frozen=True, kw_only=True)
class IDDConfig(DistillerConfig, module=InterClassDistance):
    """Distances between class prototypes, as `apd.InterClassDistance`."""

    method: Literal["idd"] = "idd"
    weight: float = 10.0
