"""The campaigns: named lists of experiments whose records are the study's evidence, seed by seed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

from apd.config.experiment import Experiment
from apd.distillers.base import DistillerConfig
from apd.fields import UsageError, did_you_mean
from apd.study import ablations
from apd.study import published_recipes as published
from apd.study import recipes as known
from apd.study.recipes import METHODS, PAIR_METHODS, SECONDS_OF_APD, Method, Size, lengthened, recipe, scenes_pair
from apd.training.run import run_folder

TUNED_METHODS: tuple[Method, ...] = ("student", "pixel_kd", "apd", "apd_without_kd")
"""Methods with a learning rate of their own; the equal-time baseline has the baseline's."""
TRIED_SMALL_LEARNING_RATES = (0.01, 0.02, 0.04)  # On CamVid at half resolution, of the baseline and of every method.
TRIED_LEARNING_RATES = (8e-4, 4e-4, 2e-4, 16e-4)  # Of the same, where networks are pretrained.
FITTED_RATES = {1.0: 0.03, 0.0: 0.1}
"""Of the teachers of `scenes-fitted`, by context shift: the best on val in `scenes-fitted-tuning` (a test holds it)."""
BEST_OTHER_METHODS = ("i2ckd", "dist", "cwd")
"""The three best on val of the scenes, mean over seeds, each at the best of its weights (a test holds it)."""


def _tried(experiment: Experiment, learning_rate: float, name: str, end: str = "", **changes: object) -> Experiment:
    training = replace(experiment.training, learning_rate=learning_rate)
    return replace(experiment, training=training, name=f"{name}-rate{learning_rate:g}{end}", **changes)


def _methods(size: Size, seeds: int) -> Iterator[Experiment]:
    for seed, method in product(range(seeds), METHODS):
        yield replace(recipe(size, method, seed=seed), name=f"{method}-seed{seed}")


# built-in scenes


def scenes_experiment(method: Method, seed: int, context_shift: float) -> Experiment:
    """The tiny recipe with twice the student's steps and four times the teacher's: what evidence on scenes rests on."""
    experiment = lengthened(recipe("tiny", method, seed=seed, context_shift=context_shift), student=2, teacher=4)
    return replace(experiment, name=f"{method}-context{context_shift:g}-seed{seed}")


def _scenes_methods(context_shifts: tuple[float, ...], longer: int = 1) -> Iterator[Experiment]:
    for seed, context_shift, method in product(range(5), context_shifts, METHODS):
        # measured in the first records of `scenes-longer`, where a step of APD took 1.69 times that of the baseline
        equal = 1.69 / SECONDS_OF_APD["tiny"] if longer > 1 and method == "student_equal_seconds" else 1
        yield lengthened(scenes_experiment(method, seed, context_shift), student=longer * equal, teacher=1)


def _scenes_fitted() -> Iterator[Experiment]:
    """The experiments of `scenes-longer` with networks that fit sides, and teachers at a learning rate of their own."""
    for experiment in map(known.with_fitted_sides, _scenes_methods(tuple(FITTED_RATES), longer=4)):
        training = replace(experiment.teacher.training, learning_rate=FITTED_RATES[experiment.data.context_shift])
        yield replace(experiment, teacher=replace(experiment.teacher, training=training))


def _scenes_fitted_tuning() -> Iterator[Experiment]:
    for shift, tried in product(FITTED_RATES, (0.03, 0.1)):
        teacher = known.with_fitted_sides(scenes_experiment("student", 0, shift)).teacher_experiment()
        yield _tried(teacher, tried, f"teacher-context{shift:g}")


def _scenes_variant(
    key: str, distillers: tuple[DistillerConfig, ...], seed: int, shift: float = 1.0, **changes: object
) -> Experiment:
    name = f"{key}-context{shift:g}-seed{seed}"
    return replace(scenes_experiment("student", seed, shift), name=name, distillers=distillers, **changes)


def _scenes_variants(variants: Callable[[], Iterable[ablations.Variant]], seeds: int = 5) -> Iterator[Experiment]:
    for seed, variant in product(range(seeds), variants()):
        yield _scenes_variant(variant.key, variant.distillers, seed)


