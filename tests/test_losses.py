import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn import functional as F

from apd import (
    alignment_loss,
    class_prototypes,
    observation_loss,
    observe,
    pixel_kd_loss,
    regularisation_loss,
    resize_labels,
)

from . import slow_reference as slow

K = 5


def regularisation(teacher, labels, *, scope="image", absent="mask"):
    """The term from projected teacher features, as APDLoss puts it together."""
    prototypes, present = class_prototypes(teacher, resize_labels(labels, teacher.shape[2:]), K, scope=scope)
    observed = observe(teacher, prototypes, present, absent=absent)
    return regularisation_loss(observed, labels, present if absent == "mask" else None)


def alignment(student, teacher, labels, *, scope="image"):
    labels = resize_labels(labels, student.shape[2:])
    ours, present = class_prototypes(student, labels, K, scope=scope)
    theirs, _ = class_prototypes(teacher, labels, K, scope=scope)
    return alignment_loss(ours, theirs, present)


def observation(student, teacher, labels, *, scope="image", reduction="pixel"):
    labels = resize_labels(labels, student.shape[2:])
    ours, present = class_prototypes(student, labels, K, scope=scope)
    theirs, _ = class_prototypes(teacher, labels, K, scope=scope)
    seen = (observe(features, rows, present) for features, rows in ((student, ours), (teacher, theirs)))
    return observation_loss(*seen, present, labels, reduction=reduction)


def all_terms(batch, **options):
    """The four terms, with gradient to the projected features of both nets and to the student's logits."""
    student, teacher, labels = batch["student_features"], batch["teacher_features"], batch["labels"]
    scope, reduction = options.get("scope", "image"), options.get("reduction", "pixel")
    return {
        "regularisation": regularisation(teacher, labels, scope=scope, absent=options.get("absent", "mask")),
        "alignment": alignment(student, teacher, labels, scope=scope),
        "observation": observation(student, teacher, labels, scope=scope, reduction=reduction),
        "pixel_kd": pixel_kd_loss(batch["student_logits"], batch["teacher_logits"], labels, reduction=reduction),
    }


def assert_same_values_and_gradients(fast, slowly, inputs):
    torch.testing.assert_close(fast, slowly)
    for ours, theirs in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slowly, inputs), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs)


# ---------------------------------------------------------------- the slow reference


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("absent", ["mask", "zero"])
@pytest.mark.parametrize("grid", [(5, 4), (1, 2)], ids=["fine", "so-coarse-that-classes-vanish"])
def test_regularisation_equals_the_slow_reference(scope, absent, grid):
    batch = slow.random_batch(grid=grid, batch=3)
    teacher = batch["teacher_features"].requires_grad_()
    fast = regularisation(teacher, batch["labels"], scope=scope, absent=absent)
    slowly = slow.regularisation(teacher, batch["labels"], num_classes=K, scope=scope, absent=absent)
    assert_same_values_and_gradients(fast, slowly, [teacher])


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_alignment_equals_the_slow_reference(scope):
    batch = slow.random_batch(batch=3)
    student, teacher, labels = batch["student_features"], batch["teacher_features"], batch["labels"]
    fast = alignment(student, teacher, labels, scope=scope)
    assert_same_values_and_gradients(fast, slow.alignment(student, teacher, labels, scope=scope), [student])


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("reduction", ["pixel", "element"])
def test_observation_equals_the_slow_reference(scope, reduction):
    batch = slow.random_batch(batch=3)
    student, teacher, labels = batch["student_features"], batch["teacher_features"], batch["labels"]
    fast = observation(student, teacher, labels, scope=scope, reduction=reduction)
    slowly = slow.observation(student, teacher, labels, scope=scope, reduction=reduction)
    assert_same_values_and_gradients(fast, slowly, [student])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("reduction", ["pixel", "element"])
@pytest.mark.parametrize("upsample_logits", [False, True])
def test_pixel_kd_equals_the_slow_reference(temperature, reduction, upsample_logits):
    batch = slow.random_batch(batch=3)
    logits, labels = (batch["student_logits"], batch["teacher_logits"]), batch["labels"]
    options = {"temperature": temperature, "reduction": reduction, "upsample_logits": upsample_logits}
    fast, slowly = pixel_kd_loss(*logits, labels, **options), slow.pixel_kd(*logits, labels, **options)
    assert_same_values_and_gradients(fast, slowly, [batch["student_logits"]])


# ---------------------------------------------------------------- derivatives and where they must not go


