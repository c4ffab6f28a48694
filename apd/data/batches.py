"""Batches that depend on seed and iteration only: batch t is places t·B to t·B+B-1 of a stream of permuted epochs."""

import signal
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from apd.data.augment import Augmentation, augment, augment_instances, check_sample, colour_factors, placement
from apd.data.images import DataError
from apd.data.instances import InstanceDataset, InstanceSample, as_target
from apd.data.specs import IMAGE_PADDING, LABEL_PADDING, SegmentationDataset

_EPOCH, _SAMPLE = 0, 1  # first word of a stream's key: keeps the permutations' numbers apart from the augmentations'
GREY = (0.2989, 0.587, 0.114)  # torchvision's
FREE_SHARE = 0.5  # own choice: the other half of a GPU's free memory is for the networks


class Batch(NamedTuple):
    """Training images: images_B3HW float32 in [0, 1], labels_BHW int64 with the spec's `ignore_index`."""

    images_B3HW: Tensor
    labels_BHW: Tensor


class EvaluationBatch(NamedTuple):
    """Images in the data set's order, float32 in [0, 1], with int64 labels, maybe of another size, and B names."""

    images_B3HW: Tensor
    labels_BHW: Tensor
    names: tuple[str, ...]


def on_device(batch: Any, device: torch.device, *, pinned: bool) -> Any:
    """The batch on a device; if `pinned`, by way of page-locked memory, from which no GPU is waited for."""
    if pinned and device.type == "cuda":
        batch = tree_map(lambda value: value if value.is_cuda else value.pin_memory(), batch)
    return tree_map(lambda value: value.to(device, non_blocking=True), batch)


