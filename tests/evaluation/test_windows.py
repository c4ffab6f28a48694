"""Averages over windows, mirror images and sizes: every pixel is covered, and every look counts as it should."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_experiments import tiny
from torch import nn

from apd.config.datasets import build_split
from apd.config.experiment import ExperimentError
from apd.config.inference import WHOLE_IMAGE, InferenceOptions
from apd.cost.measure import peak_of
from apd.data.specs import IMAGE_PADDING
from apd.evaluation.inference import (
    WINDOWS_AT_ONCE,
    agreement_of,
    class_probabilities,
    confusion_of,
    predict_labels,
    window_starts,
)
from apd.training.run import train, trained_network

LENGTHS, STRIDES = st.integers(1, 60), st.floats(0.01, 1)


class Output(NamedTuple):
    logits: torch.Tensor


class Network(nn.Module):
    """A convolution of images to logits of three classes; `seen` collects the shapes of what it was shown."""

    def __init__(self, kernel=1, symmetric=False):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, kernel, padding=kernel // 2)
        with torch.no_grad():
            random = torch.Generator().manual_seed(kernel)
            self.layer.weight.copy_(4 * torch.randn(self.layer.weight.shape, generator=random))
            if symmetric:
                self.layer.weight.add_(self.layer.weight.flip(-1))
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return Output(self.layer(images))


class Certain(nn.Module):
    """Says class 1 with a softmax of exactly one, on a grid of its own."""

    def forward(self, images):
        logits = torch.full((len(images), 3, 2, 2), -1000.0)
        logits[:, 1] = 1000.0
        return Output(logits)


def pictures(height, width, batch=2, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def whole(model, images):
    return model(images).logits.softmax(1).detach()


@given(length=LENGTHS, window=LENGTHS, stride=STRIDES)
def test_windows_cover_a_side_without_a_gap_and_none_leaves_it(length, window, stride):
    length = max(length, window)
    starts = window_starts(length, window, stride)
    assert starts[0] == 0
    assert starts[-1] == length - window
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= math.ceil(window * stride) <= window for step in steps)
    assert len(starts) == 1 + math.ceil((length - window) / math.ceil(window * stride))


def test_the_published_windows_of_cityscapes_are_two_by_four():
    assert window_starts(1024, 713, 2 / 3) == [0, 311]
    assert window_starts(2048, 713, 2 / 3) == [0, 476, 952, 1335]


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(LENGTHS, LENGTHS),
    window=st.tuples(LENGTHS, LENGTHS),
    stride=st.floats(0.15, 1),
    flip=st.booleans(),
    batch=st.integers(1, 3),
)
def test_windows_of_any_size_and_stride_give_every_pixel_a_weight_of_exactly_one(size, window, stride, flip, batch):
    looks = InferenceOptions(window=window, stride=stride, flip=flip)
    found = class_probabilities(Certain(), pictures(*size, batch), looks)
    assert found.shape == (batch, 3, *size)
    assert (found[:, 1] == 1).all()
    assert (found[:, [0, 2]] == 0).all()


@settings(max_examples=40, deadline=None)
@given(size=st.tuples(LENGTHS, LENGTHS), window=st.tuples(LENGTHS, LENGTHS), stride=st.floats(0.2, 1))
def test_a_network_that_looks_at_single_pixels_says_the_same_through_windows(size, window, stride):
    model, images = Network(kernel=1), pictures(*size)
    found = class_probabilities(model, images, InferenceOptions(window=window, stride=stride))
    torch.testing.assert_close(found, whole(model, images), rtol=0, atol=1e-6)


def test_the_mean_over_windows_is_that_of_a_loop_over_pixels():
    model, images = Network(kernel=5), pictures(17, 23, batch=3)
    found = class_probabilities(model, images, InferenceOptions(window=(8, 9), stride=0.5))
    sums, counts = torch.zeros(3, 3, 17, 23), torch.zeros(17, 23)
    for top in window_starts(17, 8, 0.5):
        for left in window_starts(23, 9, 0.5):
            look = whole(model, images[:, :, top : top + 8, left : left + 9])
            for row in range(8):
                for column in range(9):
                    sums[:, :, top + row, left + column] += look[:, :, row, column]
                    counts[top + row, left + column] += 1
    assert counts.min() == 1
    assert counts.max() >= 4
    torch.testing.assert_close(found, sums / counts, rtol=0, atol=1e-6)
    assert (found - whole(model, images)).abs().max() > 0.01, "windows have edges of their own"


def test_a_mirror_image_changes_nothing_for_a_network_that_is_its_own():
    model, images = Network(kernel=3, symmetric=True), pictures(14, 19)
    torch.testing.assert_close(
        class_probabilities(model, images, InferenceOptions(flip=True)), whole(model, images), rtol=0, atol=1e-6
    )
    lopsided = Network(kernel=3)
    found = class_probabilities(lopsided, images, InferenceOptions(flip=True))
    expected = (whole(lopsided, images) + whole(lopsided, images.flip(3)).flip(3)) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - whole(lopsided, images)).abs().max() > 0.01


def test_sizes_are_averaged_as_probabilities_on_the_grid_of_the_answer():
    model, images = Network(kernel=3), pictures(20, 30)
    looks = []
    for size in ((10, 15), (20, 30), (30, 45)):
        shown = F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
        looks.append(F.interpolate(whole(model, shown), (20, 30), mode="bilinear"))
    found = class_probabilities(model, images, InferenceOptions(scales=(0.5, 1, 1.5)))
    torch.testing.assert_close(found, sum(looks) / 3, rtol=0, atol=1e-6)
    assert model.seen[-3:] == [(2, 3, 10, 15), (2, 3, 20, 30), (2, 3, 30, 45)]
    smaller = class_probabilities(model, images, InferenceOptions(flip=True, scales=(0.5, 2)), (8, 9))
    assert smaller.shape == (2, 3, 8, 9)
    torch.testing.assert_close(smaller.sum(1), torch.ones(2, 8, 9))


def test_a_picture_smaller_than_a_window_lies_in_its_middle_on_mean_colour():
    shown = []

    class Watch(Certain):
        def forward(self, images):
            shown.append(images)
            return super().forward(images)

    images = pictures(5, 30, batch=1)
    class_probabilities(Watch(), images, InferenceOptions(window=(12, 20), stride=1))
    assert [look.shape for look in shown] == [(2, 3, 12, 20)]  # both windows at once
    colour = torch.tensor(IMAGE_PADDING)[:, None] / 255
    for look, left in zip(shown[0], (0, 10), strict=True):
        assert torch.equal(look[:, 3:8], images[0, :, :, left : left + 20])
        for row in (0, 1, 2, 8, 9, 10, 11):
            assert torch.equal(look[:, row], colour.expand(3, 20))


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_each_window_is_shown_once_in_batches_of_a_bounded_size(batch):
    model = Network()
    class_probabilities(model, pictures(40, 50, batch), InferenceOptions(window=(10, 10), stride=0.5))
    windows = len(window_starts(40, 10, 0.5)) * len(window_starts(50, 10, 0.5))
    assert sum(shape[0] for shape in model.seen) == windows * batch
    assert {shape[1:] for shape in model.seen} == {(3, 10, 10)}
    assert max(shape[0] for shape in model.seen) <= max(WINDOWS_AT_ONCE, batch)
    assert len(model.seen) <= math.ceil(windows / max(WINDOWS_AT_ONCE // batch, 1))


def test_memory_grows_with_the_pixels_and_not_with_the_windows():
    def peak(side, stride):
        looks, images = InferenceOptions(window=(32, 32), stride=stride, flip=True), pictures(side, side, 1)
        return peak_of(lambda: class_probabilities(Network(), images, looks), torch.device("cpu"))

    least = peak(128, 0.5)
    assert peak(256, 0.5) < 4.1 * least
    assert peak(128, 0.25) < 1.02 * least, "three times as many windows"


def test_label_maps_are_the_most_likely_class_and_the_default_is_one_whole_look():
    model, images = Network(kernel=3).eval(), pictures(20, 30)
    looks = InferenceOptions(window=(12, 12), flip=True)
    expected = class_probabilities(model, images, looks).argmax(1)
    assert torch.equal(predict_labels(model, images, inference=looks), expected)
    assert not torch.equal(predict_labels(model, images), expected)
    assert torch.equal(predict_labels(model, images), predict_labels(model, images, inference=InferenceOptions()))
    model.seen.clear()
    predict_labels(model, images)
    assert model.seen == [(2, 3, 20, 30)]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("window", 713, "None or .height, width."),
        ("window", (713,), "None or .height, width."),
        ("window", (0, 8), "at least 1 pixel"),
        ("window", (8.0, 8), "whole numbers"),
        ("window", (True, 8), "whole numbers"),
        ("stride", 0, "above 0 and at most 1"),
        ("stride", 1.5, "windows may not leave gaps"),
        ("stride", math.nan, "above 0"),
        ("stride", "2/3", "above 0"),
        ("flip", 1, "True or False"),
        ("scales", (), "at least one number above 0"),
        ("scales", 1.0, "at least one number above 0"),
        ("scales", (1, -1), "at least one number above 0"),
        ("scales", (math.inf,), "at least one number above 0"),
    ],
)
def test_a_wrong_switch_is_refused_by_name(field, value, expected):
    with pytest.raises(ValueError, match=rf"^InferenceOptions\.{field} = .*: expected .*{expected}"):
        InferenceOptions(**{field: value})


def test_the_shortest_look_is_found_among_windows_or_scales():
    assert WHOLE_IMAGE.least_side(96, 128) == 96
    assert InferenceOptions(scales=(1, 0.5)).least_side(96, 64) == 32
    assert InferenceOptions(window=(64, 48), scales=(0.1,)).least_side(96, 128) == 48


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A finished run with APD whose scores come from windows and mirror images, and where it lies."""
    experiment = replace(tiny("apd"), inference=InferenceOptions(window=(32, 32), flip=True, scales=(1.0, 1.25)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        record = train(experiment)
        models = trained_network(experiment), trained_network(experiment.teacher_experiment())
    return experiment, record, models


def test_a_runs_final_scores_are_those_of_its_inference_and_the_ones_on_the_way_of_whole_images(judged):
    experiment, record, (student, teacher) = judged
    data = build_split(experiment.data, "val")
    looks = experiment.inference
    assert record.content["confusion"] == confusion_of(student, data, inference=looks).tolist()
    assert record.content["teacher"]["confusion"] == confusion_of(teacher, data, inference=looks).tolist()
    assert record.content["teacher"]["agreement"] == agreement_of(student, teacher, data, inference=looks).tolist()
    assert record.content["evaluations"][-1]["confusion"] == confusion_of(student, data).tolist()
    assert record.content["confusion"] != confusion_of(student, data).tolist()
    assert record.experiment.inference == looks


def test_whoever_watches_sees_every_label_map_with_its_name(judged):
    experiment, _, (student, _) = judged
    data, seen = build_split(experiment.data, "val"), {}
    confusion_of(
        student, data, batch_size=2, on_batch=lambda labels, names: seen.update(zip(names, labels, strict=True))
    )
    assert list(seen) == [data[index].name for index in range(3)]
    for image, _labels, name in data:
        assert torch.equal(seen[name], predict_labels(student, image[None] / 255)[0])


def test_an_experiment_whose_looks_are_too_small_for_the_networks_is_refused():
    with pytest.raises(ExperimentError, match=r"Experiment\.inference = .*at least 32 pixels, got 16"):
        replace(tiny(), inference=InferenceOptions(scales=(0.5, 1)))
