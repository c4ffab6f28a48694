"""Deep-stem ResNets: the published sizes, both dilation rules, and where their ImageNet weights come from."""

import itertools

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apd.models import build_segmenter
from apd.models.backbones import create_backbone
from apd.models.resnet import DEEP_RESNETS, create_deep_resnet, dilate

# million parameters and, by side of the picture, billion multiply-adds of convolutions; 19 classes, no auxiliary head
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


def layout(network: nn.Module) -> list[tuple[str, tuple[int, int], tuple[int, int], tuple[int, int]]]:
    return [
        (name, conv.stride, conv.dilation, conv.padding)
        for name, conv in network.named_modules()
        if isinstance(conv, nn.Conv2d)
    ]


def dilations(name: str, stride: int, rule: str) -> list[list[int]]:
    """Of the 3×3 convolutions of each block of layer3 and layer4, block after block."""
    network = create_deep_resnet(name, output_stride=stride, dilation=rule)
    return [
        [conv.dilation[0] for conv in block.modules() if getattr(conv, "kernel_size", None) == (3, 3)
         and isinstance(conv, nn.Conv2d)]
        for stage in (network.layer3, network.layer4)
        for block in stage
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "stride", "rule", "expected"),
    [
        ("resnet18_deep", 8, "one_conv", [[2, 1], [2, 1], [4, 1], [4, 1]]),
        ("resnet18_deep", 8, "all_convs", [[1, 2], [2, 2], [2, 4], [4, 4]]),
        ("resnet18_deep", 16, "one_conv", [[1, 1], [1, 1], [2, 1], [2, 1]]),
        ("resnet18_deep", 16, "all_convs", [[1, 1], [1, 1], [1, 2], [2, 2]]),
        ("resnet18_deep", 4, "one_conv", [[4, 1], [4, 1], [8, 1], [8, 1]]),
        ("resnet18_deep", 4, "all_convs", [[2, 4], [4, 4], [4, 8], [8, 8]]),
        ("resnet50_deep", 8, "one_conv", [*[[2]] * 6, [4], [4], [4]]),
        ("resnet50_deep", 8, "all_convs", [[1], *[[2]] * 5, [2], [4], [4]]),
    ],
)
def test_the_two_rules_dilate_what_they_say(name, stride, rule, expected):
    assert dilations(name, stride, rule) == expected


@pytest.mark.parametrize(("name", "stride"), [*itertools.product(["resnet50_deep", "resnet101_deep"], [8, 16])])
def test_dilating_all_convolutions_is_timms_rule_and_dilating_one_is_not(name, stride):
    with torch.device("meta"):
        theirs = timm.create_model(
            DEEP_RESNETS[name].relative, features_only=True, out_indices=(3, 4), output_stride=stride
        )
        assert layout(create_deep_resnet(name, output_stride=stride, dilation="all_convs")) == layout(theirs)
        assert layout(create_deep_resnet(name, output_stride=stride, dilation="one_conv")) != layout(theirs)


