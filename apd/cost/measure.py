"""What a network costs at inference: parameters, multiply-accumulates, latency, peak memory."""

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


class Latency(NamedTuple):
    """Milliseconds for one batch: lower quartile, median, upper quartile over the repeats."""

    lower: float
    median: float
    upper: float


@dataclass(frozen=True)
class Cost:
    """The cost of a network's inference at one image size.

    Attributes:
        parameters: numbers that inference needs: all parameters but those of an `aux_head`.
        macs: multiply-accumulates of convolutions and matrix products for *one image*; norms, activations, pooling and
            resizing are not counted, as usual in published figures.
        latency_ms: for the whole batch.
        peak_memory_bytes: the network, its input and the most that was alive beside them in one forward pass.
        memory_method: how that peak was found, in words.
        batch: images at once.
        height: of the images, in pixels.
        width: of the images, in pixels.
        device: where it ran, such as "cpu" or "cuda:0".
        threads: of the CPU.
    """

    parameters: int
    macs: int
    latency_ms: Latency
    peak_memory_bytes: int
    memory_method: str
    batch: int
    height: int
    width: int
    device: str
    threads: int


def cost_of(
    model: nn.Module,
    *,
    height: int,
    width: int,
    batch: int = 1,
    device: torch.device | str | None = None,
    warmup: int = 3,
    repeats: int = 20,
) -> Cost:
    """Measure the inference of a network that takes images `B 3 H W` in [0, 1]; the network itself is left as it was.

    A copy in eval mode is measured, in its own number format, under `torch.inference_mode`. On a GPU the peak is the
    caching allocator's; on a CPU it is the largest sum of live allocations that torch's profiler saw, plus parameters,
    buffers and input. That sum leaves out what libraries allocate past torch, and the interpreter's own memory.

    Args:
        model: the network. Its `aux_head`, if it has one, is left out of everything.
        height, width: of the images, in pixels.
        batch: images at once.
        device: a CPU or CUDA device; by default the one that the network is on.
        warmup: passes before the clock starts, at least 1.
        repeats: timed passes, at least 2.

    Raises:
        ValueError: a size or count below its least, or another kind of device.
        RuntimeError: the profiler gave no allocations, so that no peak can be told.

    Example:
        >>> from apd.models import build_segmenter
        >>> student = build_segmenter("mobilenetv2_050", 11, head_width=128, output_stride=16)
        >>> f"{cost_of(student, height=160, width=208, repeats=2).macs / 1e6:.1f} M"
        '135.3 M'
    """
    for name, value, least in (
        ("height", height, 1),
        ("width", width, 1),
        ("batch", batch, 1),
        ("warmup", warmup, 1),
        ("repeats", repeats, 2),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    sample = next(model.parameters(), torch.empty(0))
    place = torch.device(device) if device is not None else sample.device
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got '{place}', expected a CPU or CUDA device (nothing else reports peak memory)")
    on_gpu = place.type == "cuda"

    if on_gpu:
        before = torch.cuda.memory_allocated(place)
    network = copy.deepcopy(model)
    if hasattr(network, "aux_head"):
        network.aux_head = None
    network = network.to(place).eval()
    images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    images = images.to(place, sample.dtype)

    def forward() -> None:
        with torch.inference_mode():
            network(images)

    with FlopCounterMode(display=False) as counter:
        forward()
    for _ in range(warmup):
        forward()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(place)
        forward()
        peak = torch.cuda.max_memory_allocated(place) - before
        method = "peak of the CUDA caching allocator over one forward pass, above the level before the network"
    else:
        peak = cpu_peak(forward) + _bytes_of(network, images)
        method = "peak of torch's CPU allocations in one forward pass (profiler), plus parameters, buffers and input"
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2 // batch,
        latency_ms=_latency(forward, repeats, place),
        peak_memory_bytes=peak,
        memory_method=method,
        batch=batch,
        height=height,
        width=width,
        device=str(place),
        threads=torch.get_num_threads(),
    )


def _latency(forward: Callable[[], None], repeats: int, device: torch.device) -> Latency:
    milliseconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        forward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return Latency(*statistics.quantiles(milliseconds, n=4, method="inclusive"))


def _bytes_of(network: nn.Module, images: Tensor) -> int:
    tensors = [*network.parameters(), *network.buffers(), images]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def cpu_peak(forward: Callable[[], None]) -> int:
    """Largest sum of bytes alive at one time among those that torch allocated during the call."""
    with _quiet_profiler(), tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
            forward()
        trace = Path(folder) / "trace.json"
        recording.export_chrome_trace(str(trace))  # the only public way to single allocations
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    if not changes:
        raise RuntimeError(
            f"cost_of: torch {torch.__version__}'s profiler recorded no allocation, so the peak on a CPU is unknown; "
            "use a build of torch with kineto (the standard packages have it), or a CUDA device"
        )
    now = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        now += change
        peak = max(peak, now)
    return peak


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """The profiler's library writes to the terminal about GPUs that it did not find."""
    variable = "KINETO_LOG_LEVEL"
    before = os.environ.get(variable)
    os.environ[variable] = "99"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
