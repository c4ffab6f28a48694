"""What networks, losses and starts cost on this machine: time, memory, multiply-accumulates."""

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

STARTS = {"from apd import APDLoss": ("-c", "from apd import APDLoss"), "apd --help": ("-m", "apd", "--help")}
"""What :func:`start_latency` gives to a fresh Python, by what a user types."""


class Latency(NamedTuple):
    """Milliseconds: lower quartile, median, upper quartile over the repeats."""

    lower: float
    median: float
    upper: float


def quartiles(values: np.ndarray) -> Latency:
    """Lower quartile, median and upper quartile."""
    return Latency(*np.quantile(values, (0.25, 0.5, 0.75)).tolist())


def latency_of(call: Callable[[], object], seconds: float) -> Latency:
    """Time a call by torch's benchmark Timer for at least `seconds`, and ten times as long where its times differ."""
    from torch.utils.benchmark import Timer  # loads setuptools

    if not seconds > 0:
        raise ValueError(f"seconds: got {seconds}, expected more than 0")
    clock = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    times = clock.adaptive_autorange(min_run_time=seconds, max_run_time=10 * seconds).times
    return quartiles(1e3 * np.array(times))


def start_latency(*arguments: str, seconds: float = 3.0) -> Latency:
    """Time a fresh Python with these arguments from its start to its end, its files in the disk's cache."""
    start = partial(subprocess.run, [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return latency_of(start, seconds)


@dataclass(frozen=True)
class Cost:
    """The cost of a network's inference at one image size."""

    parameters: int  #: Parameters used in inference: all but those of an `aux_head`.
    macs: int  #: Multiply-accumulates of convolutions and matrix products for one image, as in published figures.
    latency_ms: Latency  #: For the whole batch.
    peak_memory_bytes: int  #: The network, its input and the most that was alive beside them in one forward pass.
    threads: int  #: Of the CPU.


def cost_of(
    model: nn.Module,
    *,
    height: int,
    width: int,
    batch: int = 1,
    device: torch.device | str | None = None,
    seconds: float = 0.5,
) -> Cost:
    """Measure the inference of a network that takes images `B 3 H W` in [0, 1]; the network itself is left as it was.

    A copy in eval mode, without its `aux_head`, is measured in its own number format, on `device` (default: the
    network's own, a CPU or CUDA device), in `seconds` as :func:`latency_of` takes them. The peak is the CUDA caching
    allocator's, or on a CPU that of torch's profiler, which does not see what libraries allocate past torch.
    ValueError: a size or count below its least, or another kind of device. RuntimeError: the profiler gave no
    allocations.
    """
    for name, value in (("height", height), ("width", width), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    sample = next(model.parameters(), torch.empty(0))
    place = torch.device(device) if device is not None else sample.device
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got '{place}', expected a CPU or CUDA device (nothing else reports peak memory)")
    network = copy.deepcopy(model)
    if hasattr(network, "aux_head"):
        network.aux_head = None
    network = network.to(place).eval()
    images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(place, sample.dtype)
    forward = torch.inference_mode()(partial(network, images))
    with FlopCounterMode(display=False) as counter:
        forward()
    latency = latency_of(forward, seconds)
    own = (*network.parameters(), *network.buffers(), images)
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2 // batch,
        latency_ms=latency,
        peak_memory_bytes=peak_of(forward, place) + sum(tensor.numel() * tensor.element_size() for tensor in own),
        threads=torch.get_num_threads(),
    )


def peak_of(call: Callable[[], object], device: torch.device) -> int:
    """Largest sum of bytes alive at one time among those that torch allocated on the device during the call."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    # the profiler's library writes to the terminal about GPUs that it did not find
    with patch.dict(os.environ, KINETO_LOG_LEVEL="99"), tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
            call()
        trace = Path(folder) / "trace.json"
        recording.export_chrome_trace(str(trace))  # the only public way to single allocations
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    if not changes:
        fix = "use a build of torch with kineto (the standard packages have it), or a CUDA device"
        raise RuntimeError(f"torch {torch.__version__}'s profiler recorded no allocation, so no peak is known; {fix}")
    return max(0, int(np.cumsum([change for _, change in sorted(changes, key=lambda pair: pair[0])]).max()))


class LossShape(NamedTuple):
    """The sizes of one call of a distiller."""

    batch: int
    channels: int  #: Of student's and teacher's features.
    grid: int  #: Rows and columns of features and logits.
    classes: int
    labels: int  #: Rows and columns of the labels.


LOSS_SHAPES = {
    "cityscapes": LossShape(batch=2, channels=512, grid=90, classes=19, labels=713),
    "ade20k": LossShape(batch=2, channels=512, grid=60, classes=150, labels=473),
    "camvid": LossShape(batch=8, channels=128, grid=10, classes=11, labels=160),
}
"""Those of the released recipes on one GPU (713 and 473 pixels at stride 8), and of the small recipe on CamVid."""
CLASSES_IN_AN_IMAGE = 10  # how many classes the images of `loss_batch` show (own choice; about what ADE20K's do)


class LossCost(NamedTuple):
    """A forward and backward pass: its time, and the most that was alive beside inputs and parameters, in bytes."""

    milliseconds: Latency
    peak_bytes: int


def loss_batch(
    shape: LossShape, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Keywords of a distiller's call: random maps; labels in 8 x 8 patches of at most `CLASSES_IN_AN_IMAGE` classes."""
    random = torch.Generator().manual_seed(0)
    few = min(CLASSES_IN_AN_IMAGE, shape.classes)

    def maps(channels: int, *, learned: bool) -> Tensor:
        made = torch.randn(shape.batch, channels, shape.grid, shape.grid, generator=random)
        return made.to(device, dtype).requires_grad_(learned)

    shown = torch.stack([torch.randperm(shape.classes, generator=random)[:few] for _ in range(shape.batch)])
    patches_B64 = shown.gather(1, torch.randint(few, (shape.batch, 64), generator=random))
    places = torch.arange(shape.labels) * 8 // shape.labels
    return {
        "student_features": maps(shape.channels, learned=True),
        "teacher_features": maps(shape.channels, learned=False),
        "student_logits": maps(shape.classes, learned=True),
        "teacher_logits": maps(shape.classes, learned=False),
        "labels": patches_B64.view(-1, 8, 8)[:, places][:, :, places].contiguous().to(device),
    }


def loss_cost(loss: Callable[..., Tensor] | nn.Module, batch: dict[str, Tensor], *, seconds: float = 0.5) -> LossCost:
    """Measure a forward and backward pass of a loss of :func:`loss_batch`, a scalar or a dict with "loss"."""
    learned = [value for value in batch.values() if value.requires_grad]
    learned += [p for p in loss.parameters() if p.requires_grad] if isinstance(loss, nn.Module) else []

    def once() -> None:
        out = loss(**batch)
        torch.autograd.grad(out["loss"] if isinstance(out, dict) else out, learned, allow_unused=True)

    return LossCost(latency_of(once, seconds), peak_of(once, batch["labels"].device))
