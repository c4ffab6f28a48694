"""Measure what `apd train` adds to a bare PyTorch loop over the same networks, batches and losses, and write it down.

    python -m book.figures.loop_speed                                     two small recipes, on the CPU, one thread
    python -m book.figures.loop_speed --device cuda --recipes camvid-full-apd

Both train in one process in turn: a block of steps each, so that what else the machine does meets both. A row of
`book/results/loop-speed/<device>.json` has the ratio of their seconds per step with its 95 % interval over the pairs of
blocks; on a CPU, seconds are those in which the process ran.
"""

import argparse
import inspect
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from apd.config.experiment import Experiment
from apd.distillers.base import build_distiller
from apd.losses import task_loss
from apd.study.recipes import recipe
from apd.training.distributed import ALONE, choose_device
from apd.training.record import records_folder
from apd.training.run import task_of
from apd.training.segmentation import distilled_of
from apd.training.trainer import Trainer
from book.figures.speed import header, rounded, shown, write

BLOCK = 10
"""Steps of a block (own choice)."""
HAS_TENSORBOARD = "tensorboard" in inspect.signature(Trainer.__init__).parameters


def networks(experiment: Experiment, task: Any, device: torch.device) -> list[Any]:
    """Student and teacher (or None) at random weights, channels last."""
    of_teacher = experiment.teacher if experiment.distillers else None
    configs, classes = (experiment.network, of_teacher and of_teacher.network), task.split("val").spec.num_classes
    student, teacher = (c and task.network(c, classes, device, seed=0, weights_follow=True) for c in configs)
    return [student.train(), teacher and teacher.eval().requires_grad_(False)]


def bare_loop(experiment: Experiment, dataset: Any, device: torch.device) -> Iterator[torch.Tensor]:
    """The loop that one writes by hand, in fp32 with SGD: a step for each loss that is asked for."""
    task, training = task_of(experiment), experiment.training
    student, teacher = networks(experiment, task, device)
    distillers = [build_distiller(c, student=student, teacher=teacher, seed=0) for c in experiment.distillers]
    heads = [p for distiller in distillers for p in distiller.student_parameters()]
    rates = (training.learning_rate, training.learning_rate * training.head_multiplier)
    parts = (student.backbone_parameters(), [*student.head_parameters(), *heads])
    groups = [{"params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True)]
    options = {"momentum": training.momentum, "weight_decay": training.weight_decay}
    optimisers = [torch.optim.SGD(groups, lr=training.learning_rate, **options)]
    if of_teacher := [p for distiller in distillers for p in distiller.teacher_parameters()]:
        optimisers.append(
            torch.optim.Adam(of_teacher, lr=experiment.distillers[0].teacher_head_rate, betas=(0.9, 0.99))
        )
    batches = task.batches(dataset, start=0, ranks=ALONE, workers=0, device=device)
    for step, (images, labels) in enumerate(batches):
        images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
        for group, rate in zip(optimisers[0].param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / training.iterations) ** training.power
        output = student(images)
        loss = task_loss(output.logits, labels, 255)
        if output.aux is not None:
            loss = loss + training.auxiliary_weight * task_loss(output.aux, labels, 255)
        if teacher is not None:
            with torch.no_grad():
                seen = teacher(images)
            loss = loss + sum(distiller(**distilled_of(output, seen, labels))["loss"] for distiller in distillers)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        yield loss.detach()


def compared(experiment: Experiment, device: torch.device, *, pairs: int, tensorboard: bool) -> list[list[float]]:
    """Seconds of a step in `apd train` and in the bare loop: a pair for each pair of blocks but the first."""
    training = replace(experiment.training, iterations=BLOCK * (pairs + 2), evaluations=0)
    experiment = replace(experiment, training=training, precision="fp32")
    task, found, begun = task_of(experiment), [], 0.0
    data = task.splits()
    for index in range(len(data.train)):  # scenes are drawn once and kept
        data.train[index]
    bare, options = bare_loop(experiment, data.train, device), {"tensorboard": True} if tensorboard else {}

    def clock() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    def on_step(step: int) -> None:
        nonlocal begun
        if step % BLOCK:
            return
        middle = clock()
        if step <= BLOCK * (pairs + 1):  # the last block ends with a checkpoint
            for _ in range(BLOCK):
                next(bare)
            end = clock()
            found.append([(middle - begun) / BLOCK, (end - middle) / BLOCK])
        begun = clock()

    with tempfile.TemporaryDirectory() as folder:
        student, teacher = networks(experiment, task, device)
        run = Trainer(task, Path(folder), data, student, teacher, progress="lines", **options)
        run.facts["teacher"] = {}  # not scored first
        run.execute(on_step)
    return found[1:]


def measured(names: list[str], device: torch.device, pairs: int) -> Iterator[dict[str, Any]]:
    """A row for each recipe, with TensorBoard off and, where the package has it, on."""
    for name in names:
        for tensorboard in (False, True)[: 1 + HAS_TENSORBOARD]:
            seconds = np.array(compared(recipe(*name.rsplit("-", 1)), device, pairs=pairs, tensorboard=tensorboard))
            ratios = np.log(seconds[:, 0] / seconds[:, 1])
            low, high = stats.t.interval(0.95, len(ratios) - 1, loc=ratios.mean(), scale=stats.sem(ratios))
            row = {"recipe": name, "tensorboard": tensorboard, "pairs": len(ratios), "steps": BLOCK * len(ratios)}
            row |= {"ratio": rounded(np.exp([low, ratios.mean(), high]).tolist())}
            yield row | {"milliseconds": rounded((1e3 * np.median(seconds, axis=0)).tolist())}


def main() -> None:
    """Measure, print the ratios, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipes", nargs="+", default=["tiny-student", "tiny-apd"])
    parser.add_argument("--pairs", type=int, default=30, help="of blocks")
    parser.add_argument("--to", type=Path, default=records_folder("loop-speed"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device(chosen.device)
    content = header(device, "fp32") | {"shapes": {}}
    content["rows"] = list(shown(measured(chosen.recipes, device, chosen.pairs)))
    print(write(content, chosen.to))


if __name__ == "__main__":
    main()
