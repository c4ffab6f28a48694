"""Recipes: one function returns the full configuration of an experiment, its size an argument."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig
from apd.distillers.apd import APDConfig
from apd.distillers.base import DistillerConfig
from apd.distillers.logits import PixelKDConfig
from apd.fields import ExperimentError, did_you_mean
from apd.study import published_recipes as published

RealSize = Literal["facade-small", "facade-full", "camvid-small", "camvid-full"]
REAL_SIZES: tuple[RealSize, ...] = get_args(RealSize)
Size = Literal["tiny", "small", "full", RealSize, published.PaperSize, published.DetectionSize]
Method = Literal["student", "student_equal_seconds", "pixel_kd", "apd", "apd_without_kd"]
AnyMethod = Literal[Method, published.DetectionMethod]
METHODS: tuple[Method, ...] = get_args(Method)
METHOD_NAMES: dict[str, str] = {
    "student": "baseline",
    "student_equal_seconds": "equal-time baseline",
    "pixel_kd": "+ pixel KD",
    "apd_without_kd": "+ APD without pixel KD",
    "apd": "+ APD",
}
DISTILLERS_OF: dict[Method, tuple[DistillerConfig, ...]] = {
    "student": (),
    "student_equal_seconds": (),
    "pixel_kd": (PixelKDConfig(),),
    "apd": (APDConfig(),),
    "apd_without_kd": (APDConfig(pixel_kd=0.0),),
}
"""The distillers a method adds to the task loss, with the weights that all sizes but the paper's share."""
OF_FINER_TEACHERS: dict[Method, tuple[DistillerConfig, ...]] = DISTILLERS_OF | {
    "pixel_kd": (PixelKDConfig(upsample_logits=True),),
    "apd": (APDConfig(upsample_logits=True),),
}
"""The same for a teacher on a finer grid, whose logits averaged down to the student's lose thin objects."""

SECONDS_OF_APD = {"facade-small": 2.09, "facade-full": 1.5, "camvid-small": 2.14, "camvid-full": 1.5}
SECONDS_OF_APD |= {"tiny": 1.6, "small": 1.45, "full": 1.45}
"""A step of APD as a multiple of the baseline's. facade-small: by core seconds (a test holds it to the records of seed
0 within 3 %). camvid-small: measured at 160×224. Full sizes: not measured. The last three were set before any run."""
SMALL_LEARNING_RATES = dict.fromkeys(METHODS, 0.04) | {"pixel_kd": 0.02, "apd": 0.02}
"""Of each method on CamVid with small networks: the best of three on val (`camvid-small-rates`; a test holds it). The
gradient grows with every loss that is added, so one learning rate would not be fair to all."""
LEARNING_RATES: dict[str, dict[Method, float]] = {
    "labelmefacade": dict.fromkeys(METHODS, 8e-4) | dict.fromkeys(("pixel_kd", "apd", "apd_without_kd"), 4e-4),
    "camvid": dict.fromkeys(METHODS, 8e-4),
}
"""At REAL_SIZES, with AdamW. LabelMeFacade: the best on val so far (a test holds it); CamVid: the baseline's there."""

ADAMW = TrainingConfig(optimiser="adamw", learning_rate=8e-4, weight_decay=0.01)
STUDENT = NetworkConfig(backbone="mobilenetv2_100", weights="torchvision")
TEACHER = NetworkConfig(backbone="efficientnet_lite2", weights="imagenet", head_width=256, output_stride=8)
SECOND_STUDENT = NetworkConfig(backbone="mobilenetv2_050")  # Half as wide, and from random weights.
SECOND_TEACHER = replace(TEACHER, backbone="efficientnet_lite0", head="aspp", aspp_reach=80)
"""A DeepLabV3 whose largest dilation reaches half a crop of the small recipes."""

_SCENES = {"evaluation_split": "test", "scale_min": 0.75, "scale_max": 1.5}
_TINY = Experiment(
    data=DataConfig(width=96, train_images=400, evaluation_images=200, **_SCENES),
    network=NetworkConfig(backbone="test_efficientnet", head_width=32, output_stride=4),
    training=TrainingConfig(iterations=200, learning_rate=0.03, evaluations=2),
    precision="fp32",
    teacher=TeacherConfig(
        network=NetworkConfig(backbone="test_efficientnet", output_stride=4),
        training=TrainingConfig(iterations=600, learning_rate=0.1, evaluations=2),
    ),
)
"""Scenes; both networks start at random, at output stride 4 because a pole is two pixels wide here. Both learning rates
are the best of three on val at context_shift 1, the student's over all methods (`scenes-tiny-tuning`)."""


def _two(data: DataConfig, student: NetworkConfig, teacher: NetworkConfig, *trainings: TrainingConfig) -> Experiment:
    """A student and its teacher, with a training each."""
    with_training = TeacherConfig(network=teacher, training=trainings[-1])
    return Experiment(data=data, network=student, training=trainings[0], teacher=with_training)


