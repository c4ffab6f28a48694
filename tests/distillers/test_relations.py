"""Divergences of pixels from samples in blocks, and pairs of prototypes and nodes."""

import pytest
import slow_methods
import torch
from every_method import call, gradients, make, random_batch
from torch.nn import functional as F

from apd.distillers import relations as module
from apd.distillers.cirkd import memory_loss
from apd.distillers.relations import relation_divergence

SAMPLES = 6
OF_PROTOTYPES = pytest.mark.parametrize("name", ["i2ckd", "idd"])


def by_library(student, teacher, samples):
    ours, theirs = (F.log_softmax(vectors @ samples.mT, dim=1) for vectors in (student, teacher))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)


def blocks_of(pixels, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 2 * SAMPLES * pixels)


def maps(*, dtype=torch.float64, batch=2, grid=(3, 5)):
    student, teacher = (torch.randn(batch, 4, *grid, dtype=dtype) for _ in range(2))
    samples = F.normalize(torch.randn(SAMPLES, 4, dtype=dtype), dim=1)
    return student.requires_grad_(), teacher, samples, torch.rand(batch, *grid) < 0.7


def inputs(pixels, *, dtype=torch.float64, scale=3.0):
    student, teacher, samples, _ = maps(dtype=dtype, batch=1, grid=(1, pixels))
    vectors = (scale * net.detach()[0, :, 0].T for net in (student, teacher))
    return next(vectors).requires_grad_(), next(vectors), samples


def plain_memory_loss(student, teacher, samples, valid, temperature):
    vectors = [F.normalize(net.permute(0, 2, 3, 1)[valid], dim=1) / temperature for net in (student, teacher)]
    return by_library(*vectors, samples).mean()


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("pixels", [1, 5, 10])
def test_value_and_gradient_are_those_of_the_library_wherever_the_blocks_end(pixels, block, monkeypatch):
    blocks_of(block, monkeypatch)
    student, teacher, samples = inputs(pixels)
    ours, theirs = relation_divergence(student, teacher, samples), by_library(student, teacher, samples)
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(1.0, pixels + 1, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(ours @ weights, student), torch.autograd.grad(theirs @ weights, student)
    )


def test_logits_of_ten_thousand_stay_finite_and_right():
    student, teacher, samples = inputs(9, dtype=torch.float32, scale=1e4)
    ours = relation_divergence(student, teacher, samples)
    ours.sum().backward()
    torch.testing.assert_close(ours, by_library(student, teacher, samples))
    assert student.grad.isfinite().all()
    assert not relation_divergence(student, student.detach().clone(), samples).any()  # exactly


def test_nothing_of_pixels_by_samples_is_kept_for_the_gradient():
    student, teacher, samples, valid = maps(batch=1, grid=(20, 20))
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: shapes.append(kept.shape) or kept, lambda kept: kept):
        memory_loss(student, teacher, samples.repeat(50, 1), valid, temperature=0.1)
    assert shapes
    assert max(shape.numel() for shape in shapes) == student.numel()


def test_the_memorys_loss_is_the_mean_over_valid_pixels():
    student, *others = maps()
    ours, theirs = (loss(student, *others, temperature=0.3) for loss in (memory_loss, plain_memory_loss))
    torch.testing.assert_close(ours, theirs)
    changes = [torch.autograd.grad(3 * loss, student)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*changes)
    valid = others[-1]
    assert torch.equal(changes[0].permute(0, 2, 3, 1).any(-1), valid)
    nothing = memory_loss(student, *others[:-1], torch.zeros_like(valid), temperature=0.1)  # a connected zero
    assert nothing == 0
    assert torch.autograd.grad(nothing, student)[0].eq(0).all()


@OF_PROTOTYPES
def test_degenerate_classes_of_an_image_leave_pairs_of_prototypes_finite(name):
    module, batch = make(name), random_batch()
    one_class = torch.where(batch["labels"] == 255, 255, torch.tensor([1, 3])[:, None, None])
    out = call(module, batch | {"labels": one_class})
    assert out["loss"] == 0
    assert not any(g.any() for g in gradients(out["loss"], module, batch) if g is not None)
    batch["student_features"] = torch.ones_like(batch["student_features"]).requires_grad_()
    changes = gradients(call(module, batch)["loss"], module, batch)  # a Euclidean distance of 0 has no slope of its own
    assert all(change.isfinite().all() for change in changes if change is not None)


@OF_PROTOTYPES
def test_more_classes_than_are_compared_one_by_one_give_the_same(name):
    """Beyond 25 rows :func:`torch.cdist` takes a matrix product in place of differences."""
    classes, channels = 27, 4
    module = make(name, sizes=(channels, channels, classes))
    student, teacher = (torch.randn(1, channels, 1, classes, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    batch = {"student_features": student, "teacher_features": teacher, "labels": torch.arange(classes)[None, None]}
    options = {"adapter": module.adapter.weight, "margin": 1.0} if name == "i2ckd" else {}
    values = module(**batch)[name], getattr(slow_methods, name)(*batch.values(), **options)[name]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in values))
