"""Data without meaning, in the place of data that are missing: what a step costs does not depend on what it sees."""

import torch

from apd.data.catalogue import DatasetSpec
from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.sample import Sample


class Noise:
    """One picture without meaning, in the place of data that are missing: random colours, labels in an 8×8 grid.

    Args:
        spec: whose classes the labels are.
        size: height and width in pixels.
    """

    def __init__(self, spec: DatasetSpec, size: tuple[int, int]) -> None:
        self.spec, self._size = spec, size

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        """The picture, the same every time."""
        random, (height, width) = torch.Generator().manual_seed(0), self._size
        grid = torch.randint(self.spec.num_classes, (8, 8), generator=random, dtype=torch.uint8)
        rows, columns = (torch.arange(side) * 8 // side for side in self._size)
        image_3HW = torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
        return Sample(image_3HW, grid[rows][:, columns].contiguous(), "noise")

    def fingerprint(self) -> str:
        """A text that no data have."""
        return "noise"


class NoiseThings:
    """One picture of random colours with eight things in it, whose boxes are spread evenly.

    Args:
        spec: whose classes the things are.
        size: height and width in pixels.
        masks: whether the things have masks, which fill their boxes.
    """

    def __init__(self, spec: InstanceSpec, size: tuple[int, int], *, masks: bool = True) -> None:
        self.spec, self._size, self._masks = spec, size, masks

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> InstanceSample:
        """The picture, the same every time."""
        random, (height, width) = torch.Generator().manual_seed(0), self._size
        tops, lefts = (part.ravel() for part in torch.meshgrid(torch.arange(2), torch.arange(4), indexing="ij"))
        corners_N4 = torch.stack([lefts, tops, lefts + 1, tops + 1], dim=1)
        boxes_N4 = corners_N4 * torch.tensor([width // 4, height // 2, width // 4, height // 2])
        count = len(boxes_N4)
        masks_NHW = torch.zeros(count, height, width, dtype=torch.bool) if self._masks else None
        if masks_NHW is not None:
            for mask_HW, (x0, y0, x1, y1) in zip(masks_NHW, boxes_N4.tolist(), strict=True):
                mask_HW[y0:y1, x0:x1] = True
        return InstanceSample(
            torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8),
            boxes_N4.float(),
            torch.randint(self.spec.num_classes, (count,), generator=random),
            masks_NHW,
            torch.zeros(count, dtype=torch.bool),
            torch.full((count,), float((height // 2) * (width // 4))),
            "noise",
        )

    def fingerprint(self) -> str:
        """A text that no data have."""
        return "noise"
