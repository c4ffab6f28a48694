import inspect
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apd
from apd import APDLoss, ProjectionHead, pixel_kd_loss
from apd.losses import DEFAULT_WEIGHTS

from . import slow_reference as slow

RELEASED = {"scope": "batch", "reduction": "element", "absent": "zero", "upsample_logits": True}
TERMS = tuple(DEFAULT_WEIGHTS)


def distiller(dtype=torch.float64, **options):
    """Different channels on the two sides, as in ``random_batch(teacher_channels=8)``."""
    return APDLoss(6, 8, 5, **({"width": 7} | options)).to(dtype)


def random_batch(**options):
    return slow.random_batch(**({"teacher_channels": 8} | options))


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


# ---------------------------------------------------------------- value


@pytest.mark.parametrize("options", [{}, RELEASED, {"scope": "batch"}, {"scale": 3.0, "temperature": 2.0}])
@pytest.mark.parametrize("grid", [(5, 4), (1, 2)], ids=["fine", "so-coarse-that-classes-vanish"])
def test_terms_loss_and_gradients_equal_the_slow_reference(options, grid):
    module, batch = distiller(**options), random_batch(batch=3, grid=grid)
    vanished = {*batch["labels"].unique().tolist()} - {*slow.nearest(batch["labels"], grid).unique().tolist()}
    assert vanished == (set() if grid == (5, 4) else {2})
    pick = {"scope": "image", "reduction": "pixel", "absent": "mask", "scale": 10.0} | options
    scope, scale, reduction = pick["scope"], pick["scale"], pick["reduction"]
    student, teacher, labels = (
        module.student_head(batch["student_features"]),
        module.teacher_head(batch["teacher_features"]),
        batch["labels"],
    )
    slowly = {
        "regularisation": slow.regularisation(
            teacher, labels, num_classes=5, scope=scope, absent=pick["absent"], scale=scale
        ),
        "alignment": slow.alignment(student, teacher, labels, scope=scope),
        "observation": slow.observation(student, teacher, labels, scope=scope, scale=scale, reduction=reduction),
        "pixel_kd": slow.pixel_kd(
            batch["student_logits"],
            batch["teacher_logits"],
            labels,
            temperature=pick.get("temperature", 1.0),
            reduction=reduction,
            upsample_logits=pick.get("upsample_logits", False),
        ),
    }
    slowly["loss"] = sum(DEFAULT_WEIGHTS[name] * slowly[name] for name in TERMS)
    out = module(**batch)
    torch.testing.assert_close(out, slowly)
    wanted = [*module.parameters(), batch["student_features"], batch["student_logits"]]
    for ours, theirs in zip(
        torch.autograd.grad(out["loss"], wanted), torch.autograd.grad(slowly["loss"], wanted), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_labels_from_the_teacher_are_its_upsampled_predictions_and_the_given_ones_are_of_no_account():
    batch = random_batch()
    size = tuple(batch["labels"].shape[1:])
    predicted = torch.stack([slow.bilinear(image, size) for image in batch["teacher_logits"]]).argmax(1)
    module = distiller(labels_from="teacher")
    told = distiller()
    told.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(**batch), told(**batch | {"labels": predicted}))
    nothing_known = torch.full_like(batch["labels"], 255)
    torch.testing.assert_close(module(**batch | {"labels": nothing_known}), module(**batch))


def test_detached_prototypes_change_the_gradient_of_the_observation_and_no_value():
    batch, attached = random_batch(), distiller(weights=dict.fromkeys(TERMS, 0) | {"observation": 1})
    detached = distiller(weights=attached.weights, detach_prototypes=True)
    detached.load_state_dict(attached.state_dict())
    torch.testing.assert_close(attached(**batch), detached(**batch))
    pixels = batch["student_features"]
    ours, other = (torch.autograd.grad(module(**batch)["loss"], pixels)[0] for module in (attached, detached))
    assert not torch.allclose(ours, other)
    # the slow reference with constant prototypes
    student = detached.student_head(pixels)
    teacher = detached.teacher_head(batch["teacher_features"]).detach()
    labels_Bhw = slow.nearest(batch["labels"], student.shape[2:])
    rows = [{k: v.detach() for k, v in image.items()} for image in slow.perspectives(student, labels_Bhw)]
    theirs = slow.perspectives(teacher, labels_Bhw)
    costs = [
        slow.divergence(
            torch.stack(list(slow.observations(student[b], rows[b]).values())),
            torch.stack(list(slow.observations(teacher[b], theirs[b]).values())),
        )[labels_Bhw[b] != 255]
        for b in range(len(rows))
    ]
    torch.testing.assert_close(other, torch.autograd.grad(torch.cat(costs).mean(), pixels)[0])


