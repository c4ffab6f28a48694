"""Images with objects: what a data set for detection hands out, its objects as a map of classes, and noise for both."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from apd.data.specs import DatasetSpec, Sample, require_names

IGNORED = -1  # label of what is neither background nor class; not 255, as some detection data have more classes
BACKGROUND = 0  # a detector's label of what is no object; class k is its label k + 1
THINNEST = 0.01  # pixels (own choice): float32 keeps the ends of such a side apart in images of thousands of pixels


@dataclass(frozen=True)
class InstanceSpec:
    """Names of a data set's classes of objects; ValueError where there is none, one twice, or ids do not match."""

    name: str  #: short name, used in records and messages
    class_names: tuple[str, ...]  #: one name per class, in label order
    category_ids: tuple[int, ...] = ()  #: each class's number in the annotation file; empty for generated data

    def __post_init__(self) -> None:
        require_names(self.name, self.class_names)
        if self.category_ids and len(self.category_ids) != len(self.class_names):
            counts = f"{len(self.category_ids)} category_ids for {len(self.class_names)} class_names"
            raise ValueError(f"{self.name}: {counts}; give one each, or none")

    @property
    def num_classes(self) -> int:
        """Number of classes K, the background not counted."""
        return len(self.class_names)


class InstanceSample(NamedTuple):
    """One image and its objects, as stored; what is crowd need not be found, is no mistake and no training target."""

    image_3HW: Tensor  #: uint8 RGB
    boxes_N4: Tensor  #: float32 x0, y0, x1, y1 in pixels, of positive width and height, inside the image
    labels_N: Tensor  #: int64 classes 0..K-1
    masks_NHW: Tensor | None  #: bool, the pixels of each object, may overlap; None where a data set has boxes only
    crowd_N: Tensor  #: bool
    areas_N: Tensor  #: float32, square pixels by which COCO's AP separates small from large
    name: str  #: identifies the image in messages and figures; unique within its data set


@runtime_checkable
class InstanceDataset(Protocol):
    """As :class:`~apd.data.specs.SegmentationDataset`, of instance samples under one :class:`InstanceSpec`."""

    spec: InstanceSpec

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> InstanceSample: ...
    def fingerprint(self) -> str:
        """Hex sha256 that changes whenever any sample would."""
        ...


def class_map(masks_NHW: Tensor, labels_N: Tensor, crowd_N: Tensor) -> Tensor:
    """An image's objects as one map of classes, for losses that want a label at every pixel.

    Int64 (H, W): 0 for background, k + 1 for class k, -1 for crowd regions where nothing else is. Where objects overlap
    the smaller is on top, since the larger would hide it altogether. Memory: one int32 (N, H, W).
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
    """What torchvision's detectors take of a training image, and its :func:`class_map`.

    That is `boxes` float32 (n, 4), `labels` int64 (n,) from 1, and with masks `masks` uint8 (n, H, W) and `class_map`
    (H, W). Crowd is left out of the boxes, as are sides below 0.01 pixel: resized to none, they would stop torchvision.
    """
    sides_N2 = sample.boxes_N4[:, 2:] - sample.boxes_N4[:, :2]
    wanted_N = ~sample.crowd_N & (sides_N2 >= THINNEST).all(1)
    target = {"boxes": sample.boxes_N4[wanted_N], "labels": sample.labels_N[wanted_N] + 1}
    if sample.masks_NHW is not None:
        target["masks"] = sample.masks_NHW[wanted_N].to(torch.uint8)
        target["class_map"] = class_map(sample.masks_NHW, sample.labels_N, sample.crowd_N)
    return target


class Noise:
    """One image of noise, of `size` (H, W), for measuring: labels in an 8×8 grid or, by its spec, eight objects."""

    def __init__(self, spec: DatasetSpec | InstanceSpec, size: tuple[int, int], *, masks: bool = True) -> None:
        self.spec, self._size, self._masks = spec, size, masks

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample | InstanceSample:
        """The image, the same every time."""
        random, (height, width) = torch.Generator().manual_seed(0), self._size
        image_3HW = torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
        if isinstance(self.spec, DatasetSpec):
            grid = torch.randint(self.spec.num_classes, (8, 8), generator=random, dtype=torch.uint8)
            rows, columns = (torch.arange(side) * 8 // side for side in self._size)
            return Sample(image_3HW, grid[rows][:, columns].contiguous(), "noise")
        tall, wide = height // 2, width // 4
        boxes = [(x, y, x + wide, y + tall) for y in (0, tall) for x in range(0, 4 * wide, wide)]
        y_HW, x_HW = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        masks = [(x0 <= x_HW) & (x_HW < x1) & (y0 <= y_HW) & (y_HW < y1) for x0, y0, x1, y1 in boxes]
        labels_N = torch.randint(self.spec.num_classes, (8,), generator=random)
        crowd_N, areas_N = torch.zeros(8, dtype=torch.bool), torch.full((8,), float(tall * wide))
        objects = torch.tensor(boxes).float(), labels_N, torch.stack(masks) if self._masks else None, crowd_N, areas_N
        return InstanceSample(image_3HW, *objects, "noise")

    def fingerprint(self) -> str:
        """A text that no data have."""
        return "noise"
