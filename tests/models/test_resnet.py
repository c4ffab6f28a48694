"""Deep-stem ResNets: the published sizes, both dilation rules, and where their ImageNet weights come from."""

import re
from unittest import mock

import pytest
import timm
import torch
from released_networks import semseg_classifier
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apd.models import build_segmenter
from apd.models.backbones import DEEP_RESNETS, create_backbone, create_deep_resnet

# million parameters and, by side of the image, billion multiply-adds of convolutions; 19 classes, no auxiliary head
PUBLISHED = {
    ("resnet18_deep", "psp"): (16.3, {713: 148.0, 473: 65.9}),
    ("resnet101_deep", "psp"): (65.7, {713: 517.2, 473: 230.1}),
    ("resnet18_deep", "aspp"): (30.7, {713: 264.7}),
    ("resnet101_deep", "aspp"): (84.9, {713: 697.6}),
}


@pytest.mark.parametrize(("backbone", "head"), PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(backbone, head):
    parameters, macs = PUBLISHED[backbone, head]
    with torch.device("meta"):  # shapes without numbers: no memory, no time
        model = build_segmenter(backbone, 19, head=head).eval()
        model.aux_head = None
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, rel=0.01)
        for side, billions in macs.items():
            with FlopCounterMode(display=False) as counter:
                assert model(torch.zeros(1, 3, side, side)).logits.shape[2:] == 2 * (side // 8 + 1,)
            assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=0.01)


def layout(network: nn.Module) -> list[tuple]:
    convs = ((name, conv) for name, conv in network.named_modules() if isinstance(conv, nn.Conv2d))
    return [(name, conv.stride, conv.dilation, conv.padding) for name, conv in convs]


@pytest.mark.parametrize(
    ("name", "stride", "rule", "expected"),
    [
        ("resnet18_deep", 8, "one_conv", [[2, 1], [2, 1], [4, 1], [4, 1]]),
        ("resnet18_deep", 8, "all_convs", [[1, 2], [2, 2], [2, 4], [4, 4]]),
        ("resnet18_deep", 16, "all_convs", [[1, 1], [1, 1], [1, 2], [2, 2]]),
        ("resnet18_deep", 4, "one_conv", [[4, 1], [4, 1], [8, 1], [8, 1]]),
        ("resnet50_deep", 8, "all_convs", [[1], *[[2]] * 5, [2], [4], [4]]),
    ],
)
def test_the_two_rules_dilate_what_they_say_and_maps_have_the_wanted_stride(name, stride, rule, expected):
    network = create_deep_resnet(name, output_stride=stride, dilation=rule)
    blocks = [block for stage in (network.layer3, network.layer4) for block in stage]
    threes = [[m for m in block.modules() if getattr(m, "kernel_size", None) == (3, 3)] for block in blocks]
    assert [[conv.dilation[0] for conv in convs] for convs in threes] == expected
    for size in ((65, 33), (64, 96)):
        grid = tuple(-(-side // stride) for side in size)
        wide = 1 if name == "resnet18_deep" else 4
        assert [m.shape for m in network(torch.rand(2, 3, *size))] == [(2, wide * c, *grid) for c in (256, 512)]


@pytest.mark.parametrize(("name", "stride"), [("resnet50_deep", 8), ("resnet50_deep", 16), ("resnet101_deep", 8)])
def test_dilating_all_convolutions_is_timms_rule_and_dilating_one_is_not(name, stride):
    options = {"features_only": True, "out_indices": (3, 4), "output_stride": stride}
    with torch.device("meta"):
        theirs = layout(timm.create_model(DEEP_RESNETS[name].relative, **options))
        assert layout(create_deep_resnet(name, output_stride=stride, dilation="all_convs")) == theirs
        assert layout(create_deep_resnet(name, output_stride=stride, dilation="one_conv")) != theirs


def test_no_block_starts_as_an_identity():
    network = create_deep_resnet("resnet18_deep")
    assert all((norm.weight == 1).all() for norm in network.modules() if isinstance(norm, nn.BatchNorm2d))


@pytest.mark.parametrize("depth", [18, 50])
def test_a_file_with_the_semseg_code_lines_names_fills_the_whole_network(tmp_path, depth):
    tensors = semseg_classifier(depth)
    torch.save({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "given.pth")
    network = create_backbone(f"resnet{depth}_deep", weights="imagenet", weights_file=tmp_path / "given.pth").network
    own = network.state_dict()
    assert torch.equal(own["conv1.3.weight"], tensors["conv2.weight"])
    assert torch.equal(own["bn1.running_var"], tensors["bn3.running_var"])
    filled = [key for key in own if not key.endswith("num_batches_tracked")]
    assert len(filled) == len(tensors) - 2  # all but the classifier
    values = {value.double().sum().item() for value in tensors.values()}
    assert all(own[key].double().sum().item() in values for key in filled)
    assert network.layer4[0].conv1.dilation == ((4, 4) if depth == 18 else (1, 1))


def test_a_file_that_does_not_fit_is_refused_by_its_own_names(tmp_path):
    file = tmp_path / "usual.pth"
    torch.save(semseg_classifier(18) | {"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    for path, message in (
        (file, r"1 tensor differs.*conv1\.weight is \(64, 3, 7, 7\)"),
        ("gone.pth", ".*No such file"),
    ):
        found = rf"^weights_file {re.escape(str(path))} for backbone 'resnet18_deep': {message}"
        with pytest.raises(RuntimeError, match=found):
            create_backbone("resnet18_deep", weights="imagenet", weights_file=str(path))


@pytest.mark.parametrize(("name", "theirs"), [("resnet50_deep", "resnet50s"), ("resnet101_deep", "resnet101s")])
def test_the_larger_ones_take_timms_weights_of_the_same_network(monkeypatch, name, theirs):
    create = mock.Mock(side_effect=timm.create_model)
    monkeypatch.setattr("apd.models.pretrained.create_with_timm_weights", create)
    with torch.device("meta"):
        one, other = (create_backbone(name, weights=weights).network for weights in ("imagenet", "none"))
    assert [call.args for call in create.call_args_list] == [(theirs,)]
    assert timm.get_pretrained_cfg(theirs).has_weights
    assert layout(one) == layout(other)
    shapes = [[(k, v.shape) for k, v in network.state_dict().items()] for network in (one, other)]
    assert shapes[0] == shapes[1]


ONLY = "but only resnet18_deep, resnet50_deep, resnet101_deep take it"


@pytest.mark.parametrize(
    ("backbone", "choices", "message"),
    [
        ("resnet18", {"dilation": "all_convs"}, f"dilation: got 'all_convs' for backbone 'resnet18', {ONLY}"),
        ("resnet18_deep", {"dilation": "most"}, "dilation: got 'most', expected 'one_conv' or 'all_convs'"),
        ("resnet18_deep", {"weights": "torchvision"}, "whose stem torchvision does not have"),
        ("resnet18_deep", {"weights_file": "a.pth"}, "got 'a.pth' beside weights='none', expected 'imagenet'"),
        ("resnet18", {"weights": "imagenet", "weights_file": "a.pth"}, f"got 'a.pth' for backbone 'resnet18', {ONLY}"),
        ("resnet18_dep", {}, "nearest: resnet18_deep"),
        ("resnet18_deep", {"weights": "imagenet"}, "no package and no hub is known to have them. Give a file as"),
    ],
)
def test_what_a_backbone_does_not_take_or_have_is_refused(backbone, choices, message):
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
        create_backbone(backbone, **choices)