def test_labels_from_the_teacher_need_its_logits():
    batch = random_batch() | {"student_logits": None, "teacher_logits": None}
    with pytest.raises(ValueError, match="teacher_logits is missing: labels_from='teacher'"):
        distiller(labels_from="teacher", weights={"pixel_kd": 0})(**batch)


def test_the_finer_features_are_averaged_down_to_the_coarser_grid():
    coarse = random_batch(grid=(4, 3))
    fine = F.interpolate(coarse["teacher_features"], scale_factor=2)  # each cell four times: the mean is the cell
    module = distiller()
    torch.testing.assert_close(module(**coarse | {"teacher_features": fine}), module(**coarse))


def test_without_heads_the_features_themselves_are_compared_and_there_is_nothing_to_regularise():
    module, batch = APDLoss(6, 6, 5, width=None), slow.random_batch()
    out = module(**batch)
    assert set(out) == {"alignment", "observation", "pixel_kd", "loss"}
    torch.testing.assert_close(
        out["alignment"], slow.alignment(batch["student_features"], batch["teacher_features"], batch["labels"])
    )
    assert list(module.parameters()) == module.student_parameters() == module.teacher_parameters() == []


def test_labels_may_be_bytes():
    module, batch = distiller(), random_batch()
    torch.testing.assert_close(module(**batch | {"labels": batch["labels"].byte()}), module(**batch))


def test_another_ignore_index_serves_as_well():
    batch = random_batch()
    labels = torch.where(batch["labels"] == 255, -100, batch["labels"])
    module = distiller()
    other = distiller(ignore_index=-100)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(**batch | {"labels": labels}), module(**batch))


# ---------------------------------------------------------------- who is trained by what


def test_the_regularisation_trains_the_teachers_head_and_nothing_else():
    module, batch = distiller(), random_batch()
    batch["teacher_features"].requires_grad_()
    module(**batch)["regularisation"].backward()
    assert set(gradients(module)) == {f"teacher_head.{name}" for name, _ in module.teacher_head.named_parameters()}
    assert all(gradient.abs().max() > 0 for gradient in gradients(module).values())
    for name in ("student_features", "teacher_features", "student_logits"):
        assert batch[name].grad is None


@pytest.mark.parametrize("term", ["alignment", "observation", "pixel_kd"])
def test_the_other_terms_never_reach_the_teachers_side(term):
    module, batch = distiller(), random_batch()
    batch["teacher_features"].requires_grad_()
    batch["teacher_logits"].requires_grad_()
    module(**batch)[term].backward()
    assert all(name.startswith("student_head") for name in gradients(module))
    assert batch["teacher_features"].grad is None
    assert batch["teacher_logits"].grad is None
    reached = "student_logits" if term == "pixel_kd" else "student_features"
    assert batch[reached].grad.abs().max() > 0


def test_one_backward_of_the_sum_equals_two_separate_updates():
    module, batch = distiller(), random_batch()
    module(**batch)["loss"].backward()
    together = gradients(module)
    module.zero_grad()
    module(**batch)["regularisation"].backward()
    teacher_only = gradients(module)
    module.zero_grad()
    out = module(**batch)
    sum(module.weights[name] * out[name] for name in TERMS if name != "regularisation").backward()
    torch.testing.assert_close(together, teacher_only | gradients(module))


def test_parameters_are_handed_out_by_side_and_travel_in_the_state_dict():
    module = distiller()
    assert module.student_parameters() == list(module.student_head.parameters())
    assert module.teacher_parameters() == list(module.teacher_head.parameters())
    other = distiller()
    other.load_state_dict(module.state_dict())
    batch = random_batch()
    torch.testing.assert_close(other(**batch), module(**batch), rtol=0, atol=0)


def test_a_teacher_run_under_inference_mode_is_refused_instead_of_leaving_its_head_untrained():
    batch = random_batch()
    with torch.inference_mode():
        batch["teacher_features"] = batch["teacher_features"] * 1
    with pytest.raises(RuntimeError, match="no_grad"):
        distiller()(**batch)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("term", TERMS)
