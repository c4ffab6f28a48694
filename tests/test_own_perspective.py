import pytest
import torch

from apd import APDLoss, class_prototypes, observe
from apd.fused import observe_itself
from apd.perspective import CompactLabels, occurring_classes

from . import slow_reference as slow


def features_and_labels(*, num_classes=4, grid=(3, 5), dtype=torch.float64, ignored=0.2, seed=0):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 6, *grid, generator=random, dtype=dtype).requires_grad_()
    labels = torch.randint(0, num_classes - 1, (2, *grid), generator=random)  # the last class is nowhere
    labels[torch.rand(labels.shape, generator=random) < ignored] = 255
    return features, labels


OPTIONS = [
    {},
    {"scope": "batch"},
    {"absent": "zero", "scale": 3.0},
    {"scope": "batch", "absent": "zero"},
    {"detach_prototypes": True},
    {"detach_prototypes": True, "scope": "batch"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_step_equals_the_two_that_define_it_in_value_and_gradient(options):
    features, labels = features_and_labels()
    scope, detach = options.get("scope", "image"), options.get("detach_prototypes", False)
    seen = {name: options[name] for name in ("absent", "scale") if name in options}
    prototypes, present = class_prototypes(features, labels, 4, scope=scope)
    expected = prototypes, present, observe(features, prototypes.detach() if detach else prototypes, present, **seen)
    got = observe_itself(features, labels, 4, **options)
    torch.testing.assert_close(got, expected)

    pull = [torch.randn_like(value) for value in (got[0], got[2])]
    ours, theirs = (torch.autograd.grad([out[0], out[2]], features, pull)[0] for out in (got, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_the_written_out_gradient_is_that_of_finite_differences(options):
    features, labels = features_and_labels(grid=(2, 3))

    def of(features):
        prototypes, _, observations = observe_itself(features, labels, 4, **options)
        return prototypes, observations

    assert torch.autograd.gradcheck(of, features)


def test_a_pixel_without_direction_gets_no_gradient_and_spoils_nothing():
    features, labels = features_and_labels()
    with torch.no_grad():
        features[0, :, 1, 1] = 0
    _, _, observations = observe_itself(features, labels, 4)
    observations.sum().backward()
    assert features.grad.isfinite().all()
    assert features.grad[0, :, 1, 1].eq(0).all()


def test_without_valid_pixels_everything_is_absent_and_the_gradient_is_zero():
    features, labels = features_and_labels()
    prototypes, present, observations = observe_itself(features, torch.full_like(labels, 255), 4)
    (prototypes.sum() + observations.sum()).backward()
    assert not present.any()
    assert features.grad.eq(0).all()


def test_half_precision_is_worked_on_in_float32():
    features, labels = features_and_labels(dtype=torch.float32)
    expected = observe_itself(features, labels, 4)[2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = observe_itself(features.bfloat16(), labels, 4)[2]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.1)


def test_labels_on_another_grid_are_refused():
    features, labels = features_and_labels()
    with pytest.raises(ValueError, match="call resize_labels"):
        observe_itself(features, labels[:, 1:], 4)


# ---------------------------------------------------------------- occurring classes


def test_classes_are_renumbered_in_order_and_those_only_on_the_fine_grid_are_ignored():
    fine = torch.tensor([[[9, 2, 5, 255]], [[2, 2, 2, 2]]])
    coarse = torch.tensor([[[9, 2]], [[2, 2]]])
    seen = occurring_classes(fine, coarse, 10)
    assert seen.labels_BHW.tolist() == [[[1, 0, -1, -1]], [[0, 0, 0, 0]]]
    assert seen.labels_Bhw.tolist() == [[[1, 0]], [[0, 0]]]
    assert (seen.num_classes, seen.ignore_index) == (2, -1)


def test_with_the_scope_of_the_batch_a_class_has_one_number_in_all_images():
    labels = torch.tensor([[[9, 2]], [[2, 5]]])
    seen = occurring_classes(labels, labels, 10, scope="batch")
    assert seen.labels_BHW.tolist() == [[[2, 0]], [[0, 1]]]
    assert seen.num_classes == 3


@pytest.mark.parametrize("ignore_index", [255, 0, -100])
def test_any_label_can_be_the_one_to_ignore(ignore_index):
    labels = torch.tensor([[[ignore_index, 3]]])
    assert occurring_classes(labels, labels, 10, ignore_index=ignore_index).labels_BHW.tolist() == [[[-1, 0]]]


def test_where_nothing_occurs_one_empty_class_is_left():
    nothing = torch.full((2, 1, 3), 255)
    assert occurring_classes(nothing, nothing, 10).num_classes == 1


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_leaving_absent_classes_out_changes_no_term_and_no_gradient(scope):
    batch = slow.random_batch(num_classes=30)
    module = APDLoss(6, 6, 30, width=5, scope=scope).double()
    few = module(**batch)
    module._classes_at_hand = lambda fine, coarse: CompactLabels(fine, coarse, 30, 255)
    all_of_them = module(**batch)
    torch.testing.assert_close(few, all_of_them)
    wanted = [*module.parameters(), batch["student_features"]]
    torch.testing.assert_close(
        torch.autograd.grad(few["loss"], wanted), torch.autograd.grad(all_of_them["loss"], wanted)
    )
