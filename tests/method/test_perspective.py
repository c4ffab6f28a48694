"""Prototypes, observations, and labels and maps on other grids."""

import re
from pathlib import Path

import pytest
import slow_reference as slow
import torch
from torch.nn import functional as F

from apd import APDLoss, class_prototypes, observe, perspective, resize_labels
from apd.perspective import ABSENT_LOGIT, CompactLabels, match_grids, occurring_classes, valid_pixels


def maps_and_labels(batch=2, width=6, num_classes=5, grid=(5, 4)):
    """Projected features and labels on one grid; about one pixel in seven is ignored, the last class is absent."""
    example = slow.random_batch(batch=batch, student_channels=width, num_classes=num_classes, grid=grid, labels=grid)
    return example["student_features"].detach(), example["labels"]


@pytest.mark.parametrize("size", [(9, 12), (1, 1), (65, 89), (64, 45), (130, 100)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_are_resized_as_torch_resizes_by_nearest_and_keep_their_dtype(size, dtype):
    labels = torch.randint(0, 256, (2, 65, 89))
    expected = F.interpolate(labels[:, None].double(), size=size, mode="nearest")[:, 0]
    assert torch.equal(resize_labels(labels.to(dtype), size), expected.to(dtype))


def test_the_finer_of_two_maps_is_averaged_down_to_the_coarser_grid_axis_by_axis():
    fine, coarse = torch.randn(1, 3, 8, 6), torch.randn(1, 2, 4, 3)
    for first, second in (match_grids(fine, coarse), match_grids(coarse, fine)[::-1]):
        assert second is coarse
        torch.testing.assert_close(first, F.avg_pool2d(fine, 2))
    first, second = match_grids(torch.randn(1, 3, 8, 3), torch.randn(1, 2, 4, 6))
    assert first.shape[2:] == second.shape[2:] == (4, 3)


def test_valid_pixels_are_those_whose_label_is_not_the_ignore_index():
    assert valid_pixels(torch.tensor([[[0, 2, 255]]]), 3).tolist() == [[[True, True, False]]]
    assert valid_pixels(torch.tensor([[[0, 2, 0]]]), 3, ignore_index=0).tolist() == [[[False, True, False]]]


@pytest.mark.parametrize("bad", [-1, 3, 254])
def test_a_label_that_names_no_class_is_an_error_that_names_the_problem(bad):
    with pytest.raises(RuntimeError, match=r"labels hold a value that is neither in 0\.\.2 nor ignore_index=255"):
        class_prototypes(torch.ones(1, 2, 1, 2), torch.tensor([[[0, bad]]]), 3)


def test_label_255_of_a_byte_map_is_not_mistaken_for_an_ignore_index_of_minus_one():
    with pytest.raises(RuntimeError, match="ignore_index=-1"):
        valid_pixels(torch.tensor([[[0, 255]]], dtype=torch.uint8), 3, ignore_index=-1)


class OnMps(torch.Tensor):
    """A tensor that says that it is on an Apple GPU."""

    @property
    def device(self):
        return torch.device("mps")


def test_a_wrong_label_is_found_on_mps_which_has_no_asynchronous_assertion(monkeypatch):
    monkeypatch.setattr(torch, "_assert_async", None)
    labels = torch.tensor([[[0, 2, 255]]]).as_subclass(OnMps)
    assert valid_pixels(labels, 3).tolist() == [[[True, True, False]]]
    with pytest.raises(RuntimeError, match=r"labels hold a value that is neither in 0\.\.1 nor ignore_index=255"):
        valid_pixels(labels, 2)
    with pytest.raises(TypeError, match="not callable"):  # the stand-in is reached on any other device
        valid_pixels(torch.tensor([[[0]]]), 3)


def test_only_one_function_of_the_package_asserts_asynchronously():
    package = Path(perspective.__file__).parent
    found = [path.name for path in package.rglob("*.py") for _ in re.findall(r"_assert_async\(", path.read_text())]
    assert found == ["perspective.py"]


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_prototypes_and_observations_equal_the_class_by_class_reference(scope):
    features, labels = maps_and_labels()
    prototypes, present = class_prototypes(features, labels, 5, scope=scope)
    observed = observe(features, prototypes, present, scale=7.0)
    zeroed = observe(features, prototypes, present, scale=7.0, absent="zero")
    reference = slow.perspectives(features, labels, scope=scope)
    assert len({tuple(rows) for rows in reference}) == (2 if scope == "image" else 1), "images should differ in classes"
    for b, rows in enumerate(reference):
        assert present[b].nonzero().flatten().tolist() == sorted(rows)
        seen = slow.observations(features[b], rows, scale=7.0)
        for label in range(5):
            if label in rows:
                torch.testing.assert_close(prototypes[b, label], rows[label])
                torch.testing.assert_close(observed[b, label], seen[label])
                torch.testing.assert_close(zeroed[b, label], seen[label])
            else:
                assert prototypes[b, label].eq(0).all()
                assert observed[b, label].eq(ABSENT_LOGIT).all()
                assert zeroed[b, label].eq(0).all()


def test_a_pixel_without_direction_is_left_alone_instead_of_getting_a_huge_gradient():
    features, labels = maps_and_labels()
    features[0, :, 1, 2] = 0
    features.requires_grad_()
    prototypes, present = class_prototypes(features, labels, 5)
    observed = observe(features, prototypes, present)
    assert observed[0, present[0], 1, 2].eq(0).all()
    (prototypes.sum() + observed.square().mean()).backward()
    assert features.grad[0, :, 1, 2].eq(0).all()
    assert features.grad.abs().max() < 1e6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_worked_on_in_float32_even_under_autocast(dtype):
    features, labels = maps_and_labels()
    features = (features * 1e-3).to(dtype)
    features[0, :, 0, 0] = 0  # torch's own normalize makes this NaN in float16
    expected, present = class_prototypes(features.float(), labels, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prototypes, _ = class_prototypes(features, labels, 5)
        observed = observe(features, prototypes, present)
    assert prototypes.dtype == observed.dtype == torch.float32
    assert torch.equal(prototypes, expected)
    assert torch.equal(observed, observe(features.float(), prototypes, present))


def test_classes_are_renumbered_in_order_and_those_only_on_the_fine_grid_are_ignored():
    fine, coarse = torch.tensor([[[9, 2, 5, 255]], [[2, 2, 2, 2]]]), torch.tensor([[[9, 2]], [[2, 2]]])
    seen = occurring_classes(fine, coarse, 10)
    assert seen.labels_BHW.tolist() == [[[1, 0, -1, -1]], [[0, 0, 0, 0]]]
    assert seen.labels_Bhw.tolist() == [[[1, 0]], [[0, 0]]]
    assert (seen.num_classes, seen.ignore_index) == (2, -1)
    pooled = occurring_classes(fine, coarse, 10, scope="batch")  # a class has one number in all images
    assert (pooled.labels_Bhw.tolist(), pooled.num_classes) == ([[[1, 0]], [[0, 0]]], 2)
    nothing = torch.full((2, 1, 3), 255)
    assert occurring_classes(nothing, nothing, 10).num_classes == 1
    for ignore_index in (0, -100):
        labels = torch.tensor([[[ignore_index, 3]]])
        assert occurring_classes(labels, labels, 10, ignore_index=ignore_index).labels_BHW.tolist() == [[[-1, 0]]]


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_leaving_absent_classes_out_changes_no_term_and_no_gradient(scope):
    batch = slow.random_batch(num_classes=30)
    module = APDLoss(6, 6, 30, width=5, scope=scope).double()
    few = module(**batch)
    module._classes_at_hand = lambda fine, coarse: CompactLabels(fine, coarse, 30, 255)
    all_of_them = module(**batch)
    torch.testing.assert_close(few, all_of_them)
    wanted = [*module.parameters(), batch["student_features"]]
    torch.testing.assert_close(*(torch.autograd.grad(out["loss"], wanted) for out in (few, all_of_them)))


FEATURES, LABELS, PRESENT = torch.ones(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), torch.ones(2, 5).bool()


@pytest.mark.parametrize(
    ("features", "labels", "options", "error", "message"),
    [
        (FEATURES[0], LABELS, {}, ValueError, r"features has shape \(3, 4, 4\): expected four"),
        (FEATURES.long(), LABELS, {}, TypeError, "features has dtype torch.int64"),
        ([1.0], LABELS, {}, TypeError, "features is a list"),
        (FEATURES, LABELS[:, None], {}, ValueError, r"labels has shape .* use labels\.squeeze\(1\)"),
        (FEATURES, LABELS.float(), {}, TypeError, "labels has dtype torch.float32"),
        (FEATURES, LABELS.bool(), {}, TypeError, "labels has dtype torch.bool"),
        (FEATURES, LABELS[:1], {}, ValueError, "labels holds 1 images but the maps hold 2"),
        (FEATURES, LABELS[:, :3], {}, ValueError, r"grid of \(3, 4\) but features on \(4, 4\): call resize_labels"),
        (FEATURES, LABELS, {"scope": "world"}, ValueError, "scope='world': expected one of 'image', 'batch'"),
        (FEATURES[:, :, :0], LABELS, {}, ValueError, "non-empty"),
    ],
)
def test_wrong_arguments_of_class_prototypes_are_named(features, labels, options, error, message):
    with pytest.raises(error, match=message):
        class_prototypes(features, labels, 3, **options)


@pytest.mark.parametrize(
    ("prototypes", "present", "options", "message"),
    [
        (torch.ones(2, 5, 4), PRESENT, {}, r"prototypes has shape \(2, 5, 4\): expected \(2, "),
        (torch.ones(5, 3), PRESENT, {}, "prototypes has shape"),
        (torch.ones(2, 5, 3), PRESENT[:, :4], {}, "present is torch.bool of shape"),
        (torch.ones(2, 5, 3), PRESENT.float(), {}, "present is torch.float32"),
        (torch.ones(2, 5, 3), PRESENT, {"absent": "drop"}, "absent='drop'"),
    ],
)
def test_wrong_arguments_of_observe_are_named(prototypes, present, options, message):
    with pytest.raises(ValueError, match=message):
        observe(FEATURES, prototypes, present, **options)