def _scenes_tiny_tuning() -> Iterator[Experiment]:
    """One learning rate serves all methods: the baseline's best can be too high for the gradient of a sum of losses."""
    for tried, method in product((0.01, 0.03, 0.1), ("student", "pixel_kd", "apd_without_kd", "apd")):
        yield _tried(scenes_experiment(method, seed=0, context_shift=1.0), tried, method)
    teacher = scenes_experiment("student", seed=0, context_shift=1.0).teacher_experiment()
    yield from (_tried(teacher, tried, "teacher") for tried in (0.03, 0.1, 0.3))


def _scenes_context_shifts() -> Iterator[Experiment]:
    """Between the ends of the context shift, and prototypes of the batch everywhere; the ends are in `scenes-tiny`."""
    batch = next(variant for variant in ablations.option_variants() if variant.key == "scope_batch")
    for seed, context_shift in product(range(5), (0.0, 0.25, 0.5, 0.75, 1.0)):
        if 0 < context_shift < 1:
            for method in ("pixel_kd", "apd"):
                yield scenes_experiment(method, seed, context_shift)
        yield _scenes_variant(batch.key, batch.distillers, seed, context_shift)


def _scenes_heads() -> Iterator[Experiment]:
    """With and without projection heads, which takes a student whose features are as wide as the teacher's."""
    variants = {method: known.DISTILLERS_OF[method] for method in PAIR_METHODS}
    variants[ablations.WITHOUT_HEADS.key] = ablations.WITHOUT_HEADS.distillers
    base = scenes_experiment("student", 0, context_shift=1.0)
    wide = replace(base.network, head_width=base.teacher.network.head_width)
    for seed, (key, distillers) in product(range(5), variants.items()):
        yield _scenes_variant(key, distillers, seed, network=wide)


def _scenes_pairs() -> Iterator[Experiment]:
    for seed, student_head, backbone in product(range(3), known.HEADS, known.STUDENT_LEARNING_RATES):
        yield scenes_pair(student_head, student_head, backbone, "student", seed)
        for teacher_head, method in product(known.HEADS, PAIR_METHODS[1:]):
            yield scenes_pair(teacher_head, student_head, backbone, method, seed)


def _scenes_pairs_tuning() -> Iterator[Experiment]:
    """A teacher's learning rate by its own score, first, because students need them. A student backbone's by the mean
    over both heads and all methods, with a teacher of the same architecture."""
    for head, tried in product(known.HEADS, known.TRIED_PAIR_LEARNING_RATES):
        yield _tried(scenes_pair(head, head, "resnet18", "apd").teacher_experiment(), tried, f"teacher-{head}")
    settings = product(known.STUDENT_LEARNING_RATES, known.HEADS, known.TRIED_PAIR_LEARNING_RATES, PAIR_METHODS)
    for backbone, head, tried, method in settings:
        yield _tried(scenes_pair(head, head, backbone, method), tried, f"{method}-{head}_{backbone}")


# CamVid at half resolution


def _camvid_small_rates() -> Iterator[Experiment]:
    for tried, method in product(TRIED_SMALL_LEARNING_RATES[::-1], TUNED_METHODS):
        yield _tried(recipe("small", method), tried, method, "-seed0")


def _camvid_small_variants(variants: Callable[[], Iterable[ablations.Variant]]) -> Iterator[Experiment]:
    for seed, variant in product(range(3), variants()):
        apd = recipe("small", "apd", seed=seed)
        yield replace(apd, name=f"{variant.key}-seed{seed}", distillers=variant.distillers)


def _fewer_terms() -> Iterator[ablations.Variant]:
    """APD without one of its four terms (without pixel KD at APD's learning rate), and with prototypes of the batch."""
    wanted = ("terms_a_o_kd", "terms_r_o_kd", "terms_r_a_kd", "scope_batch")
    yield from (v for v in (*ablations.term_variants(), *ablations.option_variants()) if v.key in wanted)
    yield ablations.without_kd()


def _best_other_methods() -> Iterator[ablations.Variant]:
    """The three best other methods on scenes and IFVD, at their best weights, and APD with the best two of them."""
    variants = {variant.key: variant for variant in ablations.plain_variants()}
    best = [ablations.variant_at_best(variants[key]) for key in (*BEST_OTHER_METHODS, "ifvd")]
    yield from (*best, *map(ablations.with_apd, best[:2]))