def test_a_term_of_weight_zero_is_neither_computed_nor_returned_and_the_others_stay_the_same(term):
    full, without, batch = distiller(), distiller(weights={term: 0}), random_batch()
    without.load_state_dict(full.state_dict())
    expected = full(**batch)
    loss = expected.pop("loss") - DEFAULT_WEIGHTS[term] * expected.pop(term)
    torch.testing.assert_close(without(**batch), expected | {"loss": loss})


def test_the_loss_is_the_weighted_sum_and_weights_left_out_keep_their_default():
    module = distiller(weights={"alignment": 3, "observation": 0.25})
    assert module.weights == {"regularisation": 1.0, "alignment": 3.0, "observation": 0.25, "pixel_kd": 1.0}
    out = module(**random_batch())
    total = sum(module.weights[name] * out[name] for name in TERMS)
    torch.testing.assert_close(out["loss"], total)


@pytest.mark.parametrize("only", TERMS)
def test_a_head_that_no_term_trains_is_frozen_so_every_trainable_parameter_gets_a_gradient(only):
    module = distiller(weights={name: float(name == only) for name in TERMS})
    out = module(**random_batch())
    assert set(out) == {only, "loss"}
    if out["loss"].requires_grad:
        out["loss"].backward()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert set(gradients(module)) == trained
    assert len(module.student_parameters()) + len(module.teacher_parameters()) == len(trained)


def test_logits_may_be_left_out_when_they_have_no_weight():
    batch = random_batch()
    bare = {name: value for name, value in batch.items() if not name.endswith("logits")}
    module = distiller(weights={"pixel_kd": 0})
    torch.testing.assert_close(module(**bare), module(**batch))
    with pytest.raises(ValueError, match=r"student_logits is missing: .*weights=\{'pixel_kd': 0\}"):
        distiller()(**bare)


# ---------------------------------------------------------------- degenerate labels, precision


