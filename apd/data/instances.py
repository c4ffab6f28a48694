"""Pictures whose things are counted: what a data set for detection hands out, and its things as a map of classes.

Classes are numbered 0..K-1 as everywhere; only what a detector sees is shifted by one, since its label 0 is the
background (:func:`as_target`, :func:`class_map`). Shape letters: N things of one picture, H W its size.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

IGNORED = -1
"""Label, in a map of classes and among boxes, of what counts neither as background nor as a class.

Not 255 as in the other data sets: some detection data have more than 255 classes.
"""
BACKGROUND = 0
"""A detector's label of what is no thing; class k is its label k + 1."""

THINNEST = 0.01
"""Pixels (own choice): float32 keeps the ends of such a side apart in pictures of thousands of pixels, also reduced."""


@dataclass(frozen=True)
class InstanceSpec:
    """Names of a data set's classes of things.

    Args:
        name: short name, used in records and messages.
        class_names: one name per class, in label order.
        category_ids: each class's number in the annotation file, in label order; empty for generated data.

    Raises:
        ValueError: no class, a name twice, or another number of ids than of names.

    Example:
        >>> InstanceSpec("pets", ("cat", "dog"), category_ids=(17, 18)).num_classes
        2
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.class_names:
            raise ValueError(f"{self.name}: class_names is empty; a data set needs at least one class")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"{self.name}: class_names {self.class_names} names a class twice; names must differ")
        if self.category_ids and len(self.category_ids) != len(self.class_names):
            raise ValueError(
                f"{self.name}: {len(self.category_ids)} category_ids for {len(self.class_names)} class_names; "
                "give one each, or none"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes K, the background not counted."""
        return len(self.class_names)


class InstanceSample(NamedTuple):
    """One picture and its things, as stored: no scaling, cropping or normalisation yet.

    Attributes:
        image_3HW: uint8 RGB, 0..255, channels first.
        boxes_N4: float32 x0, y0, x1, y1 in pixels, of positive width and height, inside the picture.
        labels_N: int64 classes 0..K-1.
        masks_NHW: bool, which pixels belong to each thing; they may overlap. None where a data set has boxes only.
        crowd_N: bool, things that need not be found and are no mistake either: COCO's crowd regions, and what is too
            small to be seen at this size. They are no training targets.
        areas_N: float32, square pixels by which COCO's AP tells small from large.
        name: says which picture it is, in messages and figures; unique within its data set.
    """

    image_3HW: Tensor
    boxes_N4: Tensor
    labels_N: Tensor
    masks_NHW: Tensor | None
    crowd_N: Tensor
    areas_N: Tensor
    name: str


@runtime_checkable
class InstanceDataset(Protocol):
    """A finite, indexable set of instance samples under one :class:`InstanceSpec`.

    `dataset[i]` must give the same sample every time, in any process.
    """

    spec: InstanceSpec

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> InstanceSample:
        """Sample `index`; IndexError outside 0..len-1, so that a plain `for` over the data set ends."""
        ...

    def fingerprint(self) -> str:
        """Hex sha256 that changes whenever any sample would: of the content, or of generator version and settings."""
        ...


def class_map(masks_NHW: Tensor, labels_N: Tensor, crowd_N: Tensor) -> Tensor:
    """A picture's things as one map of classes, for losses that want a label at every pixel.

    Where things overlap the smaller is on top, since the larger would hide it altogether; crowd regions are ignored
    where nothing else is; the rest is background.

    Args:
        masks_NHW: bool.
        labels_N: classes 0..K-1.
        crowd_N: bool.

    Returns:
        int64 (H, W): :data:`BACKGROUND`, k + 1 for class k, or :data:`IGNORED`. Memory: one int32 (N, H, W).

    >>> import torch
    >>> masks = torch.tensor([[[1, 1, 1, 0]], [[0, 1, 0, 0]]]).bool()
    >>> class_map(masks, torch.tensor([4, 7]), torch.tensor([False, False]))
    tensor([[5, 8, 5, 0]])
    """
    count = len(masks_NHW)
    if count == 0:
        return torch.zeros(masks_NHW.shape[1:], dtype=torch.int64, device=masks_NHW.device)
    pixels_N = masks_NHW.flatten(1).sum(1)
    # crowds at the bottom, then from large to small; place 0 is the background
    order_N = torch.argsort(torch.where(crowd_N, -pixels_N.max() - 1, -pixels_N), stable=True)
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(1, count + 1, device=order_N.device)
    top_HW = (masks_NHW * place_N.int()[:, None, None]).amax(0).long()
    labels_N = torch.where(crowd_N, IGNORED, labels_N.long() + 1)
    return torch.cat([labels_N.new_tensor([BACKGROUND]), labels_N[order_N]])[top_HW]


def as_target(sample: InstanceSample) -> dict[str, Tensor]:
    """What torchvision's detectors want to know of a training picture, and its :func:`class_map`.

    Crowd regions are left out of the boxes, as torchvision's own training does; the class map knows them. Boxes with a
    side below a hundredth of a pixel are left out, too: resized they may have none at all, at which torchvision stops.

    Returns:
        `boxes` float32 (n, 4), `labels` int64 (n,) from 1, and where the sample has masks `masks` uint8 (n, H, W) and
        `class_map` int64 (H, W).
    """
    sides_N2 = sample.boxes_N4[:, 2:] - sample.boxes_N4[:, :2]
    wanted_N = ~sample.crowd_N & (sides_N2 >= THINNEST).all(1)
    target = {"boxes": sample.boxes_N4[wanted_N], "labels": sample.labels_N[wanted_N] + 1}
    if sample.masks_NHW is not None:
        target["masks"] = sample.masks_NHW[wanted_N].to(torch.uint8)
        target["class_map"] = class_map(sample.masks_NHW, sample.labels_N, sample.crowd_N)
    return target
