"""What a data set hands out, what it must offer to be trained on, and what stands where a picture ends."""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from apd.data.catalogue import DatasetSpec

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
    `apd.data.transforms`, with its own random numbers.
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
