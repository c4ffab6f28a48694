"""Segmentation networks: shapes, what flows where, refusals; deep-stem ResNets: sizes, dilation, ImageNet weights."""

import copy
import math
import re
from unittest import mock

import pytest
import timm
import torch
from released_networks import semseg_classifier
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from apd.models import build_segmenter
from apd.models.backbones import create_backbone, create_deep_resnet
from apd.models.segmenter import AtrousPooling, PyramidPooling

TINY = "test_efficientnet"
ONLY = "but only resnet18_deep, resnet50_deep, resnet101_deep take it"


def tiny(seed: int = 0, **choices):
    torch.manual_seed(seed)
    return build_segmenter(TINY, 5, **{"head_width": 16, "output_stride": 16, **choices})


def images(batch: int = 2, height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("backbone", "stride", "head"),
    [(TINY, 4, "psp"), (TINY, 16, "aspp"), (TINY, 8, "psp"), ("test_resnet", 8, "psp"), ("test_resnet", 16, "psp")],
)
@pytest.mark.parametrize("size", [(64, 96), (97, 65), (32, 33)])
def test_maps_have_the_wanted_stride_at_any_size(backbone, stride, head, size):
    model = build_segmenter(backbone, 5, head_width=16, output_stride=stride, head=head)
    grid = tuple(math.ceil(side / stride) for side in size)
    for mode in (True, False):
        logits, features, aux = model.train(mode)(images(2, *size))
        assert (logits.shape, features.shape) == ((2, 5, *grid), (2, 16, *grid))
        assert aux is None if not mode else aux.shape == (2, 5, *grid)
    assert model.feature_channels == 16


@pytest.mark.parametrize("backbone", ["mobilenetv2_050", "tf_efficientnet_lite0", "resnet18_deep"])
@pytest.mark.parametrize(("stride", "size"), [(16, (64, 96)), (8, (65, 90))])
def test_where_sides_fit_cells_lie_on_their_pixels_so_that_mirrored_kernels_give_the_mirrored_map(
    backbone, stride, size
):
    def asymmetry(shown, **options):
        torch.manual_seed(0)
        model = build_segmenter(backbone, 5, head_width=16, output_stride=stride, **options).eval()
        mirrored = copy.deepcopy(model)
        for conv in (part for part in mirrored.modules() if isinstance(part, nn.Conv2d)):
            conv.weight.data = conv.weight.data.flip(-1, -2)
        maps = model(shown).features, mirrored(shown.flip(-1, -2)).features.flip(-1, -2)
        return (F.mse_loss(*maps) / maps[0].var()).item(), maps[0].shape[2:]

    wrong, _ = asymmetry(images(2, *size))
    right, grid = asymmetry(images(2, *size), fit_sides=True)
    assert right < 1e-6 < 1e-2 < wrong
    assert grid == tuple(round((side - 1) / stride) + 1 for side in size)
    fitting = images(2, 65, 97)  # these sides fit already
    torch.manual_seed(0)
    plain, fitted = (tiny(output_stride=stride, fit_sides=fits).eval()(fitting).logits for fits in (False, True))
    torch.testing.assert_close(fitted, plain)


def norms_in_eval_mode(model):
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    return model


def test_logits_are_the_classifier_applied_to_the_features_which_are_taken_before_dropout():
    model = norms_in_eval_mode(tiny(dropout=0.5))
    first, second = model(images()), model(images())
    torch.testing.assert_close(first.features, second.features)
    assert not torch.allclose(first.logits, second.logits)
    assert not torch.allclose(first.aux, second.aux)
    logits, features, _ = model.eval()(images())
    weight, bias = model.classifier.weight[:, :, 0, 0], model.classifier.bias
    torch.testing.assert_close(logits, torch.einsum("bchw,kc->bkhw", features, weight) + bias[:, None, None])


