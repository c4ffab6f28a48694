"""Prototypes, observations, both in one step, and labels and maps on other grids."""

import math
from pathlib import Path

import pytest
import slow_reference as slow
import torch
from torch.nn import functional as F

from apd import class_prototypes, observe, perspective, resize_labels
from apd.perspective import ABSENT_LOGIT, match_grids, observe_itself, valid_pixels

OPTIONS = [{}, {"scope": "batch"}, {"absent": "zero", "scale": 3.0}, {"scope": "batch", "absent": "zero"}]
OPTIONS += [{"detach_prototypes": True}, {"detach_prototypes": True, "scope": "batch"}]


def maps_and_labels():
    """Projected features and labels on one grid; about one pixel in seven is ignored, the last class is absent."""
    example = slow.random_batch(labels=(5, 4))
    return example["student_features"].detach(), example["labels"]


@pytest.mark.parametrize("size", [(9, 12), (1, 1), (65, 89), (64, 45), (130, 100)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_are_resized_as_torch_resizes_by_nearest_and_keep_their_dtype(size, dtype):
    labels = torch.randint(0, 256, (2, 65, 89))
    expected = F.interpolate(labels[:, None].double(), size=size, mode="nearest")[:, 0]
    assert torch.equal(resize_labels(labels.to(dtype), size), expected.to(dtype))


@pytest.mark.parametrize("size", [(9, 12), (1, 1), (65, 89), (130, 100), (2, 45)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_labels_at_aligned_corners_are_those_nearest_to_where_bilinear_maps_have_their_cells(size, dtype):
    labels = torch.randint(0, 256, (2, 65, 89))
    rows, columns = (
        [math.floor(0.5 + i * (side - 1) / (n - 1)) if n > 1 else 0 for i in range(n)]
        for side, n in zip((65, 89), size, strict=True)
    )
    got = resize_labels(labels.to(dtype), size, align_corners=True)
    assert torch.equal(got, labels.to(dtype)[:, rows][:, :, columns])
    fitting = torch.arange(0, 65, 8)
    assert torch.equal(resize_labels(labels, (9, 89), align_corners=True), labels[:, fitting])  # sides of 8k + 1


def test_maps_that_meet_at_aligned_corners_are_on_the_finer_grid_axis_by_axis():
    first, second = torch.randn(1, 3, 8, 3), torch.randn(1, 2, 4, 6)
    expected = slow.bilinear(first[0], (8, 6))[None], slow.bilinear(second[0], (8, 6))[None]
    torch.testing.assert_close(match_grids(first, second, align_corners=True), expected)


def test_the_finer_of_two_maps_is_averaged_down_to_the_coarser_grid_axis_by_axis():
    first, second = torch.randn(1, 3, 8, 3), torch.randn(1, 2, 4, 6)
    expected = F.avg_pool2d(first, (2, 1)), F.avg_pool2d(second, (1, 2))
    torch.testing.assert_close(match_grids(first, second), expected)


@pytest.mark.parametrize(
    ("labels", "ignore_index"), [([0, -1], 255), ([0, 3], 255), ([0, 254], 255), (torch.tensor([255]).byte(), -1)]
)
def test_a_label_that_names_no_class_is_an_error_that_names_the_problem(labels, ignore_index):
    such = "such as (-1|3|254|255): map"  # read where that costs nothing
    with pytest.raises(
        RuntimeError, match=rf"labels hold .* neither in 0\.\.2 nor ignore_index={ignore_index}, {such}"
    ):
        valid_pixels(torch.as_tensor(labels)[None, None], 3, ignore_index=ignore_index)


def test_a_wrong_label_is_found_on_mps_too_which_has_no_asynchronous_assertion(monkeypatch):
    assert "mps" not in perspective.ASSERTS_LATER
    monkeypatch.setattr(perspective, "ASSERTS_LATER", ())
    monkeypatch.setattr(torch, "_assert_async", None)
    assert valid_pixels(torch.tensor([[[0, 2, 255]]]), 3).tolist() == [[[True, True, False]]]
    with pytest.raises(RuntimeError, match=r"labels hold a value that is neither in 0\.\.1 nor ignore_index=255"):
        valid_pixels(torch.tensor([[[0, 2, 255]]]), 2)
    package = Path(perspective.__file__).parent  # and nobody else asserts asynchronously
    assert [path.name for path in package.rglob("*.py") if "_assert_async(" in path.read_text()] == ["perspective.py"]


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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("degenerate", ["", "a pixel without direction", "no valid pixel"])
def test_one_step_equals_the_two_that_define_it_in_value_and_gradient(options, degenerate):
    features, labels = maps_and_labels()
    if degenerate == "no valid pixel":
        labels = torch.full_like(labels, 255)
    elif degenerate:
        features[0, :, 1, 1] = 0
    features.requires_grad_()
    scope, detach = options.get("scope", "image"), options.get("detach_prototypes", False)
    seen = {name: options[name] for name in ("absent", "scale") if name in options}
    prototypes, present = class_prototypes(features, labels, 5, scope=scope)
    expected = prototypes, present, observe(features, prototypes.detach() if detach else prototypes, present, **seen)
    got = observe_itself(features, labels, 5, **options)
    torch.testing.assert_close(got, expected)

    pull = [torch.randn_like(value) for value in (got[0], got[2])]
    ours, theirs = (torch.autograd.grad([out[0], out[2]], features, pull)[0] for out in (got, expected))
    torch.testing.assert_close(ours, theirs)


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
