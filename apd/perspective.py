"""The two operations of Adaptive Perspective Distillation: make a perspective, observe through it.

A *perspective* is the set of an image's class prototypes (a class's mean normalised feature) used as a classifier; an
*observation* is the pixels' features seen through it. Shapes are suffixes::

    B batch   D feature channels   K classes   N pixels (h * w)   h w feature grid   H W label grid
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from apd import validation

Scope = Literal["image", "batch"]
Absent = Literal["mask", "zero"]

ABSENT_LOGIT = -1e4  # of a class without prototype; finite, since the KL of a zero target against -inf would be NaN
ASSERTS_LATER = ("cpu", "cuda", "meta")  # devices with an assertion that nobody has to wait for; MPS has none
SHORTEST = 1e-8  # a vector not longer than this has no direction: it is treated as zero and receives no gradient

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate ``function`` to run with autocast off and half-precision tensors in float32; float64 stays float64."""

    def promoted(value: object) -> object:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):  # meta has no autocast
            return function(*map(promoted, args), **{name: promoted(value) for name, value in kwargs.items()})

    return wrapped


def valid_pixels(labels_BHW: Tensor, num_classes: int, *, ignore_index: int = 255) -> Tensor:
    """Mask, of the labels' shape, of the pixels whose label is not ``ignore_index``.

    Any other label outside ``0 .. num_classes - 1`` is an error: on a CPU a ``RuntimeError`` at once, on a GPU a
    device-side assertion that surfaces at the next synchronisation. Both survive ``torch.compile``.
    """
    validation.check_ignore_index(ignore_index, num_classes)
    labels_BHW = labels_BHW.long()  # before comparing: -1 would wrap round to 255 in uint8
    ignored_BHW = labels_BHW == ignore_index
    known_BHW = (labels_BHW >= 0) & (labels_BHW < num_classes) | ignored_BHW
    are_known = known_BHW.all()
    message = (
        f"labels hold a value that is neither in 0..{num_classes - 1} nor ignore_index={ignore_index}: map the data "
        "set's labels to these, or correct num_classes or ignore_index"
    )
    message += f"; {validation.BINARY}" if num_classes == 1 else ""
    asserts = labels_BHW.device.type in ASSERTS_LATER
    if validation.has_values(labels_BHW) and (labels_BHW.is_cpu or not asserts):  # the message can name the label
        if not are_known:
            raise RuntimeError(message.replace(":", f", such as {int(labels_BHW[~known_BHW][0])}:", 1))
    elif asserts:
        torch._assert_async(are_known, message[:250])  # CUDA refuses a longer one
    return ~ignored_BHW