@pytest.mark.parametrize("head", ["psp", "aspp"])
def test_both_losses_together_reach_every_parameter_and_the_auxiliary_one_not_the_last_stage(head):
    model = tiny(dropout=0.0, head=head)
    output = model(images(4))
    (output.logits.square().mean() + output.aux.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.zero_grad()
    model(images(4)).aux.square().mean().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {"backbone.conv_stem.weight", "aux_head.layers.0.weight"} <= reached
    last_stage = f"backbone.blocks.{len(model.backbone.blocks) - 1}."
    assert not any(name.startswith((last_stage, "head.", "classifier.")) for name in reached)


def test_images_are_normalised_with_the_networks_own_mean_and_std():
    seen = []
    model = build_segmenter("efficientnet_lite0", 5, head_width=8, output_stride=16).eval()
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    eight_bit = torch.tensor([0.0, 127.0, 255.0]).repeat(32, 11)[None, None].expand(1, 3, 32, 33)
    model(eight_bit / 255)
    torch.testing.assert_close(seen[0], (eight_bit - 127) / 128)


def test_dilations_of_the_atrous_pooling_stay_the_same_in_the_image():
    for choices, expected in (
        ({"output_stride": 8}, [1, 12, 24, 36]),
        ({"output_stride": 16}, [1, 6, 12, 18]),
        ({"output_stride": 4, "aspp_reach": 48}, [1, 4, 8, 12]),
    ):
        model = tiny(head="aspp", **choices)
        assert [branch[0].dilation[0] for branch in model.head.branches] == expected
        assert {branch[0].out_channels for branch in (*model.head.branches, model.head.image_pool)} == {16}


@pytest.mark.parametrize(
    ("name", "channels", "aux_channels"),
    [("mobilenetv2_100", 320, 96), ("mobilenetv2_050", 160, 48), ("efficientnet_b0", 320, 112)],
)
@pytest.mark.parametrize(("stride", "stages", "dilations"), [(8, (1, 2), [2, 4, 4]), (16, (1, 2, 3), [1, 2, 2])])
def test_small_students_give_the_maps_of_the_docstring(name, channels, aux_channels, stride, stages, dilations):
    backbone = create_backbone(name, output_stride=stride)
    assert (backbone.channels, backbone.aux_channels) == (channels, aux_channels)
    depthwise = {k: m for k, m in backbone.network.named_modules() if k.endswith("conv_dw")}
    strided = [name for name, conv in depthwise.items() if conv.stride == (2, 2)]
    assert strided == [f"blocks.{stage}.0.conv_dw" for stage in stages]
    last = [conv.dilation[0] for name, conv in depthwise.items() if name.startswith("blocks.5.")]
    assert last[:3] == dilations  # every block, where the released code has the first


def test_channels_last_gives_the_same_and_bfloat16_nearly_so_and_the_compiler_one_graph():
    model = tiny().eval()
    with torch.no_grad():
        plain = model(images()).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images()).logits, plain)
        last = model.to(memory_format=torch.channels_last)(images().contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last.logits, plain, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(images()).logits
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(half.float().flatten(), plain.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(1, 3, 31, 64), ValueError, "31×64 pixels, expected sides of at least 32"),
        (torch.zeros(1, 1, 64, 64), ValueError, r"shape \(1, 1, 64, 64\), expected \(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, r"torch.uint8, .* images.float\(\) / 255"),
        (torch.full((1, 3, 64, 64), 128.0), ValueError, r"from 128 to 128, expected \[0, 1\]"),
        (torch.full((1, 3, 64, 64), -1.0), ValueError, r"from -1 to -1, expected \[0, 1\]"),
        (torch.full((1, 3, 64, 64), math.nan), ValueError, r"from nan to nan, expected \[0, 1\]"),
    ],
)
def test_images_that_are_not_images_in_0_to_1_are_refused(bad, error, message):
    with pytest.raises(error, match=message):
        tiny().eval()(bad)


