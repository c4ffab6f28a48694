"""Learning rates at every step against PyTorch's own schedulers, and at the borders against published numbers."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from small_experiments import prepared_run, tiny
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, MultiStepLR, PolynomialLR

from apd.config.experiment import ExperimentError, TrainingConfig
from apd.study.recipes import lengthened
from apd.training.trainer import learning_rate_factor

ITERATIONS = 40


def optimiser_with(**base):
    """An optimiser with a parameter group for each base learning rate; one of None follows nothing."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], **({"base_rate": lr} if lr else {})} for lr in base.values()]
    return torch.optim.SGD(groups, lr=1.0)


@pytest.mark.filterwarnings("ignore")  # an optimiser that makes no step is what is wanted here
@pytest.mark.parametrize("warmup", [0, 2, 30])
@pytest.mark.parametrize("schedule", ["poly", "steps"])
def test_every_step_has_the_factor_of_pytorchs_own_schedulers(schedule, warmup):
    reference = optimiser_with(all=0.3)
    if schedule == "poly":
        fields, schedulers = {"power": 0.7}, [PolynomialLR(reference, total_iters=ITERATIONS, power=0.7)]
    else:
        fields = {"milestones": (10, 11, 35)}
        schedulers = [MultiStepLR(reference, milestones=fields["milestones"], gamma=0.1)]
    if warmup:
        schedulers.append(LinearLR(reference, start_factor=1 / warmup, total_iters=warmup - 1))
    chained = ChainedScheduler(schedulers, reference)
    training = TrainingConfig(iterations=ITERATIONS, schedule=schedule, warmup=warmup, **fields)
    for step in range(ITERATIONS):
        assert learning_rate_factor(training, step) == pytest.approx(reference.param_groups[0]["lr"], rel=1e-9)
        chained.step()


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        *(("poly", step, (1 - step / 100) ** 0.9) for step in (0, 50, 99)),
        *(("warmed up", *at) for at in ((0, 0.001), (499, 0.5), (999, 1.0), (119_999, 1.0), (120_000, 0.1))),
        *(("warmed up", *at) for at in ((159_999, 0.1), (160_000, 0.01))),
        *(("warm-up of one step", step, (1 - step / 100) ** 0.9) for step in (0, 1)),
    ],
)
def test_the_published_schedules_at_their_borders(schedule, step, factor):
    training = {
        "poly": TrainingConfig(iterations=100),
        "warmed up": TrainingConfig(iterations=180_000, schedule="steps", milestones=(120_000, 160_000), warmup=1000),
        "warm-up of one step": TrainingConfig(iterations=100, warmup=1),
    }[schedule]
    assert learning_rate_factor(training, step) == pytest.approx(factor, rel=1e-9)


def test_groups_with_a_base_learning_rate_follow_and_others_keep_theirs(tmp_path):
    training = TrainingConfig(iterations=10, schedule="steps", milestones=(4,), warmup=2)
    optimisers = {"student": optimiser_with(backbone=0.2, heads=2.0), "teacher_heads": optimiser_with(a=None, b=0.5)}
    run, seen = prepared_run(replace(tiny(), training=training), tmp_path), []
    run.optimisers = optimisers
    for step in (0, 5):
        run.set_learning_rates(step)
        seen += [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers.values()]
    assert seen[0] == pytest.approx([0.1, 1.0])
    assert seen[2] == pytest.approx([0.02, 0.2])
    assert seen[1] == [1.0, 0.5], "the teacher's head knows no warm-up"
    assert seen[3] == [1.0, pytest.approx(0.5 * 0.5**0.9)], "and falls by poly, whatever the student does"


@pytest.mark.parametrize("schedule", ["constant", "poly"])
def test_a_run_follows_its_schedule_logs_it_and_the_teachers_head_follows_if_asked(tmp_path, schedule):
    experiment = tiny("apd", power=0.5, iterations=8, learning_rate=0.02)
    distiller = replace(experiment.distillers[0], teacher_head_schedule=schedule)
    run = prepared_run(replace(experiment, distillers=(distiller,)), tmp_path)
    groups, seen = [group for o in run.optimisers.values() for group in o.param_groups], []
    run.optimisers["student"].register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in groups]))
    run.execute()
    assert len(seen) == 8
    for step, (backbone, heads, teacher_head) in enumerate(seen):
        assert backbone == pytest.approx(0.02 * (1 - step / 8) ** 0.5, rel=1e-12)
        assert heads == pytest.approx(10 * backbone, rel=1e-12)
        assert teacher_head == (1e-3 if schedule == "constant" else pytest.approx(1e-3 * (1 - step / 8) ** 0.5))
    assert [line["learning_rate"] for line in run.log.read()] == pytest.approx([of_groups[0] for of_groups in seen])


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_is_pytorchs_with_decay_beside_the_gradient(tmp_path, fused):
    run = prepared_run(tiny("apd", optimiser="adamw", weight_decay=0.05, learning_rate=0.002, fused=fused), tmp_path)
    student, heads = run.optimisers["student"], run.optimisers["teacher_heads"]
    assert (type(student), type(heads)) == (torch.optim.AdamW, torch.optim.Adam)
    assert (student.defaults["betas"], student.defaults["weight_decay"]) == ((0.9, 0.999), 0.05)
    assert [group["base_rate"] for group in student.param_groups] == pytest.approx([0.002, 0.02])


def test_a_lengthened_training_has_its_milestones_moved_along_and_its_warm_up_kept():
    start = tiny(iterations=90, schedule="steps", milestones=(60, 80), warmup=5)
    longer = lengthened(start, student=1.5, teacher=1).training
    assert (longer.iterations, longer.milestones, longer.warmup) == (135, (90, 120), 5)
    with pytest.raises(ExperimentError, match=r"warmup = 5: expected an integer from 0 to below iterations 5"):
        dataclasses.replace(TrainingConfig(iterations=50, warmup=5), iterations=5)
