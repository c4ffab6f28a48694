import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn import functional as F

from apd import class_prototypes, observe, perspective, resize_labels
from apd.perspective import ABSENT_LOGIT, match_grids, valid_pixels

from . import slow_reference as slow


def maps_and_labels(seed=0, batch=2, width=6, num_classes=5, grid=(5, 4)):
    """Projected features and labels on one grid; about one pixel in seven is ignored, the last class is absent."""
    example = slow.random_batch(
        seed=seed, batch=batch, student_channels=width, num_classes=num_classes, grid=grid, labels=grid
    )
    return example["student_features"].detach(), example["labels"]


# ---------------------------------------------------------------- labels on the feature grid


@pytest.mark.parametrize("size", [(9, 12), (1, 1), (65, 89), (64, 45), (130, 100)])
def test_labels_are_resized_as_torch_resizes_by_nearest(size):
    labels = torch.randint(0, 256, (2, 65, 89), dtype=torch.uint8)
    expected = F.interpolate(labels[:, None], size=size, mode="nearest")[:, 0]
    assert torch.equal(resize_labels(labels, size), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_resized_labels_keep_their_dtype_and_no_class_is_invented(dtype):
    labels = torch.tensor([[[0, 10, 100], [100, 0, 10]]], dtype=dtype)
    resized = resize_labels(labels, (7, 8))
    assert resized.dtype == dtype
    assert set(resized.flatten().tolist()) <= {0, 10, 100}


def test_the_finer_of_two_maps_is_averaged_down_to_the_coarser_grid():
    fine, coarse = torch.randn(1, 3, 8, 6), torch.randn(1, 2, 4, 3)
    for first, second in (match_grids(fine, coarse), match_grids(coarse, fine)[::-1]):
        assert second is coarse
        torch.testing.assert_close(first, F.avg_pool2d(fine, 2))


def test_of_two_grids_each_coarser_along_one_axis_the_coarser_axis_wins():
    first, second = match_grids(torch.randn(1, 3, 8, 3), torch.randn(1, 2, 4, 6))
    assert first.shape[2:] == second.shape[2:] == (4, 3)


# ---------------------------------------------------------------- validity of labels


def test_valid_pixels_are_those_whose_label_is_not_the_ignore_index():
    labels = torch.tensor([[[0, 2, 255]]])
    assert valid_pixels(labels, 3).tolist() == [[[True, True, False]]]
    assert valid_pixels(torch.tensor([[[0, 2, 0]]]), 3, ignore_index=0).tolist() == [[[False, True, False]]]


@pytest.mark.parametrize("bad", [-1, 3, 254])
def test_a_label_that_names_no_class_is_an_error_that_names_the_problem(bad):
    labels = torch.tensor([[[0, bad]]])
    with pytest.raises(RuntimeError, match=r"labels hold a value that is neither in 0\.\.2 nor ignore_index=255"):
        class_prototypes(torch.ones(1, 2, 1, 2), labels, 3)


def test_label_255_of_a_byte_map_is_not_mistaken_for_an_ignore_index_of_minus_one():
    labels = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="ignore_index=-1"):
        valid_pixels(labels, 3, ignore_index=-1)


class OnMps(torch.Tensor):
    """A tensor that says that it is on an Apple GPU."""

    @property
    def device(self):
        return torch.device("mps")


def test_a_wrong_label_is_found_on_mps_which_has_no_asynchronous_assertion(monkeypatch):
    def missing(*_):
        raise NotImplementedError("aten::_assert_async.msg is not implemented for the MPS device")

    monkeypatch.setattr(torch, "_assert_async", missing)
    labels = torch.tensor([[[0, 2, 255]]]).as_subclass(OnMps)
    assert valid_pixels(labels, 3).tolist() == [[[True, True, False]]]
    with pytest.raises(RuntimeError, match=r"labels hold a value that is neither in 0\.\.1 nor ignore_index=255"):
        valid_pixels(labels, 2)
    with pytest.raises(NotImplementedError):  # the stand-in is reached on any other device
        valid_pixels(torch.tensor([[[0]]]), 3)


def test_only_one_function_of_the_package_asserts_asynchronously():
    package = Path(perspective.__file__).parent
    found = [path.name for path in package.rglob("*.py") for _ in re.findall(r"_assert_async\(", path.read_text())]
    assert found == ["perspective.py"]


# ---------------------------------------------------------------- prototypes and observations


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_prototypes_and_observations_equal_the_class_by_class_reference(scope):
    features, labels = maps_and_labels()
    prototypes, present = class_prototypes(features, labels, 5, scope=scope)
    observed = observe(features, prototypes, present, scale=7.0)
    reference = slow.perspectives(features, labels, scope=scope)
    assert len({tuple(rows) for rows in reference}) == (2 if scope == "image" else 1), "images should differ in classes"
    for b, rows in enumerate(reference):
        assert present[b].nonzero().flatten().tolist() == sorted(rows)
        seen = slow.observations(features[b], rows, scale=7.0)
        for label in range(5):
            if label in rows:
                torch.testing.assert_close(prototypes[b, label], rows[label])
                torch.testing.assert_close(observed[b, label], seen[label])
            else:
                assert prototypes[b, label].eq(0).all()
                assert observed[b, label].eq(ABSENT_LOGIT).all()


def test_absent_classes_observe_zero_when_asked_to():
    features, labels = maps_and_labels()
    prototypes, present = class_prototypes(features, labels, 5)
    masked, zeroed = (observe(features, prototypes, present, absent=absent) for absent in ("mask", "zero"))
    absent = ~present[:, :, None, None].expand_as(masked)
    assert absent.any()
    assert zeroed[absent].eq(0).all()
    assert torch.equal(masked[~absent], zeroed[~absent])


