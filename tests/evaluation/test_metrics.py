"""The confusion matrix and its scores, against torchmetrics and scikit-learn, and where there is nothing to score."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score, recall_score
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from apd.evaluation.metrics import ConfusionMatrix, agreement, scores

CASES = st.tuples(st.integers(2, 7), st.integers(0, 2**31 - 1), st.floats(0, 0.9))


def drawn(classes, seed, ignored, *, shape=(3, 9, 11), only=None):
    """Predictions that are right about half of the time, and labels some of which are 255."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, only or classes, shape, generator=random)
    guesses = torch.randint(0, only or classes, shape, generator=random)
    predictions = torch.where(torch.rand(shape, generator=random) < 0.5, labels, guesses)
    labels[torch.rand(shape, generator=random) < ignored] = 255
    return predictions, labels


def matrix_of(predictions, labels, classes):
    confusion = ConfusionMatrix(classes)
    confusion.update(predictions, labels)
    return confusion.matrix_KK


@given(case=CASES)
def test_the_matrix_is_that_of_torchmetrics(case):
    predictions, labels = drawn(*case)
    theirs = MulticlassConfusionMatrix(case[0], ignore_index=255)(predictions, labels)
    assert torch.equal(matrix_of(predictions, labels, case[0]), theirs)


@given(case=CASES)
def test_scores_are_those_of_torchmetrics_and_scikit_learn(case):
    classes = case[0]
    predictions, labels = drawn(*case)
    valid = labels != 255
    truth, called = labels[valid].numpy(), predictions[valid].numpy()
    ours = scores(matrix_of(predictions, labels, classes))
    occurring = np.unique(np.concatenate([truth, called]))
    theirs = MulticlassJaccardIndex(classes, average="none", ignore_index=255)(predictions, labels)
    torch.testing.assert_close(ours.iou[occurring].float(), theirs[occurring], rtol=1e-6, atol=1e-7)
    per_class = jaccard_score(truth, called, labels=occurring, average=None)
    np.testing.assert_allclose(ours.iou[occurring], per_class, rtol=1e-12)
    assert ours.miou == pytest.approx(per_class.mean(), rel=1e-12)
    assert ours.classes_counted == len(occurring)
    true_classes = np.unique(truth)
    recall = recall_score(truth, called, labels=true_classes, average=None)
    np.testing.assert_allclose(ours.accuracy[true_classes], recall, rtol=1e-12)
    assert ours.macc == pytest.approx(recall.mean(), rel=1e-12)
    assert ours.aacc == pytest.approx(accuracy_score(truth, called), rel=1e-12)


def test_a_class_that_neither_occurs_nor_is_predicted_is_nan_and_not_counted():
    predictions, labels = drawn(5, 1, 0.1, only=3)
    whole, part = scores(matrix_of(predictions, labels, 5)), scores(matrix_of(predictions, labels, 3))
    assert whole.iou.isnan().tolist() == whole.accuracy.isnan().tolist() == [False, False, False, True, True]
    assert (whole.classes_counted, whole.miou, whole.macc) == (3, part.miou, part.macc)


def test_a_class_that_is_predicted_and_never_true_counts_as_zero_iou_and_has_no_accuracy():
    result = scores(matrix_of(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]), 3))
    assert result.iou.tolist() == [1.0, 0.5, 0.0]
    assert result.accuracy[:2].tolist() == [1.0, 0.5]
    assert result.accuracy[2].isnan()
    assert (result.miou, result.macc, result.classes_counted) == (0.5, 0.75, 3)


@pytest.mark.parametrize("labels", [torch.full((2, 3, 3), 255), torch.empty(0, 4, 4, dtype=torch.int64)])
def test_without_a_valid_pixel_every_score_is_nan(labels):
    result = scores(matrix_of(torch.zeros_like(labels), labels, 4))
    assert result.iou.isnan().all()
    assert all(math.isnan(value) for value in (result.miou, result.macc, result.aacc))
    assert result.classes_counted == 0


@given(case=CASES, shuffle=st.randoms(use_true_random=False))
def test_renaming_the_classes_renames_the_scores_and_leaves_the_means(case, shuffle):
    classes = case[0]
    predictions, labels = drawn(*case)
    names = list(range(classes))
    shuffle.shuffle(names)
    renamed = torch.full((256,), 255)
    renamed[:classes] = torch.tensor(names)
    one = scores(matrix_of(predictions, labels, classes))
    other = scores(matrix_of(renamed[predictions], renamed[labels], classes))
    torch.testing.assert_close(other.iou[names], one.iou, rtol=0, atol=0, equal_nan=True)
    assert other.miou == pytest.approx(one.miou, rel=1e-12, nan_ok=True)
    assert (other.aacc, other.classes_counted) == (one.aacc, one.classes_counted)


@given(case=CASES)
def test_images_may_come_in_any_order_and_any_division(case):
    predictions, labels = drawn(*case)
    confusion = ConfusionMatrix(case[0])
    for image in (2, 0, 1):
        confusion.update(predictions[image], labels[image])
    assert torch.equal(confusion.matrix_KK, matrix_of(predictions, labels, case[0]))


def test_scores_are_sums_over_the_set_and_no_mean_over_images():
    easy, hard = (torch.zeros(100), torch.zeros(100)), (torch.ones(1), torch.zeros(1))
    confusion = ConfusionMatrix(2)
    for predictions, labels in (easy, hard):
        confusion.update(predictions.long(), labels.long())
    assert scores(confusion.matrix_KK).aacc == 100 / 101


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_of_labels_is_read_alike(dtype):
    predictions, labels = drawn(4, 3, 0.2)
    assert torch.equal(matrix_of(predictions.to(dtype), labels.to(dtype), 4), matrix_of(predictions, labels, 4))


def test_what_is_predicted_at_ignored_pixels_does_not_matter():
    labels = torch.tensor([0, 255, 1])
    assert torch.equal(matrix_of(torch.tensor([0, 99, 1]), labels, 2), torch.eye(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("predictions", "labels", "told"),
    [
        ([0, 1, 1], [0, 3, 7], r"labels hold \[3, 7\]: expected 0\.\.2 or 255 \(ignore\)"),
        ([0, 1, 1], [0, -1, 1], r"labels hold \[-1\]: expected 0\.\.2 or 255"),
        ([0, 1, 254], [0, 1, 1], r"predictions hold \[254\]: expected 0\.\.2$"),
        ([0, 1], [0, 1, 1], r"predictions \(2,\) and labels \(3,\) differ in shape"),
        ([0.2, 0.7, 1.0], [0, 1, 1], r"predictions are torch\.float32: expected integer classes"),
        ([0, 1, 1], [0.0, 0.5, 1.0], r"labels are torch\.float32: expected integer classes"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_nothing_is_counted(predictions, labels, told):
    confusion = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=told):
        confusion.update(torch.tensor(predictions), torch.tensor(labels))
    assert confusion.matrix_KK.sum() == 0


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="num_classes = 1: expected at least 2"):
        ConfusionMatrix(1)
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 3\): expected \(K, K\)"):
        scores(torch.zeros(2, 3))


def test_agreement_is_the_share_of_pixels_called_the_same():
    teacher, student = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])
    confusion = ConfusionMatrix(3)
    confusion.update(student, teacher)
    assert agreement(confusion.matrix_KK) == 0.75
