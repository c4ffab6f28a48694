"""Measure losses and the paper's training step, and write it down: what the chapter on speed is drawn from.

    python -m book.figures.speed                                losses on the CPU, in minutes on a quiet machine
    python -m book.figures.speed --compiled                     APD's loss compiled, too
    python -m book.figures.speed --device cuda --compiled       on a GPU; the paper's step
    python -m book.figures.speed --parts losses published       some parts only

The method is compared with its class-by-class reference and the other methods, on one thread. The one file,
`book/results/speed/<device>.json`, is written anew after each row, so that one that fails loses none.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import apd
from apd.config.datasets import spec_of
from apd.config.experiment import Experiment
from apd.cost.measure import LOSS_SHAPES, Latency, LossShape, latency_of, loss_batch, loss_cost
from apd.data.batches import Batch
from apd.study.recipes import recipe
from apd.training.checkpoint import write_atomically
from apd.training.record import provenance, records_folder
from apd.training.segmentation import SegmentationTask, build_network
from apd.training.task import EAGER_STEPS
from apd.training.trainer import TrainStep
from tests import slow_reference as slow

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PUBLISHED = {"cityscapes": "cityscapes_corrected", "ade20k": "ade20k_corrected"}
"""Shapes of a loss, and the recipes of the paper whose step calls it at that shape: PSPNet-R18 taught by R101."""


class ClassByClass(nn.Module):
    """The terms of a loss as the slow reference writes them, through the same heads, at the same weights."""

    def __init__(self, module: apd.APDLoss) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, *, student_features: Tensor, teacher_features: Tensor, labels: Tensor, **logits: Tensor
    ) -> Tensor:
        module, weights = self.module, self.module.weights
        student = module.student_head(student_features.float())
        teacher = module.teacher_head(teacher_features.float())
        total = weights["alignment"] * slow.alignment(student, teacher, labels)
        total = total + weights["observation"] * slow.observation(student, teacher, labels)
        kd = slow.pixel_kd(logits["student_logits"].float(), logits["teacher_logits"].float(), labels)
        total = total + weights["pixel_kd"] * kd
        if weights["regularisation"]:
            total = total + slow.regularisation(teacher, labels, num_classes=module.num_classes)
        return total


def losses(shape: LossShape) -> Iterator[tuple[str, nn.Module]]:
    """What is measured at a shape, by name."""
    sizes = (shape.channels, shape.channels, shape.classes)
    for name, width in (("APD, no heads", None), ("APD", shape.channels)):
        module = apd.APDLoss(*sizes, width=width)
        yield name, module
        yield f"{name}, class by class", ClassByClass(module)
    yield "pixel KD", apd.PixelKD()
    between_features = (apd.FitNet, apd.AttentionTransfer, apd.PairwiseSimilarity, apd.IFVD, apd.CWD, apd.CIRKD)
    for kind in (*between_features, apd.MGD, apd.I2CKD, apd.InterClassDistance):
        yield kind.__name__, kind(*sizes)
    for kind in (apd.DIST, apd.DKD, apd.LSKD):
        yield kind.__name__, kind()


def measured(device: torch.device, *, compiled: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each shape, number format and loss; the method alone in bf16."""
    for (shape_name, shape), (dtype_name, dtype) in product(LOSS_SHAPES.items(), DTYPES.items()):
        batch = loss_batch(shape, device=device, dtype=dtype)
        for name, module in losses(shape):
            if dtype_name == "bf16" and not name.startswith("APD"):
                break  # they come first; those after them are not even built, of which one takes its time
            ways: dict[str, Callable[..., Any]] = {"eager": module.to(device)}
            if compiled and name in ("APD", "APD, no heads"):
                torch.compiler.reset()
                ways["compiled"] = torch.compile(module)
            for way, loss in ways.items():
                cost = loss_cost(loss, batch, seconds=seconds)
                row = {"shape": shape_name, "loss": name, "dtype": dtype_name, "way": way}
                yield row | {"milliseconds": rounded(cost.milliseconds), "peak_bytes": cost.peak_bytes}


