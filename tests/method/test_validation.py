"""What cannot be right is refused by name, by every distiller alike; what can be right passes."""

import math

import numpy as np
import pytest
import torch
from every_method import OF_LOGITS, every_method, make, random_batch, used
from torch.nn import functional as F

from apd import CIRKD, CWD, LSKD, APDLoss, FitNet, PixelKD, pixel_kd_loss, two_channel_logits
from apd.perspective import valid_pixels
from apd.validation import check_grids, values_unchecked

ONE_IMAGE = [((33, 65), (32, 64)), ((1, 1), (7, 900)), ((2, 2), (64, 128)), ((31, 64), (511, 1024)), ((8, 12), (6, 9))]
ONE_IMAGE += [((128, 96), (500, 375)), ((37, 74), (512, 1024))]  # padded to 512 x 384 before its stride; patches of 14
APART = [((6, 12), (96, 48)), ((6, 6), (48, 96)), ((37, 37), (512, 1024)), ((3, 2), (32, 48)), ((32, 33), (264, 256))]


def small_apd(**options):
    return APDLoss(6, 8, 5, width=4, **options)


def training(name):
    return make(name, torch.float32).train()


def batch_of(grid=(6, 12), labels=(48, 96), detached=None, **options):
    batch = random_batch(grid=grid, labels=labels, dtype=torch.float32, **options)
    return batch | ({detached: batch[detached].detach()} if detached else {})


def ruled_out(kind):
    """A teacher's logits with -inf for a class everywhere, at some pixels, or for all classes but one at some."""
    teacher = batch_of()["teacher_logits"]
    places = {"everywhere": np.s_[:, 3], "somewhere": np.s_[0, :2, :3, ::2], "one class left": np.s_[:, 1:, 2:4]}
    teacher[places[kind]] = -math.inf
    return teacher


SOFTMAX = {name: make(name, torch.float32) for name in ("apd", "pixel_kd", "dkd", "dist", "cwd")}
SOFTMAX |= {"upsampled": PixelKD(upsample_logits=True), "cold": PixelKD(temperature=0.1)}
SOFTMAX |= {"labels from the teacher": small_apd(labels_from="teacher")}


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("kind", ["everywhere", "somewhere", "one class left"])
def test_a_class_that_the_teacher_rules_out_costs_what_one_of_no_probability_costs(name, kind):
    batch, module = batch_of() | {"teacher_logits": ruled_out(kind)}, SOFTMAX[name]
    out = module(**batch)
    out["loss"].backward()
    changes = [batch[key].grad for key in ("student_logits", "student_features") if batch[key].grad is not None]
    assert all(value.isfinite().all() for value in (*out.values(), *changes))
    assert changes[0].any()
    low = module(**batch | {"teacher_logits": ruled_out(kind).clamp(min=-1e6)})
    counted = set(out) - ({"non_target", "loss"} if kind == "one class left" else set())
    if name == "cwd" and kind == "everywhere":
        counted = {"features"}  # a channel of equal values is uniform, one that is ruled out has no distribution
    torch.testing.assert_close({key: out[key] for key in counted}, {key: low[key] for key in counted})


@pytest.mark.parametrize("kind", ["everywhere", "somewhere"])
def test_pixel_distillation_of_a_ruled_out_class_is_torchs_divergence_compiled_or_not(kind):
    batch, teacher = batch_of(ignored=0.0, labels=(6, 12)), ruled_out(kind)
    student = batch["student_logits"]
    expected = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1).mean()
    for loss in (pixel_kd_loss, torch.compile(pixel_kd_loss, fullgraph=True, backend="aot_eager")):
        got = loss(student, teacher, batch["labels"])
        torch.testing.assert_close(got, expected)
        changes = (torch.autograd.grad(value, student, retain_graph=True) for value in (got, expected))
        torch.testing.assert_close(*changes)


def test_a_channel_that_the_teacher_rules_out_has_no_distribution_over_pixels_and_costs_nothing():
    batch = batch_of() | {"teacher_logits": ruled_out("everywhere")}
    without = {key: value[:, [0, 1, 2, 4]] if key.endswith("logits") else value for key, value in batch.items()}
    labels = torch.where(batch["labels"] == 4, 3, batch["labels"])
    four = CWD(6, 8, 4)(**without | {"labels": labels})["logits"]
    torch.testing.assert_close(CWD(6, 8, 5)(**batch)["logits"], 4 / 5 * four)


