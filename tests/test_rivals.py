"""Every distillation method: against its slow reference, and the properties that they share."""

import copy

import pytest
import torch
from torch.nn import functional as F

import apd
from apd import (
    CIRKD,
    CWD,
    DIST,
    DKD,
    I2CKD,
    IFVD,
    LSKD,
    MGD,
    APDLoss,
    AttentionTransfer,
    FitNet,
    InterClassDistance,
    PairwiseSimilarity,
    PixelKD,
    pixel_kd_loss,
)

from . import slow_reference as slow
from . import slow_rivals

SIZES = (6, 8, 5)  # channels of student and teacher, classes
SMALL_QUEUES = {"pixel_slots": 12, "region_slots": 4, "most_pixels": 6}
METHODS = {
    "pixel_kd": lambda sizes=SIZES: PixelKD(temperature=2.0),
    "fitnet": lambda sizes=SIZES: FitNet(*sizes),
    "attention_transfer": lambda sizes=SIZES: AttentionTransfer(*sizes),
    "skd": lambda sizes=SIZES: PairwiseSimilarity(*sizes),
    "ifvd": lambda sizes=SIZES: IFVD(*sizes),
    "cwd": lambda sizes=SIZES: CWD(*sizes, features=50.0),
    "cirkd": lambda sizes=SIZES: CIRKD(*sizes, **SMALL_QUEUES),
    "dist": lambda sizes=SIZES: DIST(temperature=2.0),
    "mgd": lambda sizes=SIZES: MGD(*sizes),
    "dkd": lambda sizes=SIZES: DKD(temperature=2.0),
    "lskd": lambda sizes=SIZES: LSKD(),
    "i2ckd": lambda sizes=SIZES: I2CKD(*sizes),
    "idd": lambda sizes=SIZES: InterClassDistance(*sizes),
}
OF_LOGITS = ("pixel_kd", "cwd", "dist", "dkd", "lskd")
every_method = pytest.mark.parametrize("name", METHODS)


def make(name, dtype=torch.float64, sizes=SIZES):
    """The method in evaluation mode, in which the memories of CIRKD are read and not written."""
    torch.manual_seed(7)
    return METHODS[name](sizes).to(dtype).eval()


def random_batch(**options):
    return slow.random_batch(**({"teacher_channels": 8} | options))


def call(module, batch):
    torch.manual_seed(11)  # for the draws of MGD and CIRKD
    return module(**batch)


def gradients(loss, module, batch):
    inputs = [batch["student_features"], batch["student_logits"], *module.parameters()]
    return torch.autograd.grad(loss, inputs, allow_unused=True)


# ---------------------------------------------------------------- value


