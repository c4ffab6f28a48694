"""The two custom gradients: one step for prototypes and observations, and the entropy of upsampled logits."""

import pytest
import torch
from torch.nn import functional as F

from apd import class_prototypes, losses, observe
from apd.losses import upsampled_entropy
from apd.perspective import observe_itself


def features_and_labels(*, grid=(3, 5), dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, *grid, generator=random, dtype=dtype).requires_grad_()
    labels = torch.randint(0, 3, (2, *grid), generator=random)  # the last of four classes is nowhere
    labels[torch.rand(labels.shape, generator=random) < 0.2] = 255
    return features, labels


OPTIONS = [{}, {"scope": "batch"}, {"absent": "zero", "scale": 3.0}, {"scope": "batch", "absent": "zero"}]
OPTIONS += [{"detach_prototypes": True}, {"detach_prototypes": True, "scope": "batch"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("degenerate", ["", "a pixel without direction", "no valid pixel"])
def test_one_step_equals_the_two_that_define_it_in_value_and_gradient(options, degenerate):
    features, labels = features_and_labels()
    if degenerate == "no valid pixel":
        labels = torch.full_like(labels, 255)
    elif degenerate:
        features.data[0, :, 1, 1] = 0
    scope, detach = options.get("scope", "image"), options.get("detach_prototypes", False)
    seen = {name: options[name] for name in ("absent", "scale") if name in options}
    prototypes, present = class_prototypes(features, labels, 4, scope=scope)
    expected = prototypes, present, observe(features, prototypes.detach() if detach else prototypes, present, **seen)
    got = observe_itself(features, labels, 4, **options)
    torch.testing.assert_close(got, expected)

    pull = [torch.randn_like(value) for value in (got[0], got[2])]
    ours, theirs = (torch.autograd.grad([out[0], out[2]], features, pull)[0] for out in (got, expected))
    torch.testing.assert_close(ours, theirs)


def by_library(logits, labels, counted):
    fine = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=True)
    return (F.cross_entropy(fine, labels, reduction="none") * counted).sum()


def inputs(coarse=(3, 3), fine=(8, 8), *, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, *coarse, generator=random, dtype=dtype).requires_grad_()
    labels = torch.randint(0, 5, (2, *fine), generator=random)
    return logits, labels, torch.rand(2, *fine, generator=random) < 0.8


@pytest.mark.parametrize("band", [1, 60, 10**6], ids=["a-row-a-band", "some-rows", "one-band"])
@pytest.mark.parametrize(
    ("coarse", "fine"),
    [((5, 4), (17, 13)), ((1, 2), (9, 9)), ((7, 7), (7, 7)), ((9, 9), (4, 5)), ((3, 1), (8, 1)), ((1, 1), (1, 1))],
)
def test_value_and_gradient_equal_those_of_the_library_whatever_the_bands(monkeypatch, band, coarse, fine):
    monkeypatch.setattr(losses, "BAND_ELEMENTS", band)
    logits, labels, counted = inputs(coarse, fine)
    ours, theirs = upsampled_entropy(logits, labels, counted), by_library(logits, labels, counted)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(3 * ours, logits), torch.autograd.grad(3 * theirs, logits))


@pytest.mark.parametrize(("scale", "kept"), [(1.0, 0), (1e4, 1)], ids=["nothing-counted", "logits-of-ten-thousand"])
def test_degenerate_input_leaves_a_connected_finite_total(scale, kept):
    logits, labels, counted = inputs(dtype=torch.float32)
    total = upsampled_entropy(scale * logits, labels, counted & bool(kept))
    total.backward()
    assert total.isfinite()
    assert logits.grad.isfinite().all()
    assert (total == 0) == (not logits.grad.any()) == (not kept)