def random_batch(experiment: Experiment, classes: int) -> Batch:
    """A batch of the experiment's size in main memory: noise, and labels in 8 x 8 patches."""
    random, count = torch.Generator().manual_seed(0), experiment.training.batch_size
    size = experiment.data.crop_height, experiment.data.crop_width
    patches_B88 = torch.randint(classes, (count, 8, 8), generator=random)
    rows, columns = (torch.arange(side) * 8 // side for side in size)
    return Batch(torch.rand(count, 3, *size, generator=random), patches_B88[:, rows][:, :, columns].contiguous())


def step_latency(experiment: Experiment, device: torch.device, *, seconds: float = 1.0) -> Latency:
    """Time an optimiser step in segmentation, teacher and distillers included."""
    return latency_of(training_step(experiment, device), seconds)


def training_step(experiment: Experiment, device: torch.device) -> Callable[[], dict[str, Tensor]]:
    """An optimiser step, on random weights and a random batch, that was called before."""
    classes, of_teacher = spec_of(experiment.data).num_classes, experiment.teacher
    build = partial(build_network, num_classes=classes, device=device, seed=0, weights_follow=True)
    student, teacher = build(experiment.network).train(), of_teacher and build(of_teacher.network).eval()
    if teacher is not None:
        teacher.requires_grad_(False)
    batch = random_batch(experiment, classes)
    if experiment.training.device_augmentation:
        batch = Batch(*(value.to(device) for value in batch))
    step = partial(TrainStep(SegmentationTask(experiment), student, teacher), batch)
    for _ in range(1 + EAGER_STEPS):  # a CUDA graph is recorded in the last of these
        step()
    return step


def published(device: torch.device, *, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each published step and number format: the step of one of the paper's four processes, the student's
    alone, and the loss's share of the median time and of the most memory."""
    for (shape_name, size), (precision, dtype) in product(PUBLISHED.items(), DTYPES.items()):
        shape, whole = LOSS_SHAPES[shape_name], replace(recipe(size), precision=precision)
        whole = replace(whole, training=replace(whole.training, batch_size=shape.batch))
        student, _ = _step(replace(whole, teacher=None, distillers=()), device, seconds)
        step, peak_bytes = _step(whole, device, seconds)
        module = apd.APDLoss(shape.channels, shape.channels, shape.classes, width=shape.channels).to(device)
        loss = loss_cost(module, loss_batch(shape, device=device, dtype=dtype), seconds=seconds)
        yield {
            "recipe": size,
            "dtype": precision,
            "student": rounded(student),
            "step": rounded(step),
            "loss": rounded(loss.milliseconds),
            "share_of_time": round(loss.milliseconds.median / step.median, 4),
            "peak_bytes": peak_bytes,
            "loss_peak_bytes": loss.peak_bytes,
            "share_of_memory": round(loss.peak_bytes / peak_bytes, 4) if peak_bytes else None,
        }


def _step(experiment: Experiment, device: torch.device, seconds: float) -> tuple[Latency, int]:
    """Milliseconds of an optimiser step, and on a GPU the most memory that was taken."""
    if device.type != "cuda":
        return step_latency(experiment, device, seconds=seconds), 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return step_latency(experiment, device, seconds=seconds), torch.cuda.max_memory_allocated(device)


def rounded(values: Iterable[float]) -> list[float]:
    """Three decimals."""
    return [round(value, 3) for value in values]


def shown(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, each printed when it is there."""
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        yield row


def header(device: torch.device, precision: str) -> dict[str, Any]:
    """Where and when something is measured."""
    return {**provenance(device, precision), "started": datetime.now(UTC).isoformat(timespec="seconds")}


def write(content: dict[str, Any], folder: Path) -> Path:
    """Write a measurement to a file with the device's name; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^a-z0-9]+', '-', content['device']['name'].lower()).strip('-')}.json"
    write_atomically(file, json.dumps(content, indent=1) + "\n")
    return file


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="also through torch.compile, which takes minutes")
    parser.add_argument("--seconds", type=float, default=1.0, help="of every measurement")
    parser.add_argument("--parts", nargs="+", choices=("losses", "published"))
    parser.add_argument("--to", type=Path, default=records_folder("speed"))
    chosen = parser.parse_args()
    device, seconds = torch.device(chosen.device), chosen.seconds
    torch.set_num_threads(1)
    content = header(device, "fp32 and bf16") | {"shapes": {name: s._asdict() for name, s in LOSS_SHAPES.items()}}
    # the paper's step takes a CPU minutes
    wanted = chosen.parts or ["losses", *(["published"] if device.type == "cuda" else [])]
    measure = {
        "losses": ("rows", partial(measured, device, compiled=chosen.compiled, seconds=seconds)),
        "published": ("published", partial(published, device, seconds=seconds)),
    }
    for part in wanted:
        name, rows = measure[part]
        content[name] = []
        for row in shown(rows()):
            content[name].append(row)
            write(content, chosen.to)
    print(write(content, chosen.to))


if __name__ == "__main__":
    main()
