"""An experiment that cannot be run fails when it is made: field, value and what was expected are told."""

import dataclasses
import math
import re
from dataclasses import replace
from typing import get_args

import pytest
from small_experiments import NETWORK, TEACHER, tiny

from apd.config.experiment import (
    DataConfig,
    Experiment,
    ExperimentError,
    NetworkConfig,
    TeacherConfig,
    TrainingConfig,
)
from apd.config.inference import InferenceOptions
from apd.distillers.apd import APDConfig
from apd.distillers.logits import PixelKDConfig
from apd.study.recipes import (
    LEARNING_RATES,
    METHOD_NAMES,
    METHODS,
    REAL_SIZES,
    SMALL_LEARNING_RATES,
    Size,
    methods_of,
    recipe,
)

CONFIGS = (DataConfig, NetworkConfig, TrainingConfig, PixelKDConfig, APDConfig, TeacherConfig, Experiment)

WRONG = [
    (DataConfig, "name", "camvd", "folder; did you mean 'camvid'?"),
    (DataConfig, "height", 31, "expected an integer >= 32, or 0"),
    (DataConfig, "height", -1, "expected an integer >= 32, or 0"),
    (DataConfig, "long_side", 31, "expected an integer >= 32, or 0"),
    (DataConfig, "folder", None, "expected a text"),
    (DataConfig, "crop_width", 48.0, "expected a whole number"),
    (DataConfig, "evaluation_split", "train", "expected one of val, test"),
    (DataConfig, "scale_min", 3.0, "expected 0 < scale_min <= scale_max 2.0"),
    (DataConfig, "scale_max", math.inf, "expected a finite number"),
    (DataConfig, "flip", 1.5, "expected a probability between 0 and 1"),
    (DataConfig, "jitter", 1.0, "expected 0 <= jitter < 1"),
    (DataConfig, "rotation", 190.0, "expected degrees between 0 and 180"),
    (DataConfig, "blur", 5.0, "expected a probability between 0 and 1"),
    (DataConfig, "context_shift", -0.1, "expected a number between 0 and 1"),
    (DataConfig, "train_images", 0, "expected at least 1"),
    (DataConfig, "evaluation_images", 2.5, "expected a whole number"),
    (DataConfig, "world", -1, "expected an integer >= 0"),
    (NetworkConfig, "backbone", None, "expected a text"),
    (NetworkConfig, "head", "pspp", "expected one of psp, aspp; did you mean 'psp'?"),
    (NetworkConfig, "dilation", "all_conv", "expected one of one_conv, all_convs; did you mean 'all_convs'?"),
    (NetworkConfig, "aspp_reach", 96, "expected 288, the default: the head psp has none"),
    (NetworkConfig, "weights_file", "r18.pth", "expected weights = 'imagenet' beside it, not 'none'"),
    (NetworkConfig, "output_stride", 32, "expected one of 4, 8, 16"),
    (NetworkConfig, "output_stride", 8.0, "expected one of 4, 8, 16"),
    (NetworkConfig, "weights", "imagnet", "expected one of none, imagenet, torchvision; did you mean 'imagenet'?"),
    (NetworkConfig, "head_width", 3, "expected an integer >= 4"),
    (NetworkConfig, "dropout", 1.0, "expected 0 <= dropout < 1"),
    (TrainingConfig, "iterations", 0, "expected an integer >= 1"),
    (TrainingConfig, "batch_size", 1, "expected at least 2: batch norm cannot train on one pooled vector"),
    (TrainingConfig, "batch_size", True, "expected a whole number"),
    (TrainingConfig, "learning_rate", "fast", "expected a finite number"),
    (TrainingConfig, "learning_rate", math.nan, "expected a finite number"),
    (TrainingConfig, "learning_rate", 0.0, "expected a number > 0"),
    (TrainingConfig, "head_multiplier", -10.0, "expected a number > 0"),
    (TrainingConfig, "momentum", 1.0, "expected 0 <= momentum < 1"),
    (TrainingConfig, "weight_decay", -1e-4, "expected a number >= 0"),
    (TrainingConfig, "clip_norm", 0.0, "expected None or a number > 0"),
    (TrainingConfig, "ema_decay", 1.0, "expected None or a number in (0, 1)"),
    (TrainingConfig, "evaluations", 1.5, "expected a whole number"),
    (TrainingConfig, "optimiser", "adam", "expected one of sgd, adamw; did you mean 'adamw'?"),
    (TrainingConfig, "schedule", "step", "expected one of poly, steps; did you mean 'steps'?"),
    (TrainingConfig, "milestones", (600,), "expected (), the default: the schedule poly has none"),
    (TrainingConfig, "milestones", (0.6,), "expected a tuple of whole numbers"),
    (TrainingConfig, "milestones", (True,), "expected a tuple of whole numbers"),
    (TrainingConfig, "warmup", -1, "expected an integer from 0 to below iterations 1000"),
    (TrainingConfig, "warmup", 1000, "expected an integer from 0 to below iterations 1000"),
    (PixelKDConfig, "weight", 0.0, "expected a number > 0; to leave the term out, leave the distiller out"),
    (PixelKDConfig, "temperature", 0.0, "expected a number > 0"),
    (PixelKDConfig, "method", "apd", "expected one of pixel_kd"),
    (APDConfig, "width", 0, "expected None or an integer >= 1"),
    (APDConfig, "width", None, "APDConfig.regularisation = 1.0: expected 0 where width is None"),
    (APDConfig, "scale", 0.0, "expected a number > 0"),
    (APDConfig, "scope", "images", "expected one of image, batch; did you mean 'image'?"),
    (APDConfig, "observation", -1.0, "expected a number >= 0"),
    (TeacherConfig, "seed", -1, "expected an integer from 0 to 2^63 - 1"),
    (TeacherConfig, "network", "resnet18", "expected a NetworkConfig"),
    (TeacherConfig, "expected_miou", 45.7, "expected a fraction between 0 and 1"),
    (Experiment, "name", "a/b", "letters, digits, '-', '_' and '.' only: it names a folder"),
    (Experiment, "name", "", "letters, digits, '-', '_' and '.' only: it names a folder"),
    (Experiment, "seed", 2**63, "expected an integer from 0 to 2^63 - 1"),
    (Experiment, "seed", 1.0, "expected a whole number"),
    (Experiment, "data", {"name": "scenes"}, "expected a DataConfig"),
    (Experiment, "precision", "fp16", "expected one of auto, fp32, bf16"),
    (Experiment, "teacher", "resnet", "expected a TeacherConfig or None"),
    (Experiment, "inference", None, "expected an InferenceOptions"),
    (
        Experiment,
        "inference",
        InferenceOptions(scales=(0.25, 1)),
        "expected scales and a window with sides of at least 32 pixels, got 24",
    ),
    (
        Experiment,
        "inference",
        InferenceOptions(window=(96, 31)),
        "expected scales and a window with sides of at least 32 pixels, got 31",
    ),
    (Experiment, "distillers", [PixelKDConfig()], "expected a tuple of DistillerConfig"),
    (Experiment, "distillers", (TrainingConfig(),), "expected a tuple of DistillerConfig"),
]


