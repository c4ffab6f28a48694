"""The published test size: pictures are brought to a longest side, while their labels stay as they are."""

import hashlib

from apd.data.specs import Sample, SegmentationDataset


def long_side_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) of the same shape whose longer side is `long_side` pixels; the other is rounded, at least 1.

    Example:
        >>> long_side_size(364, 500, 512)
        (373, 512)
    """
    if min(height, width, long_side) < 1:
        raise ValueError(f"height={height}, width={width}, long_side={long_side}; expected at least 1 pixel each")
    longest = max(height, width)
    return max(1, round(height * long_side / longest)), max(1, round(width * long_side / longest))


class LongSide:
    """A data set whose images have one longest side, for evaluation; labels keep their own size, and scores are on it.

    The released code tests so, with 512 pixels on ADE20K and PASCAL-Context and 2048 on Cityscapes. Images are resized
    bilinearly, here with antialiasing. A network's logits are to be resized to the labels' size.

    Args:
        dataset: samples of any size.
        long_side: pixels of an image's longer side.

    Example:
        >>> from apd.data.scenes import Scenes
        >>> scenes = Scenes(2, height=48, width=64, context_shift=0.5, seed=0, split="val")
        >>> image_3hw, labels_HW, name = LongSide(scenes, 32)[0]
        >>> tuple(image_3hw.shape), tuple(labels_HW.shape)
        ((3, 24, 32), (48, 64))
    """

    def __init__(self, dataset: SegmentationDataset, long_side: int) -> None:
        if long_side < 1:
            raise ValueError(f"long_side={long_side}; expected at least 1 pixel")
        self.dataset, self.long_side, self.spec = dataset, long_side, dataset.spec

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` with its image resized."""
        # torchvision is imported where it is used: `import apd.data` must not need it
        from torchvision.transforms.v2 import functional as F

        sample = self.dataset[index]
        size = list(long_side_size(*sample.image_3HW.shape[1:], self.long_side))
        return sample._replace(image_3HW=F.resize_image(sample.image_3HW, size, antialias=True))

    def fingerprint(self) -> str:
        """sha256 (hex) over the data set's own fingerprint and the longest side."""
        return hashlib.sha256(f"{self.dataset.fingerprint()} long side {self.long_side}".encode()).hexdigest()