@pytest.mark.parametrize("options", [{}, RELEASED], ids=["default", "released"])
@pytest.mark.parametrize("label", [255, 2], ids=["all-ignored", "one-class"])
def test_degenerate_labels_give_finite_terms_connected_to_every_parameter(options, label):
    module, batch = distiller(torch.float32, **options), random_batch(dtype=torch.float32)
    batch["labels"] = torch.full_like(batch["labels"], label)
    out = module(**batch)
    out["loss"].backward()
    assert all(value.isfinite() for value in out.values())
    assert len(gradients(module)) == len(list(module.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients(module).values())
    if label == 255:
        zero_terms = TERMS if not options else ("regularisation", "alignment", "observation")
        assert all(out[name].item() == 0 for name in zero_terms)
        assert all(gradient.eq(0).all() for gradient in gradients(module).values())
        assert batch["student_features"].grad.eq(0).all()


def test_one_image_of_the_batch_may_be_all_ignored():
    module, batch = distiller(), random_batch()
    batch["labels"][1] = 255
    torch.testing.assert_close(module(**batch), module(**{name: value[:1] for name, value in batch.items()}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_half_precision_maps_stay_close_to_float32(dtype):
    module, batch = distiller(torch.float32), random_batch(dtype=torch.float32)
    expected = module(**batch)
    halves = {name: value if name == "labels" else value.detach().to(dtype) for name, value in batch.items()}
    halves["student_features"].requires_grad_()
    halves["student_logits"].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = module(**halves)
    for name, value in out.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.02, atol=1e-4)
    out["loss"].backward()
    (gradient,) = torch.autograd.grad(expected["loss"], batch["student_features"])
    assert halves["student_features"].grad.dtype == dtype
    assert F.cosine_similarity(halves["student_features"].grad.flatten().float(), gradient.flatten(), dim=0) > 0.999


def test_heads_cast_to_half_precision_still_feed_arithmetic_in_float32():
    batch = random_batch(dtype=torch.float32)
    module = distiller(torch.float32)
    expected = module(**batch)
    out = module.bfloat16()(**batch)
    for name, value in out.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=1e-3)


# ---------------------------------------------------------------- compiled


def run_and_differentiate(module, batch):
    batch = {name: value.detach().requires_grad_(name.startswith("student")) for name, value in batch.items()}
    module.zero_grad()
    out = module(**batch)
    out["loss"].backward()
    return {name: value.detach() for name, value in out.items()} | {
        "features": batch["student_features"].grad,
        "logits": batch["student_logits"].grad,
        **{name: parameter.grad.clone() for name, parameter in module.named_parameters()},
    }


def assert_compiled_equals_eager(module, batch, backend):
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    expected = run_and_differentiate(module, batch)
    got = {name.removeprefix("_orig_mod."): value for name, value in run_and_differentiate(compiled, batch).items()}
    torch.testing.assert_close(got, expected)
    wrong = batch | {"labels": batch["labels"].clone()}
    wrong["labels"][0, 0, 0] = 77
    with pytest.raises(RuntimeError, match="labels hold a value"):
        compiled(**wrong)


@pytest.mark.parametrize("options", [{}, RELEASED], ids=["default", "released"])
def test_the_method_traces_to_one_graph_with_equal_results(options):
    batch = random_batch(dtype=torch.float32)
    batch["teacher_features"] = F.interpolate(batch["teacher_features"], size=(7, 4))  # the grids differ
    assert_compiled_equals_eager(distiller(torch.float32, **options), batch, "aot_eager")


def test_the_compiled_method_equals_the_eager_one():
    assert_compiled_equals_eager(distiller(torch.float32), random_batch(dtype=torch.float32), "inductor")


# ---------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"aligment": 1}}, "no term 'aligment': did you mean 'alignment'"),
        ({"weights": {"xyz": 1}}, r"no term 'xyz': the terms are regularisation, alignment"),
        ({"weights": {"alignment": -1}}, r"weights\['alignment'\]=-1: expected a finite number, 0 or greater"),
        ({"weights": {"alignment": float("nan")}}, r"weights\['alignment'\]=nan"),
        ({"weights": dict.fromkeys(TERMS, 0)}, "weights are all 0"),
        ({"width": None}, "width=None needs equal channels, got student_channels=6 and teacher_channels=8"),
        ({"width": 0}, "width=0: expected a positive integer"),
        ({"scope": "images"}, "scope='images': expected one of 'image', 'batch'"),
        ({"reduction": "mean"}, "reduction='mean'"),
        ({"labels_from": "student"}, "labels_from='student': expected one of 'truth', 'teacher'"),
        ({"absent": "drop"}, "absent='drop'"),
        ({"scale": 0.0}, "scale=0.0: expected a positive number"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        distiller(**options)


@pytest.mark.parametrize("arguments", [(0, 8, 5), (6, 8.0, 5), (6, 8, True)])
def test_wrong_channels_and_class_counts_are_named(arguments):
    with pytest.raises(ValueError, match="expected a positive integer"):
        APDLoss(*arguments)


def test_a_weight_for_a_head_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"weights\['regularisation'\]=1.0 with width=None"):
        APDLoss(6, 6, 5, width=None, weights={"regularisation": 1.0})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda b: {"student_features": b["teacher_features"]},
            ValueError,
            "student_features has 8 channels .* exp.* 6",
        ),
        (lambda b: {"teacher_features": b["teacher_features"][0]}, ValueError, "teacher_features has shape"),
        (lambda b: {"teacher_features": b["teacher_features"][:1]}, ValueError, "teacher_features holds 1 images but"),
        (lambda b: {"student_logits": b["student_logits"][:, :4]}, ValueError, "student_logits has 4 .* num_classes"),
        (lambda b: {"teacher_logits": b["teacher_logits"][:1]}, ValueError, "teacher_logits holds 1 images"),
        (lambda b: {"teacher_features": None}, TypeError, "teacher_features is a NoneType"),
        (lambda b: {"labels": b["labels"].double()}, TypeError, "labels has dtype torch.float64"),
        (lambda b: {"labels": b["labels"][:1]}, ValueError, "labels holds 1 images but the maps hold 2"),
        (lambda b: {"labels": b["labels"][:, None]}, ValueError, "labels has shape"),
        (lambda b: {"labels": torch.full_like(b["labels"], 5)}, RuntimeError, r"labels hold .* 0\.\.4 nor .*=255"),
    ],
)
def test_wrong_inputs_are_named(change, error, message):
    batch = random_batch()
    with pytest.raises(error, match=message):
        distiller()(**batch | change(batch))


