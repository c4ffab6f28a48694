"""Label maps of networks, windows and averages included, and their scores, against torchmetrics and scikit-learn."""

import math
from dataclasses import replace
from itertools import pairwise, product
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from own_folders import leave
from sklearn.metrics import accuracy_score, jaccard_score, recall_score
from small_experiments import DATA, NETWORK, Convolution, copied, equal, tiny
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix

from apd.config.datasets import build_split
from apd.config.inference_options import InferenceOptions
from apd.cost.measure import peak_of
from apd.data.image_folder import DataError
from apd.data.specs import IMAGE_PADDING, SCENES, Sample
from apd.evaluation import inference
from apd.evaluation.inference import ConfusionMatrix, agreement_of, class_probabilities, confusion_of, scores
from apd.training.run import run_folder, train, trained_network
from apd.training.segmentation import build_network

LENGTHS, STRIDES = st.integers(1, 60), st.floats(0.01, 1)
CASES = st.tuples(st.integers(2, 7), st.integers(0, 2**31 - 1), st.floats(0, 0.9))
EXACT = {"rtol": 0, "atol": 1e-6}


class ByRed(nn.Module):
    """A network that reads the class from the red channel: class k where red is k/255, or k + shift."""

    def __init__(self, shift=0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift), requires_grad=False)

    def forward(self, images):
        classes = (images[:, 0] * 255).round().long() + self.shift
        return SimpleNamespace(logits=F.one_hot(classes % 10, 10).permute(0, 3, 1, 2).float())


