"""What a data set contains: `Sample`, `DatasetSpec`, and the specs of the built-in and the published data sets."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from apd.fields import CONTROLS

RGB = tuple[int, int, int]
IGNORE_COLOUR: RGB = (255, 255, 255)
IMAGE_PADDING = (124, 116, 104)  # ImageNet's mean colour: close to zero after a network's own normalisation
LABEL_PADDING = 255
UNLABELLED = 254  # label of the pixels of an image without labels: in training the teacher's predictions stand there

# of Cityscapes the 19 train ids with their colours, as in the table of github.com/mcordts/cityscapesScripts; of ADE20K
# the first name of each class in objectInfo150.txt
_TEXT = Path(__file__).with_name("class_names.txt").read_text(encoding="utf-8")
_LISTS = dict(entry.split(":") for entry in _TEXT.split("\n\n"))


def _names(of: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in _LISTS[of].split(","))


def _coloured(of: str) -> Mapping[str, RGB]:
    entries = (entry.rpartition(" ") for entry in _names(of))
    return MappingProxyType({name: tuple(bytes.fromhex(colour)) for name, _, colour in entries})


# A class keeps its colour in every figure. Found by a search for the largest distances near natural hues: in CIE Lab
# the closest two of the 55 pairs are 30 apart, 22 under simulated protanopia and deuteranopia, 18 under tritanopia.
CLASS_COLOURS = _coloured("street")


def require_names(owner: object, names: tuple[object, ...]) -> None:
    """Raise ValueError for a name that is no text or could steer a terminal, and for classes that are none or twice."""
    for name in (owner, *names):
        if not isinstance(name, str) or re.search(CONTROLS, name) or not 0 < len(name.strip()) <= 100:
            fault = "expected a text without control characters, not blank and of at most 100 characters"
            raise ValueError(f"the name {name!r:.80}: {fault}")
    if not names or len(set(names)) != len(names):
        fault = f"{names!r:.80} names a class twice" if names else "is empty"
        raise ValueError(f"{owner:.80}: class_names {fault}; expected at least one, and all different")


@dataclass(frozen=True)
class DatasetSpec:
    """Names, colours and label conventions of one data set; ValueError where fields contradict each other."""

    name: str  #: short name, used in records and messages
    class_names: tuple[str, ...]  #: label `k` is `class_names[k]`
    palette: tuple[RGB, ...]  #: one RGB colour (0..255) per class, in label order
    ignore_index: int = 255  #: label of pixels outside the loss and the scores (255 as in VOC and Cityscapes)
    void_values: tuple[int, ...] = ()  #: values in the label *files* that become `ignore_index` when read (CamVid: 11)
    file_values: tuple[int, ...] = ()  #: value of each class in the label files, where these are not the labels
    file_colours: tuple[RGB, ...] = ()  #: colour of each class in the label files, where these hold colours
    void_colours: tuple[RGB, ...] = ()  #: colours in such files that become `ignore_index` when read
    thing_names: tuple[str, ...] = ()  #: classes whose objects can be counted, where known; training ignores it
    splits: tuple[tuple[str, int], ...] = ()  #: number of images per split where the data set fixes it

    def __post_init__(self) -> None:
        names, values, colours, count = self.class_names, self.file_values, self.file_colours, len(self.class_names)
        require_names(self.name, names)
        values_used = values or range(count)
        odd = values and (not len(values) == len(set(values)) == count or min(values) < 0 or max(values) > 255)
        odd_void = [value for value in self.void_values if not 0 <= value <= 255]
        void_clash = [value for value in self.void_values if value in values_used]
        colour_clash = [colour for colour in self.void_colours if colour in colours or not colours]
        against = "those of classes" if colours else "given without file_colours"
        every_colour = (*self.palette, *colours, *self.void_colours)
        no_colours = [c for c in every_colour if len(c) != 3 or min(c) < 0 or max(c) > 255]
        unknown = [name for name in self.thing_names if name not in names]
        checks = {
            f"file_colours {colours!r:.80}; expected {count} different colours": colours and len(set(colours)) != count,
            f"palette has {len(self.palette)} colours for {count} classes; give one each": len(self.palette) != count,
            f"palette or colours {no_colours[:1]!r:.80}; expected three values from 0 to 255": no_colours,
            f"ignore_index={self.ignore_index}; expected {count}..255": not count <= self.ignore_index <= 255,
            f"file_values {values!r:.80}; expected {count} different values from 0 to 255": odd,
            f"void_values {void_clash!r:.80} are labels of classes: {values_used!r:.80}": void_clash,
            f"void_values {odd_void!r:.80}; a label file holds values from 0 to 255": odd_void,
            "file_values and file_colours are both given; label files hold one of them": values and colours,
            f"void_values {self.void_values} beside file_colours; give void_colours": colours and self.void_values,
            f"void_colours {colour_clash!r:.80} are {against}": colour_clash,
            f"thing_names {unknown!r:.80} are not classes; classes are {names!r:.80}": unknown,
        }
        for problem, there in checks.items():
            if there:
                raise ValueError(f"{self.name:.80}: {problem}")

    @property
    def num_classes(self) -> int:
        """Number of classes K; labels are 0..K-1."""
        return len(self.class_names)

    def index(self, class_name: str) -> int:
        """Label of a class; ValueError with the known names when there is no such class."""
        if class_name not in self.class_names:
            raise ValueError(f"{self.name} has no class {class_name!r}; it has {', '.join(self.class_names)}")
        return self.class_names.index(class_name)

    def colourise(self, labels_HW: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Labels (H, W) of integers -> colours (H, W, 3) uint8, white where ignored; ValueError at an unknown label."""
        labels_HW = np.asarray(labels_HW)
        wrong = np.setdiff1d(labels_HW, [*range(self.num_classes), self.ignore_index])
        if wrong.size:
            known = f"labels 0..{self.num_classes - 1} and {self.ignore_index} for ignored pixels"
            raise ValueError(f"labels_HW holds {wrong[:5].tolist()}; {self.name} has {known}")
        table = np.full((256, 3), IGNORE_COLOUR, dtype=np.uint8)
        table[: self.num_classes] = self.palette
        return table[labels_HW]


