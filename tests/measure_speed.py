"""Measure losses, switches of a training step and loaders, and write it down: what the chapter on speed is drawn from.

    python -m tests.measure_speed                                on the CPU: about ten minutes on two quiet cores
    python -m tests.measure_speed --compiled                     the loss compiled, too
    python -m tests.measure_speed --device cuda --compiled       on a GPU, `small` compiled as well; the paper's step
    python -m tests.measure_speed --parts losses published       some parts only

The method is held against its class-by-class reference and the other methods, on one thread; the recipes `tiny` and
`small` go through what `apd cost --switches` and `apd cost --feeding` do, on as many threads as torch takes by itself.
CamVid is found through APD_DATA; without it, its line in the table of loaders says so. The one file,
`book/results/speed/<device>.json`, is written anew after each part, so that a part that fails loses none.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apd import (
    CIRKD,
    CWD,
    DIST,
    DKD,
    I2CKD,
    IFVD,
    LSKD,
    MGD,
    APDLoss,
    AttentionTransfer,
    FitNet,
    InterClassDistance,
    PairwiseSimilarity,
    PixelKD,
)
from apd.config.experiment import Experiment
from apd.cost.feeding import feeding_of_experiment
from apd.cost.loss import LOSS_SHAPES, LossShape, floor_of, loss_batch, loss_cost
from apd.cost.measure import Latency
from apd.cost.switches import step_latency, switch_costs
from apd.data.images import DataError
from apd.evaluation.inference import resolve_precision
from apd.study.recipes import recipe
from apd.training.checkpoint import write_atomically
from apd.training.provenance import provenance
from apd.training.run import records_folder
from tests import slow_reference as slow

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RECIPES = ("tiny", "small")
"""Those whose steps and loaders are measured: the ones that a CPU trains."""
PUBLISHED = {"cityscapes": "cityscapes_corrected", "ade20k": "ade20k_corrected"}
"""Shapes of a loss, and the recipes of the paper whose step calls it at that shape: PSPNet-R18 taught by R101."""
WORKERS = (0, 1, 2)
"""Numbers of loading processes."""


class ClassByClass(nn.Module):
    """The terms of a loss as the slow reference writes them, through the same heads, at the same weights."""

    def __init__(self, module: APDLoss) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, *, student_features: Tensor, teacher_features: Tensor, labels: Tensor, **logits: Tensor
    ) -> Tensor:
        weights = self.module.weights
        student, teacher = (
            head(features.float())
            for head, features in (
                (self.module.student_head, student_features),
                (self.module.teacher_head, teacher_features),
            )
        )
        total = weights["alignment"] * slow.alignment(student, teacher, labels)
        total = total + weights["observation"] * slow.observation(student, teacher, labels)
        kd = slow.pixel_kd(logits["student_logits"].float(), logits["teacher_logits"].float(), labels)
        total = total + weights["pixel_kd"] * kd
        if weights["regularisation"]:
            total = total + slow.regularisation(teacher, labels, num_classes=self.module.num_classes)
        return total


def losses(shape: LossShape) -> Iterator[tuple[str, nn.Module]]:
    """What is measured at a shape, by name."""
    sizes = (shape.channels, shape.channels, shape.classes)
    for name, width in (("APD, no heads", None), ("APD", shape.channels)):
        module = APDLoss(*sizes, width=width)
        yield name, module
        yield f"{name}, class by class", ClassByClass(module)
    yield "pixel KD", PixelKD()
    for kind in (FitNet, AttentionTransfer, PairwiseSimilarity, IFVD, CWD, CIRKD, MGD, I2CKD, InterClassDistance):
        yield kind.__name__, kind(*sizes)
    for kind in (DIST, DKD, LSKD):
        yield kind.__name__, kind()


def measured(device: torch.device, *, compiled: bool, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each shape, number format and loss."""
    for shape_name, shape in LOSS_SHAPES.items():
        for dtype_name, dtype in DTYPES.items():
            batch = loss_batch(shape, device=device, dtype=dtype)
            for name, module in losses(shape):
                if dtype_name == "bf16" and not name.startswith("APD"):
                    continue
                ways: list[tuple[str, Callable[..., Any]]] = [("eager", module.to(device))]
                if compiled and name in ("APD", "APD, no heads"):
                    torch.compiler.reset()
                    ways.append(("compiled", torch.compile(module)))
                for way, loss in ways:
                    cost = loss_cost(loss, batch, repeats=repeats)
                    row = {"shape": shape_name, "loss": name, "dtype": dtype_name, "way": way}
                    row |= {"milliseconds": [round(value, 3) for value in cost.milliseconds]}
                    row |= {"peak_bytes": cost.peak_bytes}
                    yield row