@pytest.mark.parametrize(("kind", "name", "value", "told"), WRONG, ids=lambda x: getattr(x, "__name__", repr(x)[:30]))
def test_a_wrong_value_is_refused_with_its_field_the_value_and_what_was_expected(kind, name, value, told):
    with pytest.raises(ExperimentError) as caught:
        kind(**{name: value})
    assert told in str(caught.value)
    if not told.startswith("APDConfig"):
        assert str(caught.value).startswith(f"{kind.__name__}.{name} = {value!r}: expected ")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "ade20k", "height": 0}, "DataConfig.width = 128: expected 0 only together with height 0"),
        ({"name": "ade20k", "width": 0}, "DataConfig.width = 0: expected 0 only together with height 96"),
        ({"height": 0, "width": 0}, "DataConfig.height = 0: expected an integer >= 32: scenes have no own size"),
        ({"name": "folder"}, "DataConfig.folder = '': expected the path of a folder with a dataset.yaml"),
    ],
    ids=["height", "width", "scenes", "folder"],
)
def test_fields_of_the_data_that_do_not_fit_together_are_refused(fields, told):
    with pytest.raises(ExperimentError, match=f"^{told}$"):
        DataConfig(**fields)
    assert DataConfig(name="ade20k", height=0, width=0, long_side=512).long_side == 512


@pytest.mark.parametrize("milestones", [(), (0,), (1000,), (600, 600), (800, 600), (-5, 600)])
def test_milestones_stand_in_order_between_the_first_and_the_last_iteration(milestones):
    told = f"TrainingConfig.milestones = {milestones}: expected at least one iteration, increasing, above 0 and below"
    with pytest.raises(ExperimentError, match=f"^{re.escape(told)} iterations 1000$"):
        TrainingConfig(schedule="steps", milestones=milestones)
    assert TrainingConfig(schedule="steps", milestones=[1, 999]).milestones == (1, 999)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"optimiser": "adamw", "momentum": 0.8}, "momentum = 0.8: expected 0.9, the default: the optimiser adamw"),
        (
            {"schedule": "steps", "milestones": (9,), "power": 1.0},
            "power = 1.0: expected 0.9, the default: the schedule steps has none",
        ),
    ],
    ids=["momentum", "power"],
)
def test_a_field_that_plays_no_part_is_left_at_its_default(fields, told):
    with pytest.raises(ExperimentError, match=re.escape(f"TrainingConfig.{told}")):
        TrainingConfig(**fields)


