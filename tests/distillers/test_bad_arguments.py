"""What every distiller is given: values that mean nothing are named, and faults at ignored pixels are of no account."""

import contextlib
import inspect
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from bad_input import refused
from every_method import SIZES, call, every_method, gradients, make, random_batch, used

from apd import APDLoss, PixelKD, ProjectionHead, class_prototypes
from apd.distillers.apd import RoIAPD, dense_apd
from apd.distillers.base import DISTILLERS, FeatureDistiller
from apd.distillers.on_detectors import ReviewKD, pyramid_matching, roi_dkd, roi_kd
from apd.perspective import resize_labels
from apd.validation import values_unchecked

CHANNELS = ("student_channels", "teacher_channels")
NAMES = (*CHANNELS, "num_classes")
BUILD = {"APDLoss": (APDLoss, NAMES), "dense_apd": (dense_apd, NAMES), "RoIAPD": (RoIAPD, NAMES)}
BUILD |= {"pyramid_matching": (pyramid_matching, CHANNELS), "ReviewKD": (ReviewKD, CHANNELS)}
BUILD |= {"ProjectionHead": (ProjectionHead, ("in_channels",)), "roi_kd": (roi_kd, ()), "roi_dkd": (roi_dkd, ())}
for config in DISTILLERS.values():
    if config.task == "segmentation" and config.module is not None:
        BUILD[config.module.__name__] = (config.module, NAMES if issubclass(config.module, FeatureDistiller) else ())
SMALL = {"width": 4, "pixel_slots": 2, "region_slots": 2}
OWN = {"roi_kd": ("weight", "temperature"), "roi_dkd": ("target", "non_target", "temperature")}
OWN |= {"RoIAPD": (*NAMES, "width", "scale", "temperature", "weights")}
WRONG = ["False", "x" * 5000, "\x1b[31m\n", b"x", -2.5, math.nan, math.inf, 1e308, 1e-320, 10**30, 10**400, -(10**5000)]
WRONG += [object(), torch.tensor(5), np.array([1, 2]), np.float32("nan"), 1j, Decimal(3), [[]], ("1", "1")]


def build(name, **changed):
    function, sizes = BUILD[name]
    small = {key: value for key, value in SMALL.items() if key in inspect.signature(function).parameters}
    return function(**dict.fromkeys(sizes, 6) | small | changed)


@pytest.mark.parametrize("name", BUILD)
def test_an_argument_that_means_nothing_is_refused_at_construction_by_its_name(name):
    for argument in OWN.get(name) or inspect.signature(BUILD[name][0]).parameters:
        flags = (1, 0, np.bool_(True)) if argument in ("upsample_logits", "detach_prototypes", "align_corners") else ()
        for value in (*WRONG, *flags):
            refused(lambda: build(name, **{argument: value}), ValueError, TypeError, names=(argument,))  # noqa: B023


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy_are_integers(name, kind):
    assert repr(build(name, **{size: kind(6) for size in BUILD[name][1]})) == repr(build(name))


@every_method
def test_maps_and_labels_of_another_layout_or_device_are_named(name):
    for key in ("labels", f"teacher_{used(name)[0]}"):
        value = random_batch()[key].detach()
        for other in (value.to_sparse(), value.to("meta")):
            refused(lambda: make(name)(**random_batch() | {key: other}), ValueError, names=("labels",))  # noqa: B023


@every_method
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["read", "not read", "beside a CPU", "finer teacher"])
def test_a_fault_at_an_ignored_pixel_is_as_a_zero_there_in_loss_and_gradient(name, value, mode, monkeypatch):
    module, batch = make(name), random_batch(ignored=0.4)
    batch |= random_batch(grid=(10, 8)) if mode == "finer teacher" else {}
    batch["labels"][0, 0, 0] = 255
    with_zeros = dict(batch)
    for key in batch.keys() - {"labels"}:
        ignored = (resize_labels(batch["labels"], batch[key].shape[2:]) == 255)[:, None]
        for kept, fill in ((batch, value), (with_zeros, 0.0)):
            kept[key] = kept[key].detach().masked_fill(ignored, fill).requires_grad_(key.startswith("student"))
    modules = (module, APDLoss.as_released(*SIZES, width=7).double()) if name == "apd" else (module,)
    for module in modules:
        expected = call(module, with_zeros)
        changes = gradients(expected["loss"], module, with_zeros)
        with monkeypatch.context() as patch, contextlib.nullcontext() if mode == "read" else values_unchecked():
            if mode == "beside a CPU":
                patch.setattr(torch.Tensor, "is_cpu", property(lambda _: False))
            found = call(module, batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
        for got, wanted in zip(gradients(found["loss"], module, batch), changes, strict=True):
            assert (got is None) == (wanted is None)
            if got is not None:  # a zero at an ignored pixel may have a gradient, a fault never has
                torch.testing.assert_close(got, torch.where(got == 0, 0.0, wanted))


def test_what_would_undo_the_constants_that_stand_for_minus_infinity_is_refused():
    refused(lambda: APDLoss(*SIZES, scale=2e3), ValueError, names=("scale=2000.0", "to 1000"))
    for build in (lambda: APDLoss(*SIZES, temperature=1e-7), lambda: PixelKD(temperature=1e-7)(**random_batch())):
        refused(build, ValueError, names=("temperature=1e-07", "1e-06 to"))


def test_a_teacher_without_predictions_and_lengths_that_overflow_make_the_loss_nan_where_values_are_not_read():
    batch, weights = random_batch(dtype=torch.float32), {"pixel_kd": 0}
    batch["teacher_logits"][0, 0, 1, 1] = math.nan
    module = APDLoss(*SIZES, width=7, labels_from="teacher", weights=weights)
    refused(lambda: module(**batch | {"labels": batch["labels"] * 0 + 255}), ValueError, names=("teacher_logits",))
    with values_unchecked():
        assert module(**batch)["loss"].isnan()
    for dtype, largest in ((torch.float32, 1e38), (torch.float64, 1e200), (torch.bfloat16, 1e38)):
        features = torch.full((1, 3, 2, 2), largest, dtype=dtype)
        assert class_prototypes(features, torch.zeros(1, 2, 2, dtype=torch.long), 2)[0][0, 0].isnan().all()
    features = torch.full((1, 3, 2, 2), 65504.0, dtype=torch.float16)
    assert class_prototypes(features, torch.zeros(1, 2, 2, dtype=torch.long), 2)[0].norm() == pytest.approx(1)