_CAMVID = {"name": "camvid", "evaluation_split": "test", "jitter": 0.2}
_HALF = DataConfig(**_CAMVID, height=180, width=240, crop_height=160, crop_width=160)
_WHOLE = DataConfig(**_CAMVID, height=360, width=480, crop_height=320, crop_width=320)
_PLAIN = SECOND_STUDENT, NetworkConfig(backbone="efficientnet_lite0", head_width=256, weights="imagenet")
# images of LabelMeFacade keep their shape and are loaded with their short side of 320 pixels
_FACADE = {**_CAMVID, "name": "labelmefacade", "height": 0, "width": 0}
_CROP, _LARGE = {"crop_height": 160, "crop_width": 224}, {"crop_height": 321, "crop_width": 321}
_ON_GPU = {"device_augmentation": True, "cuda_graph": True, "fused": True}
"""What a GPU needs that shall not wait for the host; the small sizes are for a CPU."""


def _real(data: DataConfig, student: int, teacher: int, batch: int, **more: bool) -> Experiment:
    """Networks that start from ImageNet, with so many steps of the student and of the teacher."""
    trainings = (replace(ADAMW, iterations=steps, batch_size=batch, **more) for steps in (student, teacher))
    return _two(data, STUDENT, TEACHER, *trainings)


_BASES: dict[Size, Experiment] = {
    "tiny": _TINY,
    # half the size for minutes a run on one CPU core; the distillers' weights were not tuned
    "small": _two(_HALF, *_PLAIN, TrainingConfig(iterations=1500)),
    "full": _two(_WHOLE, *_PLAIN, TrainingConfig(iterations=12000, batch_size=16)),
    # tested at six tenths of that for most shapes, and so trained from 0.75 to 1.75 of what is seen then
    "facade-small": _real(DataConfig(**_FACADE, **_CROP, long_side=256, scale_min=0.45, scale_max=1.05), 2400, 2400, 8),
    "facade-full": _real(DataConfig(**_FACADE, **_LARGE, scale_min=0.75, scale_max=1.75), 3000, 6000, 16, **_ON_GPU),
    "camvid-small": _real(DataConfig(**_CAMVID, height=193, width=257, crop_height=161, crop_width=225), 2400, 1200, 8),
    "camvid-full": _real(replace(_WHOLE, **_LARGE), 3000, 6000, 16, **_ON_GPU),
}


def methods_of(size: Size) -> tuple[AnyMethod, ...]:
    """The methods that a size has: all of its task, but at the paper's none that needs a step's measured seconds."""
    if size in get_args(published.DetectionSize):
        return published.detection_methods_of(size)
    return published.PAPER_METHODS if size in get_args(published.PaperSize) else METHODS


def default_method(size: Size) -> AnyMethod:
    """APD, in the form that is for the size's task: "apd", or "roi_apd" of boxes."""
    return "roi_apd" if size in get_args(published.DetectionSize) else "apd"


def recipe(
    size: Size = "tiny", method: AnyMethod | None = None, *, seed: int = 0, context_shift: float = 0.5
) -> Experiment:
    """The experiment of one method at one size. ExperimentError for an unknown one.

    `size` is tiny (built-in scenes, under a minute on a CPU), small and full (CamVid on a CPU or on a GPU), one of
    REAL_SIZES (networks from ImageNet), or of `paper_recipe` (four GPUs) or `detection_recipe` of
    :mod:`apd.study.published_recipes`; `method` one of :func:`methods_of` it (default: its APD). `seed` is the
    student's, data and teacher stay the same. `context_shift` is for the tiny recipe's scenes.

    >>> recipe("tiny", "pixel_kd", seed=3).name
    'tiny-pixel_kd-seed3'
    """
    method = method or default_method(size)
    if size not in get_args(Size):
        raise ExperimentError(f"size = {size!r}: expected one of {', '.join(get_args(Size))}")
    if method not in (methods := methods_of(size)):
        elsewhere = next((f"; it is of size {s}" for s in get_args(Size) if method in methods_of(s)), "")
        there_are = f"{', '.join(methods)} at size {size}{elsewhere or did_you_mean(method, methods)}"
        raise ExperimentError(f"method = {method!r}: expected one of {there_are}")
    if size in get_args(published.DetectionSize):
        return published.detection_recipe(size, method, seed=seed)
    if size in get_args(published.PaperSize):
        return published.paper_recipe(size, method, seed=seed)
    fits = size in REAL_SIZES and size != "facade-small"  # whose records are of sides that do not fit
    distillers = (OF_FINER_TEACHERS if fits else DISTILLERS_OF)[method]
    base = replace(_BASES[size], name=f"{size}-{method}-seed{seed}", seed=seed, distillers=distillers)
    base = with_fitted_sides(base) if fits else base
    training = base.training
    if size == "tiny":
        base = replace(base, data=replace(base.data, context_shift=context_shift))
    else:
        chosen = LEARNING_RATES[base.data.name] if size in REAL_SIZES else SMALL_LEARNING_RATES
        training = replace(training, learning_rate=chosen[method])
    if method == "student_equal_seconds":
        training = replace(training, iterations=round(training.iterations * SECONDS_OF_APD[size]))
    return replace(base, training=training)


