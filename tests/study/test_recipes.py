"""Recipes of every size: methods that differ in nothing but what they are, and a source for every published value."""

from dataclasses import replace
from typing import get_args

import pytest

from apd.cli.app import main
from apd.fields import ExperimentError
from apd.study.coco_recipes import CocoSize, DetectionSize, detection_methods_of
from apd.study.published_recipes import PAPER_METHODS, PaperSize, leaves
from apd.study.recipes import (
    LEARNING_RATES,
    METHOD_NAMES,
    METHODS,
    REAL_SIZES,
    SMALL_LEARNING_RATES,
    Size,
    all_recipes,
    methods_of,
    recipe,
    value_sources,
)


@pytest.mark.parametrize("size", get_args(Size))
def test_the_methods_of_a_recipe_differ_in_what_the_method_is_and_in_nothing_else(size):
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
        if other.teacher is not None:  # the baseline may have none
            assert other.teacher_experiment() == recipe(size, methods_of(size)[-1]).teacher_experiment()


def test_every_recipe_is_listed_under_its_name_and_a_size_alone_is_with_apd():
    listed = dict(all_recipes())
    assert set(METHODS) == set(METHOD_NAMES)
    assert list(listed) == [f"{size}-{method}" for size in get_args(Size) for method in methods_of(size)]
    for size in get_args(Size):
        assert recipe(size) == listed[f"{size}-{'roi_apd' if size in get_args(DetectionSize) else 'apd'}"]


@pytest.mark.parametrize(
    ("size", "method", "message"),
    [
        ("tny", "apd", "size = 'tny': expected one of tiny, small, full"),
        ("tiny", "roi_apd", "method = 'roi_apd': expected one of student"),
        ("ade20k", "student_equal_seconds", "'student_equal_seconds': expected one of student, pixel_kd, apd"),
        ("coco_boxes", "dense_apd", "'dense_apd': expected one of student, roi_kd, review_kd, roi_apd at"),
    ],
)
def test_an_unknown_size_or_method_is_refused_with_what_there_is(size, method, message):
    with pytest.raises(ExperimentError, match=message):
        recipe(size, method)


ALL = [(size, method) for size in get_args(PaperSize) for method in PAPER_METHODS]
ALL += [(size, method) for size in get_args(CocoSize) for method in detection_methods_of(size)]


def shown(name, capsys):
    """What `apd recipes` says of every field, by field: the value and its source."""
    assert main(["recipes", name]) == 0
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize(("size", "method"), ALL)
def test_every_field_that_differs_from_its_default_has_a_source(size, method, capsys):
    lines = shown(f"{size}-{method}", capsys)
    fields = list(leaves(recipe(size, method)))
    assert list(lines) == [field for field, _, _ in fields]
    differing = [field for field, value, default in fields if value != default]
    assert len(differing) > 8
    assert [field for field in differing if lines[field].endswith(" default")] == []


def test_every_source_is_of_fields_that_a_recipe_has():
    known = [f"{field}." for size, method in ALL for field, _, _ in leaves(recipe(size, method))]
    for source in (*value_sources("released"), *value_sources("corrected"), *value_sources("coco")):
        assert any(field.startswith(f"{source}.") for field in known), source


def test_a_value_that_was_corrected_is_not_said_to_be_released(capsys):
    released, corrected = (
        {field: value for field, value, _ in leaves(recipe(size, "apd"))}
        for size in ("cityscapes", "cityscapes_corrected")
    )
    changed = {field for field in released if released[field] != corrected[field]}
    assert changed == {field for field in value_sources("corrected") if ".apd." in field}
    lines = shown("cityscapes_corrected-apd", capsys)
    assert all("own choice: " in lines[field] or "paper, " in lines[field] for field in changed)


def test_nothing_of_apd_in_detection_is_said_to_be_published():
    ours = {f: s for f, s in value_sources("coco").items() if f.startswith("distillers.") and f.endswith("apd")}
    said = "own choice: how the paper applies APD to detection was never released"
    assert ours == {"distillers.roi_apd": said, "distillers.dense_apd": said}


@pytest.mark.parametrize(
    ("name", "field", "end"),
    [
        ("ade20k-apd", "distillers.apd.scope", "released code: the images of a process; the paper: an image"),
        ("coco_mobilenet-roi_apd", "training.iterations", "180000           ReviewKD's code"),
        ("coco_mobilenet-roi_apd", "network.backbone", "torchvision's MobileNetV3 is the nearest to its MobileNetV2"),
        ("coco_mobilenet-roi_apd", "training.ema_decay", " default"),
    ],
)
def test_a_recipe_at_paper_scale_is_shown_with_value_and_source_of_every_field(name, field, end, capsys):
    assert shown(name, capsys)[field].endswith(end)
