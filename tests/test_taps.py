import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from apd import APDLoss, FeatureTap, tokens_to_map


@pytest.fixture
def model():
    trunk = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return nn.ModuleDict({"trunk": trunk, "classifier": nn.Conv2d(4, 2, 1)})


def run(model, images):
    return model["classifier"](model["trunk"](images))


def test_the_tap_holds_the_modules_last_output_with_its_graph(model):
    with FeatureTap(model, "trunk") as tap:
        run(model, torch.zeros(1, 3, 2, 2))
        images = torch.randn(2, 3, 5, 4)
        logits = run(model, images)
    assert tap.features.shape == (2, 4, 5, 4)
    torch.testing.assert_close(model["classifier"](tap.features), logits)
    tap.features.sum().backward()
    assert model["trunk"][0].weight.grad is not None


def test_the_hook_is_gone_after_the_block_even_when_the_block_fails(model):
    tap = FeatureTap(model, "trunk")
    with tap:
        run(model, torch.zeros(1, 3, 2, 2))
    seen = tap.features
    run(model, torch.ones(1, 3, 2, 2))
    assert tap.features is seen
    with pytest.raises(RuntimeError, match="channels"), tap:
        run(model, torch.zeros(1, 9, 2, 2))
    assert not model["trunk"]._forward_hooks
    assert "forward" not in model["trunk"].__dict__


def test_an_unknown_path_is_refused_with_the_nearest_names(model):
    with pytest.raises(ValueError, match=r"ModuleDict has no module 'clasifier'.*\['classifier'"):
        FeatureTap(model, "clasifier")
    with pytest.raises(ValueError, match="has no module ''"):
        FeatureTap(model, "")


def test_features_asked_for_before_any_forward_pass_are_an_error(model):
    with FeatureTap(model, "trunk") as tap, pytest.raises(RuntimeError, match="'trunk' has not run"):
        _ = tap.features


def test_an_output_changed_in_place_by_a_later_module_is_an_error_and_not_a_wrong_number(model):
    with FeatureTap(model, "trunk.1") as tap:
        run(model, torch.randn(1, 3, 2, 2))
        with pytest.raises(RuntimeError, match=r"'trunk\.1' was changed in place"):
            _ = tap.features


def test_a_module_that_returns_no_tensor_is_refused_by_name():
    lstm = nn.Sequential(nn.LSTM(2, 2))
    with FeatureTap(lstm, "0"), pytest.raises(TypeError, match=r"'0' \(LSTM\) returned a tuple"):
        lstm(torch.zeros(1, 1, 2))


def test_a_frozen_teacher_can_be_tapped_under_no_grad_and_under_inference_mode(model):
    with FeatureTap(model, "trunk") as tap:
        for quiet in (torch.no_grad, torch.inference_mode):
            with quiet():
                run(model, torch.zeros(1, 3, 2, 2))
            assert not tap.features.requires_grad


# ---------------------------------------------------------------- copies


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ReLU())
        self.classifier = nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.classifier(self.body(images))


IMAGES = torch.rand(2, 3, 4, 6)


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    "pickled": pickled,
}