def unit_range(images_B3HW: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [0, 1]."""
    return images_B3HW.to(torch.float32).div_(255).contiguous()


def generator_for(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on the seed and the key only; different keys of one length are independent."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@lru_cache(maxsize=4)  # a batch asks for its epoch's order slot by slot
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order, (count,) int64, in which epoch `epoch` visits a data set of `count` samples."""
    # sorting numbers instead of Generator.permutation: NumPy may change how it shuffles, less so its uniform numbers
    order = np.argsort(generator_for(seed, _EPOCH, epoch).random(count), kind="stable")
    order.flags.writeable = False  # it is cached
    return order


def _at_least(least: int, **number: int) -> None:
    ((name, value),) = number.items()
    if value < least:
        raise ValueError(f"{name}={value}; expected a whole number of at least {least}")


class BatchStream(Dataset):
    """Batch t as ``stream[t]``, a pure function of the settings and t. See `training_batches`."""

    def __init__(
        self, dataset: Any, batch_size: int, augmentation: Any, seed: int, part: tuple[int, int] = (0, 1)
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the data set is empty; training needs at least one sample")
        _at_least(1, batch_size=batch_size)
        _at_least(0, seed=seed)
        number, parts = part
        if not 0 <= number < parts or batch_size % parts:
            raise ValueError(f"part={part}: expected (r, n) with 0 <= r < n, n a divisor of batch_size={batch_size}")
        self.dataset, self.batch_size, self.augmentation, self.seed = dataset, batch_size, augmentation, seed
        self.ignore_index = getattr(getattr(dataset, "spec", None), "ignore_index", LABEL_PADDING)
        self.slots = range(number * batch_size // parts, (number + 1) * batch_size // parts)

    def slots_of(self, iteration: int) -> Iterator[tuple[int, np.random.Generator]]:
        """Which samples this part of batch `iteration` has, each with the source of its random numbers."""
        for slot in self.slots:
            epoch, place = divmod(iteration * self.batch_size + slot, len(self.dataset))
            index = int(epoch_order(self.seed, epoch, len(self.dataset))[place])
            yield index, generator_for(self.seed, _SAMPLE, iteration, slot)

    def __getitem__(self, iteration: int) -> Batch:
        pairs = [augment(self.dataset[index], self.augmentation, rng) for index, rng in self.slots_of(iteration)]
        images, labels = zip(*pairs, strict=True)
        labels_BHW = torch.stack(labels).long()
        padding_BHW = labels_BHW == LABEL_PADDING  # a class of no data set that ignores another label
        return Batch(unit_range(torch.stack(images)), labels_BHW.masked_fill_(padding_BHW, self.ignore_index))

    def answer(self, iteration: int) -> Any:
        """A batch, or the DataError in its place: raised in a worker, it would come with a traceback."""
        try:
            return self[iteration]
        except DataError as error:
            return error


def training_batches(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    augmentation: Augmentation,
    seed: int,
    start_iteration: int = 0,
    iterations: int,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
    stream: Callable[..., BatchStream] = BatchStream,
) -> Iterator[Any]:
    """Augmented batches `start_iteration` to `iterations` - 1 of an endless stream; the same wherever it starts.

    `workers` processes prepare batches ahead. `part` (r, n) is part r of n of every batch, for n processes that share
    it; `stream` makes a batch (default: `Batch` on the CPU). A number out of its range, or no data, is a ValueError.
    """
    made = stream(dataset, batch_size, augmentation, seed, part)
    _at_least(0, workers=workers)
    if not 0 <= start_iteration <= iterations:
        raise ValueError(f"start_iteration={start_iteration}; expected 0 to iterations={iterations}")
    order = range(start_iteration, iterations)
    if workers == 0:
        return (made[iteration] for iteration in order)
    # a generator of its own: the loader draws a seed for its workers, by default from the global state
    options = {"num_workers": workers, "worker_init_fn": _leave_stopping_to_the_trainer, "generator": torch.Generator()}
    return _of_workers(iter(DataLoader(order, batch_size=None, collate_fn=made.answer, **options)))


def _of_workers(answers: Iterator[Any]) -> Iterator[Any]:
    """The batches of other processes; DataError where one cannot be made or a process was killed."""
    try:
        for answer in answers:
            if isinstance(answer, DataError):
                raise answer
            yield answer
    except Exception as error:
        del answers  # as long as the error is kept, its frames would keep the workers alive
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, DataError) or "Traceback" in str(error):  # a defect, in a worker
            raise
        raise DataError(f"a process that loads data died ({error!s:.99}): start again, with fewer --workers") from error


def _leave_stopping_to_the_trainer(_worker: int) -> None:
    """What asks a run to stop may reach all processes; the trainer finishes its step, then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)


def evaluation_batches(dataset: SegmentationDataset, batch_size: int) -> Iterator[EvaluationBatch]:
    """The whole data set once, in order, not augmented, in batches of one size and of at most `batch_size` images."""
    _at_least(1, batch_size=batch_size)
    samples = map(dataset.__getitem__, range(len(dataset)))
    for _, alike in groupby(samples, lambda sample: (sample.image_3HW.shape, sample.labels_HW.shape)):
        while together := list(islice(alike, batch_size)):
            images, labels, names = zip(*together, strict=True)
            yield EvaluationBatch(unit_range(torch.stack(images)), torch.stack(labels).long(), names)


class DeviceStream(BatchStream):
    """Batches made on a device, which keeps all images as uint8, padded to the largest one's size.

    The ``stream`` of :func:`training_batches`, with ``device`` bound: the loader's batches up to rounding, with equal
    labels. At most half of a GPU's free memory is taken (else DataError). Scaling, cropping and flipping are linear
    along rows and along columns: one pair of matrices for each image does all three, with torchvision's filter.
    """

    def __init__(self, dataset: SegmentationDataset, *settings: Any, device: torch.device) -> None:
        super().__init__(dataset, *settings)
        if self.augmentation.rotation or self.augmentation.blur:
            raise ValueError(f"{self.augmentation}; expected rotation=0 and blur=0 on a device: the CPU does these")
        _require_room(4 * len(dataset) * dataset[0].labels_HW.numel(), len(dataset), device)
        samples = [dataset[index] for index in range(len(dataset))]
        for sample in samples:
            check_sample(sample)
        self.sizes = [tuple(sample.labels_HW.shape) for sample in samples]
        largest = [max(sides) for sides in zip(*self.sizes, strict=True)]
        images_N3HW = torch.zeros(len(samples), 3, *largest, dtype=torch.uint8)
        labels_NHW = torch.zeros(len(samples), *largest, dtype=torch.uint8)
        _require_room(images_N3HW.numel() + labels_NHW.numel(), len(samples), device)
        for number, (sample, (height, width)) in enumerate(zip(samples, self.sizes, strict=True)):
            images_N3HW[number, :, :height, :width] = sample.image_3HW
            labels_NHW[number, :height, :width] = sample.labels_HW
        self.images_N3HW, self.labels_NHW = images_N3HW.to(device), labels_NHW.to(device)

    def __getitem__(self, iteration: int) -> Batch:
        slots, rows, columns, factors = list(self.slots_of(iteration)), [], [], []
        for index, generator in slots:
            scale, top, left, flip, *colour = generator.random(7).tolist()  # in the order of `augment`
            factors.append(colour_factors(self.augmentation.colour, colour))
            size = self.sizes[index]
            scaled, taken, placed = placement(size, self.augmentation, scale, top, left)
            flips = (False, flip < self.augmentation.flip)
            for axis, *values in zip((rows, columns), size, scaled, taken, placed, flips, strict=True):
                length, long, source, target, flipped = values
                axis.append((length, long, source.start, target.start, target.stop - target.start, flipped))
        index_B = self._sent([index for index, _ in slots])
        (y_Bh, weights_BhH, shown_Bh), (x_Bw, weights_BwW, shown_Bw) = (
            _sampled(self._sent(axis).float(), crop, length)
            for axis, crop, length in zip(
                (rows, columns), self.augmentation.crop, self.labels_NHW.shape[1:], strict=True
            )
        )
        shown_Bhw = shown_Bh[:, :, None] & shown_Bw[:, None, :]
        labels_Bhw = self.labels_NHW[index_B[:, None, None], y_Bh[:, :, None], x_Bw[:, None, :]]
        pixels_B3hw = (weights_BhH[:, None] @ (self.images_N3HW[index_B].float() @ weights_BwW[:, None].mT)).round_()
        if self.augmentation.colour:
            pixels_B3hw = _recoloured(pixels_B3hw, shown_Bhw[:, None], self._sent(factors).float())
        padding_311 = self._sent(IMAGE_PADDING).float()[:, None, None]
        images_B3hw = torch.where(shown_Bhw[:, None], pixels_B3hw, padding_311).div_(255)
        return Batch(images_B3hw, labels_Bhw.long().masked_fill_(~shown_Bhw, self.ignore_index))

    def _sent(self, values: Any) -> Tensor:
        """A few numbers on the device, without waiting for it."""
        tensor, device = torch.from_numpy(np.array(values)), self.labels_NHW.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _require_room(needed: int, images: int, device: torch.device) -> None:
    if device.type == "cuda" and needed > FREE_SHARE * (free := torch.cuda.mem_get_info(device)[0]):
        room = f"{needed / 2**30:.1f} GiB on {device}, which has {free / 2**30:.1f} GiB free, half for the networks"
        raise DataError(f"training.device_augmentation = True: the {images} training images take {room}; use False")


def _sampled(axis_B6: Tensor, crop: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Along one side of the crop, for each place: the nearest pixel, the weights of all, and whether it shows any.

    `axis_B6`: an image's length, also scaled, the first scaled pixel taken, first place and number filled, and flipped.
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


class InstanceBatch(NamedTuple):
    """Training images, float32 (3, H, W) in [0, 1] and of any sizes, and the :func:`as_target` of each."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]


class InstanceStream(BatchStream):
    """The ``stream`` of :func:`training_batches` for images with objects and an ``InstanceAugmentation``."""

    def __getitem__(self, iteration: int) -> InstanceBatch:
        slots, how = self.slots_of(iteration), self.augmentation
        samples = [augment_instances(self.dataset[index], how, generator) for index, generator in slots]
        return InstanceBatch([unit_range(sample.image_3HW) for sample in samples], list(map(as_target, samples)))


def evaluation_instance_batches(
    dataset: InstanceDataset, batch_size: int
) -> Iterator[tuple[list[Tensor], list[InstanceSample]]]:
    """The whole data set once, in order, not augmented: images, float32 in [0, 1], with their samples."""
    _at_least(1, batch_size=batch_size)
    samples = map(dataset.__getitem__, range(len(dataset)))
    while together := list(islice(samples, batch_size)):
        yield [unit_range(sample.image_3HW) for sample in together], together
