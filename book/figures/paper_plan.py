"""Print the tables of `book/reproduce_paper.md`: what the runs at the paper's size would take, by a stated formula.

    python book/figures/paper_plan.py

GPU-hours = 2 · MACs of an image's training step · images · steps / (operations a GPU sustains in a second) / 3600.
Loading, scoring and communication are left out. The page is compared with this by `tests/cost/test_paper_plan.py`.
"""

from collections.abc import Iterator, Sequence
from typing import get_args

from apd.config.experiment import Experiment
from apd.cost.count import step_cost
from apd.data.specs import COCO_STUFF
from apd.study.published_recipes import (
    PROCESSES,
    PUBLISHED,
    CocoSize,
    detection_methods_of,
    detection_recipe,
    paper_recipe,
)

PEAK = 35.6e12
"""Floating-point operations a second of a GeForce RTX 3090 at its best, in fp32 and TF32 (NVIDIA's paper on GA102). The
authors name four of them."""
SHARE = 0.4
"""Part of the peak that training sustains (own choice; `apd train --dry-run` measures it on your GPU)."""
SIZES: tuple[CocoSize, ...] = get_args(CocoSize)


def plan_table() -> Iterator[str]:
    """Teacher, student and student with APD for each data set, as released, with the published scores (READMEs of APD
    and, for the teachers, of semseg)."""
    yield f"| data | run | mIoU | steps × images | operations, 10¹⁵ | GPU-hours | hours on {PROCESSES} |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for name, published in PUBLISHED.items():
        experiment, student, classes = paper_recipe(name), paper_recipe(name, "student"), published.spec.num_classes
        for role, miou, cost in (
            ("teacher", published.near_teacher, step_cost(experiment.teacher_experiment(), classes)),
            ("student", published.alone, step_cost(student, classes)),
            ("apd", published.with_apd, step_cost(experiment, classes)),
        ):
            score = "–" if miou is None else f"{miou:.2f}"
            yield f"| {name} | {role} | {score} | {_hours(experiment, cost.macs_per_image)}"


def detection_plan_table(sizes: Sequence[CocoSize] = SIZES) -> Iterator[str]:
    """Teacher, student and student with each form of APD, for each pair; no score of any was established."""
    yield f"| recipe | run | AP | steps × images | operations, 10¹⁵ | GPU-hours | hours on {PROCESSES} |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    for size in sizes:
        methods = ["student", *(method for method in detection_methods_of(size) if method.endswith("apd"))]
        experiments = {"teacher": detection_recipe(size, "roi_apd").teacher_experiment()}
        experiments |= {method: detection_recipe(size, method) for method in methods}
        for role, experiment in experiments.items():
            cost = step_cost(experiment, len(COCO_STUFF.thing_names))
            yield f"| {size} | {role} | not established | {_hours(experiment, cost.macs_per_image)}"


def _hours(experiment: Experiment, macs_per_image: int) -> str:
    training = experiment.training
    operations = 2 * macs_per_image * training.batch_size * training.iterations
    hours = operations / (PEAK * SHARE) / 3600
    steps = f"{training.iterations} × {training.batch_size}"
    return f"{steps} | {operations / 1e15:.0f} | {hours:.1f} | {hours / PROCESSES:.1f} |"


if __name__ == "__main__":
    print("\n".join((*plan_table(), "", *detection_plan_table())))