def published(device: torch.device, *, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each published step and number format: the step, the student's alone, and the loss's share of it.

    A step is that of one of the paper's four processes. Shares are of medians, and of the most memory.
    """
    for shape_name, size in PUBLISHED.items():
        shape = LOSS_SHAPES[shape_name]
        whole = recipe(size)
        whole = replace(whole, training=replace(whole.training, batch_size=shape.batch))
        for precision, dtype in DTYPES.items():
            steps, peaks = {}, {}
            for name, one in (("student", replace(whole, teacher=None, distillers=())), ("step", whole)):
                steps[name], peaks[name] = _step(replace(one, precision=precision), device, repeats)
            module = APDLoss(shape.channels, shape.channels, shape.classes, width=shape.channels).to(device)
            loss = loss_cost(module, loss_batch(shape, device=device, dtype=dtype), repeats=repeats)
            yield {
                "recipe": size,
                "dtype": precision,
                **{name: [round(value, 3) for value in latency] for name, latency in steps.items()},
                "loss": [round(value, 3) for value in loss.milliseconds],
                "share_of_time": round(loss.milliseconds.median / steps["step"].median, 4),
                "peak_bytes": peaks["step"],
                "loss_peak_bytes": loss.peak_bytes,
                "share_of_memory": round(loss.peak_bytes / peaks["step"], 4) if peaks["step"] else None,
            }


def _step(experiment: Experiment, device: torch.device, repeats: int) -> tuple[Latency, int]:
    """Milliseconds of an optimiser step, and on a GPU the most memory that was taken."""
    if device.type != "cuda":
        return step_latency(experiment, device, 2, repeats), 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return step_latency(experiment, device, 2, repeats), torch.cuda.max_memory_allocated(device)


def recipes_in_words(device: torch.device) -> dict[str, dict[str, Any]]:
    """What a step of each recipe is: networks, batch, crop and number format."""
    experiments = {size: recipe(size) for size in RECIPES}
    return {
        size: {
            "student": e.network.backbone,
            "teacher": e.teacher.network.backbone,
            "methods": [distiller.method for distiller in e.distillers],
            "batch": e.training.batch_size,
            "crop": [e.data.crop_height, e.data.crop_width],
            "precision": resolve_precision(device, e.precision),
        }
        for size, e in experiments.items()
    }


def switches(device: torch.device, *, compiled: bool) -> Iterator[dict[str, Any]]:
    """A row for each recipe and setting of a training step; milliseconds are null where a setting cannot be had."""
    for size in RECIPES:
        # the smallest networks compile in half a minute anywhere, those of `small` on a CPU in no useful time
        compile_step = size == "tiny" or (compiled and device.type != "cpu")
        for cost in switch_costs(recipe(size), device, compiled=compile_step):
            quartiles = cost.milliseconds and [round(value, 1) for value in cost.milliseconds]
            # a library's message may hold a path of this machine: its kind is enough
            yield {
                "recipe": size,
                "setting": cost.setting,
                "milliseconds": quartiles,
                "reason": cost.reason.split(":")[0],
            }


def feeding(device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each recipe and number of loading processes; one without numbers where the data are missing."""
    for size in RECIPES:
        try:
            for found in feeding_of_experiment(recipe(size), device, workers=WORKERS):
                rates = {name: round(getattr(found, name), 2) for name in ("loader", "training", "together")}
                where = {"device_augmentation": True} if found.device_augmentation else {}
                yield {"recipe": size, "workers": found.workers, **where, **rates}
        except DataError as error:
            print(f"{size}: {error}", file=sys.stderr)
            yield {"recipe": size, "workers": None, "reason": "its data were not on this machine"}


def shown(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each printed when it is there."""
    found = []
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        found.append(row)
    return found


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="also through torch.compile, which takes minutes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=("losses", "published", "switches", "feeding"))
    parser.add_argument("--to", type=Path, default=records_folder("speed"))
    chosen = parser.parse_args()
    device, threads = torch.device(chosen.device), torch.get_num_threads()
    torch.set_num_threads(1)
    content = {
        **provenance(device, "fp32 and bf16"),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "shapes": {name: shape._asdict() for name, shape in LOSS_SHAPES.items()},
        "floor": {
            name: {"no heads": floor_of(shape), "heads": floor_of(shape, shape.channels)}
            for name, shape in LOSS_SHAPES.items()
        },
    }
    file = chosen.to / f"{re.sub(r'[^a-z0-9]+', '-', content['device']['name'].lower()).strip('-')}.json"
    parts: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
        "rows": lambda: measured(device, compiled=chosen.compiled, repeats=chosen.repeats),
        "published": lambda: published(device, repeats=chosen.repeats),
        "switches": lambda: switches(device, compiled=chosen.compiled),
        "feeding": lambda: feeding(device),
    }
    # the paper's step takes a CPU minutes
    wanted = chosen.parts or ["losses", "switches", "feeding", *(["published"] if device.type == "cuda" else [])]
    for part, measure in parts.items():
        if part.replace("rows", "losses") not in wanted:
            continue
        if part in ("switches", "feeding"):
            torch.set_num_threads(threads)
            content["steps"] = {"threads": threads, "recipes": recipes_in_words(device)}
        content[part] = shown(measure())
        chosen.to.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(content, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    main()
