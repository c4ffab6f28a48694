"""What the switches of an experiment are worth here: seconds of an optimiser step with each of them the other way."""

import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch

from apd.config.datasets import spec_of
from apd.config.experiment import Experiment, ExperimentError
from apd.cost.measure import Latency
from apd.data.batches import Batch
from apd.evaluation.inference import resolve_precision
from apd.training.cuda_graph import EAGER_STEPS
from apd.training.segmentation import SegmentationTask, build_network
from apd.training.trainer import TrainStep


class SwitchCost(NamedTuple):
    """The cost of one optimiser step under one setting.

    Attributes:
        setting: what differs from the experiment, such as "fused = True"; "as it is" for the experiment itself.
        milliseconds: quartiles over the timed steps, or None where the setting cannot be had here.
        reason: why not; empty where there is a figure.
    """

    setting: str
    milliseconds: Latency | None
    reason: str = ""


def other_settings(experiment: Experiment, device: torch.device) -> Iterator[tuple[str, Experiment]]:
    """The experiment as it is, and with each switch the other way, unless that does nothing here or cannot be."""
    training, precision = experiment.training, resolve_precision(device, experiment.precision)
    yield "as it is", experiment
    other = "fp32" if precision == "bf16" else "bf16"
    yield f"precision = {other}", replace(experiment, precision=other)
    of_gpus = ("pinned_memory", "cuda_graph") if device.type == "cuda" else ()
    turned = [(name, not getattr(training, name)) for name in ("channels_last", "fused", *of_gpus, "compile")]
    for name, value in (*turned, ("accumulation", 2 if training.accumulation == 1 else 1)):
        with suppress(ExperimentError):
            yield f"{name} = {value}", replace(experiment, training=replace(training, **{name: value}))


def switch_costs(
    experiment: Experiment, device: torch.device, *, warmup: int = 2, repeats: int = 7, compiled: bool = True
) -> Iterator[SwitchCost]:
    """Time the student's optimiser step, teacher and distillers included, under each of `other_settings`.

    Networks have random weights, and the batch is random: no data are needed, and feeding them costs nothing here.
    Every setting starts from the same weights. With `compile`, the first warming-up step takes minutes.

    Args:
        experiment: its networks, batch, crop, distillers and switches.
        device: where it runs.
        warmup: steps before the clock starts, at least 1; a CUDA graph has a few more.
        repeats: timed steps, at least 2.
        compiled: measure `compile` too.

    Raises:
        ValueError: too few steps.
        ExperimentError: a network cannot be built.
    """
    if warmup < 1 or repeats < 2:
        raise ValueError(f"warmup={warmup}, repeats={repeats}: expected at least 1 and 2")
    for setting, changed in other_settings(experiment, device):
        if setting.startswith("compile") and not compiled:
            continue
        try:
            yield SwitchCost(setting, step_latency(changed, device, warmup, repeats))
        except ExperimentError:
            raise
        except Exception as error:  # no compiler, no kernel, no memory: each library has types of its own for that
            if setting == "as it is":
                raise
            yield SwitchCost(setting, None, f"{type(error).__name__}: {str(error).strip().splitlines()[0]:.100}")


def step_latency(experiment: Experiment, device: torch.device, warmup: int, repeats: int) -> Latency:
    """Quartiles of an optimiser step's milliseconds, on random weights and a random batch; see `switch_costs`."""
    spec = spec_of(experiment.data)
    classes = len(spec.class_names)
    student = build_network(experiment.network, classes, device, seed=0, weights_follow=True).train()
    teacher = None
    if experiment.teacher is not None:
        teacher = build_network(experiment.teacher.network, classes, device, seed=0, weights_follow=True)
        teacher.eval().requires_grad_(False)
    step = TrainStep(SegmentationTask(experiment), student, teacher)
    batch = random_batch(experiment, classes)
    milliseconds = []
    if experiment.training.cuda_graph:
        warmup += EAGER_STEPS
    for number in range(-warmup, repeats):
        start = time.perf_counter()
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 0:
            milliseconds.append(1e3 * (time.perf_counter() - start))
    return Latency(*statistics.quantiles(milliseconds, n=4, method="inclusive"))


def random_batch(experiment: Experiment, classes: int) -> Batch:
    """A batch of the experiment's size in main memory: noise, and labels in 8 x 8 patches."""
    random, count = torch.Generator().manual_seed(0), experiment.training.batch_size
    height, width = experiment.data.crop_height, experiment.data.crop_width
    patches = torch.randint(classes, (count, 8, 8), generator=random)
    rows, columns = (torch.arange(side) * 8 // side for side in (height, width))
    return Batch(torch.rand(count, 3, height, width, generator=random), patches[:, rows][:, :, columns].contiguous())


def switch_table(experiment: Experiment, device: torch.device) -> Iterator[str]:
    """`switch_costs` as lines of text, each with its factor to the experiment as it is."""
    yield f"{experiment.name}: one optimiser step, batch of {experiment.training.batch_size}, on {device}"
    before = 0.0
    for cost in switch_costs(experiment, device):
        if cost.milliseconds is None:
            yield f"{cost.setting:24s} not here: {cost.reason}"
            continue
        lower, median, upper = (value / 1e3 for value in cost.milliseconds)
        before = before or median
        yield f"{cost.setting:24s} {median:.4f} s ({lower:.4f} to {upper:.4f}), {median / before:.2f} times"