def test_every_class_of_fields_has_been_given_wrong_values():
    assert {kind for kind, *_ in WRONG} == set(CONFIGS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_field_takes_a_value_of_a_foreign_type(kind):
    for field in dataclasses.fields(kind):
        with pytest.raises(ExperimentError, match=rf"{kind.__name__}\.{field.name} = "):
            kind(**{field.name: object()})


def test_a_whole_number_given_for_a_real_one_makes_the_same_experiment():
    rate = TrainingConfig(learning_rate=1, clip_norm=5).learning_rate
    assert (rate, type(rate)) == (1.0, float)
    assert type(TrainingConfig(learning_rate=1, clip_norm=5).clip_norm) is float
    assert type(TrainingConfig(iterations=7).iterations) is int


def test_an_experiment_cannot_be_changed_after_its_checks():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().seed = 1


def test_distillers_without_a_teacher_are_refused():
    with pytest.raises(ExperimentError, match=r"Experiment\.teacher = None: distillers need a teacher"):
        Experiment(distillers=(PixelKDConfig(),))


def test_a_method_given_twice_is_refused():
    with pytest.raises(ExperimentError, match=r"Experiment\.distillers = .*: expected each method at most once"):
        replace(tiny("apd"), distillers=(APDConfig(), APDConfig(width=4)))


def test_apd_of_which_nothing_is_left_is_refused():
    with pytest.raises(ExperimentError, match=r"APDConfig: .* are all 0: expected one above 0"):
        APDConfig(regularisation=0, alignment=0, observation=0, pixel_kd=0)


def test_without_projection_heads_both_networks_need_features_of_one_width():
    headless = (APDConfig(width=None, regularisation=0),)
    with pytest.raises(ExperimentError, match=r"network\.head_width = 8 and teacher\.network\.head_width = 12"):
        replace(tiny("apd"), distillers=headless)
    same = replace(tiny("apd"), distillers=headless, teacher=replace(TEACHER, network=NETWORK))
    assert same.distillers == headless


def test_the_teachers_experiment_has_the_students_data_and_no_teacher_of_its_own():
    experiment = replace(tiny("apd", seed=5), teacher=replace(TEACHER, seed=2))
    teacher = experiment.teacher_experiment()
    assert (teacher.data, teacher.precision) == (experiment.data, experiment.precision)
    assert (teacher.network, teacher.training, teacher.seed) == (TEACHER.network, TEACHER.training, 2)
    assert (teacher.teacher, teacher.distillers) == (None, ())
    flipped = replace(experiment, inference=InferenceOptions(flip=True))
    assert flipped.teacher_experiment() == teacher, "one teacher serves all ways to look"
    with pytest.raises(ExperimentError, match="this experiment has no teacher"):
        teacher.teacher_experiment()


@pytest.mark.parametrize("size", get_args(Size))
def test_the_methods_of_a_recipe_differ_in_what_the_method_is_and_in_nothing_else(size):
    assert set(METHODS) == set(METHOD_NAMES)
    student = recipe(size, "student", seed=3)
    for method in methods_of(size):
        other = recipe(size, method, seed=3)
        assert (other.name, other.seed) == (f"{size}-{method}-seed3", 3)
        if method == "student_equal_seconds":
            assert other.training.iterations > student.training.iterations
            other = replace(other, training=replace(other.training, iterations=student.training.iterations))
        if size in ("small", "full", *REAL_SIZES):  # each method's best on val; held to the records in test_rates
            rates = LEARNING_RATES if size in REAL_SIZES else SMALL_LEARNING_RATES
            assert other.training.learning_rate == rates[method]
            rate = student.training.learning_rate
            other = replace(other, training=replace(other.training, learning_rate=rate))
        taught = replace(student, teacher=other.teacher) if student.teacher is None else student
        assert replace(other, name=student.name, distillers=()) == taught
        assert bool(other.distillers) == (not method.startswith("student"))
        if other.teacher is not None:  # the student alone may have none
            one_of_them = recipe(size, methods_of(size)[-1])
            assert other.teacher_experiment() == one_of_them.teacher_experiment()


@pytest.mark.parametrize(
    ("size", "method", "named"), [("tny", "apd", "size = 'tny'"), ("tiny", "adp", "method = 'adp'")]
)
def test_an_unknown_recipe_is_refused(size, method, named):
    with pytest.raises(ExperimentError, match=named):
        recipe(size, method)