@pytest.mark.parametrize(
    ("backbone", "choices", "message"),
    [
        ("mobilnetv2_50", {}, "did you mean 'mobilenetv2_050'?"),
        (7, {}, "backbone: got 7"),
        (TINY, {"output_stride": 32}, "output_stride=32: expected one of 4, 8, 16"),
        (TINY, {"weights": "imgnet"}, "weights='imgnet': expected one of 'none', 'imagenet', 'torchvision'"),
        (TINY, {"head": "asp"}, "head: got 'asp', expected 'psp' or 'aspp'"),
        (TINY, {"head": "aspp", "aspp_reach": 23}, "aspp_reach: got 23, expected at least three times output_stride=8"),
        (TINY, {"num_classes": 1}, "num_classes: got 1, expected at least 2"),
        ("hrnet_w18_small", {}, "at output stride 8 (AssertionError: its strides are fixed, timm does not dilate it)"),
        ("resnet18", {"dilation": "all_convs"}, f"dilation: got 'all_convs' for backbone 'resnet18', {ONLY}"),
        ("resnet18_deep", {"dilation": "most"}, "dilation='most': expected one of 'one_conv', 'all_convs'"),
        ("resnet18_deep", {"weights": "torchvision"}, "whose stem torchvision does not have"),
        ("resnet18_deep", {"weights_file": "a.pth"}, "got 'a.pth' beside weights='none', expected 'imagenet'"),
        ("resnet18", {"weights": "imagenet", "weights_file": "a.pth"}, f"got 'a.pth' for backbone 'resnet18', {ONLY}"),
        ("resnet18_dep", {}, "did you mean 'resnet18_deep'?"),
    ],
)
def test_impossible_networks_are_refused_by_name(backbone, choices, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_segmenter(backbone, **{"num_classes": 5, **choices})


def test_a_network_whose_maps_are_not_what_it_declares_is_refused(monkeypatch):
    create = timm.create_model

    def without_dilation(name, **arguments):
        network = create(name, **{**arguments, "output_stride": 32})
        network.feature_info.info[-1]["reduction"] = arguments["output_stride"]
        return network

    monkeypatch.setattr(timm, "create_model", without_dilation)
    with pytest.raises(ValueError, match=r"gives a map of shape \(64, 2, 3\) .* expected \(64, 4, 6\)"):
        build_segmenter(TINY, 5, output_stride=16)


@pytest.mark.parametrize("head", [PyramidPooling(8, 4), AtrousPooling(8, 4)])
def test_a_training_batch_of_one_image_is_refused_unless_the_norms_are_in_eval_mode(head):
    maps = torch.rand(1, 8, 3, 4)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        head(maps)
    assert norms_in_eval_mode(head)(maps).shape == (1, 4, 3, 4)


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
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() for norm in norms), "a block starts as an identity"
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
        theirs = layout(timm.create_model(name.replace("_deep", "s"), **options))
        assert layout(create_deep_resnet(name, output_stride=stride, dilation="all_convs")) == theirs
        assert layout(create_deep_resnet(name, output_stride=stride, dilation="one_conv")) != theirs


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


def test_a_file_that_does_not_fit_is_refused_by_its_own_names_and_none_without_a_known_place_of_weights(tmp_path):
    file, start = tmp_path / "usual.pth", "for backbone 'resnet18_deep': "
    torch.save(semseg_classifier(18) | {"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    for path, message in (
        (str(file), rf"^weights_file {re.escape(str(file))} {start}1 tensor differs.*conv1\.weight is \(64, 3, 7, 7\)"),
        ("gone.pth", rf"^weights_file gone.pth {start}.*No such file"),
        ("", "no package and no hub is known to have them. Give a file as"),
    ):
        with pytest.raises(RuntimeError, match=message):
            create_backbone("resnet18_deep", weights="imagenet", weights_file=path)


@pytest.mark.parametrize(("name", "theirs"), [("resnet50_deep", "resnet50s"), ("resnet101_deep", "resnet101s")])
def test_the_larger_ones_take_timms_weights_of_the_same_network(monkeypatch, name, theirs):
    create = mock.Mock(side_effect=timm.create_model)
    monkeypatch.setattr("apd.models.pretrained.create_with_timm_weights", create)
    with torch.device("meta"):
        one, other = (create_backbone(name, weights=weights).network for weights in ("imagenet", "none"))
    assert [call.args for call in create.call_args_list] == [(theirs,)]
    assert timm.get_pretrained_cfg(theirs).has_weights
    assert layout(one) == layout(other)