@pytest.mark.parametrize("inner", ["", "body"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_inside_the_block_is_a_model_of_its_own_that_feeds_no_tap(how, inner):
    model = Small()
    with FeatureTap(model, "body") as tap:
        model(IMAGES)
        seen = tap.features
        twin = COPIES[how](model.get_submodule(inner))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert not torch.equal(twin(IMAGES), model.get_submodule(inner)(IMAGES))  # the copy's own weights, run its way
        model(IMAGES)
        assert tap.features is not seen
        seen = tap.features
        twin(IMAGES)
        assert tap.features is seen
        if not inner:
            with FeatureTap(twin, "body") as other:
                twin(IMAGES)
            torch.testing.assert_close(twin.classifier(other.features), twin(IMAGES))
    assert "forward" not in model.body.__dict__


def test_an_average_of_the_student_goes_on_being_updated_inside_the_block():
    model = Small()
    with FeatureTap(model, "body"):
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
        )
        average.update_parameters(model)
        model(IMAGES)
        average.update_parameters(model)
        torch.testing.assert_close(average(IMAGES), model(IMAGES))
    assert set(average.module.state_dict()) == set(model.state_dict())


def test_a_copied_tap_is_a_closed_one_of_the_copied_model():
    class Lightning(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = Small()
            self.tap = FeatureTap(self.student, "body").open()

    whole = Lightning()
    whole.student(IMAGES)
    twin = copy.deepcopy(whole)
    with pytest.raises(RuntimeError, match="'body' has not run: the tap is closed: open it"):
        _ = twin.tap.features
    with twin.tap:
        twin.student(IMAGES)
        torch.testing.assert_close(twin.tap.features, whole.tap.features)
        assert twin.tap.features is not whole.tap.features


# ---------------------------------------------------------------- opening and closing


def test_a_tap_is_opened_and_closed_without_a_block_too():
    model = Small()
    tap = FeatureTap(model, "body").open()
    model(IMAGES)
    seen = tap.features
    with pytest.raises(RuntimeError, match="the tap of 'body' is open already"):
        tap.open()
    tap.close()
    tap.close()
    model(IMAGES)
    assert tap.features is seen
    with tap, pytest.raises(RuntimeError, match="has not run: call the model inside"):
        _ = tap.features  # what was heard before is forgotten


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_several_taps_of_one_module_are_closed_in_any_order(order):
    model = Small()
    taps = [FeatureTap(model, "body").open() for _ in range(3)]
    for closed in order:
        model(IMAGES)
        features = {id(tap.features) for tap in taps if tap._tapped is not None}
        assert len(features) == 1
        taps[closed].close()
        model(IMAGES)
        assert all(id(tap.features) not in features for tap in taps if tap._tapped is not None)
    assert "forward" not in model.body.__dict__


def test_a_forward_that_somebody_wrapped_before_or_meanwhile_stays_wrapped():
    model, calls = Small(), []

    def wrapped(module):
        before = module.forward
        return lambda *args: calls.append(1) or before(*args)

    model.body.forward = first = wrapped(model.body)
    with FeatureTap(model, "body") as tap:
        model(IMAGES)
        assert (len(calls), tap.features.shape) == (1, (2, 4, 2, 3))
    assert model.body.forward is first
    with FeatureTap(model, "body") as tap:
        model.body.forward = outer = wrapped(model.body)
        model(IMAGES)
        assert len(calls) == 3
    seen = tap.features
    assert model.body.forward is outer
    model(IMAGES)
    assert (len(calls), tap.features is seen) == (5, True)


def test_of_a_module_called_several_times_the_last_call_counts():
    class Twice(Small):
        def forward(self, images):
            return self.classifier(self.body(images) + self.body(2 * images))

    model = Twice()
    with FeatureTap(model, "body") as tap:
        model(IMAGES)
    torch.testing.assert_close(tap.features, model.body(2 * IMAGES))


# ---------------------------------------------------------------- compiled, scripted, exported


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("when", ["before, and run", "before", "after", "in place"])
@pytest.mark.parametrize("which", ["model", "compiled"])
def test_a_compiled_model_is_tapped_whenever_it_was_compiled(fullgraph, when, which):
    torch.compiler.reset()
    model, options = Small(), {"fullgraph": fullgraph, "backend": "aot_eager"}
    compiled = model
    if when.startswith("before"):
        compiled = torch.compile(model, **options)
    elif when == "in place":
        model.compile(**options)
    if when.endswith("run"):
        compiled(IMAGES)
    with FeatureTap(model if which == "model" else compiled, "body") as tap:
        if when == "after":
            compiled = torch.compile(model, **options)
        for _ in range(2):
            compiled(IMAGES)
            torch.testing.assert_close(tap.features, nn.Sequential.forward(model.body, IMAGES))
        other = torch.compile(Small(), **options)
        other(IMAGES)  # of the same class, and not tapped
        torch.testing.assert_close(tap.features, nn.Sequential.forward(model.body, IMAGES))
        tap.features.sum().backward()
        assert model.body[0].weight.grad.any()
    seen = tap.features
    compiled(IMAGES)
    assert tap.features is seen
    with FeatureTap(model, "body") as second:
        compiled(IMAGES)
        assert second.features is not seen
        assert tap.features is seen


def test_a_compiled_part_of_a_model_is_tapped():
    torch.compiler.reset()
    model = Small()
    model.body = torch.compile(model.body, backend="aot_eager")
    with FeatureTap(model, "body") as tap:
        logits = model(IMAGES)
    torch.testing.assert_close(model.classifier(tap.features), logits)
    torch.testing.assert_close(model(IMAGES), logits)


def test_compiled_code_hands_out_what_the_module_returned_though_it_is_changed_in_place_later(model):
    torch.compiler.reset()
    whole = nn.Sequential(*model["trunk"], model["classifier"]).eval()
    images = torch.randn(1, 3, 2, 2)
    with FeatureTap(whole, "1") as tap:
        torch.compile(whole, backend="aot_eager", fullgraph=True)(images)
    torch.testing.assert_close(tap.features, whole[1](whole[0](images)))


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("make", [lambda model: torch.jit.trace(model, IMAGES), torch.jit.script])
def test_torchscript_is_refused_with_the_true_reason(make):
    scripted = make(Small().eval())
    for model, path in ((scripted, "body"), (nn.Sequential(scripted), "0")):
        with pytest.raises(TypeError, match=f"'{path}' is TorchScript, which runs outside Python"):
            FeatureTap(model, path)


def test_a_module_that_an_exported_model_never_calls_says_so():
    exported = torch.export.export(Small().eval(), (IMAGES,)).module()
    with FeatureTap(exported, "body") as tap:
        exported(IMAGES)
        with pytest.raises(RuntimeError, match="never calls, as in an exported or fused model"):
            _ = tap.features


# ---------------------------------------------------------------- checkpointing


class Checkpointed(Small):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.reentrant = nn.Conv2d(3, 3, 1), reentrant

    def forward(self, images):
        return self.classifier(checkpoint(self.body, self.stem(images), use_reentrant=self.reentrant))


def test_checkpointing_that_is_not_reentrant_is_tapped_and_trains_once():
    torch.manual_seed(0)
    model, plain = Checkpointed(reentrant=False), Small()
    plain.load_state_dict(model.state_dict(), strict=False)
    with FeatureTap(model, "body") as tap:
        logits = model(IMAGES)
        features = tap.features
        (logits.sum() + features.square().sum()).backward()
        assert tap.features is features  # what the backward pass computed again is not heard
    whole = plain.body(model.stem(IMAGES))
    (plain.classifier(whole).sum() + whole.square().sum()).backward()
    torch.testing.assert_close(model.body[0].weight.grad, plain.body[0].weight.grad)


def test_reentrant_checkpointing_says_the_true_reason_for_a_student_and_serves_a_teacher():
    model = Checkpointed(reentrant=True)
    for path in ("body", "body.0"):
        with FeatureTap(model, path) as tap:
            logits = model(IMAGES)
            with pytest.raises(
                RuntimeError, match=rf"'{path}' ran inside torch.utils.checkpoint\(use_reentrant=True\)"
            ):
                _ = tap.features
            logits.sum().backward()
            with pytest.raises(RuntimeError, match="without gradient and again in the backward pass"):
                _ = tap.features
            with torch.no_grad():
                model(IMAGES)
            assert tap.features.shape[1] == 4
    with FeatureTap(model, "stem") as tap:  # outside the checkpoint
        model(IMAGES)
    assert tap.features.requires_grad


# ---------------------------------------------------------------- tokens


class Tokens(nn.Module):
    """Patches of 4 pixels after CLS and registers, as a DINOv2 has them."""

    def __init__(self, prefix):
        super().__init__()
        self.patches, self.norm, self.prefix = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8), prefix

    def forward(self, images):
        patches = self.patches(images).flatten(2).mT
        return self.norm(torch.cat([patches.new_zeros(len(images), self.prefix, 8), patches], dim=1))


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("size", "grid"),
    [((16, 16), None), ((16, 24), (4, 6)), ((16, 24), (16, 24)), ((18, 26), (18, 26)), ((8, 40), (2, 10))],
)
def test_tokens_of_a_transformer_become_the_map_of_its_patches(prefix, size, grid):
    model, images = Tokens(prefix), torch.rand(2, 3, *size)
    with FeatureTap(model, "norm", prefix_tokens=prefix, grid=grid) as tap:
        model(images)
    expected = model.norm(model.patches(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(tap.features, expected)
    with FeatureTap(model, "norm") as plain:
        model(images)
    torch.testing.assert_close(tokens_to_map(plain.features, grid, prefix_tokens=prefix), expected)
    assert plain.features.ndim == 3  # as they come, unless asked for
    assert tap.features.requires_grad


@pytest.mark.parametrize("ratio", [(518, 518), (518, 1036), (480, 640), (513, 1025), (224, 308), (112, 1120)])
@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("rounded", [lambda side, patch: side // patch, lambda side, patch: -(-side // patch)])
def test_the_grid_follows_from_the_size_of_the_image_whether_sides_are_cut_or_padded(ratio, patch, rounded):
    h, w = (rounded(side, patch) for side in ratio)
    assert tokens_to_map(torch.zeros(1, 1 + h * w, 2), ratio, prefix_tokens=1).shape == (1, 2, h, w)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (torch.zeros(2, 97, 8), {"grid": (64, 96)}, r"97 tokens, 97 after prefix_tokens=0: they fill no grid .* 64:96"),
        (
            torch.zeros(2, 97, 8),
            {"prefix_tokens": 1},
            "96 after prefix_tokens=1: they fill no grid .* 1:1 of grid=None",
        ),
        (torch.zeros(2, 3, 8), {"prefix_tokens": 5}, "-2 after prefix_tokens=5"),
        (
            torch.zeros(2, 8, 4, 4),
            {},
            r"tokens is of shape \(2, 8, 4, 4\): expected a tensor \(batch, tokens, channels\)",
        ),
        ([1], {}, "tokens is list: expected a tensor"),
    ],
)
def test_tokens_that_fill_no_grid_are_refused_with_the_way_out(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        tokens_to_map(tokens, **options)


def test_the_hint_for_tokens_counts_those_before_the_patches():
    tokens = torch.rand(2, 1 + 8 * 12, 32)
    module = APDLoss(8, 32, 3, width=8, weights={"pixel_kd": 0})
    maps = {"student_features": torch.rand(2, 8, 8, 12, requires_grad=True), "labels": torch.zeros(2, 64, 96).long()}
    with pytest.raises(
        ValueError, match=r"tokens\[:, prefix:\]\.mT\.unflatten\(2, \(h, w\)\), or by apd.tokens_to_map"
    ):
        module(**maps, teacher_features=tokens)
    by_hand, prefix = tokens[:, 1:].mT.unflatten(2, (8, 12)), 1
    torch.testing.assert_close(tokens_to_map(tokens, (64, 96), prefix_tokens=prefix), by_hand)
    assert module(**maps, teacher_features=by_hand)["loss"].isfinite()
