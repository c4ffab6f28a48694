"""APDLoss against the slow reference and the released loss code (see golden/README.md); who is trained by what."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import slow_reference as slow
import torch
from every_method import gradients, random_batch
from torch import nn
from torch.nn import functional as F

from apd import APDLoss
from apd.losses import DEFAULT_WEIGHTS

RELEASED = {"scope": "batch", "reduction": "element", "absent": "zero", "upsample_logits": True}
TERMS = tuple(DEFAULT_WEIGHTS)
OPTIONS = [{}, RELEASED, {"scope": "batch"}, {"absent": "zero"}, {"reduction": "element"}]
OPTIONS += [{"scale": 3.0, "temperature": 2.0, "upsample_logits": True, "weights": {"observation": 0.25}}]
GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {case["case"]: case for case in json.loads((GOLDEN / "expected.json").read_text())}
EXACT = {"rel": 1e-9, "abs": 0.0}  # float64; the promise is 1e-5


def distiller(dtype=torch.float64, like=None, **options):
    """Different channels on the two sides, as in ``random_batch``; with the parameters of another where it is given."""
    module = APDLoss(6, 8, 5, **({"width": 7} | options)).to(dtype)
    if like is not None:
        module.load_state_dict(like.state_dict())
    return module


def trained(module):
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", [(5, 4), (1, 2)], ids=["fine", "so-coarse-that-classes-vanish"])
def test_terms_loss_and_gradients_equal_the_slow_reference(options, grid):
    module, batch = distiller(**options), random_batch(batch=3, grid=grid)
    vanished = {*batch["labels"].unique().tolist()} - {*slow.nearest(batch["labels"], grid).unique().tolist()}
    assert vanished == (set() if grid == (5, 4) else {2})
    scope, scale = options.get("scope", "image"), options.get("scale", 10.0)
    reduction, absent = options.get("reduction", "pixel"), options.get("absent", "mask")
    of_logits = {"temperature": options.get("temperature", 1.0), "upsample_logits": "upsample_logits" in options}
    labels, logits = batch["labels"], (batch["student_logits"], batch["teacher_logits"])
    student, teacher = module.student_head(batch["student_features"]), module.teacher_head(batch["teacher_features"])
    expected = {
        "regularisation": slow.regularisation(teacher, labels, num_classes=5, scope=scope, absent=absent, scale=scale),
        "alignment": slow.alignment(student, teacher, labels, scope=scope),
        "observation": slow.observation(student, teacher, labels, scope=scope, scale=scale, reduction=reduction),
        "pixel_kd": slow.pixel_kd(*logits, labels, reduction=reduction, **of_logits),
    }
    weights = DEFAULT_WEIGHTS | options.get("weights", {})  # what is left out keeps its default
    expected["loss"] = sum(weights[name] * expected[name] for name in TERMS)
    out = module(**batch)
    torch.testing.assert_close(out, expected)
    wanted = [*module.parameters(), batch["student_features"], batch["student_logits"]]
    torch.testing.assert_close(*(torch.autograd.grad(values["loss"], wanted) for values in (out, expected)))


def test_features_that_meet_at_aligned_corners_are_those_of_the_finer_grid_with_its_labels():
    batch, module = random_batch(grid=(5, 4)), distiller(align_corners=True)
    labels, size = torch.randint(0, 5, (len(batch["labels"]), 17, 13)), (9, 7)
    batch |= {"teacher_features": torch.randn(len(labels), 8, *size).double(), "labels": labels}
    same = {"student_features": torch.stack([slow.bilinear(image, size) for image in batch["student_features"]])}
    on_grid = labels[:, ::2][:, :, ::2]  # sides of 2k + 1: each cell on its pixel
    bare = {"weights": {"pixel_kd": 0, "regularisation": 0}}  # which compares on the labels' own grid
    expected = distiller(like=module, **bare)(**batch | same | {"labels": on_grid})
    torch.testing.assert_close(distiller(like=module, align_corners=True, **bare)(**batch), expected)
    assert module(**batch)["observation"] != distiller(like=module)(**batch)["observation"]


def test_features_may_be_nan_in_cells_whose_label_by_the_rule_in_use_is_ignored():
    batch = random_batch(grid=(3, 3)) | {"labels": torch.randint(0, 5, (2, 33, 33))}
    batch["student_features"].data[0, :, 1, 1] = torch.nan
    for ignored, align in ((16, True), (11, False)):  # the middle pixel, and the one of the nearest rule
        labels = batch["labels"].clone()
        labels[0, ignored, ignored] = 255
        assert distiller(align_corners=align)(**batch | {"labels": labels})["loss"].isfinite()
        with pytest.raises(ValueError, match="student_features holds NaN"):
            distiller(align_corners=not align)(**batch | {"labels": labels})


def test_labels_from_the_teacher_are_its_upsampled_predictions_and_the_given_ones_are_of_no_account():
    batch, module = random_batch(), distiller(labels_from="teacher")
    size = tuple(batch["labels"].shape[1:])
    predicted = torch.stack([slow.bilinear(image, size) for image in batch["teacher_logits"]]).argmax(1)
    torch.testing.assert_close(module(**batch), distiller(like=module)(**batch | {"labels": predicted}))
    unknown = torch.full_like(batch["labels"], 255)
    torch.testing.assert_close(module(**batch | {"labels": unknown}), module(**batch))
    with pytest.raises(ValueError, match="teacher_logits is missing: labels_from='teacher'"):
        distiller(labels_from="teacher", weights={"pixel_kd": 0})(**batch | {"teacher_logits": None})


def test_detached_prototypes_change_the_gradient_of_the_observation_and_no_value():
    batch, attached = random_batch(), distiller(weights=dict.fromkeys(TERMS, 0) | {"observation": 1})
    detached = distiller(like=attached, weights=attached.weights, detach_prototypes=True)
    torch.testing.assert_close(attached(**batch), detached(**batch))
    pixels = batch["student_features"]
    ours, other = (torch.autograd.grad(module(**batch)["loss"], pixels)[0] for module in (attached, detached))
    assert not torch.allclose(ours, other)


def test_without_heads_the_features_themselves_are_compared_and_there_is_nothing_to_regularise():
    module, batch = APDLoss(6, 6, 5, width=None), slow.random_batch()
    out = module(**batch)
    assert set(out) == {"alignment", "observation", "pixel_kd", "loss"}
    maps = batch["student_features"], batch["teacher_features"], batch["labels"]
    torch.testing.assert_close(out["alignment"], slow.alignment(*maps))
    assert list(module.parameters()) == module.student_parameters() == module.teacher_parameters() == []


def test_labels_may_be_bytes_or_have_another_ignore_index():
    module, batch = distiller(), random_batch()
    labels = torch.where(batch["labels"] == 255, -100, batch["labels"])
    for same, change in ((module, batch["labels"].byte()), (distiller(like=module, ignore_index=-100), labels)):
        torch.testing.assert_close(same(**batch | {"labels": change}), module(**batch))


@pytest.mark.parametrize("term", TERMS)
def test_the_regularisation_trains_the_teachers_head_and_nothing_else_and_the_others_never_do(term):
    module, batch = distiller(), random_batch()
    batch["teacher_features"].requires_grad_()
    batch["teacher_logits"].requires_grad_()
    module(**batch)[term].backward()
    side = {"regularisation": "teacher_head", "pixel_kd": "none"}.get(term, "student_head")
    assert set(trained(module)) == {name for name, _ in module.named_parameters() if name.startswith(side)}
    assert all(gradient.any() for name, gradient in trained(module).items() if name != "student_head.out.bias")
    assert module.student_parameters() == list(module.student_head.parameters())
    assert module.teacher_parameters() == list(module.teacher_head.parameters())
    reached = {"regularisation": None, "pixel_kd": "student_logits"}.get(term, "student_features")
    assert [name for name in batch if batch[name].grad is not None] == [reached] * (reached is not None)
    assert reached is None or batch[reached].grad.any()


def test_a_teacher_run_under_inference_mode_is_refused_instead_of_leaving_its_head_untrained():
    batch = random_batch()
    with torch.inference_mode():
        batch["teacher_features"] = batch["teacher_features"] * 1
    with pytest.raises(RuntimeError, match="no_grad"):
        distiller()(**batch)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_of_weight_zero_is_neither_computed_nor_returned_and_a_head_that_no_term_trains_is_frozen(term):
    full, batch = distiller(), random_batch()
    expected = full(**batch)
    loss = expected.pop("loss") - DEFAULT_WEIGHTS[term] * expected.pop(term)
    without = distiller(like=full, weights={term: 0})
    torch.testing.assert_close(without(**batch), expected | {"loss": loss})
    module = distiller(weights={name: float(name == term) for name in TERMS})
    out = module(**batch)
    assert set(out) == {term, "loss"}
    out["loss"].backward()
    assert {*trained(module)} == {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert len(module.student_parameters()) + len(module.teacher_parameters()) == len(trained(module))


@pytest.mark.parametrize("label", [255, 2], ids=["all-ignored", "one-class"])
def test_degenerate_labels_give_finite_terms_connected_to_every_parameter_as_released_too(label):
    module, batch = distiller(torch.float32, **RELEASED), random_batch(dtype=torch.float32)
    batch["labels"] = torch.full_like(batch["labels"], label)
    out = module(**batch)
    to_features, _, *to_heads = gradients(out["loss"], module, batch)
    assert all(value.isfinite().all() for value in (*out.values(), to_features, *to_heads))
    if label == 255:
        assert not any(value.any() for value in (*(out[name] for name in TERMS[:3]), to_features, *to_heads))
    else:
        out = distiller(torch.float32)(**batch)
        assert (out["observation"], out["regularisation"]) == (0, 0)  # one class leaves nothing to observe
        assert out["alignment"] > 0


@pytest.mark.parametrize(
    ("options", "backend"), [(RELEASED, "aot_eager"), ({"align_corners": True}, "aot_eager"), ({}, "inductor")], ids=str
)
def test_the_method_compiles_to_one_graph_with_equal_results(options, backend):
    module, batch = distiller(torch.float32, **options), random_batch(dtype=torch.float32)
    if backend == "aot_eager":
        batch["teacher_features"] = F.interpolate(batch["teacher_features"], size=(7, 4))  # the grids differ
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    out, expected = compiled(**batch), module(**batch)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(*(gradients(values["loss"], module, batch) for values in (out, expected)))


class PlainNet(nn.Conv2d):
    """Somebody's own model: stride 2, returns its logits and the map that they were made of."""

    def forward(self, images):
        features = super().forward(images).relu()
        return features[:, :3], features


