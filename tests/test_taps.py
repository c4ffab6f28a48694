import pytest
import torch
from torch import nn

from apd import FeatureTap


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