def resize_labels(labels_BHW: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Labels on another grid (h, w) by the nearest rule: cell ``i`` of ``h`` takes pixel ``floor(i * H / h)``.

    That is the rule of ``torch.nn.functional.interpolate(mode="nearest")``, for every integer dtype and without its
    float32 rounding, which is off by a pixel at times. With ``align_corners``, for h > 1, it is the pixel nearest to
    ``i * (H - 1) / (h - 1)``, where logits upsampled with aligned corners show cell i: at sides of 8k + 1, pixel 8i.
    """
    validation.check_labels(labels_BHW, len(labels_BHW) if isinstance(labels_BHW, Tensor) and labels_BHW.ndim else 0)
    for axis, cells in zip((1, 2), size, strict=True):
        if labels_BHW.shape[axis] != cells:
            labels_BHW = validation.of_cells(labels_BHW, axis, cells, align_corners)
    return labels_BHW


def match_grids(one_BChw: Tensor, other_BChw: Tensor, *, align_corners: bool = False) -> tuple[Tensor, Tensor]:
    """Both maps on the coarser of their grids (per axis), the finer one averaged down to it (own choice).

    With ``align_corners``, both are on the finer grid: the coarser map is upsampled, as averaging loses thin objects.
    """
    upsample = functools.partial(F.interpolate, mode="bilinear", align_corners=True)
    chosen, resize = (max, upsample) if align_corners else (min, F.adaptive_avg_pool2d)
    size = tuple(map(chosen, one_BChw.shape[2:], other_BChw.shape[2:]))
    one_BChw, other_BChw = (v if v.shape[2:] == size else resize(v, size) for v in (one_BChw, other_BChw))
    return one_BChw, other_BChw


def inverse_length(vectors: Tensor, dim: int) -> Tensor:
    """1 / L2 norm over ``dim`` (kept): 0, without gradient, for vectors up to ``SHORTEST``, NaN where it overflows."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    has_direction = length > SHORTEST
    inverse = torch.where(has_direction, torch.where(has_direction, length, 1.0).reciprocal(), 0.0)
    return inverse.masked_fill(length == torch.inf, torch.nan)


def class_members(
    features_BDhw: Tensor, labels_Bhw: Tensor, num_classes: int, *, ignore_index: int, scope: Scope
) -> tuple[Tensor, Tensor]:
    """Which pixels belong to which class, ``member_BKN``, and which classes have a prototype, ``present_BK``."""
    validation.check_map("features", features_BDhw)
    validation.check_choice("scope", scope, ("image", "batch"))
    validation.check_same_grid("features", features_BDhw, labels_Bhw)
    valid_Bhw = valid_pixels(labels_Bhw, num_classes, ignore_index=ignore_index)
    labels_BN = torch.where(valid_Bhw, labels_Bhw.long(), -1).flatten(1)
    member_BKN = labels_BN[:, None] == torch.arange(num_classes, device=labels_BN.device)[:, None]
    present_BK = member_BKN.any(dim=2)
    if scope == "batch":
        present_BK = present_BK.any(0, keepdim=True).expand_as(present_BK)
    return member_BKN, present_BK


@full_precision
def class_prototypes(
    features_BDhw: Tensor, labels_Bhw: Tensor, num_classes: int, *, ignore_index: int = 255, scope: Scope = "image"
) -> tuple[Tensor, Tensor]:
    """The perspective: for each image and class, the direction of the mean of the class's normalised pixels.

    Args:
        features_BDhw: projected features; need not be normalised.
        labels_Bhw: integer labels on the same grid (see :func:`resize_labels`).
        num_classes: number of classes K.
        ignore_index: label of pixels to leave out (default 255, the usual one).
        scope: ``"image"`` (default; the paper's) pools over one image, ``"batch"`` (the released code's) over all
            images of the batch; every image then gets the same rows.

    Returns:
        ``prototypes_BKD`` of unit length, zero rows where the class is absent, and the boolean ``present_BK``. Memory
        beside the input: one (B, K, N) map, on a CPU two, and a float32 copy of half-precision features.

    >>> from apd import class_prototypes
    >>> features = torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])  # one image, D = 2, a grid of 1 x 2
    >>> class_prototypes(features, torch.tensor([[[0, 255]]]), num_classes=2)
    (tensor([[[1., 0.],
             [0., 0.]]]), tensor([[ True, False]]))
    """
    member_BKN, present_BK = class_members(
        features_BDhw, labels_Bhw, num_classes, ignore_index=ignore_index, scope=scope
    )
    features_BDN = features_BDhw.flatten(2)
    # A class's mean and its sum have the same direction, so the division by the pixel count is left out.
    sums_BKD = (member_BKN * inverse_length(features_BDN, dim=1)) @ features_BDN.mT
    if scope == "batch":
        sums_BKD = sums_BKD.sum(0, keepdim=True).expand_as(sums_BKD)
    return sums_BKD * inverse_length(sums_BKD, dim=2), present_BK


@full_precision
def observe(
    features_BDhw: Tensor, prototypes_BKD: Tensor, present_BK: Tensor, *, scale: float = 10.0, absent: Absent = "mask"
) -> Tensor:
    """The observation: ``scale`` times the cosine between each pixel and each prototype of its image.

    Args:
        features_BDhw: projected features; need not be normalised.
        prototypes_BKD, present_BK: from :func:`class_prototypes`.
        scale: inverse temperature (default 10, the released code's).
        absent: logit of a class without prototype: ``"mask"`` (default), -1e4, leaves it out of a softmax; ``"zero"``,
            0, is the released code's in the regularisation.
    """
    validation.check_map("features", features_BDhw)
    validation.check_choice("absent", absent, ("mask", "zero"))
    validation.check_positive("scale", scale, most=validation.STEEPEST)
    batch, width = features_BDhw.shape[:2]
    if prototypes_BKD.ndim != 3 or (prototypes_BKD.shape[0], prototypes_BKD.shape[2]) != (batch, width):
        expected = f"({batch}, classes, {width}), to match features of shape {tuple(features_BDhw.shape)}"
        raise ValueError(f"prototypes has shape {tuple(prototypes_BKD.shape)}: expected {expected}")
    validation.check_present(present_BK, prototypes_BKD.shape[:2])
    features_BDN = features_BDhw.flatten(2)
    cosines_BKN = (prototypes_BKD @ features_BDN) * inverse_length(features_BDN, dim=1)
    fill = ABSENT_LOGIT if absent == "mask" else 0.0
    observations_BKN = (scale * cosines_BKN).masked_fill(~present_BK[:, :, None], fill)
    return observations_BKN.unflatten(2, features_BDhw.shape[2:])


# Both operations of a map on itself in fewer passes, with the gradient written out. With u = x / |x| of a pixel's
# features x, M the membership of pixels in classes, S = M u, P = S / |S| and O = s P u, the gradient in x is
# g - u (u · g), where g collects what arrives at constant length: from O, and from P through S. All but g is a product
# of thin matrices.


class _ObserveItself(torch.autograd.Function):
    """(features_BDN, member_BKN, present_BK, …) to (prototypes_BKD, observations_BKN)."""

    @staticmethod
    def forward(
        ctx: Any,
        features_BDN: Tensor,
        member_BKN: Tensor,
        present_BK: Tensor,
        scale: float,
        fill: float,
        pooled: bool,
        detach_prototypes: bool,
    ) -> tuple[Tensor, Tensor]:
        inverse_B1N = inverse_length(features_BDN, dim=1)
        weight_BKN = member_BKN * inverse_B1N
        sums_BKD = weight_BKN @ features_BDN.mT
        if pooled:
            sums_BKD = sums_BKD.sum(0, keepdim=True).expand_as(sums_BKD)
        inverse_BK1 = inverse_length(sums_BKD, dim=2)
        prototypes_BKD = sums_BKD * inverse_BK1
        observations_BKN = (prototypes_BKD @ features_BDN).mul_(scale * inverse_B1N)
        observations_BKN.masked_fill_(~present_BK[:, :, None], fill)
        ctx.save_for_backward(features_BDN, weight_BKN, inverse_B1N, prototypes_BKD, inverse_BK1, present_BK)
        ctx.scale, ctx.pooled, ctx.detach_prototypes = scale, pooled, detach_prototypes
        return prototypes_BKD, observations_BKN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_prototypes_BKD: Tensor, to_observations_BKN: Tensor) -> tuple[Tensor | None, ...]:
        features_BDN, weight_BKN, inverse_B1N, prototypes_BKD, inverse_BK1, present_BK = ctx.saved_tensors
        cosines_BKN = (to_observations_BKN * (ctx.scale * inverse_B1N)).masked_fill(~present_BK[:, :, None], 0.0)
        if not ctx.detach_prototypes:
            to_prototypes_BKD = to_prototypes_BKD + cosines_BKN @ features_BDN.mT
        if ctx.pooled:
            to_prototypes_BKD = to_prototypes_BKD.sum(0, keepdim=True).expand_as(to_prototypes_BKD)
        along_BK1 = (prototypes_BKD * to_prototypes_BKD).sum(2, keepdim=True)
        to_sums_BKD = inverse_BK1 * (to_prototypes_BKD - prototypes_BKD * along_BK1)
        rows = torch.cat([to_sums_BKD, prototypes_BKD], dim=1)  # 2K rows of D, against 2K rows of N
        columns = torch.cat([weight_BKN, cosines_BKN], dim=1)
        gradient_BDN = rows.mT @ columns
        along_B1N = (columns * (rows @ features_BDN)).sum(1, keepdim=True)
        gradient_BDN.addcmul_(features_BDN, along_B1N.mul_(inverse_B1N.square()), value=-1.0)
        return gradient_BDN, None, None, None, None, None, None