# pretrained networks


def _facade_tuning() -> Iterator[Experiment]:
    """The student's schedule, which has converged where twice the steps bring less than half a point; the teachers."""
    base = recipe("facade-small", "student")
    student, teacher = replace(base, teacher=None), base.teacher_experiment()
    teachers = [(teacher, "teacher", stride, steps, 8e-4) for stride, steps in ((16, 1200), (8, 1200), (8, 2400))]
    students = [(student, "student", 16, 1200, tried) for tried in (5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 16e-4)]
    students += [(student, "student", 16, steps, 8e-4) for steps in (2400, 4800)]
    for experiment, role, stride, steps, tried in (*students, *teachers):
        network = replace(experiment.network, output_stride=stride)
        changed = replace(experiment, network=network, training=replace(experiment.training, iterations=steps))
        yield _tried(changed, tried, f"{role}-stride{stride}-steps{steps}")


def _learning_rates(size: known.RealSize) -> Iterator[Experiment]:
    """Trials beside the runs of seed 0 in the main campaign of a size, which are at the learning rates chosen."""
    for tried, method in product(TRIED_LEARNING_RATES, TUNED_METHODS):
        experiment = recipe(size, method)
        if tried != experiment.training.learning_rate:
            yield _tried(experiment, tried, method, "-seed0", **({"teacher": None} if method == "student" else {}))


def _facade_pairs() -> Iterator[Experiment]:
    for seed, method in product(range(3), PAIR_METHODS):
        experiment = recipe("facade-small", method, seed=seed)
        yield replace(experiment, network=known.SECOND_STUDENT, name=f"{method}-second_student-seed{seed}")
        if method != "student":
            teacher = replace(experiment.teacher, network=known.SECOND_TEACHER)
            yield replace(experiment, teacher=teacher, name=f"{method}-second_teacher-seed{seed}")


def _facade_few_labels() -> Iterator[Experiment]:
    """A tenth of the labels: the baseline, APD, and APD and pixel KD with the other images, unlabelled, as well.

    Half the steps of `facade-small` for the student, a third for the teacher; all at the baseline's learning rate.
    """
    variants = ("student", False), ("apd", False), ("apd", True), ("pixel_kd", True)
    for seed, (method, more) in product(range(3), variants):
        experiment = lengthened(recipe("facade-small", method, seed=seed), student=1 / 2, teacher=1 / 3)
        data = replace(experiment.data, labelled_share=0.1, unlabelled=more)
        training = replace(experiment.training, learning_rate=known.LEARNING_RATES["labelmefacade"]["student"])
        name = f"{method}{'_unlabelled' if more else ''}-seed{seed}"
        teacher = None if method == "student" else experiment.teacher
        yield replace(experiment, name=name, data=data, training=training, teacher=teacher)


def _fitted_sides() -> Iterator[Experiment]:
    """The pretrained baseline on CamVid at sides that do not fit its stride of 16, and at the nearest that do."""
    for seed in range(3):
        camvid = recipe("camvid-small", "student", seed=seed)
        camvid = replace(camvid, network=known.STUDENT, teacher=replace(camvid.teacher, network=known.TEACHER))
        data = replace(camvid.data, height=180, width=240, crop_height=160, crop_width=224)
        yield replace(camvid, data=data, name=f"student-camvid-seed{seed}")
        data = replace(data, height=177, width=241, crop_height=161, crop_width=225)
        yield replace(camvid, data=data, teacher=None, name=f"fitted-camvid-seed{seed}")


# detection


def _scenes_detection() -> Iterator[Experiment]:
    for seed, variant in product(range(3), published.detection_variants()):
        yield published.scenes_detection_experiment(variant, seed)