def test_all_terms_have_right_gradients():
    batch = slow.random_batch(batch=2, grid=(2, 3), labels=(4, 5), student_channels=3, teacher_channels=3)
    student, logits, labels = batch["student_features"], batch["student_logits"], batch["labels"]
    teacher = batch["teacher_features"].requires_grad_()
    assert torch.autograd.gradcheck(lambda value: regularisation(value, labels), (teacher,))
    assert torch.autograd.gradcheck(lambda value: alignment(value, teacher, labels), (student,))
    assert torch.autograd.gradcheck(lambda value: observation(value, teacher, labels), (student,))
    assert torch.autograd.gradcheck(
        lambda value: pixel_kd_loss(value, batch["teacher_logits"], labels, temperature=2.0), (logits,)
    )


def test_the_teacher_receives_no_gradient_from_the_three_terms_that_teach_the_student():
    batch = slow.random_batch()
    batch["teacher_features"].requires_grad_()
    batch["teacher_logits"].requires_grad_()
    terms = all_terms(batch)
    (terms["alignment"] + terms["observation"] + terms["pixel_kd"]).backward(retain_graph=True)
    assert batch["teacher_features"].grad is None
    assert batch["teacher_logits"].grad is None
    assert batch["student_features"].grad.abs().max() > 0
    assert batch["student_logits"].grad.abs().max() > 0
    terms["regularisation"].backward()
    assert batch["teacher_features"].grad.abs().max() > 0


def test_the_observation_loss_moves_student_pixels_and_student_prototypes():
    batch = slow.random_batch()
    student, teacher, labels = batch["student_features"], batch["teacher_features"], batch["labels"]
    labels = resize_labels(labels, student.shape[2:])
    prototypes, present = class_prototypes(student.detach(), labels, K)
    prototypes.requires_grad_()
    loss = observation_loss(
        observe(student, prototypes, present), observe(teacher, prototypes.detach(), present), present, labels
    )
    for gradient in torch.autograd.grad(loss, [student, prototypes]):
        assert gradient.abs().max() > 0


# ---------------------------------------------------------------- properties


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


@given(seed=st.integers(0, 99))
def test_the_order_of_pixels_within_an_image_changes_no_term(seed):
    batch = slow.random_batch(seed=seed, labels=(5, 4))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    shuffled = {name: value.flatten(-2)[..., order].unflatten(-1, (5, 4)) for name, value in batch.items()}
    torch.testing.assert_close(all_terms(shuffled), all_terms(batch))


@given(seed=st.integers(0, 99), names=st.permutations(range(K)))
def test_renaming_the_classes_changes_no_term(seed, names):
    batch = slow.random_batch(seed=seed)
    table = torch.arange(256)
    table[:K] = torch.tensor(names)
    renamed = batch | {"labels": table[batch["labels"]]}
    for name in ("student_logits", "teacher_logits"):
        renamed[name] = batch[name][:, torch.argsort(torch.tensor(names))]
    torch.testing.assert_close(all_terms(renamed), all_terms(batch))


@given(seed=st.integers(0, 99))
def test_adding_ignored_pixels_changes_no_term(seed):
    batch = slow.random_batch(seed=seed, labels=(5, 4))
    grown = {
        name: torch.cat([value, 3 * torch.randn_like(value[:, :, :2])], dim=2)
        for name, value in batch.items()
        if name != "labels"
    }
    grown["labels"] = torch.cat([batch["labels"], torch.full((2, 2, 4), 255)], dim=1)
    torch.testing.assert_close(all_terms(grown), all_terms(batch))


@given(seed=st.integers(0, 99))
def test_scaling_feature_vectors_changes_no_term(seed):
    batch = slow.random_batch(seed=seed)
    lengths = torch.linspace(0.01, 100, 20, dtype=torch.float64).view(5, 4)
    scaled = batch | {name: batch[name] * lengths for name in ("student_features", "teacher_features")}
    torch.testing.assert_close(all_terms(scaled), all_terms(batch))


@given(seed=st.integers(0, 99))
def test_a_batch_is_the_mean_of_its_images_weighted_by_what_each_term_counts(seed):
    batch = slow.random_batch(seed=seed, batch=3, labels=(5, 4), ignored=0.5)
    alone = [all_terms({name: value[b : b + 1] for name, value in batch.items()}) for b in range(3)]
    valid = (batch["labels"] != 255).flatten(1)
    pixels = valid.sum(1).double()
    pairs = torch.tensor([len(set(labels[keep].tolist())) for labels, keep in zip(batch["labels"].flatten(1), valid)])
    for name, value in all_terms(batch).items():
        counted = pairs.double() if name == "alignment" else pixels
        expected = sum(count * terms[name] for count, terms in zip(counted, alone)) / counted.sum()
        torch.testing.assert_close(value, expected)


