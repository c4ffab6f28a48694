"""What the published experiments would take: a table of steps, operations and GPU-hours, by a stated formula.

GPU-hours = 2 · MACs of an image's training step · images · steps / (operations a GPU sustains in a second) / 3600.
What a step computes is counted by :func:`apd.cost.count.step_cost`; what a GPU sustains is assumed. Loading,
scoring and communication are left out.
"""

from collections.abc import Iterator
from typing import NamedTuple

from apd.cost.count import step_cost, teacher_step_cost
from apd.study.published_recipes import PROCESSES, PUBLISHED, paper_recipe

PEAK = 35.6e12
"""Floating-point operations a second of a GeForce RTX 3090 at its best, in fp32 and TF32 (NVIDIA's paper on GA102). The
authors name four of them."""
SHARE = 0.4
"""Part of the peak that training sustains (own choice; `apd train --dry-run` on your GPU tells better)."""


class PlannedRun(NamedTuple):
    """One training run at the paper's size.

    Attributes:
        data: name of the data set.
        role: "teacher", "student" or "apd".
        miou: what was published, in per cent; None where nothing was.
        source: where that was read.
        steps: of the optimiser.
        batch_size: images in a step.
        macs_per_image: multiply-accumulates of a step, for an image.
    """

    data: str
    role: str
    miou: float | None
    source: str
    steps: int
    batch_size: int
    macs_per_image: int

    def gpu_hours(self, operations_per_second: float = PEAK * SHARE) -> float:
        """Hours of one GPU that sustains so many floating-point operations a second."""
        return 2 * self.macs_per_image * self.batch_size * self.steps / operations_per_second / 3600


def planned_runs() -> Iterator[PlannedRun]:
    """Teacher, student alone and student with APD, for each data set; as released."""
    for name, published in PUBLISHED.items():
        experiment, alone, classes = paper_recipe(name), paper_recipe(name, "student"), published.spec.num_classes
        costs = {
            "teacher": (published.near_teacher, "semseg, README", teacher_step_cost(experiment, classes)),
            "student": (published.alone, "APD, README", step_cost(alone, classes)),
            "apd": (published.with_apd, "APD, README", step_cost(experiment, classes)),
        }
        for role, (miou, source, cost) in costs.items():
            yield PlannedRun(
                name,
                role,
                miou,
                source if miou is not None else "not known",
                experiment.training.iterations,
                published.batch_size,
                cost.macs_per_image,
            )


def plan_table() -> Iterator[str]:
    """The runs as a table in Markdown: the book's page shows it, and a test compares it with what is counted."""
    yield f"| data | run | mIoU | read in | steps × images | operations, 10¹⁵ | GPU-hours | hours on {PROCESSES} |"
    yield "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |"
    for run in planned_runs():
        operations = 2 * run.macs_per_image * run.batch_size * run.steps
        hours = run.gpu_hours()
        yield (
            f"| {run.data} | {run.role} | {'' if run.miou is None else f'{run.miou:.2f}'} | {run.source} | "
            f"{run.steps} × {run.batch_size} | {operations / 1e15:.0f} | {hours:.1f} | {hours / PROCESSES:.1f} |"
        )
