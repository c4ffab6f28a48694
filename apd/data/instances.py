"""Images with objects: what a data set for detection hands out, as a map of classes, and masks as COCO stores them."""

import re
from dataclasses import dataclass
from functools import partial
from reprlib import repr as shortened  # unlike `{value!r:.60}` it never builds the text of a whole list
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apd.data.specs import DatasetSpec, Sample, require_names
from apd.fields import ExperimentError, imported

IGNORED = -1  # label of what is neither background nor class; not 255, as some detection data have more classes
BACKGROUND = 0  # a detector's label of what is no object; class k is its label k + 1
THINNEST = 0.01  # pixels (own choice): float32 keeps the ends of such a side apart in images of thousands of pixels
MOST = 2**53  # up to here float64 holds every integer; no id, side, coordinate or area means more
# of each character of packed run lengths the lower five bits
_BASE_32 = {48 + value: "0123456789abcdefghijklmnopqrstuv"[value % 32] for value in range(64)}


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
    """One image and its objects, as stored; crowd need not be found, is no false positive and no training target."""

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
    the smaller is on top, since the larger would hide it altogether.
    """
    map_HW = torch.full(masks_NHW.shape[1:], BACKGROUND, dtype=torch.int64, device=masks_NHW.device)
    pixels, crowd = masks_NHW.flatten(1).sum(1).tolist(), crowd_N.tolist()
    for place in sorted(range(len(pixels)), key=lambda place: (not crowd[place], -pixels[place])):
        map_HW.masked_fill_(masks_NHW[place], IGNORED if crowd[place] else int(labels_N[place]) + 1)
    return map_HW


def as_target(sample: InstanceSample) -> dict[str, Tensor]:
    """A training image's target as torchvision's detectors take it, with its :func:`class_map`.

    That is `boxes` float32 (n, 4), `labels` int64 (n,) from 1, and with masks `masks` uint8 (n, H, W) and `class_map`
    (H, W). Boxes leave out crowd and those with a side below 0.01 pixel, which torchvision refuses once it resized
    them to zero.
    """
    wanted_N = ~sample.crowd_N & (sample.boxes_N4[:, 2:] - sample.boxes_N4[:, :2] >= THINNEST).all(1)
    target = {"boxes": sample.boxes_N4[wanted_N], "labels": sample.labels_N[wanted_N] + 1}
    if sample.masks_NHW is not None:
        target["masks"] = sample.masks_NHW[wanted_N].to(torch.uint8)
        target["class_map"] = class_map(sample.masks_NHW, sample.labels_N, sample.crowd_N)
    return target


class Noise(list):
    """One image of noise, of `size` (H, W), for measuring: labels in an 8×8 grid or, by its spec, eight objects."""

    def __init__(self, spec: DatasetSpec | InstanceSpec, size: tuple[int, int], *, masks: bool = True) -> None:
        self.spec, (height, width), random = spec, size, torch.Generator().manual_seed(0)
        image_3HW = torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
        if isinstance(spec, DatasetSpec):
            grid = torch.randint(spec.num_classes, (8, 8), generator=random, dtype=torch.uint8)
            rows, columns = (torch.arange(side) * 8 // side for side in size)
            self.append(Sample(image_3HW, grid[rows][:, columns].contiguous(), "noise"))
            return
        tall, wide = height // 2, width // 4
        boxes = [(x, y, x + wide, y + tall) for y in (0, tall) for x in range(0, 4 * wide, wide)]
        y_HW, x_HW = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        shapes = [(x0 <= x_HW) & (x_HW < x1) & (y0 <= y_HW) & (y_HW < y1) for x0, y0, x1, y1 in boxes]
        labels_N = torch.randint(spec.num_classes, (8,), generator=random)
        crowd_N, areas_N = torch.zeros(8, dtype=torch.bool), torch.full((8,), float(tall * wide))
        objects = torch.tensor(boxes).float(), labels_N, torch.stack(shapes) if masks else None, crowd_N, areas_N
        self.append(InstanceSample(image_3HW, *objects, "noise"))


class DetectionExtraMissing(ExperimentError, ImportError):
    """faster-coco-eval is not installed."""


coco_library = partial(imported, "faster_coco_eval", extra="detection", error=DetectionExtraMissing)
"""The package faster_coco_eval, or DetectionExtraMissing with the given `purpose`, and how to get it."""


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that can be meant; NaN is none, nor is a bool."""
    return type(value) in (int, float) and abs(value) <= MOST