def test_the_loop_of_the_docstring_runs_and_trains_student_and_both_heads():
    text = APDLoss.__doc__
    loop = textwrap.dedent(text[text.index("        distiller = APDLoss(") : text.index("    Features are the maps")])
    assert [f"line {n}" in loop for n in range(1, 7)] == [True] * 5 + [False]
    loop = loop.replace("APDLoss(512, 512, num_classes=19)", "seeded(8, 8, num_classes=3, width=8)")

    def seeded(*sizes, **options):
        torch.manual_seed(1)
        return APDLoss(*sizes, **options)

    def task_loss(logits, labels):
        totals.append(F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels))
        return totals[-1]

    images, student, totals = torch.rand(4, 3, 16, 16), PlainNet(3, 8, 3, 2, 1), []
    before = student.weight.clone()
    names = {"torch": torch, "seeded": seeded, "device": "cpu", "student": student, "task_loss": task_loss}
    names["optimiser"] = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    names |= {"teacher": PlainNet(3, 8, 3, 2, 1).requires_grad_(False), "batches": [(images, images.argmax(1))] * 20}
    exec(loop, names)
    untrained = seeded(8, 8, num_classes=3, width=8).state_dict()
    assert not any(torch.equal(value, untrained[name]) for name, value in names["distiller"].state_dict().items())
    assert not torch.equal(student.weight, before)
    assert totals[-1] < totals[0]