@every_method
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_is_not_finite_is_refused_by_its_name(name, value, side):
    for argument in (f"{side}_{kind}" for kind in used(name)):
        batch = batch_of()
        batch[argument] = batch[argument].detach().clone()
        # a teacher may rule out some classes, and not all
        batch[argument][0, slice(None) if value == -math.inf else 1, 1, 1] = value
        with pytest.raises(ValueError, match=rf"^{argument} (holds (NaN|values)|is -inf for every class)"):
            training(name)(**batch)


def test_extreme_values_are_refused_only_where_a_method_cannot_use_them():
    with pytest.raises(ValueError, match=r"teacher_logits holds -inf, .* no standard deviation: use PixelKD"):
        LSKD()(**batch_of() | {"teacher_logits": ruled_out("somewhere")})
    batch = batch_of()
    batch["teacher_features"][0, 0, 0, 0] = 1e38
    with pytest.raises(ValueError, match=r"teacher_features holds values up to 1.0e\+38: the lengths .* overflow"):
        small_apd()(**batch)
    batch["teacher_logits"] *= 3e37
    assert PixelKD()(**batch)["loss"].isfinite()
    with values_unchecked():  # a loop with a guard of its own
        assert PixelKD()(**batch | {"teacher_logits": math.nan * batch["teacher_logits"]})["loss"].isnan()


