"""Measure the method against its class-by-class reference and against the other methods, and write it down.

    python -m tests.measure_speed                                on the CPU, one thread
    python -m tests.measure_speed --device cuda --compiled       on a GPU, compiled too

The file, `book/results/speed/<device>.json`, is what the chapter on speed is drawn from. Run it on a quiet machine.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apd import CIRKD, CWD, DIST, DKD, IFVD, MGD, APDLoss, AttentionTransfer, FitNet, PairwiseSimilarity, PixelKD
from apd.evaluate.loss_cost import LOSS_SHAPES, LossShape, floor_of, loss_batch, loss_cost
from apd.study.checkpoint import write_atomically
from apd.study.folders import records_folder
from apd.study.provenance import provenance
from tests import slow_reference as slow

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
    for kind in (FitNet, AttentionTransfer, PairwiseSimilarity, IFVD, CWD, CIRKD, MGD):
        yield kind.__name__, kind(*sizes)
    yield "DIST", DIST()
    yield "DKD", DKD()


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
                    print(row, file=sys.stderr, flush=True)
                    yield row


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="also through torch.compile, which takes minutes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--to", type=Path, default=records_folder("speed"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(chosen.device)
    content = {
        **provenance(device, "fp32 and bf16"),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "shapes": {name: shape._asdict() for name, shape in LOSS_SHAPES.items()},
        "floor": {
            name: {"no heads": floor_of(shape), "heads": floor_of(shape, shape.channels)}
            for name, shape in LOSS_SHAPES.items()
        },
        "rows": list(measured(device, compiled=chosen.compiled, repeats=chosen.repeats)),
    }
    chosen.to.mkdir(parents=True, exist_ok=True)
    file = chosen.to / f"{re.sub(r'[^a-z0-9]+', '-', content['device']['name'].lower()).strip('-')}.json"
    write_atomically(file, json.dumps(content, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    main()
