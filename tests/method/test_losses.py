"""Properties of the four terms (`test_distill` has their values), our own entropy of upsampled logits, and means."""

import math

import pytest
import slow_reference as slow
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from apd import alignment_loss, class_prototypes, losses, observation_loss, observe, pixel_kd_loss, regularisation_loss
from apd.losses import masked_mean, upsampled_entropy
from apd.normalizers import AccumulatedCounts, across_processes, global_count
from apd.perspective import observe_itself, resize_labels

K = 5
MAPS, LABELS, PRESENT = torch.ones(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long), torch.ones(2, 3).bool()
PROTOTYPES, SMALL = torch.ones(2, 3, 3), LABELS[:, :4, :4]


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
def test_order_and_names_of_pixels_and_classes_ignored_pixels_and_lengths_of_features_change_no_term(seed):
    batch = slow.random_batch(seed=seed, labels=(5, 4))
    maps, labels = {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    random = torch.Generator().manual_seed(seed)
    order, names = torch.randperm(20, generator=random), torch.randperm(K, generator=random)
    shuffled = {name: value.flatten(-2)[..., order].unflatten(-1, (5, 4)) for name, value in batch.items()}
    renamed = {name: batch[name][:, names.argsort()] for name in ("student_logits", "teacher_logits")}
    renamed["labels"] = torch.cat([names, torch.arange(K, 256)])[labels]
    grown = {name: torch.cat([m, 3 * torch.randn_like(m[:, :, :2])], dim=2) for name, m in maps.items()}
    grown["labels"] = torch.cat([labels, torch.full((2, 2, 4), 255)], dim=1)
    lengths = torch.linspace(0.01, 100, 20, dtype=torch.float64).view(5, 4)
    stretched = {name: batch[name] * lengths for name in ("student_features", "teacher_features")}
    for changed in (shuffled, renamed, grown, stretched):
        torch.testing.assert_close(all_terms(batch | changed), all_terms(batch))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pixel_kd_loss(MAPS, MAPS[:, :2], LABELS), ValueError, r"logits has shape \(2, 3, 4, 4\) but te"),
        (lambda: pixel_kd_loss(MAPS, MAPS, LABELS, temperature=0), ValueError, "temperature=0: expected a positive"),
        (lambda: regularisation_loss(MAPS, LABELS + 7), RuntimeError, r"labels hold a value .* 0\.\.2"),
        (lambda: regularisation_loss(MAPS, LABELS, PRESENT[:, :2]), ValueError, r"present .*\(2, 2\).* of \(2, 3\)"),
        (lambda: observation_loss(MAPS, MAPS, PRESENT, LABELS), ValueError, r"\(8, 8\) .* \(4, 4\): call resize"),
        (lambda: alignment_loss(MAPS[0], MAPS[0, :2], PRESENT), ValueError, "student_prototypes has shape"),
        (lambda: alignment_loss(PROTOTYPES, PROTOTYPES, PRESENT.long()), ValueError, "present is torch.int64"),
        (lambda: class_prototypes(MAPS[0], SMALL, 3), ValueError, r"features has shape \(3, 4, 4\): .*apd.tokens_to"),
        (lambda: class_prototypes(MAPS, SMALL[:, None], 3), ValueError, r"labels has shape .* labels\.squeeze\(1\)"),
        (lambda: class_prototypes(MAPS, SMALL[:, :3], 3), ValueError, r"\(3, 4\) but features on \(4, 4\): call"),
        (lambda: class_prototypes(MAPS, SMALL, 3, scope="world"), ValueError, "scope='world': expected one of 'ima"),
        (lambda: class_prototypes(MAPS[:, :, :0], SMALL, 3), ValueError, "non-empty"),
        (lambda: observe(MAPS, torch.ones(2, 3, 4), PRESENT), ValueError, r"prototypes has shape \(2, 3, 4\): exp"),
        (lambda: observe(MAPS, PROTOTYPES, PRESENT[:, :2]), ValueError, "present is torch.bool of shape"),
        (lambda: observe(MAPS, PROTOTYPES, PRESENT, absent="drop"), ValueError, "absent='drop'"),
        (lambda: observe(MAPS, PROTOTYPES, PRESENT, scale=1e4), ValueError, "scale=10000.0: expected a positive num"),
        (lambda: observe_itself(MAPS, SMALL, 3, scale=math.nan), ValueError, "scale=nan: expected a positive number"),
        (lambda: observe(MAPS, PROTOTYPES, None), TypeError, "present is a NoneType: expected the second result"),
        (lambda: alignment_loss(PROTOTYPES, None, PRESENT), TypeError, "teacher_prototypes is a NoneType: expected"),
        (lambda: resize_labels([[1]], (2, 2)), TypeError, "labels is a list: expected an integer tensor"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def coarse_logits(coarse=(3, 3), fine=(8, 8), *, dtype=torch.float64):
    """With labels on the fine grid, and which of them count."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, *coarse, generator=random, dtype=dtype).requires_grad_()
    labels = torch.randint(0, K, (2, *fine), generator=random)
    return logits, labels, torch.rand(2, *fine, generator=random) < 0.8


@pytest.mark.parametrize("band", [1, 60, 10**6], ids=["a-row-a-band", "some-rows", "one-band"])
@pytest.mark.parametrize(
    ("coarse", "fine"),
    [((5, 4), (17, 13)), ((1, 2), (9, 9)), ((7, 7), (7, 7)), ((9, 9), (4, 5)), ((3, 1), (8, 1)), ((1, 1), (1, 1))],
)
def test_the_entropy_of_upsampled_logits_is_the_librarys_whatever_the_bands(monkeypatch, band, coarse, fine):
    monkeypatch.setattr(losses, "BAND_ELEMENTS", band)
    logits, labels, counted = coarse_logits(coarse, fine)
    upsampled = F.interpolate(logits, size=fine, mode="bilinear", align_corners=True)
    theirs = (F.cross_entropy(upsampled, labels, reduction="none") * counted).sum()
    ours = upsampled_entropy(logits, labels, counted)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(3 * ours, logits), torch.autograd.grad(3 * theirs, logits))


@pytest.mark.parametrize(("scale", "kept"), [(1.0, 0), (1e4, 1)], ids=["nothing-counted", "logits-of-ten-thousand"])
def test_degenerate_logits_leave_a_connected_finite_entropy(scale, kept):
    logits, labels, counted = coarse_logits(dtype=torch.float32)
    total = upsampled_entropy(scale * logits, labels, counted & bool(kept))
    total.backward()
    assert total.isfinite()
    assert logits.grad.isfinite().all()
    assert (total == 0) == (not logits.grad.any()) == (not kept)


@given(st.lists(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=5))
def test_shares_of_parts_in_turn_add_up_to_the_mean_of_the_whole(parts):
    values = [torch.tensor([value for value, _ in part], dtype=torch.float64) for part in parts]
    masks = [torch.tensor([valid for _, valid in part]) for part in parts]
    turns = AccumulatedCounts()
    for value, mask in zip(values, masks, strict=True):
        with turns.counting():
            masked_mean(value, mask)
    total = 0
    for value, mask in zip(values, masks, strict=True):
        with turns.computing():
            total += masked_mean(value, mask)
    torch.testing.assert_close(total, masked_mean(torch.cat(values), torch.cat(masks)))


def test_several_means_of_a_part_keep_their_own_counts_and_divide_by_1_where_that_is_0():
    turns, counts = AccumulatedCounts(), [(3, 0), (5, 2)]
    for part in counts:
        with turns.counting():
            assert [global_count(torch.tensor(count)).item() for count in part] == [max(count, 1) for count in part]
    for part in counts:
        with turns.computing():
            assert [global_count(torch.tensor(count)).item() for count in part] == [8, 2]
    with pytest.raises(ZeroDivisionError), AccumulatedCounts().counting():
        raise ZeroDivisionError
    assert global_count(torch.tensor(3)) == 3, "the rule outlived its context"


def test_a_mean_that_was_not_counted_or_not_computed_or_has_no_process_group_is_an_error():
    turns = AccumulatedCounts()
    with pytest.raises(RuntimeError, match="nothing was counted"), turns.computing():
        pass
    with turns.counting():
        global_count(torch.tensor(1))
    with pytest.raises(RuntimeError, match="this part asked for 0 counts, expected at least one"), turns.counting():
        pass
    with turns.computing():
        global_count(torch.tensor(1))
        with pytest.raises(RuntimeError, match=r"computing\(\) asks for more than 1 counted means: compute the same"):
            global_count(torch.tensor(1))
    with pytest.raises(RuntimeError, match="1 counted means were not computed"), turns.computing():
        pass
    with pytest.raises(RuntimeError, match="make an AccumulatedCounts for every batch"), turns.counting():
        pass
    with pytest.raises(ValueError, match="process group has not been initialized"), across_processes():
        pass
