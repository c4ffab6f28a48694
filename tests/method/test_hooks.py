"""Features of any module of any model: tapped, copied, compiled, checkpointed, tokens as maps."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from apd import APDLoss, FeatureTap, tokens_to_map

IMAGES = torch.rand(2, 3, 4, 6)
COPIES = {
    "copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ReLU())
        self.classifier = nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.classifier(self.body(images))


def test_the_tap_holds_the_modules_last_output_with_its_graph_and_is_gone_after_the_block():
    model = Small()
    with FeatureTap(model, "body") as tap:
        model(torch.zeros(1, 3, 2, 2))
        logits = model(IMAGES)
    seen = tap.features
    torch.testing.assert_close(model.classifier(seen), logits)
    seen.sum().backward()
    assert model.body[0].weight.grad is not None
    model(IMAGES)
    assert tap.features is seen
    with pytest.raises(RuntimeError, match="channels"), tap:
        model(torch.zeros(1, 9, 2, 2))
    with tap, pytest.raises(RuntimeError, match="has not run: call the model inside"):
        _ = tap.features  # an earlier output is forgotten
    assert "forward" not in model.body.__dict__
    for quiet in (torch.no_grad, torch.inference_mode):  # a frozen teacher
        with tap, quiet():
            model(IMAGES)
            assert not tap.features.requires_grad


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_cannot_be_tapped_is_refused_with_the_true_reason():
    model, lstm = Small().eval(), nn.Sequential(nn.LSTM(2, 2))
    with pytest.raises(ValueError, match=r"Small has no module 'clasifier'.*\['classifier'"):
        FeatureTap(model, "clasifier")
    with pytest.raises(ValueError, match="has no module ''"):
        FeatureTap(model, "")
    with FeatureTap(lstm, "0"), pytest.raises(TypeError, match=r"'0' \(LSTM\) returned a tuple"):
        lstm(torch.zeros(1, 1, 2))
    for scripted in (torch.jit.trace(model, IMAGES), torch.jit.script(model)):
        for outer, path in ((scripted, "body"), (nn.Sequential(scripted), "0")):
            with pytest.raises(TypeError, match=f"'{path}' is TorchScript, which runs outside Python"):
                FeatureTap(outer, path)
    exported = torch.export.export(model, (IMAGES,)).module()
    with FeatureTap(exported, "body") as tap:
        exported(IMAGES)
        with pytest.raises(RuntimeError, match=r"'body' has not run: .* never calls, as in an exported or fused model"):
            _ = tap.features


def test_an_output_changed_in_place_by_a_later_module_is_an_error_and_not_a_wrong_number():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    with FeatureTap(model, "1") as tap:
        model(IMAGES)
        with pytest.raises(RuntimeError, match="'1' was changed in place"):
            _ = tap.features
    torch.compiler.reset()
    with FeatureTap(model.eval(), "1") as tap:  # compiled code hands out what the module returned
        torch.compile(model, backend="aot_eager", fullgraph=True)(IMAGES)
    torch.testing.assert_close(tap.features, model[1](model[0](IMAGES)))


@pytest.mark.parametrize("path", ["", "body"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_inside_the_block_is_a_model_of_its_own_that_feeds_no_tap(how, path):
    model = Small()
    with FeatureTap(model, "body") as tap:
        model(IMAGES)
        seen, original = tap.features, model.get_submodule(path)
        twin = COPIES[how](original)
        assert set(twin.state_dict()) == set(original.state_dict())
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        with FeatureTap(twin, "0" if path else "body") as other:
            result = twin(IMAGES)
        assert tap.features is seen
        torch.testing.assert_close((twin[1:] if path else twin.classifier)(other.features), result)
        assert not torch.equal(result, original(IMAGES))  # the copy's own weights, run its way
    assert "forward" not in model.body.__dict__


def test_a_copied_tap_is_a_closed_one_of_the_copied_model():
    whole = nn.Module()
    whole.student = Small()
    whole.tap = FeatureTap(whole.student, "body").open()
    whole.student(IMAGES)
    twin = copy.deepcopy(whole)
    with pytest.raises(RuntimeError, match="'body' has not run: the tap is closed: open it"):
        _ = twin.tap.features
    with twin.tap:
        twin.student(IMAGES)
        torch.testing.assert_close(twin.tap.features, whole.tap.features)
        assert twin.tap.features is not whole.tap.features


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_several_taps_of_one_module_are_closed_in_any_order(order):
    model = Small()
    taps = [FeatureTap(model, "body").open() for _ in order]
    with pytest.raises(RuntimeError, match="the tap of 'body' is open already"):
        taps[0].open()
    for place, closed in enumerate(order):
        model(IMAGES)
        features = {id(taps[still].features) for still in order[place:]}
        assert len(features) == 1
        taps[closed].close()
        taps[closed].close()
        model(IMAGES)
        assert id(taps[closed].features) in features
        assert not any(id(taps[still].features) in features for still in order[place + 1 :])
    assert "forward" not in model.body.__dict__


def test_a_forward_that_somebody_wrapped_before_or_meanwhile_stays_wrapped():
    model, calls = Small(), []

    def wrap():
        before = model.body.forward
        model.body.forward = lambda *args: calls.append(1) or before(*args)
        return model.body.forward

    first = wrap()
    with FeatureTap(model, "body") as tap:
        model(IMAGES)
        assert (len(calls), tap.features.shape) == (1, (2, 4, 2, 3))
    assert model.body.forward is first
    with tap:
        outer = wrap()
        model(IMAGES)
        seen = tap.features
    assert model.body.forward is outer
    model(IMAGES)
    assert (len(calls), tap.features is seen) == (5, True)


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("when", ["before, and run", "before", "after", "in place", "a part"])
@pytest.mark.parametrize("which", ["model", "compiled"])
def test_a_compiled_model_is_tapped_whenever_it_was_compiled(fullgraph, when, which):
    torch.compiler.reset()
    model, options = Small(), {"fullgraph": fullgraph, "backend": "aot_eager"}
    body = model.body
    compiled = torch.compile(model, **options) if when.startswith("before") else model
    if when == "in place":
        model.compile(**options)
    if when == "a part":
        model.body = torch.compile(body, **options)
    if when.endswith("run"):
        compiled(IMAGES)
    with FeatureTap(model if which == "model" else compiled, "body") as tap:
        if when == "after":
            compiled = torch.compile(model, **options)
        for other in (Small(), torch.compile(Small(), **options)):  # of the same class, and not tapped
            compiled(IMAGES)
            other(IMAGES)
            torch.testing.assert_close(tap.features, nn.Sequential.forward(body, IMAGES))
        tap.features.sum().backward()
        assert body[0].weight.grad.any()
    seen = tap.features
    with FeatureTap(model, "body") as second:
        compiled(IMAGES)
        assert second.features is not seen
        assert tap.features is seen


class Checkpointed(Small):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.reentrant = nn.Conv2d(3, 3, 1), reentrant

    def forward(self, images):
        return self.classifier(checkpoint(self.body, self.stem(images), use_reentrant=self.reentrant))


def test_checkpointing_that_is_not_reentrant_is_tapped_and_trains_once():
    model, plain = Checkpointed(reentrant=False), Small()
    plain.load_state_dict(model.state_dict(), strict=False)
    with FeatureTap(model, "body") as tap:
        logits = model(IMAGES)
        features = tap.features
        (logits.sum() + features.square().sum()).backward()
        assert tap.features is features  # what the backward pass computed again does not count
    whole = plain.body(model.stem(IMAGES))
    (plain.classifier(whole).sum() + whole.square().sum()).backward()
    torch.testing.assert_close(model.body[0].weight.grad, plain.body[0].weight.grad)


def test_features_inside_reentrant_checkpointing_have_no_gradient_and_a_distiller_refuses_them():
    model = Checkpointed(reentrant=True)
    with FeatureTap(model, "body.0") as tap, FeatureTap(model, "stem") as outside:
        logits = model(IMAGES)
        assert outside.features.requires_grad
        maps = {"student_features": tap.features, "teacher_features": tap.features, "labels": IMAGES[:, 0].long()}
        with pytest.raises(ValueError, match=r"inside torch.utils.checkpoint \(needs use_reentrant=False"):
            APDLoss(4, 4, 2, weights={"pixel_kd": 0})(**maps)
        logits.sum().backward()
        assert tap.features is maps["student_features"]


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize(("size", "grid"), [((4, 4), None), ((4, 6), (4, 6)), ((4, 6), (18, 26)), ((2, 10), (8, 40))])
def test_tokens_of_a_transformer_become_the_map_of_its_patches(prefix, size, grid):
    expected = torch.rand(2, 8, *size)
    tokens, model = torch.cat([torch.zeros(2, prefix, 8), expected.flatten(2).mT], dim=1), nn.Sequential(nn.Identity())
    with FeatureTap(model, "0", prefix_tokens=prefix, grid=grid) as tap, FeatureTap(model, "0") as plain:
        model(tokens)
    assert torch.equal(tap.features, expected)
    assert torch.equal(plain.features, tokens)  # as they come, unless asked for


def test_the_grid_follows_from_the_size_of_the_image_whether_sides_are_cut_or_padded():
    for ratio in ((518, 518), (518, 1036), (480, 640), (513, 1025), (224, 308), (112, 1120), (480, 320), (66, 640)):
        for rule in (lambda s: s // 14, lambda s: -(-s // 14), lambda s: s // 16, lambda s: -(-s // 32)):
            h, w = map(rule, ratio)
            assert tokens_to_map(torch.zeros(1, 1 + h * w, 2), ratio, prefix_tokens=1).shape == (1, 2, h, w)


def test_tokens_that_fill_no_grid_are_refused_with_the_way_out():
    for shape, prefix, message in (
        ((2, 97, 8), 1, "97 tokens, 96 after prefix_tokens=1: they fill no grid .* 1:1 of grid=N"),
        ((2, 42, 8), 0, "they fill no grid .* 1:1 of grid=N"),  # of 6×7 or of 7×6
        ((2, 3, 8), 5, "-2 after prefix_tokens=5"),
        ((2, 16, 8), -1, "17 after prefix_tokens=-1"),
        ((2, 8, 4, 4), 0, r"tokens is of shape \(2, 8, 4, 4\): expected a tensor \(batch, tokens, channels\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tokens_to_map(torch.zeros(shape), prefix_tokens=prefix)
    with pytest.raises(ValueError, match=r"grid=14: expected \(height, width\)"):
        tokens_to_map(torch.zeros(2, 16, 8), 14)
