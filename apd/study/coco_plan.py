"""What the recipes of COCO at paper scale would take, by the formula of :mod:`apd.study.paper_plan`."""

from collections.abc import Iterator, Sequence
from typing import get_args

from apd.cost.count import step_cost
from apd.data.published_specs import COCO_STUFF
from apd.study.coco_recipes import CocoSize, detection_methods_of, detection_recipe
from apd.study.paper_plan import PlannedRun
from apd.study.published_recipes import PROCESSES

SIZES: tuple[CocoSize, ...] = get_args(CocoSize)
CLASSES = len(COCO_STUFF.thing_names)
"""Categories of COCO that can be counted."""


def planned_detection_runs(sizes: Sequence[CocoSize] = SIZES) -> Iterator[PlannedRun]:
    """Teacher, student alone and student with each form of APD, for each pair; no score of any was established."""
    for size in sizes:
        taught = [method for method in detection_methods_of(size) if method.endswith("apd")]
        experiments = {"teacher": detection_recipe(size, "roi_apd").teacher_experiment()}
        experiments |= {method: detection_recipe(size, method) for method in ("student", *taught)}
        for role, experiment in experiments.items():
            cost, training = step_cost(experiment, CLASSES), experiment.training
            yield PlannedRun(
                size, role, None, "not established", training.iterations, training.batch_size, cost.macs_per_image
            )


def detection_plan_table(sizes: Sequence[CocoSize] = SIZES) -> Iterator[str]:
    """The runs as a table in Markdown: the book's page shows it, and a test compares it with what is counted."""
    yield f"| recipe | run | AP | steps × images | operations, 10¹⁵ | GPU-hours | hours on {PROCESSES} |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    for run in planned_detection_runs(sizes):
        operations, hours = 2 * run.macs_per_image * run.batch_size * run.steps, run.gpu_hours()
        yield (
            f"| {run.data} | {run.role} | {run.source} | {run.steps} × {run.batch_size} | {operations / 1e15:.0f} | "
            f"{hours:.1f} | {hours / PROCESSES:.1f} |"
        )
