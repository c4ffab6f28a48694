"""The four terms from prototypes and observations: gradients, properties, degenerate labels, wrong arguments.

`test_distill` compares them with the slow reference.
"""

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