def _scenes_detection_tuning() -> Iterator[Experiment]:
    """Teachers first, as students need one; then the students' learning rate by three methods at their untuned weights,
    and every method's weights at that. Box AP decides."""
    student = published.scenes_detection_experiment("student", seed=0)
    for tried in published.TRIED_TEACHER_LEARNING_RATES:
        yield _tried(student.teacher_experiment(), tried, "teacher")
    for tried, method in product(published.TRIED_STUDENT_LEARNING_RATES, published.LEARNING_RATE_METHODS):
        yield _tried(student, tried, method, "-seed0", distillers=published.distillers_on_scenes(method, 1.0))
    for factor, method in product(published.DETECTION_FACTORS, published.UNTUNED):
        run_above = factor == 1 and method in published.LEARNING_RATE_METHODS
        if method != "student" and not run_above:
            distillers = published.distillers_on_scenes(method, factor)
            yield replace(student, name=f"{method}_x{factor:g}-seed0", distillers=distillers)


def _tiny_coco() -> Iterator[Experiment]:
    """Training and evaluation on real images: the baseline, then with APD from a ResNet-50."""
    for method in ("student", "roi_apd"):
        yield replace(published.detection_recipe("tiny_coco", method), name=f"{method}-seed0")


CAMPAIGNS: dict[str, Callable[[], Iterator[Experiment]]] = {
    "scenes-tiny": partial(_scenes_methods, (0.0, 1.0)),
    "scenes-tiny-tuning": _scenes_tiny_tuning,
    # four times the student's steps, the same teacher; learning rates were not tried anew
    "scenes-longer": partial(_scenes_methods, (1.0, 0.0), longer=4),
    "scenes-fitted": _scenes_fitted,
    "scenes-fitted-tuning": _scenes_fitted_tuning,
    "scenes-shifts": _scenes_context_shifts,
    "scenes-terms": partial(_scenes_variants, ablations.term_variants),
    "scenes-options": partial(_scenes_variants, ablations.option_variants),
    "scenes-rivals": partial(_scenes_variants, ablations.other_method_variants),
    "scenes-rivals-tuning": partial(_scenes_variants, ablations.trial_variants, seeds=1),
    "scenes-tuned": partial(_scenes_variants, ablations.tuned_variants),
    "scenes-heads": _scenes_heads,
    "scenes-combined": partial(_scenes_variants, ablations.combined_variants),
    "scenes-pairs": _scenes_pairs,
    "scenes-pairs-tuning": _scenes_pairs_tuning,
    "camvid-small": partial(_methods, "small", seeds=3),
    "camvid-small-rates": _camvid_small_rates,
    "camvid-small-ablations": partial(_camvid_small_variants, _fewer_terms),
    "camvid-small-rivals": partial(_camvid_small_variants, _best_other_methods),
    "facade-tuning": _facade_tuning,
    "facade-learning-rates": partial(_learning_rates, "facade-small"),
    "facade-small": partial(_methods, "facade-small", seeds=3),
    "facade-pairs": _facade_pairs,
    "facade-few-labels": _facade_few_labels,
    "camvid-pretrained": partial(_methods, "camvid-small", seeds=3),
    "camvid-learning-rates": partial(_learning_rates, "camvid-small"),
    "fitted-sides": _fitted_sides,
    "facade-full": partial(_methods, "facade-full", seeds=3),
    "camvid-full": partial(_methods, "camvid-full", seeds=5),
    "scenes-detection": _scenes_detection,
    "scenes-detection-tuning": _scenes_detection_tuning,
    "tiny-coco": _tiny_coco,
}


class CampaignError(UsageError):
    """There is no campaign or experiment of that name, or a number is wrong; the message says what was expected."""


def experiments_of(name: str) -> list[Experiment]:
    """The experiments of a campaign, in order. CampaignError where the name is unknown."""
    if name not in CAMPAIGNS:
        hint = did_you_mean(name, CAMPAIGNS)
        raise CampaignError(f"there is no campaign {name!r}: expected one of {', '.join(CAMPAIGNS)}{hint}")
    return list(CAMPAIGNS[name]())


def untrained_teacher(experiment: Experiment) -> Experiment | None:
    """The run that has to be finished before this one can begin, or None."""
    needed = experiment.teacher is not None and not experiment.teacher.weights_file
    teacher = experiment.teacher_experiment() if needed else None
    return teacher if teacher and not (run_folder(teacher) / "record.json").exists() else None


def steps_done(run: Experiment) -> int:
    """The step of a run's newest checkpoint; 0 without one."""
    found = (run_folder(run) / "checkpoints").glob("step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)
