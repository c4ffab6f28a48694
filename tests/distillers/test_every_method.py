"""Every distillation method: against its slow reference, and the properties that they share."""

import copy
from itertools import permutations

import numpy as np
import pytest
import slow_methods
import slow_reference as slow
import torch
from every_method import METHODS, OF_LOGITS, SIZES, call, every_method, gradients, make, random_batch, used
from torch.nn import functional as F

import apd
from apd import CIRKD, CWD, MGD, APDLoss, FitNet, PairwiseSimilarity, PixelKD
from apd.distillers import relations
from apd.distillers.apd import RoIAPD, dense_apd
from apd.distillers.on_detectors import OnPyramid, OnRoIs, ReviewKD
from apd.losses import DEFAULT_WEIGHTS as TERMS

every_other_method = pytest.mark.parametrize("name", [name for name in METHODS if name != "apd"])


def slow_terms(name, module, batch):
    """The terms by the slow reference; the grids of a batch are equal."""
    features, logits = ([batch[f"{net}_{kind}"] for net in ("student", "teacher")] for kind in ("features", "logits"))
    labels, size = batch["labels"], tuple(features[0].shape[2:])
    maps, options = (logits if name in OF_LOGITS else features), {}
    match name:
        case "pixel_kd":
            return {"pixel_kd": slow.pixel_kd(*logits, labels, temperature=2.0)}
        case "dist" | "dkd" | "lskd":
            options = {"temperature": 2.0}
        case "fitnet":
            options = {"adapter": (module.adapter.weight, None)}
        case "i2ckd":
            options = {"adapter": module.adapter.weight, "margin": 1.0}
        case "skd":
            options = {"window": (max(1, size[0] // 2), max(1, size[1] // 2))}
        case "cwd":
            adapted = slow_methods.convolved(features[0], module.adapter.weight)
            of = {"logits": logits, "features": (adapted, features[1])}
            return {term: slow_methods.cwd(*nets, labels, temperature=4.0) for term, nets in of.items()}
        case "mgd":
            torch.manual_seed(11)
            layers = {layer: getattr(module, layer) for layer in ("adapter", "hidden", "out")}
            options = {name: (layer.weight, layer.bias) for name, layer in layers.items()}
            options["kept"] = torch.rand(len(features[0]), *size) < 0.25
        case "cirkd":
            window = {(5, 4): 2, (1, 2): 1}[size]  # 20 pixels come down to 3 × 2 cells, two stay two
            out = {"batch_pixels": slow_methods.cirkd_batch(*features, labels, temperature=0.1, window=window)}
            headed = slow_methods.cirkd_head(features[0], labels, module.head)
            for term, queues in module.memories.items():  # all are drawn
                out[term] = slow_methods.cirkd_memory(headed, *features, queues.vectors.flatten(0, 1), temperature=0.1)
            return out
    return getattr(slow_methods, name)(*maps, labels, **options)


@every_other_method
@pytest.mark.parametrize("grid", [(5, 4), (1, 2)], ids=["fine", "coarse"])
def test_terms_loss_and_gradients_equal_the_slow_reference(name, grid):
    module, batch = make(name), random_batch(grid=grid)
    out = call(module, batch)
    expected = slow_terms(name, module, batch)
    assert list(out) == [*expected, "loss"] == [*module.weights, "loss"]
    total = sum(module.weights[term] * value for term, value in expected.items())
    torch.testing.assert_close(out, expected | {"loss": total})
    for got, wanted in zip(gradients(out["loss"], module, batch), gradients(total, module, batch), strict=True):
        if wanted is None:
            assert got is None or not got.any()
        else:
            torch.testing.assert_close(got, wanted, atol=1e-7 * total.item(), rtol=1e-5)


@every_method
@pytest.mark.parametrize("fault", ["nothing valid", "nothing valid in bytes", "hardly a pixel", "features of zero"])
def test_degenerate_input_leaves_everything_finite_and_nothing_valid_a_connected_zero(name, fault):
    module, batch = make(name).train(), random_batch()
    if fault == "features of zero":
        batch |= {key: torch.zeros_like(value) for key, value in batch.items() if key != "labels"}
        batch |= {key: value.requires_grad_() for key, value in batch.items() if key.startswith("student")}
    else:
        batch["labels"] = torch.full_like(batch["labels"], 255, dtype=torch.uint8 if "bytes" in fault else None)
    if fault == "hardly a pixel":
        batch["labels"][1, 0, 0] = 3
    out = call(module, batch)
    changes = [gradient for gradient in gradients(out["loss"], module, batch) if gradient is not None]
    assert all(value.isfinite().all() for value in (*out.values(), *changes))
    if "nothing" in fault:
        assert all(value == 0 and value.requires_grad for value in out.values())
        assert not any(gradient.any() for gradient in changes)


@every_method
def test_a_finer_teacher_is_averaged_down_to_the_students_grid(name):
    module, batch = make(name), random_batch()
    fine = {key: random_batch(grid=(10, 8), seed=3)[key] for key in ("teacher_features", "teacher_logits")}
    coarse = {key: F.avg_pool2d(value, 2) for key, value in fine.items()}
    torch.testing.assert_close(call(module, batch | fine), call(module, batch | coarse))


@every_method
def test_gradient_reaches_the_student_and_its_adapter_and_never_the_teacher(name):
    module, batch = make(name).train(), random_batch()
    batch["teacher_features"].requires_grad_()
    batch["teacher_logits"].requires_grad_()
    call(module, batch)["loss"].backward()
    assert (batch["teacher_features"].grad, batch["teacher_logits"].grad) == (None, None)
    for kind in ("features", "logits"):
        gradient = batch[f"student_{kind}"].grad
        assert (gradient is not None and bool(gradient.any())) == (kind in used(name))
    parameters = [*module.student_parameters(), *module.teacher_parameters()]
    assert len(parameters) == len(list(module.parameters()))
    assert bool(parameters) == (name in ("apd", "fitnet", "cwd", "cirkd", "mgd", "i2ckd"))
    assert all(parameter.grad.any() for parameter in parameters)
    assert bool(module.teacher_parameters()) == (name == "apd")


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_half_precision_maps_stay_close_to_float32(name, dtype):
    module, batch = make(name, torch.float32), random_batch(dtype=torch.float32)
    halves = {key: value if key == "labels" else value.detach().to(dtype) for key, value in batch.items()}
    halves |= {key: value.requires_grad_() for key, value in halves.items() if key.startswith("student")}
    expected = call(module, {key: value.float() if key != "labels" else value for key, value in halves.items()})
    with torch.autocast("cpu", dtype=dtype):
        out = call(module, halves)
    assert {value.dtype for value in out.values()} == {torch.float32}
    torch.testing.assert_close(out, expected)
    out["loss"].backward()
    reached = [halves[key].grad for key in ("student_features", "student_logits") if halves[key].grad is not None]
    assert reached
    assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in reached)


@every_method
def test_maps_of_float64_and_float32_meet(name):
    module, batch = make(name), random_batch()
    mixed = batch | {key: batch[key].float() for key in ("teacher_features", "teacher_logits")}
    torch.testing.assert_close(call(module, mixed), call(module, batch), rtol=1e-5, atol=1e-6)


def test_distances_of_near_class_means_are_exact_for_any_number_of_classes():
    means = torch.rand(1, 150, 8, generator=torch.Generator().manual_seed(0))
    apart = ~torch.eye(150, dtype=torch.bool)[None]
    near = means[:, :1] + 1e-3 * means
    exact = relations.inter_class_loss(near.double(), 2 * near.double(), apart)
    torch.testing.assert_close(relations.inter_class_loss(near, 2 * near, apart).double(), exact, rtol=1e-3, atol=0)
    assert relations.triplet_loss(means, means.clone(), apart, margin=0.0) == 0


def test_a_gradient_of_apd_that_would_be_wrong_the_second_time_is_refused():
    batch = random_batch()
    of = [batch["student_features"]]
    (gradient,) = torch.autograd.grad(call(make("apd"), batch)["loss"], of, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@every_method
def test_a_method_cast_to_half_precision_still_computes_its_formula_in_float32(name):
    module, batch = make(name, torch.bfloat16), random_batch(dtype=torch.float32)
    reference = make(name, torch.float32)
    reference.load_state_dict(module.state_dict())
    out, expected = call(module, batch), call(reference, batch)
    assert {value.dtype for value in out.values()} == {torch.float32}
    torch.testing.assert_close(out, expected, rtol=0.1, atol=0.05)


@every_method
def test_the_method_traces_to_one_graph_with_equal_results(name):
    eager, batch = make(name, torch.float32).train(), random_batch(dtype=torch.float32, grid=(7, 4))
    batch["teacher_features"] = F.interpolate(batch["teacher_features"], size=(9, 4))
    torch.compiler.reset()  # all methods share one wrapper, whose versions the compiler counts
    inner = copy.deepcopy(eager)
    compiled = torch.compile(inner, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the second call meets the memories that the first has written
        out, expected = call(compiled, batch), call(eager, batch)
        torch.testing.assert_close(out, expected)
        changes = gradients(out["loss"], inner, batch), gradients(expected["loss"], eager, batch)
        torch.testing.assert_close(*changes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dict(inner.named_buffers()), dict(eager.named_buffers()))
    wrong = batch | {"labels": batch["labels"].clone()}
    wrong["labels"][0, 0, 0] = 77
    with pytest.raises(RuntimeError, match="labels hold a value"):
        compiled(**wrong)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: APDLoss(6, 8, 5, weights={"aligment": 1}), r"no term 'aligment': .*did you mean 'alignment'\?"),
        (lambda: APDLoss(6, 8, 5, weights={"alignment": -1}), r"weights\['alignment'\]=-1: expected a finite number"),
        (lambda: APDLoss(6, 8, 5, weights=dict.fromkeys(TERMS, 0)), "weights are all 0"),
        (lambda: APDLoss(6, 8, 5, width=None), "width=None needs equal channels, got student_channels=6 and teacher_"),
        (lambda: APDLoss(6, 6, 5, width=None, weights={"regularisation": 1.0}), r"'\]=1.0 with width=None"),
        (lambda: APDLoss(6, 8, 5, width=10**9), "width=1000000000: expected a positive integer, at most 16384"),
        (lambda: APDLoss(6, 8, 1), r"num_classes=1: .*apd\.two_channel_logits\(z\).*masks > 0"),
        (lambda: PixelKD(weight=0.0), r"weight = 0\.0: expected a number > 0; to leave the term out, leave the"),
        (lambda: FitNet(6, 8, True), "num_classes=True: expected a positive integer"),
        (lambda: PairwiseSimilarity(6, 8, 5, pool=1.5), r"pool = 1\.5: expected 0 < pool <= 1"),
        (lambda: MGD(6, 8, 5, masked=1.0), r"masked = 1\.0: expected 0 <= masked < 1"),
        (lambda: CWD(6, 8, 5, logits=0), "logits, features are all 0"),
        (lambda: CIRKD(6, 8, 5, pixel_slots=10**9), "pixel_slots = 1000000000: expected at most 1048576"),
        (lambda: OnRoIs(PixelKD()), "PixelKD has ignore_index=255: construct it with ignore_index=-1"),
        (lambda: OnPyramid(lambda: None, levels=("1", "1")), "levels=.* each once"),
        (lambda: OnPyramid(lambda: None, levels=("1",), labels="boxes"), "labels='boxes': expected one of 'classes'"),
        (lambda: dense_apd(5, 6, 3, weights={"pixel_kd": 1.0}), r"a pyramid has no logits; add roi_kd\(\)"),
        (lambda: RoIAPD(5, 6, 3, width=None), "width=None needs equal channels, got student_channels=5"),
        (lambda: ReviewKD(5, 6, levels=("1", "0")), r"levels = \('1', '0'\): expected some of .* in this order"),
        (lambda: ReviewKD(5, 6, width=10**9), "width = 1000000000: expected at most 16384"),
    ],
)
def test_wrong_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@every_method
def test_wrong_inputs_are_named(name):
    module, batch = make(name), random_batch()
    student, teacher, labels = f"student_{used(name)[-1]}", f"teacher_{used(name)[-1]}", batch["labels"]
    skipped = labels.clone()
    skipped[0, 1, 1] = 99  # the grid does not take this pixel
    for change, error, message in (
        ({teacher: None}, (TypeError, ValueError), f"{teacher} is (a NoneType|missing)"),
        ({student: batch[student][0]}, ValueError, f"{student} has shape"),
        ({teacher: batch[teacher][:1]}, ValueError, "batch"),
        ({student: batch[student][:, :4]}, ValueError, student),
        ({student: batch[student].long()}, TypeError, f"{student} has dtype"),
        ({"labels": labels.double()}, TypeError, "labels has dtype torch.float64"),
        ({"labels": labels[:1]}, ValueError, "labels holds 1 images but the maps hold 2"),
        ({"labels": skipped}, RuntimeError, r"labels hold .* 0\.\.4 nor .*=255"),
    ):
        with pytest.raises(error, match=message):
            module(**batch | change)
    with pytest.raises(TypeError, match="positional"):  # swapping the nets would go unnoticed
        module(*batch.values())


def test_methods_state_their_weights_and_are_documented_attributes_of_the_package_and_other_names_are_not():
    for module in map(make, METHODS):
        assert all(f"{term}={weight:g}" in repr(module) for term, weight in module.weights.items())
    assert {*apd.__all__} <= {*dir(apd)}
    assert all(getattr(apd, name).__doc__ for name in apd.__all__)
    with pytest.raises(AttributeError, match="module 'apd' has no attribute 'FitNett'"):
        apd.FitNett  # noqa: B018


@every_other_method
def test_a_method_needs_no_maps_that_it_does_not_compare(name):
    batch, module = random_batch(), CWD(*SIZES) if name == "cwd" else make(name)
    kind = "logits" if name in OF_LOGITS else "features"
    bare = {key: value for key, value in batch.items() if key.endswith(kind) or key == "labels"}
    assert call(module, bare) == call(module, batch)
    assert name != "cwd" or module.student_parameters() == []


@pytest.mark.parametrize("name", ["dist", "dkd", "cwd"])
def test_a_term_of_weight_zero_is_left_out_and_the_other_is_what_it_was(name):
    both = make(name)(**random_batch())
    for term, other in permutations(both.keys() - {"loss"}):
        module = make(name)
        module.weights[term] = 0.0
        assert set(alone := module(**random_batch())) == {other, "loss"}
        assert alone[other] == both[other]


def test_masked_generation_hides_the_stated_share_of_the_pixels_anew_at_each_call():
    module, seen = MGD(3, 3, 2, masked=0.75).eval(), []
    module.hidden.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0] != 0).all(1)))
    features, labels = torch.ones(1, 3, 100, 100), torch.zeros(1, 100, 100, dtype=torch.long)
    for _ in range(2):
        module(student_features=features, teacher_features=features, labels=labels)
    assert [kept.double().mean().item() for kept in seen] == pytest.approx([0.25, 0.25], abs=0.02)
    assert not torch.equal(*seen)
    assert module.adapter is None  # as published, only where the channels differ


def test_correlations_see_no_class_in_which_the_teacher_does_not_vary():
    batch = random_batch()
    assert apd.DIST()(**batch | {"teacher_logits": torch.zeros_like(batch["teacher_logits"])})["loss"] == 0


def test_settings_may_be_numbers_of_numpy():
    module = CIRKD(6, 8, 5, pixel_slots=np.int64(9), region_slots=np.int32(3), temperature=np.float32(0.5))
    assert repr(module) == repr(CIRKD(6, 8, 5, pixel_slots=9, region_slots=3, temperature=0.5))