@pytest.mark.parametrize(("stride", "rule"), [*itertools.product([4, 8, 16], ["one_conv", "all_convs"])])
@pytest.mark.parametrize("size", [(65, 33), (64, 96)])
def test_maps_have_the_wanted_stride(stride, rule, size):
    early, late = create_deep_resnet("resnet18_deep", output_stride=stride, dilation=rule)(torch.rand(2, 3, *size))
    grid = tuple(-(-side // stride) for side in size)
    assert early.shape == (2, 256, *grid)
    assert late.shape == (2, 512, *grid)


def test_the_stem_is_three_convolutions_of_64_64_and_128_channels_and_no_block_starts_as_an_identity():
    network = create_deep_resnet("resnet18_deep")
    stem = [m for m in (*network.conv1, network.bn1) if isinstance(m, nn.Conv2d)]
    assert [tuple(conv.weight.shape) for conv in stem] == [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)]
    assert [conv.stride[0] for conv in stem] == [2, 1, 1]
    assert all((norm.weight == 1).all() for norm in network.modules() if isinstance(norm, nn.BatchNorm2d))


def semseg_classifier(name: str) -> dict[str, torch.Tensor]:
    """An ImageNet classifier with the semseg code line's names, of random values."""
    generator = torch.Generator().manual_seed(3)
    expansion = 1 if name == "resnet18_deep" else 4
    shapes, inner = {}, 128
    for number, (channels, inputs) in enumerate(((64, 3), (64, 64), (128, 64)), start=1):
        shapes |= {f"conv{number}": (channels, inputs, 3, 3), f"bn{number}": (channels,)}
    for stage, blocks in enumerate(DEEP_RESNETS[name].blocks, start=1):
        width = 32 * 2**stage
        for block in range(blocks):
            where = f"layer{stage}.{block}"
            sizes = [(width, inner, 3), (width, width, 3)] if expansion == 1 else None
            sizes = sizes or [(width, inner, 1), (width, width, 3), (4 * width, width, 1)]
            for number, (channels, inputs, side) in enumerate(sizes, start=1):
                shapes |= {f"{where}.conv{number}": (channels, inputs, side, side), f"{where}.bn{number}": (channels,)}
            if block == 0 and (stage > 1 or inner != expansion * width):
                down = expansion * width
                shapes |= {f"{where}.downsample.0": (down, inner, 1, 1), f"{where}.downsample.1": (down,)}
            inner = expansion * width
    tensors = {}
    for where, shape in shapes.items():
        leaves = ("weight", "bias", "running_mean", "running_var") if len(shape) == 1 else ("weight",)
        tensors |= {f"{where}.{leaf}": torch.rand(shape, generator=generator) for leaf in leaves}
    fc = {"fc.weight": torch.rand(1000, inner, generator=generator), "fc.bias": torch.zeros(1000)}
    return tensors | fc


@pytest.mark.parametrize("name", ["resnet18_deep", "resnet50_deep"])
def test_a_file_with_the_semseg_code_lines_names_fills_the_whole_network(tmp_path, name):
    tensors = semseg_classifier(name)
    torch.save({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "given.pth")
    network = create_backbone(name, weights="imagenet", weights_file=tmp_path / "given.pth").network
    own = network.state_dict()
    assert torch.equal(own["conv1.3.weight"], tensors["conv2.weight"])
    assert torch.equal(own["bn1.running_var"], tensors["bn3.running_var"])
    filled = [key for key in own if not key.endswith("num_batches_tracked")]
    assert len(filled) == len(tensors) - 2  # all but the classifier
    values = {value.double().sum().item() for value in tensors.values()}
    assert all(own[key].double().sum().item() in values for key in filled)
    assert network.layer4[0].conv1.dilation == ((4, 4) if name == "resnet18_deep" else (1, 1))


def test_a_file_that_does_not_fit_is_refused_by_its_own_names(tmp_path):
    tensors = semseg_classifier("resnet18_deep")
    tensors["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    torch.save(tensors, tmp_path / "usual.pth")
    with pytest.raises(RuntimeError) as caught:
        create_backbone("resnet18_deep", weights="imagenet", weights_file=str(tmp_path / "usual.pth"))
    message = str(caught.value)
    assert message.startswith(f"weights_file {tmp_path / 'usual.pth'} for backbone 'resnet18_deep': 1 tensor differs")
    assert "conv1.weight is (64, 3, 7, 7), expected (64, 3, 3, 3)" in message
    with pytest.raises(RuntimeError, match=r"weights_file gone\.pth for backbone 'resnet18_deep': .*No such file"):
        create_backbone("resnet18_deep", weights="imagenet", weights_file="gone.pth")


def test_where_no_weights_are_known_the_error_says_which_file_fits_and_how_to_give_it():
    with pytest.raises(RuntimeError) as caught:
        build_segmenter("resnet18_deep", 5, weights="imagenet")
    message = str(caught.value)
    assert "weights='imagenet' for backbone 'resnet18_deep': no package and no hub is known to have them" in message
    assert "Give a file as weights_file" in message
    assert "resnet18-imagenet.pth" in message
    assert "weights='none'" in message


def test_the_larger_ones_take_timms_weights_of_the_same_network(monkeypatch):
    asked = []

    def create(name, **arguments):
        asked.append(name)
        return timm.create_model(name, **arguments)

    monkeypatch.setattr("apd.models.resnet.create_with_timm_weights", create)
    with torch.device("meta"):
        trained = [create_backbone(name, weights="imagenet").network for name in ("resnet50_deep", "resnet101_deep")]
        random = [create_backbone(name).network for name in ("resnet50_deep", "resnet101_deep")]
    assert asked == ["resnet50s", "resnet101s"]
    assert all(timm.get_pretrained_cfg(name).has_weights for name in asked)
    for one, other in zip(trained, random, strict=True):
        assert layout(one) == layout(other)
        assert [(k, v.shape) for k, v in one.state_dict().items()] == [
            (k, v.shape) for k, v in other.state_dict().items()
        ]


@pytest.mark.parametrize(
    ("backbone", "choices", "message"),
    [
        (
            "resnet18",
            {"dilation": "all_convs"},
            "dilation: got 'all_convs' for backbone 'resnet18', but only resnet18_deep",
        ),
        ("resnet18_deep", {"dilation": "most"}, "dilation: got 'most', expected 'one_conv' or 'all_convs'"),
        ("resnet18_deep", {"weights": "torchvision"}, "whose stem torchvision does not have"),
        (
            "resnet18_deep",
            {"weights_file": "a.pth"},
            r"weights_file: got 'a\.pth' beside weights='none', expected 'imagenet'",
        ),
        (
            "efficientnet_lite0",
            {"weights": "imagenet", "weights_file": "a.pth"},
            r"weights_file: got 'a\.pth' for backbone 'efficientnet_lite0', but only resnet18_deep, .* take it",
        ),
        ("resnet18_dep", {}, "nearest: resnet18_deep"),
    ],
)
def test_options_that_a_backbone_does_not_take_are_refused(backbone, choices, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(backbone, **choices)


def test_a_network_that_keeps_its_strides_is_left_as_it_was():
    with torch.device("meta"):
        plain = timm.create_model("resnet50s", features_only=True)
        before = layout(plain)
        dilate(plain, 32)
    assert layout(plain) == before