class Sample(NamedTuple):
    """One image with its labels, as stored."""

    image_3HW: Tensor  #: uint8 RGB
    labels_HW: Tensor  #: uint8 0..K-1, or the spec's `ignore_index`
    name: str  #: identifies the image in messages and figures; unique within its data set


@runtime_checkable
class SegmentationDataset(Protocol):
    """A finite set of samples under one `DatasetSpec`: `dataset[i]` is always the same, and IndexError past the end."""

    spec: DatasetSpec

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def fingerprint(self) -> str:
        """Hex sha256 that changes whenever any sample would: of the content, or of generator version and settings."""
        ...


def _street(name: str, *more: str, **fields: tuple) -> DatasetSpec:
    names = (*list(CLASS_COLOURS)[:10], *more)
    return DatasetSpec(name, names, tuple(CLASS_COLOURS[name] for name in names), **fields)


# Poles stay stuff, as in Cityscapes: their visible parts are thin and often joined to a sign.
SCENES = _street("scenes", thing_names=("sign", "car", "pedestrian"))
"""The built-in street scenes (`apd.data.scenes`): CamVid's classes without the bicyclist."""

CAMVID = _street("camvid", "bicyclist", void_values=(11,), splits=(("train", 367), ("val", 101), ("test", 233)))
"""CamVid with the 11 classes, void label and split of the SegNet tutorial; it marks no instances."""


def distinct_colours(count: int) -> tuple[RGB, ...]:
    """The first of 255 RGB colours, each as far as possible in CIE Lab from white and all before it (test_specs.py)."""
    if not 1 <= count <= 255:
        raise ValueError(f"count={count}; expected 1 to 255 colours")
    return tuple(tuple(bytes.fromhex(colour)) for colour in _LISTS["distinct colours"].split()[:count])


CITYSCAPES = DatasetSpec(
    "cityscapes",
    tuple(_coloured("cityscapes")),
    tuple(_coloured("cityscapes").values()),
    thing_names=("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    splits=(("train", 2975), ("val", 500)),
)
"""Cityscapes with its 19 evaluated classes, in the publishers' colours; the labels of test are not public."""

ADE20K = DatasetSpec("ade20k", _names("ade20k"), distinct_colours(150), splits=(("train", 20210), ("val", 2000)))
"""ADE20K in the form of the MIT scene parsing benchmark: 150 classes; everything else (0 in its maps) is ignored."""

PASCAL_CONTEXT_60 = DatasetSpec(
    "pascal_context_60",
    ("background", *_names("pascal_context")),
    distinct_colours(60),
    splits=(("train", 4998), ("val", 5105)),
)
"""PASCAL-Context: the background, then the 59 most frequent classes in alphabetical order, as in the released code."""

_WITHOUT = {"class_names": PASCAL_CONTEXT_60.class_names[1:], "palette": PASCAL_CONTEXT_60.palette[1:]}
_WITHOUT |= {"file_values": tuple(range(1, 60)), "void_values": (0,)}
PASCAL_CONTEXT_59 = replace(PASCAL_CONTEXT_60, name="pascal_context_59", **_WITHOUT)
"""PASCAL-Context's 59 classes without the background, which is ignored; it reads the same maps as the 60."""

COCO_STUFF = DatasetSpec(
    "coco",
    (*_names("coco things"), *_names("coco stuff")),
    distinct_colours(171),
    thing_names=_names("coco things"),
    splits=(("train", 118287), ("val", 5000)),
)
"""COCO 2017 with the pixel maps of COCO-Stuff: 80 classes of objects and 91 of stuff; 11 that never occur are out."""
