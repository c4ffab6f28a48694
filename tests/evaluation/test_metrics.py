"""The confusion matrix and its scores, against torchmetrics and scikit-learn, and where there is nothing to score."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score, recall_score
from torchmetrics.classification import MulticlassConfusionMatrix

from apd.evaluation.inference import ConfusionMatrix, scores

CASES = st.tuples(st.integers(2, 7), st.integers(0, 2**31 - 1), st.floats(0, 0.9))


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


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1, 1], [0, 3, 7], r"labels hold \[3, 7\]: expected 0\.\.2 or 255 \(ignore\)"),
        ([0, 1, 1], [0, -1, 1], r"labels hold \[-1\]: expected 0\.\.2 or 255"),
        ([0, 1, 254], [0, 1, 1], r"predictions hold \[254\]: expected 0\.\.2$"),
        ([0, 1], [0, 1, 1], r"predictions \(2,\) and labels \(3,\) differ in shape"),
        ([0.2, 0.7, 1.0], [0, 1, 1], r"predictions are torch\.float32: expected integer classes"),
        ([0, 1, 1], [0.0, 0.5, 1.0], r"labels are torch\.float32: expected integer classes"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_nothing_is_counted(predictions, labels, message):
    confusion = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        confusion.update(torch.tensor(predictions), torch.tensor(labels))
    assert confusion.matrix_KK.sum() == 0
    with pytest.raises(ValueError, match="num_classes = 1: expected at least 2"):
        ConfusionMatrix(1)
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 3\): expected \(K, K\)"):
        scores(torch.zeros(2, 3))
