import pytest
import torch
from torch.nn import functional as F

from apd import fused as module
from apd.fused import linear_weights, upsampled_entropy


def by_library(logits, labels, counted):
    fine = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=True)
    return (F.cross_entropy(fine, labels, reduction="none") * counted).sum()


def inputs(coarse, fine, *, dtype=torch.float64, classes=5):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, *coarse, generator=random, dtype=dtype).requires_grad_()
    labels = torch.randint(0, classes, (2, *fine), generator=random)
    return logits, labels, torch.rand(2, *fine, generator=random) < 0.8


@pytest.mark.parametrize("band", [1, 60, 10**6], ids=["a-row-a-band", "some-rows", "one-band"])
@pytest.mark.parametrize(
    ("coarse", "fine"),
    [((5, 4), (17, 13)), ((1, 2), (9, 9)), ((7, 7), (7, 7)), ((9, 9), (4, 5)), ((3, 1), (8, 1)), ((1, 1), (1, 1))],
)
def test_value_and_gradient_equal_those_of_the_library_whatever_the_bands(monkeypatch, band, coarse, fine):
    monkeypatch.setattr(module, "BAND_ELEMENTS", band)
    logits, labels, counted = inputs(coarse, fine)
    ours, theirs = upsampled_entropy(logits, labels, counted), by_library(logits, labels, counted)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(3 * ours, logits), torch.autograd.grad(3 * theirs, logits))


def test_linear_weights_are_torchs_with_aligned_corners():
    line = torch.randn(1, 1, 7, dtype=torch.float64)
    expected = F.interpolate(line, size=19, mode="linear", align_corners=True)
    torch.testing.assert_close(line @ linear_weights(19, 7, line).mT, expected)
    assert ((linear_weights(713, 90, line) > 1e-9).sum(1) <= 2).all()


def test_nothing_counted_is_a_connected_zero():
    logits, labels, counted = inputs((3, 3), (8, 8))
    total = upsampled_entropy(logits, labels, torch.zeros_like(counted))
    total.backward()
    assert total == 0
    assert logits.grad.eq(0).all()


def test_logits_of_ten_thousand_stay_finite():
    logits, labels, counted = inputs((3, 3), (8, 8), dtype=torch.float32)
    total = upsampled_entropy(logits * 1e4, labels, counted)
    total.backward()
    assert total.isfinite()
    assert logits.grad.isfinite().all()


def test_without_a_gradient_to_give_no_gradient_is_made():
    logits, labels, counted = inputs((3, 3), (8, 8))
    assert not upsampled_entropy(logits.detach(), labels, counted).requires_grad
