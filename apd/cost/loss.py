"""What a distillation loss costs: time of its forward and backward pass, and the most memory it holds."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apd.cost.measure import Latency, cpu_peak
from apd.distill import APDLoss


class LossShape(NamedTuple):
    """The sizes of one call of a distiller.

    Attributes:
        batch: images, B.
        channels: of student's and teacher's features, C.
        grid: rows and columns of features and logits, h = w.
        classes: K.
        labels: rows and columns of the labels, H = W.
    """

    batch: int
    channels: int
    grid: int
    classes: int
    labels: int


LOSS_SHAPES = {
    "cityscapes": LossShape(batch=2, channels=512, grid=90, classes=19, labels=713),
    "ade20k": LossShape(batch=2, channels=512, grid=60, classes=150, labels=473),
    "camvid": LossShape(batch=8, channels=128, grid=10, classes=11, labels=160),
}
"""Those of the released recipes on one GPU (713 and 473 pixels at stride 8), and of the small recipe on CamVid."""

CLASSES_IN_AN_IMAGE = 10
"""How many classes the images of `loss_batch` show (own choice; an ADE20K image has about ten of the 150)."""


class LossCost(NamedTuple):
    """Cost of one forward and backward pass.

    Attributes:
        milliseconds: quartiles over the repeats.
        peak_bytes: most that was alive beside inputs and parameters, gradients included.
    """

    milliseconds: Latency
    peak_bytes: int


def loss_batch(
    shape: LossShape, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Keywords of a distiller's call: random maps; labels in 8 x 8 patches of at most `CLASSES_IN_AN_IMAGE` classes.

    >>> batch = loss_batch(LossShape(batch=2, channels=4, grid=5, classes=30, labels=40))
    >>> batch["student_features"].shape, batch["labels"].shape
    (torch.Size([2, 4, 5, 5]), torch.Size([2, 40, 40]))
    """
    random = torch.Generator().manual_seed(0)
    few = min(CLASSES_IN_AN_IMAGE, shape.classes)

    def maps(channels: int, *, learned: bool) -> Tensor:
        made = torch.randn(shape.batch, channels, shape.grid, shape.grid, generator=random)
        return made.to(device, dtype).requires_grad_(learned)

    shown = torch.stack([torch.randperm(shape.classes, generator=random)[:few] for _ in range(shape.batch)])
    patches = shown.gather(1, torch.randint(few, (shape.batch, 64), generator=random)).view(shape.batch, 8, 8)
    places = torch.arange(shape.labels) * 8 // shape.labels
    return {
        "student_features": maps(shape.channels, learned=True),
        "teacher_features": maps(shape.channels, learned=False),
        "student_logits": maps(shape.classes, learned=True),
        "teacher_logits": maps(shape.classes, learned=False),
        "labels": patches[:, places][:, :, places].contiguous().to(device),
    }


def loss_cost(
    loss: Callable[..., Tensor] | nn.Module, batch: dict[str, Tensor], *, warmup: int = 2, repeats: int = 7
) -> LossCost:
    """Measure one forward and backward pass of a loss.

    Args:
        loss: called with the keywords of `batch`; gives a scalar, or a distiller's dict with a scalar "loss".
        batch: such as `loss_batch` makes; its device is where it runs.
        warmup: passes before the clock starts, at least 1.
        repeats: timed passes, at least 2.

    Raises:
        ValueError: too few passes.
        RuntimeError: the profiler gave no allocations.
    """
    if warmup < 1 or repeats < 2:
        raise ValueError(f"warmup={warmup}, repeats={repeats}: expected at least 1 and 2")
    device = batch["labels"].device
    learned = [value for value in batch.values() if value.requires_grad]
    learned += list(loss.parameters()) if isinstance(loss, nn.Module) else []

    def once() -> None:
        for value in learned:
            value.grad = None
        out = loss(**batch)
        (out["loss"] if isinstance(out, dict) else out).backward()

    for _ in range(warmup):
        once()
    milliseconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    for value in learned:
        value.grad = None
    peak = _peak(once, device)
    for value in learned:
        value.grad = None
    return LossCost(Latency(*statistics.quantiles(milliseconds, n=4, method="inclusive")), peak)


def _peak(once: Callable[[], None], device: torch.device) -> int:
    if device.type != "cuda":
        return cpu_peak(once)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    once()
    return torch.cuda.max_memory_allocated(device) - before


def floor_of(shape: LossShape, width: int | None = None) -> tuple[int, int]:
    """Bytes and floating-point operations that the perspective's terms cannot do without, in float32.

    Bytes: both feature maps read once, the student's once more for its gradient, and the gradient written. Operations:
    the matrix products of pixels with classes (two forward for each net, three backward for the student) over the
    classes that an image shows; with heads of a width, their convolutions too (forward for both nets; backward for
    both, since each is trained, and the student's input).

    >>> floor_of(LossShape(batch=1, channels=2, grid=3, classes=4, labels=9))
    (288, 1008)
    """
    few, pixels = min(CLASSES_IN_AN_IMAGE, shape.classes), shape.batch * shape.grid**2
    maps = shape.channels * pixels
    seen = shape.channels if width is None else width
    operations = 2 * few * pixels * seen * (4 + 3)
    if width is not None:
        first, second = 2 * maps * width, 2 * pixels * width * width
        operations += 2 * (first + second)  # forward
        operations += 2 * (first + 2 * second) + first  # gradients of weights and hidden maps; of the student's input
    return 4 * 4 * maps, operations


def method_costs(device: torch.device | str = "cpu", shapes: Mapping[str, LossShape] = LOSS_SHAPES) -> Iterator[str]:
    """A line for each shape, without heads and with heads as wide as the features: the cost, and its floor."""
    for name, shape in shapes.items():
        batch = loss_batch(shape, device=device)
        for width in (None, shape.channels):
            module = APDLoss(shape.channels, shape.channels, shape.classes, width=width).to(device)
            cost, (least_bytes, operations) = loss_cost(module, batch), floor_of(shape, width)
            heads = "no heads" if width is None else f"heads {width} wide"
            yield (
                f"{name}, {heads}: {cost.milliseconds.median:.1f} ms, {cost.peak_bytes / 2**20:.1f} MiB on {device}; "
                f"floor: {least_bytes / 2**20:.1f} MiB moved, {operations / 1e9:.2f} G operations"
            )
