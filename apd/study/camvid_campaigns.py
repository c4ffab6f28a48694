"""Campaigns on CamVid at half resolution: the methods, the choice of their rates, parts of APD, and its rivals."""

from collections.abc import Iterator
from dataclasses import replace

from apd.config.experiment import Experiment
from apd.study.ablations import Arm, arm_at_best, option_arms, plain_arms, term_arms, with_apd, without_kd_arm
from apd.study.recipes import METHODS, Method, recipe

TRIED_RATES = (0.01, 0.02, 0.04)
"""Of the student and of every method that teaches it."""

TRIED_METHODS: tuple[Method, ...] = ("student", "pixel_kd", "apd", "apd_without_kd")
"""Methods with a rate of their own; the student of equal seconds has the student's."""

BEST_RIVALS = ("dist", "cwd", "ifvd")
"""The three best on val of the scenes, mean over seeds, each at the best of its weights (a test holds it)."""


def camvid_small() -> Iterator[Experiment]:
    """The methods, scored on test, three seeds, each at the rate that served it best on val."""
    for seed in range(3):
        for method in METHODS:
            yield replace(recipe("small", method, seed=seed), name=f"{method}-seed{seed}")


def camvid_small_tuning() -> Iterator[Experiment]:
    """Where the search for rates began: short schedules of the plain networks, one seed, scored on val."""
    student = recipe("small", "student")
    data = replace(student.data, evaluation_split="val")
    for rate in (0.005, 0.01, 0.02):
        training = replace(student.teacher.training, iterations=400, learning_rate=rate, evaluations=0)
        teacher = student.teacher_experiment()
        yield replace(teacher, data=data, training=training, name=f"teacher-rate{rate:g}")
    for rate in TRIED_RATES:
        training = replace(student.training, iterations=600, learning_rate=rate, evaluations=0)
        yield replace(student, data=data, training=training, teacher=None, name=f"student-rate{rate:g}")


def camvid_small_rates() -> Iterator[Experiment]:
    """How each method's rate was chosen: by the score on val after the last step of whole runs, one seed.

    At the chosen rates the runs are those of `camvid-small`.
    """
    for rate in TRIED_RATES[::-1]:
        for method in TRIED_METHODS:
            experiment = recipe("small", method)
            training = replace(experiment.training, learning_rate=rate)
            yield replace(experiment, training=training, name=f"{method}-rate{rate:g}-seed0")


def camvid_small_ablations() -> Iterator[Experiment]:
    """APD without one of its four terms, and with prototypes of the batch, three seeds.

    APD without pixel KD is a method of `camvid-small`, too, at a rate of its own; here its rate is that of APD.
    """
    one_term_less = [arm for arm in term_arms() if arm.key in ("terms_a_o_kd", "terms_r_o_kd", "terms_r_a_kd")]
    scope = [arm for arm in option_arms() if arm.key == "scope_batch"]
    yield from _with_arms([*one_term_less, *scope, without_kd_arm()])


def camvid_small_rivals() -> Iterator[Experiment]:
    """The three best rivals on scenes at their best weights, and APD with the best of them, three seeds."""
    arms = {arm.key: arm for arm in plain_arms()}
    rivals = [arm_at_best(arms[key]) for key in BEST_RIVALS]
    yield from _with_arms([*rivals, with_apd(rivals[0])])


def _with_arms(arms: list[Arm]) -> Iterator[Experiment]:
    """Each seed with every arm, at the rate of APD."""
    for seed in range(3):
        base = recipe("small", "apd", seed=seed)
        for arm in arms:
            yield replace(base, name=f"{arm.key}-seed{seed}", distillers=arm.distillers)