# own code, since libraries write past the end of a short mask and believe every polygon
def decode(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels (height, width) of one annotation's `segmentation`; a ValueError says what is wrong with it.

    That is a list of polygons [x, y, x, y, ...] (for which faster-coco-eval is needed), or a mapping with `size` [rows,
    columns] and `counts`, the lengths of the runs of 0 and 1 in turn, column by column, as numbers or packed in a text.
    Polygons may lead out of the image; their points, their outline and each coordinate are bounded by its pixels.
    """
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, height, width)
    if not segmentation or not isinstance(segmentation, list):
        raise ValueError(f"segmentation is {shortened(segmentation):.80}: expected polygons, or size and counts")
    # the library takes 80 bytes for each pixel of the outline, and ends the process where they are not to be had
    most, outline = min(height * width, 2**22) + 2**16, 0.0
    for polygon in segmentation:
        plain = isinstance(polygon, list) and len(polygon) >= 6 and all(map(is_number, polygon))
        if not plain or len(polygon) % 2:
            raise ValueError(f"segmentation holds {shortened(polygon):.80}: expected three or more points, as numbers")
        points_X2 = np.array(polygon[: 2 * most], dtype=np.float64).reshape(-1, 2)  # more would be refused anyway
        outline += len(polygon) + np.abs(points_X2 - np.roll(points_X2, 1, axis=0)).max(1).sum()
        if max(outline, np.abs(points_X2).max()) > most:
            raise ValueError(f"segmentation holds polygons too long for, or far out of, its image {height}×{width}")
    library = coco_library("drawing the polygons of a COCO annotation").mask
    return library.decode(library.merge(library.frPyObjects(segmentation, height, width))).astype(bool)


def encode(masks_NHW: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Masks (N, H, W) as COCO's packed run lengths, one mapping with `size` and `counts` each; needs the extra."""
    columns_HWN = np.asfortranarray(np.moveaxis(masks_NHW, 0, -1).astype(np.uint8))
    return coco_library("packing masks").mask.encode(columns_HWN)


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    whole = isinstance(size, list | tuple) and len(size) == 2 and all(map(is_number, size))
    if not whole or not isinstance(counts, list | str | bytes):
        raise ValueError(f"segmentation is {shortened(segmentation):.80}: expected size [rows, columns] and counts")
    if tuple(size) != (height, width):
        raise ValueError(f"segmentation has size {size[0]}×{size[1]}, its image {height}×{width}")
    pixels = height * width
    # lengths first, so that little is unpacked in vain; then Python's sum, which unlike NumPy's never wraps round
    runs = counts if len(counts) <= 12 * (2 * pixels + 1) else []
    runs = unpack(runs) if isinstance(runs, str | bytes) else runs
    if len(runs) > 2 * pixels + 1 or set(map(type, runs)) != {int} or min(runs) < 0 or sum(runs) != pixels:
        raise ValueError(f"segmentation's counts do not fill its size {height}×{width}: damaged")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def unpack(text: str | bytes) -> list[int]:
    """The run lengths in COCO's packed form; ValueError where it is not that.

    Numbers are groups of five bits, the lowest first, as characters from "0" on; the sixth bit says that it goes on,
    the highest of the last group is the sign. From the fourth on, a number is the difference from that before the last.
    """
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    words, runs = re.findall("[P-o]{0,11}[0-O]", text), list[int]()
    if "".join(words) != text:
        raise ValueError("segmentation's counts are no packed run lengths, or hold one of more than 60 bits: damaged")
    for word in words:
        number = int(word.translate(_BASE_32)[::-1], 32) - (word[-1] >= "@") * 32 ** len(word)
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    return runs