class Noise:
    """Images of two sizes whose red value is their label; one pixel of each is to be ignored."""

    spec = SCENES

    def __init__(self, count):
        random = torch.Generator().manual_seed(count)
        self.labels = [torch.randint(0, 10, (32 + i // 2, 48), generator=random).byte() for i in range(count)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        marked = self.labels[index].clone()
        marked[0, 0] = 255
        return Sample(self.labels[index][None].repeat(3, 1, 1), marked, f"noise-{index}")


def random_images(height, width, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def whole(model, images):
    return model(images).logits.softmax(1).detach()


def test_logits_are_brought_to_the_wanted_grid_before_the_arg_max():
    model, images = nn.Sequential(nn.AvgPool2d(3), Convolution()).eval(), random_images(9, 13)
    for size in ((9, 13), (4, 6)):
        expected = F.interpolate(model(images).logits, size, mode="bilinear", align_corners=True).argmax(1)
        assert torch.equal(inference.predict_labels(model, images, size), expected)
    with pytest.raises(ValueError, match=r"model is in training mode: call model\.eval\(\) first"):
        inference.predict_labels(model.train(), images)
    with pytest.raises(ValueError, match="model is in training mode"):
        class_probabilities(model, images, InferenceOptions(flip=True))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_every_image_is_scored_once_whatever_the_batch_size_and_watched_with_its_name(batch_size):
    data, model, seen = Noise(5), ByRed().train(), {}
    watch = lambda found, names: seen.update(zip(names, found, strict=True))  # noqa: E731
    matrix, reference = confusion_of(model, data, batch_size=batch_size, on_batch=watch), ConfusionMatrix(10)
    assert model.training
    for (image, labels, name), watched in zip(data, list(seen), strict=True):
        assert watched == name
        found = inference.predict_labels(model.eval(), image[None].float() / 255)[0]
        assert torch.equal(seen[name], found)
        reference.update(found, labels)
    assert torch.equal(matrix, reference.matrix_KK)
    assert matrix.sum() == sum(labels.numel() - 1 for labels in data.labels)  # the ignored pixel is not there


def test_scoring_does_not_depend_on_the_mode_changes_nothing_and_restores_it_even_after_an_error(monkeypatch):
    data, model = build_split(DATA, "val"), build_network(NETWORK, 10, torch.device("cpu"), seed=0).train()
    before, matrix = copied(model), confusion_of(model, data)
    assert model.training
    assert equal(copied(model), before)
    assert torch.equal(confusion_of(model.eval(), data), matrix)
    assert not model.training
    monkeypatch.setattr(Noise, "__getitem__", mock.Mock(side_effect=DataError("no such image")))
    for score in (confusion_of, lambda model, data: agreement_of(model, ByRed().eval(), data)):
        with pytest.raises(DataError):
            score(model.train(), Noise(2))
        assert model.training


def test_agreement_counts_pairs_of_predictions_at_valid_pixels():
    data, student, teacher = Noise(3), ByRed(), ByRed(shift=1)
    matrix = agreement_of(student, teacher, data, batch_size=2)
    by_student, by_teacher = confusion_of(student, data), confusion_of(teacher, data)
    assert torch.equal(by_student.sum(1), by_student.diagonal())  # it is always right, the teacher one class further
    assert torch.equal(matrix, by_student.roll(1, 0))
    assert torch.equal(by_teacher, by_student.roll(1, 1))
    assert scores(agreement_of(teacher, teacher, data)).aacc == 1


def test_several_networks_see_the_same_images_and_whoever_takes_predictions_does_not_run_in_their_autocast():
    seen, dtypes = [], set()

    class Inside(ByRed):
        def forward(self, images):
            dtypes.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().forward(images)

    models = Inside().eval(), ByRed(shift=2).eval()
    for (one, other), labels, names in inference.predict_dataset(models, Noise(3), batch_size=2, precision="bf16"):
        assert not torch.is_autocast_enabled("cpu")
        assert one.shape == other.shape == labels.shape
        assert torch.equal((one + 2) % 10, other)
        seen += names
    assert (seen, dtypes) == (["noise-0", "noise-1", "noise-2"], {torch.bfloat16})


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_just_where_the_device_multiplies_it_natively(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    for device in map(torch.device, ("cpu", "cuda")):
        answers = [inference.resolve_precision(device, asked) for asked in ("auto", "fp32", "bf16")]
        assert answers == ["bf16" if native else "fp32", "fp32", "bf16"]


@given(length=LENGTHS, window=LENGTHS, stride=STRIDES)
def test_windows_cover_a_side_without_a_gap_and_none_leaves_it(length, window, stride):
    length = max(length, window)
    starts = inference.window_starts(length, window, stride)
    assert (starts[0], starts[-1]) == (0, length - window)
    assert all(0 < b - a <= math.ceil(window * stride) <= window for a, b in pairwise(starts))
    assert len(starts) == 1 + math.ceil((length - window) / math.ceil(window * stride))
    assert inference.window_starts(2048, 713, 2 / 3) == [0, 476, 952, 1335], "as published, on Cityscapes"


@settings(max_examples=60, deadline=None)
@given(st.tuples(LENGTHS, LENGTHS), st.tuples(LENGTHS, LENGTHS), st.floats(0.15, 1), st.booleans(), st.integers(1, 3))
def test_windows_of_any_size_and_stride_give_every_pixel_its_own_answer(size, window, stride, flip, batch):
    model, images = Convolution(kernel=1).eval(), random_images(*size, batch)  # it sees one pixel at a time
    options = InferenceOptions(window=window, stride=stride, flip=flip)
    torch.testing.assert_close(class_probabilities(model, images, options), whole(model, images), **EXACT)


def test_the_mean_over_windows_is_that_of_a_loop_over_pixels_and_a_mirror_image_is_averaged():
    model, images = Convolution(kernel=5).eval(), random_images(17, 23, batch=3)
    found = class_probabilities(model, images, InferenceOptions(window=(8, 9), stride=0.5))
    sums, counts = torch.zeros(3, 3, 17, 23), torch.zeros(17, 23)
    for top, left in product(inference.window_starts(17, 8, 0.5), inference.window_starts(23, 9, 0.5)):
        part = whole(model, images[:, :, top : top + 8, left : left + 9])
        for row, column in product(range(8), range(9)):
            sums[:, :, top + row, left + column] += part[:, :, row, column]
            counts[top + row, left + column] += 1
    torch.testing.assert_close(found, sums / counts, **EXACT)
    assert (found - whole(model, images)).abs().max() > 0.01, "windows have edges of their own"
    flipped = class_probabilities(model, images, InferenceOptions(flip=True))
    torch.testing.assert_close(flipped, (whole(model, images) + whole(model, images.flip(3)).flip(3)) / 2, **EXACT)
    assert (flipped - whole(model, images)).abs().max() > 0.01


def test_sizes_are_averaged_as_probabilities_on_the_grid_of_the_answer():
    model, images = Convolution(kernel=3).eval(), random_images(20, 30)
    found = class_probabilities(model, images, InferenceOptions(scales=(0.5, 1, 1.5)))
    sizes = [(10, 15), (20, 30), (30, 45)]
    assert model.shapes == [(2, 3, *size) for size in sizes]
    shown = [F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1) for size in sizes]
    answers = [F.interpolate(whole(model, part), (20, 30), mode="bilinear") for part in shown]
    torch.testing.assert_close(found, sum(answers) / 3, **EXACT)
    smaller = class_probabilities(model, images, InferenceOptions(flip=True, scales=(0.5, 2)), (8, 9))
    torch.testing.assert_close(smaller.sum(1), torch.ones(2, 8, 9))


def test_an_image_smaller_than_a_window_lies_in_its_middle_on_mean_colour():
    images, network = random_images(5, 30, batch=1), Convolution().eval()
    class_probabilities(network, images, InferenceOptions(window=(12, 20), stride=1))
    colour = torch.tensor(IMAGE_PADDING)[:, None, None] / 255
    for part, left in zip(network.last, (0, 10), strict=True):  # both windows at once
        assert torch.equal(part[:, 3:8], images[0, :, :, left : left + 20])
        assert torch.equal(part[:, [0, 1, 2, 8, 9, 10, 11]], colour.expand(3, 7, 20))


def test_memory_grows_with_the_pixels_and_not_with_the_windows():
    def peak(side, stride):
        options, images = InferenceOptions(window=(32, 32), stride=stride, flip=True), random_images(side, side, 1)
        return peak_of(lambda: class_probabilities(Convolution().eval(), images, options), torch.device("cpu"))

    least = peak(128, 0.5)
    assert peak(256, 0.5) < 4.1 * least
    assert peak(128, 0.25) < 1.1 * least, "three times as many windows"


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        ("window", (713, (713,), (0, 8), (8.0, 8), (True, 8)), "two whole numbers|a tuple of whole numbers or None"),
        ("stride", (0, 1.5, math.nan, "2/3"), "above 0 and at most 1: windows may not leave gaps|a finite number"),
        ("flip", (1,), "a bool"),
        ("scales", ((), 1.0, (1, -1), (math.inf,)), "1 to 64 numbers, each|a tuple of finite numbers"),
    ],
)
def test_wrong_options_are_refused_by_name(field, values, expected):
    for value in values:
        with pytest.raises(ValueError, match=rf"^InferenceOptions\.{field} = .*: expected .*({expected})"):
            InferenceOptions(**{field: value})


def test_a_runs_final_scores_are_those_of_its_inference_and_the_ones_on_the_way_of_whole_images(runs, capsys):
    options = InferenceOptions(window=(32, 32), flip=True, scales=(1.0, 1.25))
    experiment = replace(tiny("apd"), inference=options)
    record = train(experiment)
    student, teacher = trained_network(experiment), trained_network(experiment.teacher_experiment())
    data = build_split(experiment.data, "val")
    assert record.content["confusion"] == confusion_of(student, data, inference=options).tolist()
    assert record.content["teacher"]["confusion"] == confusion_of(teacher, data, inference=options).tolist()
    assert record.content["teacher"]["agreement"] == agreement_of(student, teacher, data, inference=options).tolist()
    assert record.content["evaluations"][-1]["confusion"] == confusion_of(student, data).tolist()
    assert record.content["confusion"] != confusion_of(student, data).tolist()
    assert record.experiment.inference == options
    for switches, miou in (((), record.scores.miou), (("--scales", "1"), scores(confusion_of(student, data)).miou)):
        assert leave("evaluate", run_folder(experiment), *switches) == 0
        assert f"mIoU {miou:.4f} over" in capsys.readouterr().out


def drawn(classes, seed, ignored, *, shape=(3, 9, 11)):
    """Predictions that are right about half of the time, and labels some of which are 255."""
    random = torch.Generator().manual_seed(seed)
    labels, guesses = (torch.randint(0, classes, shape, generator=random) for _ in range(2))
    predictions = torch.where(torch.rand(shape, generator=random) < 0.5, labels, guesses)
    labels[torch.rand(shape, generator=random) < ignored] = 255
    return predictions, labels


def matrix_of(predictions, labels, classes):
    confusion = ConfusionMatrix(classes)
    confusion.update(predictions, labels)
    return confusion.matrix_KK


@given(case=CASES)
def test_the_matrix_is_that_of_torchmetrics_whatever_the_type_order_and_division_of_the_images(case):
    predictions, labels = drawn(*case)
    theirs = MulticlassConfusionMatrix(case[0], ignore_index=255)(predictions, labels)
    confusion = ConfusionMatrix(case[0])
    predictions[labels == 255] = 99  # an ignored pixel does not matter
    for image, dtype in ((2, torch.uint8), (0, torch.int16), (1, torch.int32)):
        confusion.update(predictions[image].to(dtype), labels[image].to(dtype))
    assert torch.equal(confusion.matrix_KK, theirs)
    assert torch.equal(matrix_of(predictions, labels, case[0]), theirs)


@given(case=CASES)
def test_scores_are_those_of_scikit_learn(case):
    classes = case[0]
    predictions, labels = drawn(*case)
    valid = labels != 255
    truth, called = labels[valid].numpy(), predictions[valid].numpy()
    ours = scores(matrix_of(predictions, labels, classes))
    occurring, true_classes = np.unique(np.concatenate([truth, called])), np.unique(truth)
    iou = jaccard_score(truth, called, labels=occurring, average=None)
    recall = recall_score(truth, called, labels=true_classes, average=None)
    np.testing.assert_allclose(ours.iou[occurring], iou, rtol=1e-12)
    np.testing.assert_allclose(ours.accuracy[true_classes], recall, rtol=1e-12)
    expected = iou.mean(), recall.mean(), accuracy_score(truth, called)
    assert (ours.miou, ours.macc, ours.aacc) == pytest.approx(expected, rel=1e-12)
    assert ours.classes_counted == len(occurring)


def test_a_class_that_is_predicted_and_never_true_counts_as_zero_and_what_does_not_occur_is_not_counted():
    result = scores(matrix_of(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]), 4))
    assert result.iou.nan_to_num(-1).tolist() == [1.0, 0.5, 0.0, -1]
    assert result.accuracy.nan_to_num(-1).tolist() == [1.0, 0.5, -1, -1]
    assert (result.miou, result.macc, result.classes_counted) == (0.5, 0.75, 3)
    for labels in (torch.full((2, 3, 3), 255), torch.empty(0, 4, 4, dtype=torch.int64)):
        nothing = scores(matrix_of(torch.zeros_like(labels), labels, 4))
        assert nothing.iou.isnan().all()
        assert all(math.isnan(value) for value in (nothing.miou, nothing.macc, nothing.aacc))
        assert nothing.classes_counted == 0