def released(case):
    """The released settings, with heads that return their input beside zeros, since relu(x) - relu(-x) = x."""
    channels = case["channels"]
    module = APDLoss.as_released(channels, channels, case["num_classes"], width=2 * channels).double()
    one = torch.eye(channels, dtype=torch.float64)
    with torch.no_grad():
        for head in (module.student_head, module.teacher_head):
            for parameter in head.parameters():
                parameter.zero_()
            head.hidden.weight[:, :, 0, 0] = torch.cat([one, -one])
            head.out.weight[:channels, :, 0, 0] = torch.cat([one, -one], dim=1)
    return module


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_terms_and_norms_of_gradients_are_the_released_ones(case):
    stored, module, projected = np.load(GOLDEN / f"{case['case']}.npz"), released(case), []
    inputs = {name: torch.from_numpy(stored[name]).double().requires_grad_() for name in stored if name != "labels"}
    inputs["labels"] = torch.from_numpy(stored["labels"])
    # APDLoss detaches the teacher's features, so the gradient is read where they leave the teacher's head.
    module.teacher_head.register_forward_hook(lambda *arguments: projected.append(arguments[-1]))
    regularisation, alignment, observation, pixel_kd, loss = module(**inputs).values()

    def norm(value, tensor):
        (gradient,) = torch.autograd.grad(value, tensor, retain_graph=True)
        return gradient[:, : case["channels"]].norm() if tensor is projected[0] else gradient.norm()

    features, logits = inputs["student_features"], inputs["student_logits"]
    got = {
        "observation_kl": observation,
        "teacher_regularisation": regularisation,
        "alignment": alignment,
        "logit_kl": pixel_kd,
        "grad_norm_student_features_of_10kl_plus_10align": norm(10 * observation + 10 * alignment, features),
        "grad_norm_student_logits_of_kd": norm(pixel_kd, logits),
        "grad_norm_teacher_features_of_regularisation": norm(regularisation, projected[0]),
    }
    assert {name: value.item() for name, value in got.items()} == pytest.approx({n: case[n] for n in got}, **EXACT)
    student = 10 * (case["observation_kl"] + case["alignment"] + case["logit_kl"])
    assert loss.item() == pytest.approx(student + case["teacher_regularisation"], **EXACT)
