"""The optimisers of a run, and how their learning rates move over it."""

from collections.abc import Iterable

import torch
from torch import nn

from apd.config.experiment import Experiment, TrainingConfig


def build_optimisers(
    experiment: Experiment, student: tuple[list[nn.Parameter], list[nn.Parameter]], distillers: Iterable[nn.Module]
) -> dict[str, torch.optim.Optimizer]:
    """The student's SGD or AdamW, and Adam for the teacher's projection head when there is one.

    `student` are the backbone's parameters and the rest. A group with `base_rate` follows a schedule.
    """
    training, (backbone, heads), teacher_groups = experiment.training, map(list, student), []
    for config, module in zip(experiment.distillers, distillers, strict=True):
        heads += list(module.student_parameters())
        if parameters := list(module.teacher_parameters()):
            follows = {"base_rate": config.teacher_head_rate} if config.teacher_head_schedule == "poly" else {}
            teacher_groups.append({"params": parameters, "lr": config.teacher_head_rate, **follows})
    groups = [
        {"params": backbone, "base_rate": training.learning_rate},
        {"params": heads, "base_rate": training.learning_rate * training.head_multiplier},
    ]
    fused = training.fused or None  # None leaves the choice to torch, which does not take the fused one
    common = {"lr": training.learning_rate, "weight_decay": training.weight_decay, "fused": fused}
    momentum = {} if training.optimiser == "adamw" else {"momentum": training.momentum}
    own = (torch.optim.SGD if momentum else torch.optim.AdamW)(groups, **momentum, **common)
    if not teacher_groups:
        return {"student": own}
    return {"student": own, "teacher_heads": torch.optim.Adam(teacher_groups, betas=(0.9, 0.99), fused=fused)}


def learning_rate_factor(training: TrainingConfig, step: int) -> float:
    """What a learning rate of the student is multiplied by in a step: its schedule times its warm-up.

    The schedule is (1 − step/iterations)^power, or a tenth for every milestone that is reached. The first step of a
    warm-up already moves the weights, and its last fully. `step` counts the steps done before, from 0.

    >>> training = TrainingConfig(iterations=90, schedule="steps", milestones=(60, 80), warmup=10)
    >>> [round(learning_rate_factor(training, step), 6) for step in (0, 4, 9, 59, 60, 80)]
    [0.1, 0.5, 1.0, 1.0, 0.1, 0.01]
    """
    steps = training.schedule == "steps"
    scheduled = 0.1 ** sum(milestone <= step for milestone in training.milestones) if steps else _poly(training, step)
    return scheduled * (min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0)


def _poly(training: TrainingConfig, step: int) -> float:
    return (1 - step / training.iterations) ** training.power


def learning_rate_factors(training: TrainingConfig, step: int) -> dict[str, float]:
    """The factor of each optimiser in a step; a teacher's head that follows a schedule falls by poly."""
    return {"student": learning_rate_factor(training, step), "teacher_heads": _poly(training, step)}


def described(training: TrainingConfig) -> str:
    """Optimiser and schedule in words, such as "sgd, learning rate 0.01 and 0.1 for heads, poly with power 0.9"."""
    heads = training.learning_rate * training.head_multiplier
    falls = f"falling to a tenth at {', '.join(map(str, training.milestones))}"
    schedule = f"poly with power {training.power:g}" if training.schedule == "poly" else falls
    rises = f", rising over the first {training.warmup} steps" if training.warmup else ""
    return f"{training.optimiser}, learning rate {training.learning_rate:g} and {heads:g} for heads, {schedule}{rises}"