@given(seed=st.integers(0, 99))
def test_the_order_of_pixels_does_not_matter(seed):
    features, labels = maps_and_labels(seed)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))

    def shuffled(values):
        return values.flatten(-2)[..., order].unflatten(-1, (5, 4))

    prototypes, present = class_prototypes(features, labels, 5)
    moved, moved_present = class_prototypes(shuffled(features), shuffled(labels), 5)
    torch.testing.assert_close(moved, prototypes)
    assert torch.equal(moved_present, present)
    torch.testing.assert_close(
        observe(shuffled(features), moved, present), shuffled(observe(features, prototypes, present))
    )


@given(seed=st.integers(0, 99), names=st.permutations(range(5)))
def test_renaming_classes_renames_the_prototypes(seed, names):
    features, labels = maps_and_labels(seed)
    table = torch.arange(256)
    table[:5] = torch.tensor(names)
    prototypes, present = class_prototypes(features, labels, 5)
    renamed, renamed_present = class_prototypes(features, table[labels], 5)
    torch.testing.assert_close(renamed[:, names], prototypes)
    assert torch.equal(renamed_present[:, names], present)


@given(seed=st.integers(0, 99))
def test_ignored_pixels_change_no_prototype(seed):
    features, labels = maps_and_labels(seed)
    noise = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    longer = torch.cat([features, 100 * noise], dim=2)
    longer_labels = torch.cat([labels, torch.full((2, 3, 4), 255)], dim=1)
    for value, expected in zip(
        class_prototypes(longer, longer_labels, 5), class_prototypes(features, labels, 5), strict=True
    ):
        torch.testing.assert_close(value, expected)


@given(seed=st.integers(0, 99), exponent=st.integers(-4, 4))
def test_the_length_of_a_pixels_feature_vector_does_not_matter(seed, exponent):
    features, labels = maps_and_labels(seed)
    lengths = 10.0**exponent * torch.linspace(0.5, 2, 40, dtype=torch.float64).view(2, 1, 5, 4)
    prototypes, present = class_prototypes(features, labels, 5)
    scaled, _ = class_prototypes(features * lengths, labels, 5)
    torch.testing.assert_close(scaled, prototypes)
    torch.testing.assert_close(observe(features * lengths, prototypes, present), observe(features, prototypes, present))


def test_an_images_perspective_does_not_depend_on_the_other_images_unless_the_scope_is_the_batch():
    features, labels = maps_and_labels(batch=3)
    alone, _ = class_prototypes(features[:1], labels[:1], 5)
    together, _ = class_prototypes(features, labels, 5)
    torch.testing.assert_close(together[:1], alone)
    pooled, present = class_prototypes(features, labels, 5, scope="batch")
    assert torch.equal(pooled[0], pooled[2])
    assert torch.equal(present[0], present[2])
    assert (pooled[:1] - alone).abs().max() > 0.1


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_gradients_of_prototypes_and_observations_are_right(scope):
    features, labels = maps_and_labels(grid=(3, 2), width=3, num_classes=4)

    def both(features):
        prototypes, present = class_prototypes(features, labels, 4, scope=scope)
        return prototypes, observe(features, prototypes, present, absent="zero")

    assert torch.autograd.gradcheck(both, (features.requires_grad_(),))


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


@pytest.mark.parametrize("kept", [[], [2]], ids=["all-ignored", "one-class"])
def test_labels_without_or_with_a_single_class_give_finite_values_and_gradients(kept):
    features, labels = maps_and_labels()
    labels = torch.full_like(labels, kept[0] if kept else 255)
    features.requires_grad_()
    prototypes, present = class_prototypes(features, labels, 5)
    assert present.sum(1).tolist() == [len(kept)] * 2
    observed = observe(features, prototypes, present)
    observed.sum().backward()
    assert observed.isfinite().all()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_worked_on_in_float32_even_under_autocast(dtype):
    features, labels = maps_and_labels()
    features = (features * 1e-3).to(dtype)
    features[0, :, 0, 0] = 0  # torch's own normalize makes this NaN in float16
    expected_prototypes, present = class_prototypes(features.float(), labels, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prototypes, _ = class_prototypes(features, labels, 5)
        observed = observe(features, prototypes, present)
    assert prototypes.dtype == observed.dtype == torch.float32
    assert torch.equal(prototypes, expected_prototypes)
    assert torch.equal(observed, observe(features.float(), prototypes, present))


# ---------------------------------------------------------------- wrong arguments

FEATURES, LABELS = torch.ones(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)


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
        (
            torch.ones(2, 5, 4),
            torch.ones(2, 5, dtype=torch.bool),
            {},
            r"prototypes has shape \(2, 5, 4\): expected \(2, ",
        ),
        (torch.ones(5, 3), torch.ones(2, 5, dtype=torch.bool), {}, "prototypes has shape"),
        (torch.ones(2, 5, 3), torch.ones(2, 4, dtype=torch.bool), {}, "present is torch.bool of shape"),
        (torch.ones(2, 5, 3), torch.ones(2, 5), {}, "present is torch.float32"),
        (torch.ones(2, 5, 3), torch.ones(2, 5, dtype=torch.bool), {"absent": "drop"}, "absent='drop'"),
    ],
)
def test_wrong_arguments_of_observe_are_named(prototypes, present, options, message):
    with pytest.raises(ValueError, match=message):
        observe(FEATURES, prototypes, present, **options)
