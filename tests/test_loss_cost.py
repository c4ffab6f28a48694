"""The measured cost of a loss: that of what it is told to run, in bytes that can be counted by hand."""

import pytest
import torch
from torch import nn

from apd import APDLoss
from apd.cost.loss import CLASSES_IN_AN_IMAGE, LOSS_SHAPES, LossShape, floor_of, loss_batch, loss_cost

SMALL = LossShape(batch=2, channels=8, grid=6, classes=30, labels=48)


class TenMaps(nn.Module):
    """Keeps a map of ten times the student's features until the gradient has come."""

    def forward(self, student_features, **_):
        return (student_features.repeat(10, 1, 1, 1) ** 2).sum()


def test_the_peak_is_what_the_loss_keeps_and_not_what_it_is_given():
    shape = LossShape(batch=1, channels=64, grid=64, classes=2, labels=64)
    one_map = 4 * shape.channels * shape.grid**2
    peak = loss_cost(TenMaps(), loss_batch(shape), warmup=1, repeats=2).peak_bytes
    assert 20 * one_map <= peak <= 60 * one_map


def test_quartiles_are_in_order_and_no_gradient_is_left_behind():
    batch = loss_batch(SMALL)
    module = APDLoss(8, 8, 30, width=4)
    cost = loss_cost(module, batch, repeats=3)
    assert 0 < cost.milliseconds.lower <= cost.milliseconds.median <= cost.milliseconds.upper
    assert all(value.grad is None for value in [*batch.values(), *module.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_shows_few_classes_and_has_the_stated_sizes(dtype):
    batch = loss_batch(SMALL, dtype=dtype)
    assert batch["student_features"].shape == (2, 8, 6, 6)
    assert batch["teacher_logits"].shape == (2, 30, 6, 6)
    assert batch["teacher_features"].dtype == dtype
    assert batch["student_logits"].requires_grad
    assert not batch["teacher_features"].requires_grad
    for labels in batch["labels"]:
        assert 1 < len(labels.unique()) <= CLASSES_IN_AN_IMAGE


def test_the_floor_with_heads_counts_their_convolutions_too():
    for shape in LOSS_SHAPES.values():
        bare, with_heads = floor_of(shape), floor_of(shape, shape.channels)
        pixels = shape.batch * shape.grid**2
        assert bare[0] == with_heads[0] == 16 * shape.channels * pixels
        assert with_heads[1] - bare[1] == 2 * pixels * shape.channels**2 * (4 + 6 + 1)


def test_too_few_passes_are_refused():
    with pytest.raises(ValueError, match="repeats=1"):
        loss_cost(TenMaps(), loss_batch(SMALL), repeats=1)