def test_beside_a_cpu_values_are_read_in_the_first_call_only(monkeypatch):
    """Reading a value waits for such a device."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False))
    wrong, module = batch_of(), PixelKD()
    wrong["student_logits"] = wrong["student_logits"].detach().mul(math.nan).requires_grad_()
    with pytest.raises(ValueError, match="student_logits holds NaN"):
        module(**wrong)
    assert module(**batch_of())["loss"].isfinite()
    assert module(**wrong)["loss"].isnan()
    faulty = batch_of() | {"teacher_features": math.nan * batch_of()["teacher_features"]}
    with pytest.raises(ValueError, match="teacher_features holds NaN"):  # the second map that this method reads
        make("cwd", torch.float32)(**faulty)
    ruled = batch_of() | {"teacher_logits": ruled_out("everywhere")}
    torch.testing.assert_close(module(**ruled), PixelKD()(**ruled))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["apd", *OF_LOGITS])
@pytest.mark.parametrize("argument", ["student_logits", "teacher_logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_noticed_once_a_module_and_argument(name, argument, dtype):
    module, batch = training(name), batch_of()
    wrong = (6 * batch[argument].detach()).softmax(1).to(dtype).requires_grad_(argument.startswith("student"))
    module(**batch)
    with pytest.warns(UserWarning, match=f"{argument} holds probabilities, not logits"):
        module(**batch | {argument: wrong})
    module(**batch | {argument: wrong})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("logits", [torch.rand(2, 5, 6, 12), torch.zeros(2, 5, 6, 12), batch_of()["teacher_logits"]])
def test_logits_that_are_small_positive_or_log_probabilities_are_no_probabilities(logits):
    for teacher in (logits, logits.log_softmax(1)):
        PixelKD()(**batch_of() | {"teacher_logits": teacher})


@every_method
def test_maps_and_labels_of_other_aspect_ratios_are_refused_by_every_distiller(name):
    contradicting = "aspect ratios contradict each other; (they fit|show both)"
    with pytest.raises(ValueError, match=rf"_\w+ is 6 x 12 .*labels is 96 x 48: their {contradicting}"):
        training(name)(**batch_of(labels=(96, 48)))
    argument = f"teacher_{used(name)[-1]}"
    for grid in ((12, 6), (6, 6), (24, 12)):
        with pytest.raises(ValueError, match=f"{argument} .*{contradicting}"):
            training(name)(**batch_of() | {argument: batch_of(grid=grid)[argument]})


@pytest.mark.parametrize(("grid", "size"), ONE_IMAGE)
def test_what_strides_and_paddings_make_of_one_image_passes(grid, size):
    for first, second in ((grid, size), (size, grid)):
        for names in (("student_logits", "labels"), ("student_features", "teacher_features")):
            check_grids(dict(zip(names, map(torch.empty, (first, second)), strict=True)))


@pytest.mark.parametrize(("grid", "size"), APART)
def test_contradicting_grids_are_refused_and_swapped_axes_are_named(grid, size):
    with pytest.raises(ValueError, match="contradict") as caught:
        check_grids({"student_logits": torch.empty(grid), "labels": torch.empty(size)})
    swapped = grid[0] != grid[1]
    assert ("swapped, by .mT: expected (batch, height, width)" in str(caught.value)) == swapped


@pytest.mark.parametrize("height", range(2, 70, 3))
def test_any_chain_of_halvings_fits_its_image(height):
    for width in range(height, 3 * height + 2, 7):
        for halve in (lambda side: side // 2, lambda side: -(-side // 2)):
            grid = (height, width)
            while min(grid := (halve(grid[0]), halve(grid[1]))) > 1:
                check_grids({"teacher_features": torch.empty(grid), "labels": torch.empty(height, width)})


@every_method
def test_a_student_without_gradient_is_refused_in_training_and_measured_otherwise(name):
    module = make(name, torch.float32)
    for argument in (f"student_{kind}" for kind in used(name)):
        batch = batch_of(detached=argument)
        with pytest.raises(ValueError, match=rf"{argument} does not require a gradient.*eval\(\) mode"):
            module.train()(**batch)
        with torch.no_grad():
            assert module(**batch)["loss"].isfinite()
        assert module.eval()(**batch)["loss"].isfinite()


def test_a_map_that_no_term_trains_the_student_through_needs_no_gradient_and_one_without_use_no_logits():
    batch = batch_of(detached="student_features")
    only_head = {"regularisation": 1, "alignment": 0, "observation": 0, "pixel_kd": 0}
    assert small_apd(weights=only_head | {"pixel_kd": 1})(**batch)["loss"].isfinite()
    bare = {key: value for key, value in batch.items() if not key.endswith("logits")}
    assert small_apd(weights=only_head)(**bare)["loss"].isfinite()


def test_shapes_are_computed_on_the_meta_device_and_every_setting_is_printed():
    loss = small_apd(temperature=4.0, labels_from="teacher").to("meta")
    assert loss(**{name: value.to("meta") for name, value in batch_of().items()})["loss"].shape == ()
    printed = "labels_from='teacher', detach_prototypes=False, align_corners=False, weights: "
    assert f"temperature=4.0, upsample_logits=False, {printed}" in str(loss)


def test_the_compiled_call_checks_shapes_and_gradients_and_stays_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(small_apd(ignore_index=np.int64(255)), fullgraph=True, backend="aot_eager")
    assert compiled(**batch_of())["loss"].isfinite()
    for batch in (batch_of(labels=(96, 48)), batch_of(detached="student_features")):
        with pytest.raises(Exception, match=r"contradict|does not require a gradient"):
            compiled(**batch)


@pytest.mark.parametrize("build", [APDLoss, CWD, CIRKD, FitNet])
def test_an_ignore_index_that_is_a_class_is_refused_at_construction(build):
    small = {"pixel_slots": 2, "region_slots": 2} if build is CIRKD else {}
    for ignore_index, classes in ((255, 256), (0, 5), (4, 5)):
        with pytest.raises(ValueError, match=rf"ignore_index={ignore_index} is one of the classes 0\.\.{classes - 1} "):
            build(4, 4, classes, ignore_index=ignore_index, **small)
        with pytest.raises(ValueError, match=rf"ignore_index={ignore_index} is one of the classes"):
            valid_pixels(torch.zeros(1, 2, 2, dtype=torch.long), classes, ignore_index=ignore_index)
    for ignore_index, classes in ((255, 255), (-1, 300), (65535, 300)):
        build(4, 4, classes, ignore_index=ignore_index, **small)


@pytest.mark.parametrize("name", ["pixel_kd", "dist", "dkd", "lskd"])
def test_a_method_that_does_not_know_its_classes_refuses_at_its_call_an_ignore_index_among_them_and_a_single_one(name):
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    for classes, message in (
        (300, r"ignore_index=255 is one of the classes 0\.\.299"),
        (1, r"shape \(1, 1, 2, 2\): expected two classes or more; .*two_channel_logits"),
    ):
        logits = torch.randn(1, classes, 2, 2, requires_grad=True)
        with pytest.raises(ValueError, match=message):
            training(name)(student_logits=logits, teacher_logits=logits, labels=labels)


@pytest.mark.parametrize("name", ["apd", *OF_LOGITS])
def test_a_network_of_one_sigmoid_channel_is_distilled_by_its_two_channels(name):
    z, t = torch.randn(2, 1, 6, 12, requires_grad=True), torch.randn(2, 1, 6, 12)
    with pytest.raises(ValueError, match=r"logits has shape \(1, 2, 3, 3\): expected one channel"):
        two_channel_logits(torch.zeros(1, 2, 3, 3))
    batch = batch_of() | {"student_logits": two_channel_logits(z), "teacher_logits": two_channel_logits(t)}
    batch["labels"] = (batch["labels"] > 1).long()
    make(name, torch.float32, sizes=(6, 8, 2))(**batch)["loss"].backward()
    assert z.grad.any() or name == "lskd"  # standardised, two logits are always +-1
    p, q = t.sigmoid(), z.sigmoid()
    binary = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(PixelKD()(**batch)["pixel_kd"], binary)
