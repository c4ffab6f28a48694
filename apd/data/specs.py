"""What a data set contains: `DatasetSpec`, those of the built-in scenes and CamVid, and the colours of their classes.

A class keeps its colour in every figure of the study, whichever of the two it comes from: the table `CLASS_COLOURS` is
keyed by class name and both specs look their palettes up there. The published sets are in `apd.data.published_specs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RGB = tuple[int, int, int]

# Hue follows the thing where it can (sky blue, trees green); lightness separates what colour blindness joins. Found by
# a search for the largest distances near such hues. In CIE Lab the closest two of the 55 pairs are 30 apart, 22 under
# simulated protanopia and deuteranopia, 18 under tritanopia; tests/test_catalogue.py measures them.
CLASS_COLOURS: Mapping[str, RGB] = MappingProxyType(
    {
        "sky": (122, 204, 250),
        "building": (149, 88, 102),
        "pole": (248, 237, 148),
        "road": (52, 57, 86),
        "pavement": (197, 190, 201),
        "tree": (130, 193, 140),
        "sign": (242, 172, 21),
        "fence": (82, 60, 8),
        "car": (12, 86, 203),
        "pedestrian": (250, 90, 84),
        "bicyclist": (203, 102, 176),
    }
)
IGNORE_COLOUR: RGB = (255, 255, 255)


@dataclass(frozen=True)
class DatasetSpec:
    """Names, colours and label conventions of one data set.

    Attributes:
        name: short name, used in records and messages.
        class_names: one name per label, in label order: label `k` is `class_names[k]`.
        palette: one RGB colour (0..255) per class, same order.
        ignore_index: label of pixels that count neither in the loss nor in the scores. Default 255 (convention of
            VOC and Cityscapes, and of the released code).
        void_values: values in the label *files* that become `ignore_index` when read (CamVid: 11).
        file_values: value of each class in the label *files*, in label order, where these are not the labels
            themselves (a mask of 0 and 255, say). Default: empty, 0..K-1.
        file_colours: RGB colour of each class in the label files, in label order, where these hold colours in place of
            values. Default: empty.
        void_colours: colours in such files that become `ignore_index` when read.
        thing_names: the classes whose objects can be counted, where the label table tells them; empty says nothing
            about the classes. Training and scores do not look at it.
        splits: number of images per split where the data set fixes it; empty for generated data.

    Raises:
        ValueError: no classes, a palette of another length or with values outside 0..255, a name twice, an ignore
            label or void value that is also a class, file values that are not one of 0..255 for each class, file
            colours that are not one for each class, or a thing that is not a class.

    Example:
        >>> SCENES.num_classes, SCENES.index("car")
        (10, 8)
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[RGB, ...]
    ignore_index: int = 255
    void_values: tuple[int, ...] = ()
    file_values: tuple[int, ...] = ()
    file_colours: tuple[RGB, ...] = ()
    void_colours: tuple[RGB, ...] = ()
    thing_names: tuple[str, ...] = ()
    splits: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.class_names)
        if count == 0:
            raise ValueError(f"{self.name}: class_names is empty; a data set needs at least one class")
        if len(set(self.class_names)) != count:
            raise ValueError(f"{self.name}: class_names {self.class_names} names a class twice; names must differ")
        if self.file_colours and len(set(self.file_colours)) != count:
            raise ValueError(f"{self.name}: file_colours {self.file_colours}; expected {count} different colours")
        if len(self.palette) != count:
            raise ValueError(f"{self.name}: palette has {len(self.palette)} colours for {count} classes; give one each")
        for field in ("palette", "file_colours", "void_colours"):
            for colour in getattr(self, field):
                if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
                    raise ValueError(f"{self.name}: {field} holds {colour}; expected three values from 0 to 255")
        if not count <= self.ignore_index <= 255:
            raise ValueError(
                f"{self.name}: ignore_index={self.ignore_index}; expected {count}..255, a label no class uses"
            )
        values = self.file_values
        if values and (len(values) != count or len(set(values)) != count or not all(0 <= v <= 255 for v in values)):
            raise ValueError(f"{self.name}: file_values {values}; expected {count} different values from 0 to 255")
        if clash := [value for value in self.void_values if value in (values or range(count))]:
            told = values or f"0..{count - 1}"
            raise ValueError(f"{self.name}: void_values {clash} are labels of classes; classes are {told}")
        if wrong := [value for value in self.void_values if not 0 <= value <= 255]:
            raise ValueError(f"{self.name}: void_values {wrong}; a label file holds values from 0 to 255")
        if self.file_values and self.file_colours:
            raise ValueError(f"{self.name}: file_values and file_colours are both given; label files hold one of them")
        if clash := [colour for colour in self.void_colours if colour in self.file_colours or not self.file_colours]:
            told = "are those of classes" if self.file_colours else "are given without file_colours"
            raise ValueError(f"{self.name}: void_colours {clash} {told}")
        if unknown := [name for name in self.thing_names if name not in self.class_names]:
            raise ValueError(f"{self.name}: thing_names {unknown} are not classes; classes are {self.class_names}")

    @property
    def num_classes(self) -> int:
        """Number of classes K; labels are 0..K-1."""
        return len(self.class_names)

    def index(self, class_name: str) -> int:
        """Label of a class; ValueError with the known names when there is no such class."""
        try:
            return self.class_names.index(class_name)
        except ValueError:
            raise ValueError(f"{self.name} has no class {class_name!r}; it has {', '.join(self.class_names)}") from None

    def colourise(self, labels_HW: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Picture of a label map: labels (H, W) of integers -> colours (H, W, 3) uint8; ignored pixels are white.

        Raises:
            ValueError: a label that is neither a class nor `ignore_index`.

        Example:
            >>> CAMVID.colourise(np.array([[0, 255]])).tolist()[0][1]
            [255, 255, 255]
        """
        labels_HW = np.asarray(labels_HW)
        wrong = np.setdiff1d(labels_HW, [*range(self.num_classes), self.ignore_index])
        if wrong.size:
            raise ValueError(
                f"labels_HW holds {wrong[:5].tolist()}; {self.name} has labels 0..{self.num_classes - 1} "
                f"and {self.ignore_index} for ignored pixels"
            )
        table = np.full((256, 3), IGNORE_COLOUR, dtype=np.uint8)
        table[: self.num_classes] = self.palette
        return table[labels_HW]


def _colours(class_names: tuple[str, ...]) -> tuple[RGB, ...]:
    return tuple(CLASS_COLOURS[name] for name in class_names)


_STREET = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian")

SCENES = DatasetSpec(
    name="scenes",
    class_names=_STREET,
    palette=_colours(_STREET),
    # Poles stay stuff, as in Cityscapes: their visible parts are thin and often joined to a sign.
    thing_names=("sign", "car", "pedestrian"),
)
"""The built-in street scenes (`apd.data.scenes`): CamVid's classes without the bicyclist."""

CAMVID = DatasetSpec(
    name="camvid",
    class_names=(*_STREET, "bicyclist"),
    palette=_colours((*_STREET, "bicyclist")),
    void_values=(11,),
    splits=(("train", 367), ("val", 101), ("test", 233)),
)
"""CamVid with the 11 classes, void label and split of the SegNet tutorial; it marks no instances."""


# What a data set hands out, what it must offer to be trained on, and what stands where a picture ends.

IMAGE_PADDING = (124, 116, 104)  # ImageNet's mean colour: close to zero after a network's own normalisation
LABEL_PADDING = 255


class Sample(NamedTuple):
    """One picture with its labels, as stored: no scaling, cropping or normalisation yet.

    Attributes:
        image_3HW: uint8 RGB, 0..255, channels first.
        labels_HW: uint8 labels 0..K-1, or the spec's `ignore_index` (255).
        name: says which picture it is, in messages and figures; unique within its data set.
    """

    image_3HW: Tensor
    labels_HW: Tensor
    name: str


@runtime_checkable
class SegmentationDataset(Protocol):
    """A finite, indexable set of samples under one `DatasetSpec`.

    `dataset[i]` must give the same sample every time, in any process: what varies between epochs belongs to
    `apd.data.augment`, with its own random numbers.
    """

    spec: DatasetSpec

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; IndexError outside 0..len-1, so that a plain `for` over the data set ends."""
        ...

    def fingerprint(self) -> str:
        """Hex sha256 that changes whenever any sample would: of the content, or of generator version and settings."""
        ...