def test_the_weight_of_a_term_depends_on_the_number_of_classes_only_by_element():
    few = slow.random_batch(num_classes=K, ignored=0)
    padding = torch.full((2, 15, 5, 4), -1e4, dtype=torch.float64)  # 15 more classes that nobody predicts
    many = {name: torch.cat([few[name], padding], dim=1) for name in ("student_logits", "teacher_logits")}
    values = {
        reduction: [
            pixel_kd_loss(maps["student_logits"], maps["teacher_logits"], few["labels"], reduction=reduction)
            for maps in (few, many)
        ]
        for reduction in ("pixel", "element")
    }
    torch.testing.assert_close(values["pixel"][1], values["pixel"][0])
    torch.testing.assert_close(values["element"][1], values["element"][0] / 4)
    torch.testing.assert_close(values["element"][0], values["pixel"][0] / K)


# ---------------------------------------------------------------- degenerate labels and values


def test_labels_that_are_all_ignored_give_connected_zeros():
    batch = slow.random_batch()
    batch["teacher_features"].requires_grad_()
    batch["labels"] = torch.full_like(batch["labels"], 255)
    terms = all_terms(batch)
    assert {name: value.item() for name, value in terms.items()} == dict.fromkeys(terms, 0.0)
    sum(terms.values()).backward()
    for name in ("student_features", "teacher_features", "student_logits"):
        assert batch[name].grad.eq(0).all()
    element = observation(batch["student_features"], batch["teacher_features"], batch["labels"], reduction="element")
    assert element.item() == 0


def test_one_class_alone_leaves_nothing_to_observe():
    batch = slow.random_batch()
    batch["teacher_features"].requires_grad_()
    batch["labels"] = torch.full_like(batch["labels"], 3)
    terms = all_terms(batch)
    assert terms["observation"].item() == terms["regularisation"].item() == 0
    assert terms["alignment"] > 0
    sum(terms.values()).backward()
    assert all(batch[name].grad.isfinite().all() for name in ("student_features", "teacher_features"))


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


def test_logits_on_different_grids_are_compared_on_the_coarser():
    student, teacher = torch.randn(1, 3, 4, 6), torch.randn(1, 3, 2, 3)
    labels = torch.randint(0, 3, (1, 16, 24))
    expected = pixel_kd_loss(F.avg_pool2d(student, 2), teacher, labels)
    torch.testing.assert_close(pixel_kd_loss(student, teacher, labels), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_on_in_float32_even_under_autocast(dtype):
    batch = slow.random_batch(dtype=torch.float32)
    halves = {name: value if name == "labels" else value.detach().to(dtype) for name, value in batch.items()}
    floats = {name: value if name == "labels" else value.float() for name, value in halves.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = all_terms(halves)
    for name, value in all_terms(floats).items():
        assert terms[name].dtype == torch.float32
        assert torch.equal(terms[name], value)


# ---------------------------------------------------------------- wrong arguments

MAPS, LABELS, PRESENT = torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long), torch.ones(2, 3).bool()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: pixel_kd_loss(MAPS, MAPS[:, :2], LABELS),
            ValueError,
            r"student_logits has shape \(2, 3, 4, 4\) but te",
        ),
        (lambda: pixel_kd_loss(MAPS, MAPS, LABELS, temperature=0), ValueError, "temperature=0: expected a positive"),
        (lambda: pixel_kd_loss(MAPS, MAPS, LABELS, reduction="mean"), ValueError, "reduction='mean': expected one of"),
        (lambda: pixel_kd_loss(MAPS, MAPS, LABELS + 7), RuntimeError, r"labels hold a value .* 0\.\.2"),
        (lambda: regularisation_loss(MAPS, LABELS + 7), RuntimeError, r"labels hold a value .* 0\.\.2"),
        (lambda: regularisation_loss(MAPS, LABELS[:1]), ValueError, "labels holds 1 images but the maps hold 2"),
        (lambda: regularisation_loss(MAPS, LABELS, PRESENT[:, :2]), ValueError, r"present .*\(2, 2\).* of \(2, 3\)"),
        (
            lambda: observation_loss(MAPS, MAPS, PRESENT, LABELS),
            ValueError,
            r"\(8, 8\) .* \(4, 4\): call resize_labels",
        ),
        (lambda: observation_loss(MAPS, MAPS[..., :2], PRESENT, LABELS), ValueError, "student_observations has shape"),
        (lambda: alignment_loss(MAPS[0], MAPS[0, :2], PRESENT), ValueError, "student_prototypes has shape"),
        (lambda: alignment_loss(MAPS[:, :, 0], MAPS[:, :, 0], PRESENT.long()), ValueError, "present is torch.int64"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
