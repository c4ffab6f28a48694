"""The four terms from prototypes and observations: gradients, properties, degenerate labels, wrong arguments.

`test_distill` compares them with the slow reference.
"""

import math

import hypothesis.strategies as st
import pytest
import slow_reference as slow
import torch
from hypothesis import given

from apd import (
    alignment_loss,
    class_prototypes,
    observation_loss,
    observe,
    pixel_kd_loss,
    regularisation_loss,
    resize_labels,
)

K = 5


def all_terms(batch):
    """The four terms, with gradient to the projected features of both nets and to the student's logits."""
    student, teacher, labels = batch["student_features"], batch["teacher_features"], batch["labels"]
    small = resize_labels(labels, student.shape[2:])
    (ours, present), (theirs, _) = (class_prototypes(features, small, K) for features in (student, teacher))
    seen = observe(student, ours, present), observe(teacher, theirs, present)
    return {
        "regularisation": regularisation_loss(seen[1], labels, present),
        "alignment": alignment_loss(ours, theirs, present),
        "observation": observation_loss(*seen, present, small),
        "pixel_kd": pixel_kd_loss(batch["student_logits"], batch["teacher_logits"], labels),
    }


@given(seed=st.integers(0, 99))
def test_identical_teacher_and_student_have_nothing_to_learn_from_each_other(seed):
    batch = slow.random_batch(seed=seed)
    batch["teacher_features"], batch["teacher_logits"] = batch["student_features"], batch["student_logits"]
    terms = all_terms(batch)
    learning = terms["alignment"] + terms["observation"] + terms["pixel_kd"]
    torch.testing.assert_close(learning, torch.zeros_like(learning), atol=1e-12, rtol=0)
    learning.backward()
    assert batch["student_features"].grad.abs().max() < 1e-12
    assert terms["regularisation"] > 0


def shuffled(batch, random):
    order = torch.randperm(20, generator=random)
    return {name: value.flatten(-2)[..., order].unflatten(-1, (5, 4)) for name, value in batch.items()}


def renamed(batch, random):
    names = torch.randperm(K, generator=random)
    labels = torch.cat([names, torch.arange(K, 256)])[batch["labels"]]
    return batch | {"labels": labels} | {n: batch[n][:, names.argsort()] for n in ("student_logits", "teacher_logits")}


def with_ignored_pixels(batch, random):
    maps = {name: value for name, value in batch.items() if name != "labels"}
    grown = {name: torch.cat([m, 3 * torch.randn_like(m[:, :, :2])], dim=2) for name, m in maps.items()}
    return grown | {"labels": torch.cat([batch["labels"], torch.full((2, 2, 4), 255)], dim=1)}


def with_other_lengths(batch, random):
    lengths = torch.linspace(0.01, 100, 20, dtype=torch.float64).view(5, 4)
    return batch | {name: batch[name] * lengths for name in ("student_features", "teacher_features")}


@given(seed=st.integers(0, 99))
@pytest.mark.parametrize("change", [shuffled, renamed, with_ignored_pixels, with_other_lengths])
def test_what_says_nothing_about_the_classes_of_pixels_changes_no_term(change, seed):
    batch = slow.random_batch(seed=seed, labels=(5, 4))
    torch.testing.assert_close(all_terms(change(batch, torch.Generator().manual_seed(seed))), all_terms(batch))


@given(seed=st.integers(0, 99))
def test_a_batch_is_the_mean_of_its_images_weighted_by_what_each_term_counts(seed):
    batch = slow.random_batch(seed=seed, batch=3, labels=(5, 4), ignored=0.5)
    alone = [all_terms({name: value[b : b + 1] for name, value in batch.items()}) for b in range(3)]
    valid = (batch["labels"] != 255).flatten(1)
    pairs = torch.tensor([len(set(labels[keep].tolist())) for labels, keep in zip(batch["labels"].flatten(1), valid)])
    for name, value in all_terms(batch).items():
        counted = pairs.double() if name == "alignment" else valid.sum(1).double()
        expected = sum(count * terms[name] for count, terms in zip(counted, alone)) / counted.sum()
        torch.testing.assert_close(value, expected)


def test_the_weight_of_a_term_depends_on_the_number_of_classes_only_by_element():
    few = slow.random_batch(num_classes=K, ignored=0)
    nets = few["student_logits"], few["teacher_logits"]
    many = [torch.cat([net, net.new_full((2, 15, 5, 4), -1e4)], dim=1) for net in nets]  # 15 that nobody predicts
    pixel, element = (
        [pixel_kd_loss(*logits, few["labels"], reduction=reduction) for logits in (nets, many)]
        for reduction in ("pixel", "element")
    )
    torch.testing.assert_close([*pixel, *element], [pixel[0], pixel[0], pixel[0] / K, pixel[0] / K / 4])


def test_pixels_of_a_class_that_vanished_on_the_feature_grid_are_counted_only_as_released():
    labels = torch.tensor([[[0, 1], [0, 0]]])  # the one cell of the grid takes pixel (0, 0): class 1 has no prototype
    features = torch.tensor([[[[1.0]], [[0.0]]]], dtype=torch.float64)
    prototypes, present = class_prototypes(features, resize_labels(labels, (1, 1)), 2)
    masked = regularisation_loss(observe(features, prototypes, present), labels, present)
    zeroed = regularisation_loss(observe(features, prototypes, present, absent="zero"), labels)
    assert masked.item() == 0
    right, wrong = math.log1p(math.exp(-10)), math.log1p(math.exp(10))
    torch.testing.assert_close(zeroed.item(), (3 * right + wrong) / 4)


def test_confident_logits_stay_finite():
    logits = torch.tensor([[[[1e4]], [[-1e4]]]], requires_grad=True)
    loss = pixel_kd_loss(logits, -logits, torch.tensor([[[0]]]))
    loss.backward()
    assert loss.item() == 2e4
    assert logits.grad.isfinite().all()


MAPS, LABELS, PRESENT = torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long), torch.ones(2, 3).bool()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pixel_kd_loss(MAPS, MAPS[:, :2], LABELS), ValueError, r"logits has shape \(2, 3, 4, 4\) but te"),
        (lambda: pixel_kd_loss(MAPS, MAPS, LABELS, temperature=0), ValueError, "temperature=0: expected a positive"),
        (lambda: regularisation_loss(MAPS, LABELS + 7), RuntimeError, r"labels hold a value .* 0\.\.2"),
        (lambda: regularisation_loss(MAPS, LABELS, PRESENT[:, :2]), ValueError, r"present .*\(2, 2\).* of \(2, 3\)"),
        (lambda: observation_loss(MAPS, MAPS, PRESENT, LABELS), ValueError, r"\(8, 8\) .* \(4, 4\): call resize"),
        (lambda: alignment_loss(MAPS[0], MAPS[0, :2], PRESENT), ValueError, "student_prototypes has shape"),
        (lambda: alignment_loss(MAPS[:, :, 0], MAPS[:, :, 0], PRESENT.long()), ValueError, "present is torch.int64"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
