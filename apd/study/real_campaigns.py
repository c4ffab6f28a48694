"""Campaigns on LabelMeFacade and CamVid with networks that start from ImageNet (:mod:`apd.study.real_recipes`).

What is tuned is read by the score on val after the last step, one seed; the records' scores on test play no part.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

from apd.config.experiment import Experiment
from apd.study.real_recipes import SECOND_STUDENT, SECOND_TEACHER, RealSize, real_experiment
from apd.study.recipes import METHODS, Method, recipe

TRIED_LEARNING_RATES = (2e-4, 1e-4, 4e-4, 5e-5, 8e-4)
"""Tried with every method, from the middle outwards."""
TUNED_METHODS: tuple[Method, ...] = ("student", "apd", "pixel_kd", "apd_without_kd")
"""Methods with learning rates of their own; the student of equal seconds has the student's."""


def facade_tuning() -> Iterator[Experiment]:
    """The student's schedule, which has converged where twice the steps bring less than half a point; the teachers."""
    base = real_experiment("facade-small")
    student, teacher = replace(base, teacher=None, name="student"), replace(base.teacher_experiment(), name="teacher")
    for experiment, stride, steps, learning_rate in (
        (student, 16, 1200, 2e-4),
        (teacher, 16, 1200, 8e-4),
        (teacher, 16, 1200, 2e-4),
        (teacher, 8, 1200, 8e-4),
        (teacher, 8, 1200, 2e-4),
        (student, 16, 2400, 2e-4),
    ):
        yield replace(
            experiment,
            name=f"{experiment.name}-stride{stride}-steps{steps}-rate{learning_rate:g}",
            network=replace(experiment.network, output_stride=stride),
            training=replace(experiment.training, iterations=steps, learning_rate=learning_rate),
        )


def facade_learning_rates() -> Iterator[Experiment]:
    """Every method at every learning rate, seed 0; the student, which these runs train without a teacher, comes first.

    So its learning rate and schedule can be chosen before the teacher is.
    """
    for method, learning_rate in product(TUNED_METHODS, TRIED_LEARNING_RATES):
        experiment = recipe("facade-small", method)
        training = replace(experiment.training, learning_rate=learning_rate)
        teacher = None if method == "student" else experiment.teacher
        yield replace(experiment, teacher=teacher, training=training, name=f"{method}-rate{learning_rate:g}-seed0")


def facade_pairs() -> Iterator[Experiment]:
    """Another student, and another teacher, on LabelMeFacade; three seeds."""
    for seed in range(3):
        for method in ("student", "pixel_kd", "apd"):
            experiment = recipe("facade-small", method, seed=seed)
            yield replace(experiment, network=SECOND_STUDENT, name=f"{method}-second_student-seed{seed}")
            if method != "student":
                teacher = replace(experiment.teacher, network=SECOND_TEACHER)
                yield replace(experiment, teacher=teacher, name=f"{method}-second_teacher-seed{seed}")


def _methods(size: RealSize, seeds: int) -> Iterator[Experiment]:
    """All methods of a size, seed by seed, so that what is finished at any moment is a fair comparison."""
    for seed in range(seeds):
        for method in METHODS:
            yield replace(recipe(size, method, seed=seed), name=f"{method}-seed{seed}")


REAL_CAMPAIGNS: dict[str, Callable[[], Iterator[Experiment]]] = {
    "facade-tuning": facade_tuning,
    "facade-learning-rates": facade_learning_rates,
    "facade-small": partial(_methods, "facade-small", seeds=5),
    "facade-pairs": facade_pairs,
    "camvid-pretrained": partial(_methods, "camvid-small", seeds=3),
    "facade-full": partial(_methods, "facade-full", seeds=3),
    "camvid-full": partial(_methods, "camvid-full", seeds=3),
}
"""By name, in the order in which one CPU core runs them; those of a full size are for a GPU."""