def test_what_cannot_be_counted_is_refused_and_nothing_is_counted():
    confusion = ConfusionMatrix(3)
    for predictions, labels, message in (
        ([0, 1, 1], [0, 3, 7], r"labels hold \[3, 7\]: expected 0\.\.2 or 255 \(ignore\)"),
        ([0, 1, 1], [0, -1, 1], r"labels hold \[-1\]: expected 0\.\.2 or 255"),
        ([0, 1, 254], [0, 1, 1], r"predictions hold \[254\]: expected 0\.\.2$"),
        ([0, 1], [0, 1, 1], r"predictions \(2,\) and labels \(3,\) differ in shape"),
        ([0.2, 0.7, 1.0], [0, 1, 1], r"predictions are torch\.float32: expected integer classes"),
        ([0, 1, 1], [0.0, 0.5, 1.0], r"labels are torch\.float32: expected integer classes"),
    ):
        with pytest.raises(ValueError, match=message):
            confusion.update(torch.tensor(predictions), torch.tensor(labels))
        assert confusion.matrix_KK.sum() == 0
    for classes, message in ((1, "num_classes = 1: expected at least 2"), (256, "ignore_index=255 is one of the cl")):
        with pytest.raises(ValueError, match=message):
            ConfusionMatrix(classes)
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 3\): expected \(K, K\)"):
        scores(torch.zeros(2, 3))
