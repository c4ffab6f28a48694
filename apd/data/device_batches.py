"""Training batches made on the device: all images wait there as uint8, and a batch is augmented in one go.

Which samples and which random numbers make a batch is decided in :mod:`apd.data.batches`, and where an image lands on
its crop in :func:`apd.data.augment.placement`; so the batches are those of the CPU up to rounding, and no process
loads anything. Scaling, cropping and flipping are linear along rows and along columns, so one pair of matrices for
each image does all three, with the same antialiasing filter as torchvision's.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from apd.data.augment import Augmentation, Draws, check_sample, colour_factors, placement
from apd.data.batches import Batch, BatchStream, served
from apd.data.images import DataError
from apd.data.specs import IMAGE_PADDING, LABEL_PADDING, SegmentationDataset

GREY = (0.2989, 0.587, 0.114)  # torchvision's
FREE_SHARE = 0.5  # own choice: the other half of a GPU's free memory is for the networks


class DeviceImages(NamedTuple):
    """A data set in the memory of a device, smaller images in the upper left corner of the largest one's size.

    Attributes:
        images_N3HW: uint8.
        labels_NHW: uint8.
        sizes: height and width of each image.
    """

    images_N3HW: Tensor
    labels_NHW: Tensor
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, dataset: SegmentationDataset, device: torch.device) -> Self:
        """Read the whole data set.

        Raises:
            DataError: it does not fit.
            ValueError: a sample is not uint8.
        """
        _require_room(4 * len(dataset) * dataset[0].labels_HW.numel(), len(dataset), device)
        samples = [dataset[index] for index in range(len(dataset))]
        for sample in samples:
            check_sample(sample)
        sizes = tuple((int(s.labels_HW.shape[0]), int(s.labels_HW.shape[1])) for s in samples)
        largest = [max(sides) for sides in zip(*sizes, strict=True)]
        images_N3HW = torch.zeros(len(samples), 3, *largest, dtype=torch.uint8)
        labels_NHW = torch.zeros(len(samples), *largest, dtype=torch.uint8)
        _require_room(images_N3HW.numel() + labels_NHW.numel(), len(samples), device)
        for number, (sample, (height, width)) in enumerate(zip(samples, sizes, strict=True)):
            images_N3HW[number, :, :height, :width] = sample.image_3HW
            labels_NHW[number, :height, :width] = sample.labels_HW
        return cls(images_N3HW.to(device), labels_NHW.to(device), sizes)


def _require_room(needed: int, images: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > FREE_SHARE * free:
        raise DataError(
            f"training.device_augmentation = True: the {images} training images take {needed / 2**30:.1f} GiB on "
            f"{device}, which has {free / 2**30:.1f} GiB free, and half of that is for the networks; set it to False"
        )


class DeviceStream(BatchStream):
    """Batch t as ``stream[t]``, a pure function of the settings and t. See `device_batches`."""

    def __init__(self, dataset: SegmentationDataset, *settings, device: torch.device) -> None:
        super().__init__(dataset, *settings)
        if self.augmentation.rotation or self.augmentation.blur:
            raise ValueError(f"{self.augmentation}; expected rotation=0 and blur=0 on a device: the CPU does these")
        self.images = DeviceImages.of(dataset, device)

    def __getitem__(self, iteration: int) -> Batch:
        indices, generators = zip(*self.slots_of(iteration), strict=True)
        draws = [Draws.of(generator) for generator in generators]
        rows, columns = [], []
        for index, numbers in zip(indices, draws, strict=True):
            size = self.images.sizes[index]
            scaled, taken, placed = placement(size, self.augmentation, numbers)
            flips = (False, numbers.flip < self.augmentation.flip)
            for axis, *values in zip((rows, columns), size, scaled, taken, placed, flips, strict=True):
                length, long, source, target, flip = values
                axis.append((length, long, source.start, target.start, target.stop - target.start, flip))
        factors = [colour_factors(self.augmentation.colour, numbers.colour) for numbers in draws]
        return self._augmented(np.array(indices), np.array(rows), np.array(columns), np.array(factors))

    def _augmented(self, indices: np.ndarray, rows: np.ndarray, columns: np.ndarray, factors: np.ndarray) -> Batch:
        """The batch, from the few numbers for each image that decide it."""
        images_N3HW, labels_NHW, _ = self.images
        device = images_N3HW.device
        index_B = _sent(torch.from_numpy(indices), device)
        (y_Bh, weights_BhH, shown_Bh), (x_Bw, weights_BwW, shown_Bw) = (
            _sampled(_sent(torch.from_numpy(axis).float(), device), crop, length)
            for axis, crop, length in zip((rows, columns), self.augmentation.crop, labels_NHW.shape[1:], strict=True)
        )
        shown_Bhw = shown_Bh[:, :, None] & shown_Bw[:, None, :]
        labels_Bhw = labels_NHW[index_B[:, None, None], y_Bh[:, :, None], x_Bw[:, None, :]]
        pixels_B3hw = weights_BhH[:, None] @ (images_N3HW[index_B].float() @ weights_BwW[:, None].mT)
        pixels_B3hw = pixels_B3hw.round_()
        if self.augmentation.colour:
            pixels_B3hw = _recoloured(pixels_B3hw, shown_Bhw[:, None], _sent(torch.from_numpy(factors).float(), device))
        padding_311 = _sent(torch.tensor(IMAGE_PADDING).float(), device)[:, None, None]
        images_B3hw = torch.where(shown_Bhw[:, None], pixels_B3hw, padding_311).div_(255)
        return Batch(images_B3hw, labels_Bhw.long().masked_fill_(~shown_Bhw, LABEL_PADDING))


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """A few numbers on the device, without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _sampled(axis_B6: Tensor, crop: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Along one side of the crop, for each place: the nearest pixel, the weights of all, and whether it shows any.

    Args:
        axis_B6: for each image its length, that length scaled, the first scaled pixel that is taken, the first place
            of the crop that it fills, how many it fills, and whether it is flipped.
        crop: places along that side, c.
        longest: length L of the stored images along that side.

    Returns:
        (B, c) int64, (B, c, L) float32 that sum to 1 or are all 0, and (B, c) bool.
    """
    length, scaled, start, first, count, flip = axis_B6[:, :, None].unbind(1)
    place_Bc = torch.arange(crop, device=axis_B6.device) - first
    shown_Bc = (place_Bc >= 0) & (place_Bc < count)
    place_Bc = torch.where(flip > 0, count - 1 - place_Bc, place_Bc)
    step = length / scaled
    centre_Bc = (start + place_Bc + 0.5) * step
    nearest_Bc = torch.minimum(centre_Bc.clamp_min(0), length - 1).long()
    pixels_L = torch.arange(longest, device=axis_B6.device)
    distance_BcL = (pixels_L + 0.5 - centre_Bc[:, :, None]).abs() / step.clamp_min(1)[:, :, None]
    weights_BcL = (1 - distance_BcL).clamp_min(0) * (shown_Bc[:, :, None] & (pixels_L < length[:, :, None]))
    return nearest_Bc, weights_BcL / weights_BcL.sum(-1, keepdim=True).clamp_min(1e-6), shown_Bc


def _recoloured(pixels_B3hw: Tensor, shown_B1hw: Tensor, factors_B3: Tensor) -> Tensor:
    """Brightness, contrast and saturation as torchvision changes them, to whole numbers; contrast by what shows."""

    def grey(image_B3hw: Tensor) -> Tensor:
        red, green, blue = image_B3hw.unbind(1)
        return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).floor()[:, None]

    def blended(image_B3hw: Tensor, other: Tensor, ratio: Tensor) -> Tensor:
        return (image_B3hw * ratio + other * (1 - ratio)).clamp_(0, 255).floor_()

    brightness, contrast, saturation = factors_B3[:, :, None, None, None].unbind(1)
    pixels_B3hw = blended(pixels_B3hw, torch.zeros_like(brightness), brightness)
    shown = shown_B1hw.float()
    mean = (grey(pixels_B3hw) * shown).sum((1, 2, 3), keepdim=True) / shown.sum((1, 2, 3), keepdim=True)
    pixels_B3hw = blended(pixels_B3hw, mean, contrast)
    return blended(pixels_B3hw, grey(pixels_B3hw), saturation)


def device_batches(
    dataset: SegmentationDataset,
    *,
    device: torch.device | str,
    batch_size: int,
    augmentation: Augmentation,
    seed: int,
    start_iteration: int = 0,
    iterations: int,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """What :func:`~apd.data.batches.training_batches` gives for the same arguments, made on a device, up to rounding.

    Order, random numbers, resuming and parts are the same; labels are equal. The whole data set is read first and kept
    on the device, 4 bytes a pixel; a batch takes 12 bytes for each pixel of its stored images beside that.

    Args:
        dataset: samples of any size; all together take at most half of a GPU's free memory.
        device: where the batches are made.
        batch_size: samples in a batch, B.
        augmentation: how the samples are augmented, without rotation and blur, and their size.
        seed: whole number from 0.
        start_iteration: number of the first batch (default 0).
        iterations: total length of the run, the number after the last batch's. The iterator ends there.
        part: (r, n) gives part r of n of every batch, its slots in order (default: all of it).

    Raises:
        DataError: the data set does not fit on the device.
        ValueError: an empty data set, a number out of its range, rotation or blur, or a sample that is not uint8.

    Example:
        >>> from apd.data.scenes import Scenes
        >>> scenes = Scenes(8, height=48, width=64, context_shift=0.5, seed=0, split="train")
        >>> crops = Augmentation(crop=(32, 48))
        >>> batch = next(device_batches(scenes, device="cpu", batch_size=4, augmentation=crops, seed=1, iterations=10))
        >>> batch.images_B3HW.shape, batch.labels_BHW.shape
        (torch.Size([4, 3, 32, 48]), torch.Size([4, 32, 48]))
    """
    stream = DeviceStream(dataset, batch_size, augmentation, seed, part, device=torch.device(device))
    return served(stream, start_iteration, iterations, workers=0)