def with_fitted_sides(experiment: Experiment) -> Experiment:
    """The same with networks that fit sides to their stride and, of the distillers only APD, labels where cells are."""
    network, teacher = replace(experiment.network, fit_sides=True), experiment.teacher
    teacher = teacher and replace(teacher, network=replace(teacher.network, fit_sides=True))
    of_apd = (replace(d, align_corners=True) if isinstance(d, APDConfig) else d for d in experiment.distillers)
    return replace(experiment, network=network, teacher=teacher, distillers=tuple(of_apd))


def lengthened(experiment: Experiment, *, student: float, teacher: float) -> Experiment:
    """The same experiment with that many times the steps and milestones, for the student and for its teacher."""

    def longer(owner: Any, factor: float) -> Any:
        steps, *milestones = (round(factor * at) for at in (owner.training.iterations, *owner.training.milestones))
        return replace(owner, training=replace(owner.training, iterations=steps, milestones=tuple(milestones)))

    taught = experiment.teacher and longer(experiment.teacher, teacher)
    return replace(longer(experiment, student), teacher=taught)


# pairs of networks on scenes: same-architecture where teacher and student have the same head, else cross-architecture

Head = Literal["psp", "aspp"]
HEADS: tuple[Head, ...] = get_args(Head)
PAIR_METHODS: tuple[Method, ...] = ("student", "pixel_kd", "apd")
STUDENT_LEARNING_RATES = {"resnet18": 0.01, "mobilenetv2_050": 0.03, "test_efficientnet": 0.03}
"""Of each student backbone (the published ones, at sizes for a CPU), for both heads, all teachers and all methods: the
best of TRIED_PAIR_LEARNING_RATES in the campaign `scenes-pairs-tuning` (a test holds it)."""
TEACHER_LEARNING_RATES: dict[Head, float] = {"psp": 0.03, "aspp": 0.03}
"""Of each teacher, by its head: the best of TRIED_PAIR_LEARNING_RATES by its own score on val."""
TRIED_PAIR_LEARNING_RATES = (0.01, 0.03, 0.1)


def scenes_pair(teacher_head: Head, student_head: Head, backbone: str, method: Method, seed: int = 0) -> Experiment:
    """One run of a pair, PSPNet or DeepLabV3 in either role, on the tiny recipe's scenes with weights from random.

    Output stride 8, as published; DeepLabV3 reaches half a crop (released: 0.4 to 0.6); the baseline has no teacher.
    """

    def network(head: Head, backbone: str, width: int) -> NetworkConfig:
        reach = {"aspp_reach": 32} if head == "aspp" else {}
        return NetworkConfig(backbone=backbone, head=head, head_width=width, output_stride=8, **reach)

    base, student, teacher = _TINY, f"{student_head}_{backbone}", None
    if method != "student":
        trained = replace(lengthened(base, student=1, teacher=4).teacher.training, evaluations=1)
        teacher = TeacherConfig(
            network=network(teacher_head, base.teacher.network.backbone, base.teacher.network.head_width),
            training=replace(trained, learning_rate=TEACHER_LEARNING_RATES[teacher_head]),
        )
        student += f"_from_{teacher_head}"
    return replace(
        base,
        name=f"{method}-{student}-seed{seed}",
        seed=seed,
        data=replace(base.data, crop_height=64, crop_width=64),
        network=network(student_head, backbone, base.network.head_width),
        training=replace(base.training, learning_rate=STUDENT_LEARNING_RATES[backbone], evaluations=1),
        teacher=teacher,
        distillers=DISTILLERS_OF[method],
    )


def all_recipes() -> Iterator[tuple[str, Experiment]]:
    """Every size with every method, by name."""
    return ((f"{size}-{method}", recipe(size, method)) for size in get_args(Size) for method in methods_of(size))


def value_sources(section: str) -> dict[str, str]:
    """Where values were read, by field or by what fields begin with, of a section of ``sources.txt``."""
    text = Path(__file__).with_name("sources.txt").read_text(encoding="utf-8").partition(f"[{section}]\n")[2]
    lines = (line.split(" | ") for line in text.partition("\n\n")[0].splitlines())
    return {field: source for source, fields in lines for field in fields.split()}


def sourced_lines(name: str) -> Iterator[str]:
    """The recipe of a name such as "coco-roi_apd", a field a line with its value's source; none where all are ours."""
    size, method = name.rsplit("-", 1)
    sources = value_sources("coco" if size in get_args(published.CocoSize) else "released")
    if size.endswith(published.CORRECTED):
        sources |= value_sources("corrected")
    ours = size not in get_args(Literal[published.CocoSize, published.PaperSize])
    for field, value, default in () if ours else published.leaves(recipe(size, method)):
        known = [name for name in sources if f"{field}.".startswith(f"{name}.")]
        source = sources[max(known, key=len)] if known and (value != default or field in known) else ""
        shown = f"{value:.6g}" if isinstance(value, float) else repr(value) if value == "" else str(value)
        yield f"{field:36s} {shown:16s} {source or 'default'}"