@full_precision
def observe_itself(
    features_BDhw: Tensor,
    labels_Bhw: Tensor,
    num_classes: int,
    *,
    ignore_index: int = 255,
    scope: Scope = "image",
    scale: float = 10.0,
    absent: Absent = "mask",
    detach_prototypes: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A map's own perspective and its observations: ``prototypes_BKD``, ``present_BK`` and ``observations_BKhw``.

    In value, arguments and errors :func:`apd.class_prototypes` followed by :func:`apd.observe`, in fewer passes over
    the features; with ``detach_prototypes`` the observations' gradient stops at the prototypes. Memory beside the
    input: three (B, K, N) maps; the gradient, which has none of its own, adds a map of the input's size and four more.
    """
    validation.check_choice("absent", absent, ("mask", "zero"))
    validation.check_positive("scale", scale, most=validation.STEEPEST)
    member_BKN, present_BK = class_members(
        features_BDhw, labels_Bhw, num_classes, ignore_index=ignore_index, scope=scope
    )
    fill = ABSENT_LOGIT if absent == "mask" else 0.0
    prototypes_BKD, observations_BKN = _ObserveItself.apply(
        features_BDhw.flatten(2), member_BKN, present_BK, scale, fill, scope == "batch", detach_prototypes
    )
    return prototypes_BKD, present_BK, observations_BKN.unflatten(2, features_BDhw.shape[2:])


# Labels renumbered so that only the classes that occur have a number: what is absent then costs nothing.


class CompactLabels(NamedTuple):
    """Labels on the label grid and on the feature grid, how many classes they name, and the label to ignore."""

    labels_BHW: Tensor
    labels_Bhw: Tensor
    num_classes: int
    ignore_index: int


def occurring_classes(
    labels_BHW: Tensor, labels_Bhw: Tensor, num_classes: int, *, ignore_index: int = 255, scope: Scope = "image"
) -> CompactLabels:
    """Renumber the classes of each image (with ``scope="batch"``: of the batch) that occur on the feature grid.

    Their numbers, from 0, keep the order of the classes. Pixels of other classes, which have no prototype, become
    ignored (-1). The number of classes is the largest that an image has: a shape that depends on values.
    """
    valid_Bhw = valid_pixels(labels_Bhw, num_classes, ignore_index=ignore_index)
    valid_BHW = valid_pixels(labels_BHW, num_classes, ignore_index=ignore_index)
    places_BN = torch.where(valid_Bhw, labels_Bhw.long(), num_classes).flatten(1)
    present_BK = torch.zeros(len(places_BN), num_classes + 1, dtype=torch.bool, device=labels_Bhw.device)
    present_BK.scatter_(1, places_BN, True)
    present_BK[:, num_classes] = False  # the last column is of ignored pixels
    if scope == "batch":
        present_BK = present_BK.any(0, keepdim=True).expand_as(present_BK)
    number_BK = torch.where(present_BK, present_BK.cumsum(1) - 1, -1)
    fine_BN = torch.where(valid_BHW, labels_BHW.long(), num_classes).flatten(1)
    return CompactLabels(
        number_BK.gather(1, fine_BN).view_as(labels_BHW),
        number_BK.gather(1, places_BN).view_as(labels_Bhw),
        max(1, int(present_BK.sum(1).max())),
        -1,
    )