def test_a_label_that_names_no_class_is_found_even_where_the_feature_grid_skips_it():
    module, batch = distiller(weights={"pixel_kd": 0, "regularisation": 0}), random_batch()
    batch["labels"][0, 1, 1] = 99
    with pytest.raises(RuntimeError, match="labels hold a value"):
        module(**batch)


def test_positional_arguments_are_refused_since_swapping_the_nets_would_go_unnoticed():
    batch = random_batch()
    with pytest.raises(TypeError, match="positional"):
        distiller()(*batch.values())


# ---------------------------------------------------------------- in use


class PlainNet(nn.Module):
    """Somebody's own model: stride 2, returns its logits and the map before the classifier."""

    def __init__(self, channels, num_classes):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, images):
        features = self.trunk(images)
        return self.classifier(features), features


def test_the_loop_of_the_docstring_runs_and_trains_student_and_both_heads():
    text = APDLoss.__doc__
    loop = textwrap.dedent(text[text.index("        distiller = APDLoss(") : text.index("    Features are the maps")])
    assert [f"line {n}" in loop for n in range(1, 7)] == [True] * 5 + [False]
    loop = loop.replace("APDLoss(512, 512, num_classes=19)", "APDLoss(8, 8, num_classes=3, width=8)")

    images = F.interpolate(torch.rand(4, 3, 4, 4), scale_factor=4)
    labels = images.argmax(1)
    labels[:, 0] = 255
    student, teacher = PlainNet(8, 3), PlainNet(8, 3)
    totals = []

    def task_loss(logits, labels):
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
        totals.append(F.cross_entropy(logits, labels, ignore_index=255).item())
        return F.cross_entropy(logits, labels, ignore_index=255)

    optimiser = torch.optim.Adam(teacher.parameters(), lr=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        task_loss(teacher(images)[0], labels).backward()
        optimiser.step()
    teacher.eval().requires_grad_(False)
    totals.clear()

    optimiser = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    names = {
        "torch": torch,
        "APDLoss": APDLoss,
        "device": "cpu",
        "optimiser": optimiser,
        "student": student,
        "teacher": teacher,
        "task_loss": task_loss,
        "batches": [(images, labels)] * 20,
    }
    torch.manual_seed(1)
    exec(loop, names)

    torch.manual_seed(1)
    untrained = APDLoss(8, 8, num_classes=3, width=8).state_dict()
    for name, value in names["distiller"].state_dict().items():
        assert not torch.equal(value, untrained[name]), name
    assert not torch.equal(student.state_dict()["trunk.0.weight"], before["trunk.0.weight"])
    assert totals[-1] < 0.6 * totals[0], totals


def test_distillation_alone_brings_the_student_to_the_teacher():
    batch = slow.random_batch(dtype=torch.float32)
    module = APDLoss(6, 6, 5, width=6)
    optimiser = torch.optim.Adam(
        [batch["student_features"], batch["student_logits"], *module.student_parameters()], 0.05
    )
    values = []
    for _ in range(40):
        out = module(**batch)
        optimiser.zero_grad()
        out["loss"].backward()
        optimiser.step()
        values.append({name: value.item() for name, value in out.items()})
    for name in ("alignment", "observation", "pixel_kd"):
        assert values[-1][name] < 0.2 * values[0][name], name
    assert values[-1]["regularisation"] == values[0]["regularisation"]  # its head was left out of the optimiser


def test_projection_head_has_two_convolutions_with_biases_and_no_normalisation():
    head = ProjectionHead(3, 4)
    assert {name: tuple(value.shape) for name, value in head.named_parameters()} == {
        "hidden.weight": (4, 3, 1, 1),
        "hidden.bias": (4,),
        "out.weight": (4, 4, 1, 1),
        "out.bias": (4,),
    }
    x_3 = torch.randn(3)
    hidden = (head.hidden.weight[:, :, 0, 0] @ x_3 + head.hidden.bias).clamp(min=0)
    expected = head.out.weight[:, :, 0, 0] @ hidden + head.out.bias
    torch.testing.assert_close(head(x_3.view(1, 3, 1, 1)).flatten(), expected)


# ---------------------------------------------------------------- the package


def test_everything_the_package_offers_is_documented_and_there():
    assert all(inspect.getdoc(getattr(apd, name)) for name in apd.__all__)
    assert pixel_kd_loss is apd.losses.pixel_kd_loss