def slow_terms(name, module, batch):
    """The terms by the slow reference; the grids of a batch are equal."""
    features = batch["student_features"], batch["teacher_features"], batch["labels"]
    logits = batch["student_logits"], batch["teacher_logits"], batch["labels"]
    size = features[0].shape[2:]
    match name:
        case "pixel_kd":
            return {"pixel_kd": slow.pixel_kd(*logits, temperature=2.0)}
        case "fitnet":
            return slow_rivals.fitnet(*features, adapter=(module.adapter.weight, None))
        case "cwd":
            adapted = torch.stack([slow_rivals.convolution(f, module.adapter.weight, None) for f in features[0]])
            return {
                "logits": slow_rivals.cwd(*logits, temperature=4.0),
                "features": slow_rivals.cwd(adapted, *features[1:], temperature=4.0),
            }
        case "i2ckd":
            return slow_rivals.i2ckd(*features, adapter=module.adapter.weight, margin=1.0)
        case "dist" | "dkd" | "lskd":
            return getattr(slow_rivals, name)(*logits, temperature=2.0)
        case "skd":
            return slow_rivals.skd(*features, window=(max(1, size[0] // 2), max(1, size[1] // 2)))
        case "mgd":
            torch.manual_seed(11)
            kept = torch.rand(features[0].shape[0], *size) < 0.25
            layers = {layer: (getattr(module, layer).weight, getattr(module, layer).bias) for layer in MGD_LAYERS}
            return slow_rivals.mgd(*features, kept=kept, **layers)
        case "cirkd":
            window = {(5, 4): 2, (1, 2): 1}[tuple(size)]  # 20 pixels come down to 3 × 2 cells, two stay two
            terms = {"batch_pixels": slow_rivals.cirkd_batch(*features, temperature=0.1, window=window)}
            head = module.head
            headed = slow_rivals.cirkd_head(
                features[0],
                features[2],
                hidden=head.hidden.weight,
                scale=head.scale,
                shift=head.shift,
                out=head.out.weight,
            )
            for memory, queues in module.memories.items():
                samples = queues.vectors.flatten(0, 1)  # as many are drawn as there are
                terms[memory] = slow_rivals.cirkd_memory(headed, *features[:2], samples, temperature=0.1)
            return terms
    return getattr(slow_rivals, name)(*features)


MGD_LAYERS = ("adapter", "hidden", "out")


@every_method
@pytest.mark.parametrize("grid", [(5, 4), (1, 2)], ids=["fine", "coarse"])
def test_terms_loss_and_gradients_equal_the_slow_reference(name, grid):
    module, batch = make(name), random_batch(grid=grid)
    out = call(module, batch)
    expected = slow_terms(name, module, batch)
    assert list(out) == [*expected, "loss"] == [*module.weights, "loss"]
    torch.testing.assert_close({term: out[term] for term in expected}, expected)
    total = sum(module.weights[term] * value for term, value in expected.items())
    torch.testing.assert_close(out["loss"], total)
    for got, wanted in zip(gradients(out["loss"], module, batch), gradients(total, module, batch), strict=True):
        if wanted is None:
            assert got is None or not got.any()
        else:
            torch.testing.assert_close(got, wanted, atol=1e-7 * total.item(), rtol=1e-5)


PUBLISHED = {
    "fitnet": {"fitnet": 10},
    "attention_transfer": {"attention_transfer": 10_000},
    "skd": {"skd": 0.5},
    "ifvd": {"ifvd": 200},
    "cwd": {"logits": 3, "features": 0},
    "cirkd": {"batch_pixels": 1, "pixel_memory": 0.1, "region_memory": 0.1},
    "dist": {"inter": 1, "intra": 1},
    "mgd": {"mgd": 2e-5},
    "dkd": {"target": 1, "non_target": 0.25},
    "lskd": {"lskd": 9},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_weights_are_the_defaults(name):
    kinds = {"dist": DIST, "dkd": DKD, "lskd": LSKD}
    module = (
        kinds[name]() if name in kinds else type(METHODS[name]())(6, 8, 5, **(SMALL_QUEUES if name == "cirkd" else {}))
    )
    assert module.weights == PUBLISHED[name]


def test_the_published_queues_are_the_defaults():
    memories = CIRKD(2, 2, 1).memories
    assert [memory.vectors.shape[1] for memory in memories.values()] == [20_000, 2000]
    assert [memory.samples for memory in memories.values()] == [4097, 1025]


@every_method
def test_a_student_that_is_its_teacher_costs_nothing(name):
    module, batch = make(name, sizes=(8, 8, 5)), random_batch(student_channels=8)
    if name in ("fitnet", "cwd"):
        torch.nn.init.dirac_(module.adapter.weight)
    batch |= {f"student_{kind}": batch[f"teacher_{kind}"].clone() for kind in ("features", "logits")}
    # two pass through layers that know nothing of the teacher yet; to the third the teacher's classes are too near
    never = {"mgd": {"mgd"}, "cirkd": {"pixel_memory", "region_memory"}, "i2ckd": {"i2ckd"}}.get(name, set())
    out = call(module, batch)
    for term in set(out) - never - {"loss"}:
        torch.testing.assert_close(out[term], torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
    assert all(out[term] > 0 for term in never)


# ---------------------------------------------------------------- pixels, classes, grids


@every_method
def test_what_ignored_pixels_hold_plays_no_part(name):
    module, batch = make(name), random_batch(labels=(5, 4), ignored=0.4)
    ignored = (batch["labels"] == 255)[:, None]
    other = random_batch(labels=(5, 4), seed=9)
    changed = {
        key: batch[key] if key == "labels" else torch.where(ignored, 50 * other[key], batch[key]) for key in batch
    }
    torch.testing.assert_close(call(module, changed), call(module, batch))


@every_method
def test_with_nothing_valid_every_term_is_a_connected_zero(name):
    module, batch = make(name).train(), random_batch()
    batch["labels"] = torch.full_like(batch["labels"], 255)
    for dtype in (torch.int64, torch.uint8):
        out = call(module, batch | {"labels": batch["labels"].to(dtype)})
        assert all(value == 0 and value.requires_grad for value in out.values())
        assert not any(g.any() for g in gradients(out["loss"], module, batch) if g is not None)


@every_method
def test_an_image_without_a_valid_pixel_and_an_image_of_one_leave_everything_finite(name):
    module, batch = make(name).train(), random_batch()
    batch["labels"][0] = 255
    batch["labels"][1] = 255
    batch["labels"][1, 0, 0] = 3
    out = call(module, batch)
    assert all(value.isfinite() for value in out.values())
    assert all(g.isfinite().all() for g in gradients(out["loss"], module, batch) if g is not None)


@every_method
def test_features_of_zero_leave_everything_finite(name):
    module, batch = make(name).train(), random_batch()
    for key in set(batch) - {"labels"}:
        batch[key] = torch.zeros_like(batch[key]).requires_grad_(key.startswith("student"))
    out = call(module, batch)
    assert all(value.isfinite() for value in out.values())
    assert all(g.isfinite().all() for g in gradients(out["loss"], module, batch) if g is not None)


@every_method
def test_a_finer_teacher_is_averaged_down_to_the_students_grid(name):
    module, batch = make(name), random_batch()
    fine = batch | {key: random_batch(grid=(10, 8), seed=3)[key] for key in ("teacher_features", "teacher_logits")}
    coarse = {
        key: value.unflatten(3, (4, 2)).unflatten(2, (5, 2)).mean((3, 5)) if key.startswith("teacher") else value
        for key, value in fine.items()
    }
    torch.testing.assert_close(call(module, fine), call(module, coarse))


@pytest.mark.parametrize("name", ["fitnet", "attention_transfer", "skd", "ifvd", "mgd", "i2ckd", "idd"])
def test_classes_that_are_nowhere_play_no_part(name):
    batch = random_batch()
    few, many = make(name), make(name, sizes=(6, 8, 50))
    torch.testing.assert_close(call(few, batch), call(many, batch))


# ---------------------------------------------------------------- gradient


@every_method
def test_gradient_reaches_the_student_and_its_adapter_and_never_the_teacher(name):
    module, batch = make(name).train(), random_batch()
    batch["teacher_features"].requires_grad_()
    batch["teacher_logits"].requires_grad_()
    call(module, batch)["loss"].backward()
    assert (batch["teacher_features"].grad, batch["teacher_logits"].grad) == (None, None)
    of_logits = name in OF_LOGITS
    of_features = name == "cwd" or not of_logits
    for key, reached in (("student_features", of_features), ("student_logits", of_logits)):
        assert (batch[key].grad is not None and bool(batch[key].grad.any())) == reached
    assert [p.shape for p in module.student_parameters()] == [p.shape for p in module.parameters()]
    assert bool(module.student_parameters()) == (name in ("fitnet", "cwd", "cirkd", "mgd", "i2ckd"))
    assert all(parameter.grad.any() for parameter in module.student_parameters())
    assert module.teacher_parameters() == []


@every_method
def test_distillation_alone_brings_the_loss_down(name):
    module, batch = make(name, torch.float32), random_batch(dtype=torch.float32)
    inputs = [batch["student_features"], batch["student_logits"], *module.student_parameters()]
    optimiser = torch.optim.Adam(inputs, 0.05)
    values = []
    for _ in range(60):
        loss = call(module, batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]


# ---------------------------------------------------------------- precision and compilation


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
        torch.testing.assert_close(
            gradients(out["loss"], inner, batch), gradients(expected["loss"], eager, batch), atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(dict(inner.named_buffers()), dict(eager.named_buffers()))
    wrong = batch | {"labels": batch["labels"].clone()}
    wrong["labels"][0, 0, 0] = 77
    with pytest.raises(RuntimeError, match="labels hold a value"):
        compiled(**wrong)


# ---------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PixelKD(temperature=0.0), "temperature=0.0: expected a positive number"),
        (lambda: PixelKD(temperature=float("inf")), "temperature=inf"),
        (lambda: PixelKD(weight=-1.0), "weight=-1.0"),
        (lambda: PixelKD(weight=0.0), "weight=0.0"),
        (lambda: PixelKD(reduction="sum"), "reduction='sum'"),
        (lambda: FitNet(6, 8, 5, weight=float("nan")), "weight=nan: expected a positive number"),
        (lambda: FitNet(0, 8, 5), "student_channels=0: expected a positive integer"),
        (lambda: IFVD(6, 8.0, 5), r"teacher_channels=8\.0: expected a positive integer"),
        (lambda: AttentionTransfer(6, 8, True), "num_classes=True: expected a positive integer"),
        (lambda: PairwiseSimilarity(6, 8, 5, pool=0.0), r"pool=0\.0: expected a share"),
        (lambda: PairwiseSimilarity(6, 8, 5, pool=1.5), r"pool=1\.5: expected a share"),
        (lambda: MGD(6, 8, 5, masked=1.0), r"masked=1\.0: expected a share"),
        (lambda: CWD(6, 8, 5, logits=0), "logits, features are all 0"),
        (lambda: CWD(6, 8, 5, features=-1), "features=-1: expected a finite number, 0 or greater"),
        (lambda: CWD(6, 8, 5, temperature=-4), "temperature=-4: expected a positive number"),
        (lambda: DIST(inter=float("inf")), "inter=inf"),
        (lambda: DIST(temperature=0), "temperature=0"),
        (lambda: DKD(target=0, non_target=0), "target, non_target are all 0"),
        (lambda: DKD(temperature=0), "temperature=0"),
        (lambda: LSKD(temperature=0), "temperature=0"),
        (lambda: LSKD(weight=0), "weight=0: expected a positive number"),
        (lambda: I2CKD(6, 8, 5, margin=0), "margin=0: expected a positive number"),
        (lambda: InterClassDistance(6, 8, 5, weight=-1), "weight=-1: expected a positive number"),
        (lambda: CIRKD(6, 8, 5, temperature=0), "temperature=0"),
        (lambda: CIRKD(6, 8, 5, most_pixels=0), "most_pixels=0: expected a positive integer"),
        (lambda: CIRKD(6, 8, 5, pixel_slots=2.5), r"pixel_slots=2\.5: expected a positive integer"),
        (lambda: CIRKD(6, 8, 5, batch_pixels=0, pixel_memory=0, region_memory=0), "region_memory are all 0"),
    ],
)
def test_wrong_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@every_method
def test_wrong_inputs_are_named(name):
    module, batch = make(name), random_batch()
    kind = "logits" if name in OF_LOGITS else "features"
    student, teacher = f"student_{kind}", f"teacher_{kind}"
    wrong = [
        ({teacher: None}, TypeError, f"{teacher} is a NoneType"),
        ({student: batch[student][0]}, ValueError, f"{student} has shape"),
        ({teacher: batch[teacher][:1]}, ValueError, "batch"),
        ({student: batch[student][:, :4]}, ValueError, student),
        ({student: batch[student].long()}, TypeError, f"{student} has dtype"),
        ({"labels": batch["labels"].double()}, TypeError, "labels has dtype torch.float64"),
        ({"labels": batch["labels"][:1]}, ValueError, "labels holds 1 images but the maps hold 2"),
        ({"labels": batch["labels"][:, None]}, ValueError, "labels has shape"),
        ({"labels": torch.full_like(batch["labels"], 5)}, RuntimeError, r"labels hold .* 0\.\.4 nor .*=255"),
    ]
    for change, error, message in wrong:
        with pytest.raises(error, match=message):
            module(**batch | change)


@every_method
def test_a_label_that_names_no_class_is_found_even_where_the_grid_skips_it(name):
    module, batch = make(name), random_batch()
    batch["labels"][0, 1, 1] = 99
    with pytest.raises(RuntimeError, match="labels hold a value"):
        module(**batch)


@every_method
def test_positional_arguments_are_refused_since_swapping_the_nets_would_go_unnoticed(name):
    with pytest.raises(TypeError, match="positional"):
        make(name)(*random_batch().values())


def test_logits_of_another_number_of_classes_are_refused():
    batch = random_batch(num_classes=4)
    with pytest.raises(ValueError, match=r"student_logits has 4 channels .*: expected 5, the num_classes"):
        make("cwd")(**batch)


@pytest.mark.parametrize("name", ["pixel_kd", "dist", "dkd", "lskd"])
def test_logits_of_a_single_class_are_refused_with_the_way_for_binary_networks(name):
    logits = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 2, 2\): expected two classes or more; .*two_channel_logits"):
        make(name)(student_logits=logits, teacher_logits=logits, labels=torch.zeros(1, 2, 2, dtype=torch.long))


# ---------------------------------------------------------------- single methods


def test_pixel_kd_is_the_function_and_the_term_of_apd():
    batch = slow.random_batch()
    options = {"temperature": 3.0, "reduction": "element"}
    out = PixelKD(weight=0.5, **options)(**batch)
    logits = batch["student_logits"], batch["teacher_logits"]
    term = APDLoss(6, 6, 5, width=4, **options).double()(**batch)["pixel_kd"]
    assert out["pixel_kd"] == pixel_kd_loss(*logits, batch["labels"], **options) == term
    torch.testing.assert_close(out["loss"], 0.5 * slow.pixel_kd(*logits, batch["labels"], **options))


@pytest.mark.parametrize("name", ["pixel_kd", "dist", "dkd", "lskd"])
def test_methods_of_logits_need_no_features(name):
    batch = random_batch()
    bare = {key: batch[key] for key in ("student_logits", "teacher_logits", "labels")}
    assert make(name)(**bare) == make(name)(**batch)


@pytest.mark.parametrize("name", ["fitnet", "attention_transfer", "skd", "ifvd", "mgd", "cirkd", "i2ckd", "idd"])
def test_methods_of_features_need_no_logits(name):
    batch = random_batch()
    bare = {key: batch[key] for key in ("student_features", "teacher_features", "labels")}
    assert call(make(name), bare) == call(make(name), batch)


def test_channel_wise_distillation_of_logits_alone_has_no_adapter_and_needs_no_features():
    batch = random_batch()
    bare = {key: batch[key] for key in ("student_logits", "teacher_logits", "labels")}
    module = CWD(*SIZES)
    assert module.student_parameters() == []
    assert list(module(**bare)) == ["logits", "loss"]
    assert list(CWD(*SIZES, logits=0, features=1).double()(**batch)) == ["features", "loss"]


@pytest.mark.parametrize(("kind", "term"), [(DIST, "inter"), (DIST, "intra"), (DKD, "target"), (DKD, "non_target")])
def test_a_term_of_weight_zero_is_left_out_and_the_other_is_what_it_was(kind, term):
    batch = random_batch()
    both = kind()(**batch)
    alone = kind(**{term: 0})(**batch)
    assert set(alone) == set(both) - {term}
    (other,) = set(alone) - {"loss"}
    assert alone[other] == both[other]


def test_at_temperature_one_the_parts_of_decoupled_distillation_make_up_the_whole():
    """KL = target + (1 - teacher's probability of the label) × non-target, pixel by pixel (Zhao et al. 2022)."""
    batch = random_batch(batch=1, grid=(1, 1), labels=(1, 1), ignored=0)
    out = DKD()(**batch)
    probability = batch["teacher_logits"].softmax(1)[0, batch["labels"].item(), 0, 0]
    whole = pixel_kd_loss(batch["student_logits"], batch["teacher_logits"], batch["labels"])
    torch.testing.assert_close(out["target"] + (1 - probability) * out["non_target"], whole)


def test_correlations_do_not_see_a_scaling_of_the_students_probabilities_towards_the_uniform():
    teacher = random_batch()["teacher_logits"].softmax(1)
    student = 0.5 * teacher + 0.5 / 5
    out = DIST().eval()(student_logits=student.log(), teacher_logits=teacher.log(), labels=random_batch()["labels"])
    torch.testing.assert_close(out["loss"], torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_class_in_which_the_teacher_does_not_vary_has_no_correlation_to_be_wrong_about():
    teacher = torch.zeros(1, 3, 2, 2)
    out = DIST().eval()(
        student_logits=torch.randn(1, 3, 2, 2), teacher_logits=teacher, labels=torch.zeros(1, 2, 2, dtype=torch.long)
    )
    assert out["loss"] == 0


@pytest.mark.parametrize("name", ["lskd", "i2ckd", "idd"])
def test_the_gradients_are_those_of_finite_differences(name):
    module, batch = make(name), random_batch()
    kind = "logits" if name in OF_LOGITS else "features"
    student = batch[f"student_{kind}"].detach().requires_grad_()

    def loss(student, *parameters):
        changed = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(module, changed, kwargs=batch | {f"student_{kind}": student})["loss"]

    assert torch.autograd.gradcheck(loss, (student, *module.parameters()))


def test_standardised_distillation_sees_neither_a_shift_nor_a_scale_of_a_pixels_logits():
    batch = random_batch()
    scale, shift = torch.rand(2, *batch["student_logits"][:, :1].shape, dtype=torch.float64) + 0.5
    changed = batch | {"student_logits": scale * batch["student_logits"] + shift}
    torch.testing.assert_close(LSKD()(**changed), LSKD()(**batch))
    twins = batch | {"student_logits": scale * batch["teacher_logits"] + shift}
    torch.testing.assert_close(LSKD().eval()(**twins)["loss"], torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["i2ckd", "idd"])
def test_an_image_of_one_class_has_no_pair_of_prototypes_and_costs_a_connected_zero(name):
    module, batch = make(name), random_batch()
    batch["labels"] = torch.where(batch["labels"] == 255, 255, torch.tensor([1, 3])[:, None, None])
    out = call(module, batch)
    assert out["loss"] == 0
    assert not any(g.any() for g in gradients(out["loss"], module, batch) if g is not None)


@pytest.mark.parametrize("name", ["i2ckd", "idd"])
def test_classes_that_share_their_prototype_leave_everything_finite(name):
    """A Euclidean distance of 0 has no slope of its own."""
    module, batch = make(name), random_batch()
    batch["student_features"] = torch.ones_like(batch["student_features"]).requires_grad_()
    out = call(module, batch)
    assert out["loss"] > 0
    assert all(g.isfinite().all() for g in gradients(out["loss"], module, batch) if g is not None)


@pytest.mark.parametrize("name", ["i2ckd", "idd"])
def test_more_classes_than_are_compared_one_by_one_give_the_same(name):
    """Beyond 25 rows :func:`torch.cdist` takes a matrix product in place of differences."""
    classes, channels = 27, 4
    module = make(name, sizes=(channels, channels, classes))
    student, teacher = (torch.randn(1, channels, 1, classes, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    batch = {"student_features": student, "teacher_features": teacher, "labels": torch.arange(classes)[None, None]}
    options = {"adapter": module.adapter.weight, "margin": 1.0} if name == "i2ckd" else {}
    values = module(**batch)[name], getattr(slow_rivals, name)(*batch.values(), **options)[name]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in values))


def test_triplets_of_classes_far_apart_cost_nothing_once_each_is_at_its_own():
    teacher = torch.eye(5, dtype=torch.float64).view(1, 5, 5, 1)
    batch = {"teacher_features": teacher, "labels": torch.arange(5).view(1, 5, 1)}
    module = I2CKD(5, 5, 5).double().eval()
    torch.nn.init.dirac_(module.adapter.weight)
    assert module(student_features=teacher, **batch)["loss"] == 0
    swapped = module(student_features=teacher.flip(2), **batch)["loss"]
    torch.testing.assert_close(swapped, torch.tensor(4 * (2**0.5 + 1 + 3) / 20, dtype=torch.float64))


@pytest.mark.parametrize(("side", "nodes"), [(8, 2), (9, 3)])
def test_the_pairwise_matrix_has_few_nodes_whatever_the_grid(side, nodes, monkeypatch):
    shapes = []
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: shapes.append(multiply(a, b).shape) or multiply(a, b))
    make("skd")(**random_batch(grid=(side, side)))
    assert shapes == [(2, nodes**2, nodes**2)] * 2


def test_masked_generation_hides_the_stated_share_of_the_pixels_anew_at_each_call():
    module = MGD(3, 3, 2, masked=0.75).eval()
    seen = []
    module.hidden.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0] != 0).all(1)))
    features, labels = torch.ones(1, 3, 100, 100), torch.zeros(1, 100, 100, dtype=torch.long)
    for _ in range(2):
        module(student_features=features, teacher_features=features, labels=labels)
    assert [abs(kept.double().mean().item() - 0.25) < 0.02 for kept in seen] == [True, True]
    assert not torch.equal(*seen)
    assert module.adapter is None  # as published, only where the channels differ


def test_an_unknown_name_is_no_attribute_of_the_package():
    with pytest.raises(AttributeError, match="module 'apd' has no attribute 'FitNett'"):
        apd.FitNett  # noqa: B018
    assert set(apd.__all__) <= set(dir(apd))


@every_method
def test_a_printed_method_tells_its_weights(name):
    assert all(f"{term}={weight:g}" in repr(make(name)) for term, weight in make(name).weights.items())
